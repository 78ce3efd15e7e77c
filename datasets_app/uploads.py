"""Takes a multipart upload: streamed to the data directory, counted, and refused before it fills the disk."""

import errno
import shutil
from collections.abc import Collection, Mapping
from typing import IO, Any

from django.conf import settings
from django.core.files.uploadedfile import TemporaryUploadedFile
from django.core.files.uploadhandler import TemporaryFileUploadHandler
from rest_framework.parsers import DataAndFiles, MultiPartParser
from rest_framework.request import Request

from datasets_app.ingestion.table import FREE_RESERVE
from ftproject.core.errors import InvalidInputError, TooLargeError, UnavailableError, did_you_mean

# Boundaries and headers of the form around the file.
FORM_OVERHEAD = 64 * 1024
CHECK_BYTES = 16 * 1024 * 1024
UPLOAD_HINT = 'Send it as multipart/form-data: curl -F "file=@data.csv".'


class CountedUploadHandler(TemporaryFileUploadHandler):
    """Django's handler for files on disk, with a limit that holds before and during the transfer."""

    received = 0

    def handle_raw_input(
        self,
        input_data: Any,
        META: dict[str, Any],  # noqa: N803
        content_length: int,
        boundary: str,
        encoding: str | None = None,
    ) -> None:
        if content_length > upload_limit() + FORM_OVERHEAD:
            raise too_large()
        self._leave_space(2 * content_length)  # the upload, and its table beside it

    def _leave_space(self, needed: int = 0) -> None:
        if shutil.disk_usage(settings.FILE_UPLOAD_TEMP_DIR).free < needed + FREE_RESERVE:
            raise disk_full()

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        before, self.received = self.received, self.received + len(raw_data)
        if self.received > upload_limit():
            raise too_large()
        # Others may be uploading too: what was free at the start need not be free now.
        if self.received // CHECK_BYTES != before // CHECK_BYTES:
            self._leave_space()
        try:
            super().receive_data_chunk(raw_data, start)
        except OSError as exc:
            if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise disk_full() from None
            raise


class UploadParser(MultiPartParser):
    """DRF's multipart parser with the counted handler alone: Django's in-memory one would not stream."""

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> "DataAndFiles[Any, Any]":
        request = (parser_context or {})["request"]
        handler = CountedUploadHandler(request._request)
        request._request.upload_handlers = [handler]
        try:
            return super().parse(stream, media_type, parser_context)
        except Exception:
            # Django leaves the half file to the garbage collector, which a traceback can keep waiting.
            handler.upload_interrupted()
            raise


def uploaded_file(request: Request, *, beside: Collection[str] = ()) -> TemporaryUploadedFile:
    """The one file of the form, in the field `file`; `beside` it stand texts only."""
    fields = [*request.FILES, *(name for name in request.data if name not in request.FILES)]
    wrong = [name for name in fields if name != "file" and (name not in beside or name in request.FILES)]
    if wrong:
        hint = f"{did_you_mean(wrong[0], ['file', *beside])} {UPLOAD_HINT}"
        raise InvalidInputError(f"Unknown form field {wrong[0]!r}.", code="unknown_field", hint=hint)
    files = request.FILES.getlist("file")
    if len(files) != 1:
        detail = "The form holds more than one file." if files else "The form field 'file' holds no file."
        raise InvalidInputError(detail, code="too_many_files" if files else "missing_file", hint=UPLOAD_HINT)
    file: TemporaryUploadedFile = files[0]
    return file


def upload_limit() -> int:
    return int(settings.MAX_UPLOAD_MB) * 1024 * 1024


def too_large() -> TooLargeError:
    detail = f"The upload is larger than {settings.MAX_UPLOAD_MB} MB."
    return TooLargeError(detail, hint="Upload a part of the rows, or raise QWEN3VL_MAX_UPLOAD_MB.")


def disk_full() -> UnavailableError:
    detail = "There is not enough free space for this upload; the current dataset is as it was."
    return UnavailableError(detail, code="disk_full", hint="Free space in the data directory.")
