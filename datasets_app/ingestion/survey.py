"""One pass over the bytes of an upload: hash, size, kind by magic bytes, and the encoding that decodes all of it."""

import codecs
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from datasets_app.ingestion.encodings import legacy_encodings, looks_like_damaged_utf8
from datasets_app.ingestion.refusals import refuse, unsupported

BLOCK = 1 << 20
SAMPLE = 256 * 1024
PARQUET_MAGIC = b"PAR1"
BOMS = (
    # UTF-32 first: its little-endian mark begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
SAVE_AS_CSV = "Save or export it as CSV (UTF-8) and upload that."
UNPACK = "Unpack it and upload the CSV inside."
MAGIC = (
    (b"\x1f\x8b", "gzip-compressed", UNPACK),
    (b"PK\x03\x04", "a zip archive or an Excel workbook", SAVE_AS_CSV),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel workbook", SAVE_AS_CSV),
    (b"\xfd7zXZ\x00", "xz-compressed", UNPACK),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", UNPACK),
    (b"BZh91AY&SY", "bzip2-compressed", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"\x89PNG\r\n\x1a\n", "a PNG image", "Images belong into cells, as URLs or data URIs."),
    (b"\xff\xd8\xff", "a JPEG image", "Images belong into cells, as URLs or data URIs."),
    (b"GIF8", "a GIF image", "Images belong into cells, as URLs or data URIs."),
    (b"%PDF-", "a PDF", SAVE_AS_CSV),
    (b"SQLite format 3\x00", "an SQLite database", SAVE_AS_CSV),
    (b"\x7fELF", "a program", SAVE_AS_CSV),
)


@dataclass(frozen=True)
class Survey:
    """Facts about the bytes. `suspect` is 'nul' or 'undecodable' when some cell must be refused for it."""

    sha256: str
    size_bytes: int
    is_parquet: bool = False
    encoding: str = ""
    suspect: str | None = None
    sample: bytes = b""

    def facts(self) -> dict[str, Any]:
        """What `survey_of` needs beside the file itself."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "sample"}

    @property
    def decode_errors(self) -> str:
        """How to decode so that a suspect cell can be found: the damage stays visible in the text."""
        if self.suspect != "undecodable":
            return "strict"
        return "surrogateescape" if self.encoding.startswith("utf-8") else "replace"


def survey_of(path: Path, facts: dict[str, Any]) -> Survey:
    """The survey that another process made of this file."""
    with path.open("rb") as stream:
        return Survey(**facts, sample=stream.read(SAMPLE))


def survey_file(path: Path) -> Survey:
    """Reads the file once; raises 415 for what is no table, 400 when it is empty."""
    digest, size, text = hashlib.sha256(), 0, TextCheck()
    head = b""
    for block in blocks_of(path):
        if not size:
            head = block[:SAMPLE]
            refuse_other_kinds(head)
            text.start(head)
        digest.update(block)
        size += len(block)
        text.feed(block)
    if not size:
        raise refuse("empty_file", "The file is empty.", hint="It must hold a header line and at least one row.")
    if head.startswith(PARQUET_MAGIC):
        return Survey(digest.hexdigest(), size, is_parquet=True)
    text.finish()
    encoding, suspect = settle_encoding(path, text)
    return Survey(digest.hexdigest(), size, encoding=encoding, suspect=suspect, sample=head)


def blocks_of(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            yield block


def refuse_other_kinds(head: bytes) -> None:
    for magic, kind, hint in MAGIC:
        if head.startswith(magic):
            raise unsupported(kind, hint)
    start = head.lstrip()[:20].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise unsupported("an HTML page", "Perhaps a download needed a login and saved its page instead.")
    if start.startswith(b"[") and start[1:].lstrip().startswith(b"{"):
        raise unsupported("one JSON array", "Write one JSON object per line (JSONL) and upload that.")


class TextCheck:
    """Decodes block by block and remembers the first block that does not, and whether a NUL was seen."""

    def __init__(self) -> None:
        self.encoding = "utf-8"
        self.damaged: bytes | None = None
        self.has_nul = False

    def start(self, head: bytes) -> None:
        self.encoding = next((name for bom, name in BOMS if head.startswith(bom)), "utf-8")
        self.decoder = codecs.getincrementaldecoder(self.encoding)()
        self.counts_nul_bytes = self.encoding.startswith("utf-8")

    def feed(self, block: bytes, *, final: bool = False) -> None:
        if self.counts_nul_bytes:
            self.has_nul = self.has_nul or b"\0" in block
        if self.damaged is not None:
            return
        try:
            text = self.decoder.decode(block, final)
        except UnicodeDecodeError as exc:
            begin = max(0, exc.start - 4096)
            self.damaged = bytes(exc.object[begin : begin + SAMPLE])
        else:
            self.has_nul = self.has_nul or (not self.counts_nul_bytes and "\0" in text)

    def finish(self) -> None:
        self.feed(b"", final=True)


def settle_encoding(path: Path, text: TextCheck) -> tuple[str, str | None]:
    if text.damaged is None:
        return text.encoding, "nul" if text.has_nul else None
    # With a NUL beside the damage it is no legacy text either, and only "undecodable" is read tolerantly to its place.
    if text.encoding != "utf-8" or text.has_nul or looks_like_damaged_utf8(text.damaged):
        return text.encoding, "undecodable"
    for name in legacy_encodings(text.damaged):
        if decodes_wholly(path, name):
            return name, None
    return text.encoding, "undecodable"


def decodes_wholly(path: Path, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for block in blocks_of(path):
            decoder.decode(block)
        decoder.decode(b"", True)
    except UnicodeDecodeError:
        return False
    return True
