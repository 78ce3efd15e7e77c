"""The JSON parser of the API: everything that is not plain, sane JSON is a 400 and never a crash."""

import json
from collections.abc import Mapping
from typing import IO, Any

from rest_framework.exceptions import ParseError
from rest_framework.parsers import JSONParser


class StrictJSONParser(JSONParser):
    """DRF's parser plus what it lets through: deep nesting (RecursionError), lone surrogates, repeated keys, lists."""

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        raw = stream.read()
        try:
            value = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=unique_keys, parse_constant=refuse_constant)
        except RecursionError:
            raise ParseError("The JSON is nested too deeply.") from None
        except (UnicodeDecodeError, ValueError) as exc:
            raise ParseError(f"The body is not valid JSON: {exc}") from None
        if not isinstance(value, dict):
            raise ParseError("The JSON body must be an object, like {}.")
        refuse_surrogates(value)
        return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [key for key, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands there twice")
    return found


def refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def refuse_surrogates(value: Any) -> None:
    """A lone surrogate is legal JSON text but cannot be stored or sent on as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ParseError("The JSON holds half of a surrogate pair, which is not text.") from None
