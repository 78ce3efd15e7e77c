"""Guesses the encoding of text that is not UTF-8."""

import re

# Control characters stand in binary data and in wrong guesses, not in text.
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f]")
CANDIDATES = 5
PREFERRED = ("cp1252", "cp1251", "cp1250")


def looks_like_damaged_utf8(sample: bytes) -> bool:
    """Whether the sample is UTF-8 with some bad bytes: legacy text holds next to no valid UTF-8 sequences."""
    text = sample.decode("utf-8", "replace")
    damaged = text.count("\ufffd")
    whole = sum(1 for character in text if character > "\x7f") - damaged
    return whole >= max(damaged, 1)


def legacy_encodings(sample: bytes) -> list[str]:
    """Python codec names, the likeliest first; empty when the sample is no text in any of them."""
    from charset_normalizer import from_bytes

    names: list[str] = []
    for match in list(from_bytes(sample))[:CANDIDATES]:
        # All of `could_be_from_charset` decode the sample alike; of these, the usual one is the better bet beyond it.
        alike = [match.encoding, *match.could_be_from_charset]
        names.append(next((name for name in PREFERRED if name in alike), match.encoding))
    return [name for name in dict.fromkeys(names) if _is_text(sample, name)]


def _is_text(sample: bytes, encoding: str) -> bool:
    # The sample may end within a multi-byte character, so only control characters decide.
    return _CONTROL.search(sample.decode(encoding, "ignore")) is None
