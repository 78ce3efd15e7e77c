"""Guesses the encoding of text that is not UTF-8."""

import re

# Control characters stand in binary data and in wrong guesses, not in text.
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f]")
# What spreadsheets and editors write, commoner first. Left to all of its hundred, charset-normalizer took a German line
# for mac_iceland and a Russian one for cp1125, with the same score as the right answer.
COMMON = (
    "cp1252",
    "cp1251",
    "cp1250",
    "cp932",
    "gb18030",
    "big5",
    "cp949",
    "euc_jp",
    "cp1253",
    "cp1254",
    "cp1255",
    "cp1256",
    "cp1257",
    "koi8_r",
    "mac_roman",
    "cp850",
)
MULTI_BYTE = {"cp932", "gb18030", "big5", "cp949", "euc_jp"}
_DAMAGED_PLACE = re.compile("\ufffd+")


def looks_like_damaged_utf8(sample: bytes) -> bool:
    """Whether the sample is UTF-8 with some bad bytes: legacy text holds next to no valid UTF-8 sequences."""
    text = sample.decode("utf-8", "replace")
    return _whole_sequences(text) >= max(text.count("\ufffd"), 1)


def _whole_sequences(text: str) -> int:
    return sum(1 for character in text if character > "\x7f") - text.count("\ufffd")


def legacy_encodings(sample: bytes) -> list[str]:
    """Python codec names, the likeliest first; empty when the sample is no text in any of them."""
    from charset_normalizer import from_bytes

    scores: dict[str, tuple[float, float, int]] = {}
    for match in from_bytes(_telling_lines(sample), cp_isolation=list(COMMON)):
        # All of `could_be_from_charset` decode the sample alike; scores this close are ties.
        for name in {match.encoding, *match.could_be_from_charset} & set(COMMON):
            scores.setdefault(name, (round(match.chaos, 2), -round(match.coherence, 1), COMMON.index(name)))
    names = [name for name in sorted(scores, key=lambda name: scores[name]) if _is_text(sample, name)]
    return [] if names and names[0] not in MULTI_BYTE and _would_be_mojibake(sample) else names


def _would_be_mojibake(sample: bytes) -> bool:
    """Whether a single-byte encoding would turn UTF-8 letters into pairs (Grün into GrÃ¼n).

    By chance such a pair hardly occurs there; as many of them as places of damage are UTF-8 with a few bad bytes.
    """
    text = sample.decode("utf-8", "replace")
    return _whole_sequences(text) >= max(len(_DAMAGED_PLACE.findall(text)), 1)


def _telling_lines(sample: bytes) -> bytes:
    """The lines that hold more than ASCII: a thousand plain ones around them only blur the guess."""
    return b"\n".join(line for line in sample.splitlines() if not line.isascii())


def _is_text(sample: bytes, encoding: str) -> bool:
    # The sample may end within a multi-byte character, so only control characters decide.
    return _CONTROL.search(sample.decode(encoding, "ignore")) is None
