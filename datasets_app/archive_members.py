"""Looks into a zip archive without trusting it: what is too much, what is no file, and the bytes of one member."""

import stat
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO

from django.conf import settings

from datasets_app.archive_paths import MAX_PATH, normalised_path
from ftproject.core.errors import InvalidInputError, Problem, ProductError, TooLargeError, UnsupportedFormatError

MAX_MEMBERS = 100_000
# zipfile reads the whole directory at once; 100,000 members of usual names take 12 MB.
MAX_DIRECTORY_BYTES = 16 * 1024 * 1024
# Deflate reaches 1032 : 1 on zeros; an image format has done its own compressing. Small plain BMPs may pass.
MAX_RATIO = 200
RATIO_FREE_BYTES = 1024 * 1024
SHOWN_ERRORS = 100
SHOWN_NAME = 200
# bzip2 and LZMA members cannot be unpacked piece by piece within a bound.
METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst"})
# What operating systems add to archives by themselves.
LITTER = frozenset({".ds_store", "thumbs.db", "desktop.ini"})
ENCRYPTED, UTF8 = 0x1, 0x800
PACK_IMAGES = "Pack the images: zip -r images.zip folder."
SEVERAL = "Upload several archives, one after the other."


@dataclass
class ArchiveReport:
    """What became of each member; `errors` holds the first SHOWN_ERRORS of `num_refused`."""

    stored: int = 0
    refused: int = 0
    ignored: int = 0
    nested_archives: int = 0
    errors: list[Problem] = field(default_factory=list)

    def refuse(self, name: str, code: str, message: str) -> None:
        self.refused += 1
        if len(self.errors) < SHOWN_ERRORS:
            shown = name if len(name) <= SHOWN_NAME else f"{name[:SHOWN_NAME]}…"
            self.errors.append(Problem(code, message, field=shown))


class MemberRefusedError(Exception):
    """One member that cannot be taken; the others may be."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class BoundedFile:
    """What ZipFile reads from: a directory of gigabytes, which it would read in one piece, is refused."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY_BYTES:
            raise TooLargeError(
                f"The directory of the archive is larger than {MAX_DIRECTORY_BYTES // 2**20} MB.",
                hint=f"At most {MAX_MEMBERS:,} images an archive: upload several archives, one after the other.",
            )
        return self.stream.read(size)

    def seekable(self) -> bool:
        return True


@contextmanager
def opened(stream: IO[bytes], *, how_to_pack: str = PACK_IMAGES) -> Iterator[zipfile.ZipFile]:
    head = stream.read(4)
    stream.seek(0)
    try:
        archive = zipfile.ZipFile(BoundedFile(stream))
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as exc:
        raise no_zip(head, exc, how_to_pack) from None
    with archive:
        yield archive


def no_zip(head: bytes, reason: Exception, how_to_pack: str) -> ProductError:
    if head.startswith(b"PK"):
        detail = f"The archive is damaged or cut off: {reason}."
        return InvalidInputError(detail, code="archive_damaged", hint="Make the zip again and check it: unzip -t.")
    return UnsupportedFormatError(
        "The file is not a zip archive.",
        code="unsupported_file_type",
        hint=how_to_pack,
    )


def declared_size(archive: zipfile.ZipFile) -> int:
    """Bytes of all members, before one is unpacked: unpacking ends at the declared size. 413 when it is too much."""
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        detail = f"The archive has {len(members):,} members, more than {MAX_MEMBERS:,}."
        raise TooLargeError(detail, hint=SEVERAL)
    total = sum(member.file_size for member in members)
    if total > 2 * settings.MAX_UPLOAD_MB * 2**20:
        detail = f"The archive unpacks to {total // 2**20:,} MB, more than {2 * settings.MAX_UPLOAD_MB:,} MB."
        raise TooLargeError(detail, code="archive_too_large", hint=SEVERAL)
    return total


def members_of(archive: zipfile.ZipFile, report: ArchiveReport) -> dict[str, zipfile.ZipInfo]:
    """Path -> member of everything that may be an image; the rest is refused or counted in the report."""
    named: dict[str, list[zipfile.ZipInfo]] = defaultdict(list)
    for member in archive.infolist():
        name = member_name(member)
        path = normalised_path(name)
        if member.is_dir() or is_litter(path):
            report.ignored += not member.is_dir()
        elif PurePosixPath(path).suffix.lower() in ARCHIVES:
            report.nested_archives += 1
        elif refusal := refusal_of_member(member, name, path):
            report.refuse(name, *refusal)
        else:
            named[path].append(member)
    return dict(unambiguous(named, report))


def unambiguous(
    named: dict[str, list[zipfile.ZipInfo]], report: ArchiveReport
) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """A name that stands there twice with different contents could mean either: it is refused, not guessed."""
    for path, members in named.items():
        if len({(member.CRC, member.file_size) for member in members}) == 1:
            yield path, members[0]
            report.ignored += len(members) - 1
        else:
            for _ in members:
                report.refuse(path, "member_duplicate", "this path stands in the archive with different contents")


def member_name(member: zipfile.ZipInfo) -> str:
    """The whole name: zipfile cuts it at a NUL, and reads unmarked UTF-8 (macOS) as the code page of DOS."""
    name = member.orig_filename
    if not member.flag_bits & UTF8:
        try:
            return name.encode("cp437").decode("utf-8")
        except UnicodeError:
            pass
    return name


def is_litter(path: str) -> bool:
    parts = path.lower().split("/")
    return parts[0] == "__macosx" or parts[-1] in LITTER


def refusal_of_member(member: zipfile.ZipInfo, name: str, path: str) -> tuple[str, str] | None:
    """Code and message when a member is not even unpacked."""
    kind = stat.S_IFMT(member.external_attr >> 16)
    parts = path.split("/")
    rules = [
        (len(name) > MAX_PATH, "member_name_too_long", f"the path is longer than {MAX_PATH} characters"),
        ("\0" in name, "member_path_refused", "the path holds a NUL"),
        (not path, "member_path_refused", "the member has no name"),
        (path.startswith("/") or parts[0].endswith(":"), "member_path_refused", "the path is absolute"),
        (".." in parts, "member_path_refused", "the path leads upward ('..')"),
        (kind not in {0, stat.S_IFREG}, "member_not_a_file", "a link or device, not a file"),
        (bool(member.flag_bits & ENCRYPTED), "member_encrypted", "the member is encrypted"),
        (member.compress_type not in METHODS, "member_compression", "neither stored nor deflated"),
        (
            member.file_size > settings.IMAGE_MAX_MB * 2**20,
            "image_too_large",
            f"the image is larger than {settings.IMAGE_MAX_MB} MB",
        ),
        (is_bomb(member), "member_bomb", f"compressed more than {MAX_RATIO} : 1, as no image is"),
    ]
    return next(((code, message) for broken, code, message in rules if broken), None)


def is_bomb(member: zipfile.ZipInfo) -> bool:
    return member.file_size > RATIO_FREE_BYTES and member.file_size > MAX_RATIO * member.compress_size


def unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(member) as stream:
            data = stream.read(member.file_size + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as exc:
        raise MemberRefusedError("member_damaged", f"the member is damaged: {exc}") from None
    if len(data) != member.file_size:
        raise MemberRefusedError("member_damaged", "the member is shorter than its header says")
    return data
