"""Takes an uploaded zip of images: each member decoded once, all or nothing stored, its paths indexed."""

import errno
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from django.core.files.uploadedfile import TemporaryUploadedFile
from django.db import transaction

from datasets_app.archive_members import ArchiveReport, MemberRefusedError, declared_size, members_of, opened, unpacked
from datasets_app.archive_paths import batches, path_key
from datasets_app.image_cache import check_image, holds, image_path
from datasets_app.image_refusals import ImageRefusedError
from datasets_app.models import Dataset, ImageArchiveEntry
from datasets_app.uploads import disk_full
from ftproject.core.errors import ConflictError, InvalidInputError
from ftproject.core.storage import images_dir, partial_path

INSERT_BATCH = 500


def images_upload(*, dataset: Dataset, file: TemporaryUploadedFile) -> ArchiveReport:
    """Adds the images of an uploaded zip to those of the dataset; a refused or failed upload changes nothing."""
    report = ArchiveReport()
    try:
        with Path(file.temporary_file_path()).open("rb") as stream, opened(stream) as archive, staging() as folder:
            if shutil.disk_usage(folder).free < declared_size(archive):
                raise disk_full()
            digests = stage(archive, members_of(archive, report), folder, report)
            if not digests:
                raise without_images(report)
            publish_images(folder)
            store_index(dataset, digests)
    except OSError as exc:
        if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise disk_full() from None
        raise
    return report


@contextmanager
def staging() -> Iterator[Path]:
    """A folder beside the cache; what a killed process leaves in it is swept at a later start."""
    folder = partial_path(images_dir() / "archive")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def stage(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], folder: Path, report: ArchiveReport
) -> dict[str, str]:
    """Path -> digest of each image; new ones lie in the folder, decoded once and named by their contents."""
    digests: dict[str, str] = {}
    for path, member in members.items():
        try:
            digests[path] = stage_member(archive, member, folder)
        except (MemberRefusedError, ImageRefusedError) as exc:
            report.refuse(path, exc.code, exc.message)
    report.stored = len(digests)
    return digests


def stage_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> str:
    data = unpacked(archive, member)
    digest = sha256(data).hexdigest()
    if not holds(image_path(digest), data) and not (folder / digest).exists():
        check_image(data)
        (folder / digest).write_bytes(data)
    return digest


def publish_images(folder: Path) -> None:
    for staged in folder.iterdir():
        target = image_path(staged.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        staged.replace(target)


def store_index(dataset: Dataset, digests: dict[str, str]) -> None:
    """All paths or none; a path that was there before leads to the new image."""
    top = common_folder(list(digests))
    entries = (
        ImageArchiveEntry(
            dataset_id=dataset.pk,
            path=path,
            key=path_key(path),
            short_key=path_key(path.removeprefix(top)) if top else "",
            digest=digest,
        )
        for path, digest in digests.items()
    )
    with transaction.atomic():
        if not Dataset.objects.filter(pk=dataset.pk).exists():
            raise ConflictError("The dataset was just deleted.", code="dataset_deleted", hint="Upload it again.")
        for batch in batches(entries, INSERT_BATCH):
            ImageArchiveEntry.objects.bulk_create(
                batch,
                update_conflicts=True,
                unique_fields=["dataset", "key"],
                update_fields=["path", "short_key", "digest"],
            )


def common_folder(paths: list[str]) -> str:
    """The top folder that every path stands in, with its slash; empty when there is none."""
    tops = {path.partition("/")[0] if "/" in path else "" for path in paths}
    top = tops.pop() if len(tops) == 1 else ""
    return f"{top}/" if top else ""


def without_images(report: ArchiveReport) -> InvalidInputError:
    reasons = Counter(problem.code for problem in report.errors).most_common(3)
    why = ", ".join(f"{count} x {code}" for code, count in reasons) or "it is empty"
    return InvalidInputError(
        f"The archive holds no image that can be used: {why}.",
        code="archive_without_images",
        hint="PNG, JPEG, WebP, GIF and BMP files are taken, in any folders.",
        errors=report.errors,
    )
