"""Unpacks an uploaded zip into a hidden folder: plain files only, below that folder only, within a bound."""

import errno
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.conf import settings

from datasets_app.archive_members import (
    ENCRYPTED,
    MAX_RATIO,
    METHODS,
    is_bomb,
    is_litter,
    member_name,
    opened,
)
from datasets_app.archive_paths import normalised_path
from datasets_app.uploads import disk_full
from ftproject.core.errors import InvalidInputError, Problem, TooLargeError
from ftproject.core.storage import adapters_dir, partial_path

MOST_MEMBERS = 1000
MOST_PATH = 500
CHUNK_BYTES = 1 << 20
PACK_ADAPTER = "Pack the adapter's folder: zip -r adapter.zip folder."
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def unpacked_archive(file: Path) -> Iterator[Path]:
    """A folder with the files of the zip, gone afterwards; what a killed process leaves of it is swept at a start."""
    folder = partial_path(adapters_dir() / "import")
    folder.mkdir()
    try:
        with file.open("rb") as stream, opened(stream, how_to_pack=PACK_ADAPTER) as archive:
            unpack(archive, folder)
        yield folder
    except OSError as exc:
        if exc.errno in NO_ROOM:
            raise disk_full() from None
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def unpack(archive: zipfile.ZipFile, folder: Path) -> None:
    members = wanted_members(archive)
    total = sum(member.file_size for member in members.values())
    if total > 2 * settings.MAX_UPLOAD_MB * 2**20:
        detail = f"The archive unpacks to {total // 2**20:,} MB, more than {2 * settings.MAX_UPLOAD_MB:,} MB."
        raise TooLargeError(detail, code="archive_too_large", hint="Raise QWEN3VL_MAX_UPLOAD_MB.")
    if shutil.disk_usage(folder).free < 2 * total:  # the adapter is copied out of it
        raise disk_full()
    for path, member in members.items():
        try:
            write_member(archive, member, folder / path)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as exc:
            raise refused(path, "member_damaged", f"the member is damaged: {exc}") from None
        except OSError as exc:
            if exc.errno in NO_ROOM:
                raise
            raise refused(path, "member_path_refused", f"no file can have this path: {exc.strerror}") from None


def wanted_members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Path -> member of every file; one that is a trap refuses the whole archive."""
    members = archive.infolist()
    if len(members) > MOST_MEMBERS:
        detail = f"The archive has {len(members):,} members, more than {MOST_MEMBERS:,}: this is no adapter."
        raise TooLargeError(detail, code="archive_too_large", hint=PACK_ADAPTER)
    found: dict[str, zipfile.ZipInfo] = {}
    folded: set[str] = set()
    for member in members:
        name = member_name(member)
        path = normalised_path(name)
        require_harmless(member, name, path)
        if member.is_dir() or is_litter(path):
            continue
        if path.casefold() in folded:
            raise refused(name, "member_duplicate", "this path stands in the archive twice")
        folded.add(path.casefold())
        found[path] = member
    return found


def require_harmless(member: zipfile.ZipInfo, name: str, path: str) -> None:
    kind = stat.S_IFMT(member.external_attr >> 16)
    parts = path.split("/")
    plain = (0, stat.S_IFDIR) if member.is_dir() else (0, stat.S_IFREG)
    rules = [
        (len(name) > MOST_PATH, "member_name_too_long", f"the path is longer than {MOST_PATH} characters"),
        ("\0" in name, "member_path_refused", "the path holds a NUL"),
        (not path and not member.is_dir(), "member_path_refused", "the member has no name"),
        (path.startswith("/") or parts[0].endswith(":"), "member_path_refused", "the path is absolute"),
        (".." in parts, "member_path_refused", "the path leads upward ('..')"),
        (kind not in plain, "member_not_a_file", "a link or device, not a file"),
        (bool(member.flag_bits & ENCRYPTED), "member_encrypted", "the member is encrypted"),
        (member.compress_type not in METHODS, "member_compression", "neither stored nor deflated"),
        (is_bomb(member), "member_bomb", f"compressed more than {MAX_RATIO} : 1, as no weights are"),
    ]
    for broken, code, message in rules:
        if broken:
            raise refused(name, code, message)


def write_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Exactly the declared size: a member that goes on after it is damaged, and is not followed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    left = member.file_size
    with archive.open(member) as source, target.open("xb") as out:
        while chunk := source.read(min(CHUNK_BYTES, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise zipfile.BadZipFile("it is longer than its header says")
            out.write(chunk)
    if left:
        raise zipfile.BadZipFile("it is shorter than its header says")


def refused(name: str, code: str, message: str) -> InvalidInputError:
    shown = name if len(name) <= 200 else f"{name[:200]}…"
    return InvalidInputError(
        f"The archive was refused because of {shown!r}: {message}.",
        code=code,
        hint=PACK_ADAPTER,
        errors=[Problem(code=code, message=message, field=shown)],
    )
