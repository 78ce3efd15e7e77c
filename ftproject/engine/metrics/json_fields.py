"""JSON fields: which values of a structured answer are right."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from ftproject.engine.fields import ConfigProblem, read_section, type_name
from ftproject.engine.metrics.base import Metric, Score, TextPair, Totals
from ftproject.engine.metrics.normalization import storable
from ftproject.engine.metrics.text import normalised_text

_FENCE = re.compile(r"\s*```[A-Za-z]*[ \t]*\n(.*?)\n?[ \t]*```\s*", re.DOTALL)
_PLAIN_KEY = re.compile(r"[^\W\d][\w-]*")
MOST_FIELDS = 200
LONGEST_FIELD = 200
# A dataset whose keys differ from row to row must not fill the memory or the run's row.
MOST_LISTED_FIELDS = 500


class InvalidJsonError(ValueError):
    """A text that is no JSON object or array."""


def parse_json(text: str) -> Any:
    """The object or array that a text is, alone or in one Markdown code fence; numbers keep every digit.

    Raises InvalidJsonError for anything else, NaN and Infinity included.

    >>> parse_json('```json\\n{"total": 12.50}\\n```')
    {'total': Decimal('12.50')}
    """
    fenced = _FENCE.fullmatch(text)
    try:
        value = json.loads(fenced[1] if fenced else text, parse_float=Decimal, parse_constant=_refuse)
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise InvalidJsonError(str(error)) from error
    if not isinstance(value, dict | list):
        raise InvalidJsonError("neither an object nor an array")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def leaves(value: Any) -> dict[str, Any]:
    """Every value that holds no other one, by its path; an empty object or array is such a value too.

    >>> leaves({"total": 3, "shop": {"name": "A", "open hours": []}, "items": [{"id": 1}]})
    {'total': 3, 'shop.name': 'A', 'shop["open hours"]': [], 'items[0].id': 1}
    """
    found: dict[str, Any] = {}
    waiting = [("", value)]  # a stack of our own: a deep answer must not end in RecursionError
    while waiting:
        path, item = waiting.pop()
        if isinstance(item, dict | list) and item:
            waiting.extend(reversed(list(_children(path, item))))
        elif path:
            found[path] = item
    return found


def _children(path: str, item: dict[str, Any] | list[Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(item, list):
        yield from ((f"{path}[{number}]", value) for number, value in enumerate(item))
        return
    for key, value in item.items():
        if not _PLAIN_KEY.fullmatch(key):
            yield f"{path}[{json.dumps(key)}]", value
        else:
            yield f"{path}.{key}" if path else key, value


def compare_fields(
    prediction: Any, ground_truth: Any, *, comparable: Callable[[str], str] = normalised_text
) -> dict[str, bool]:
    """Of every leaf of the ground truth, whether the prediction has the same value at the same path.

    Texts are equal after `comparable`, numbers by value (1 and 1.0), everything else by type and value: "12" is not 12.

    >>> compare_fields({"a": Decimal("1.0"), "b": {"c": " x "}}, {"a": 1, "b": {"c": "x", "d": None}})
    {'a': True, 'b.c': True, 'b.d': False}
    """
    predicted = leaves(prediction)
    return {
        path: path in predicted and _equal(predicted[path], value, comparable)
        for path, value in leaves(ground_truth).items()
    }


def _equal(one: Any, other: Any, comparable: Callable[[str], str]) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return comparable(one) == comparable(other)
    if _is_number(one) and _is_number(other):
        return bool(one == other)
    return type(one) is type(other) and bool(one == other)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | Decimal) and not isinstance(value, bool)


@dataclass(frozen=True)
class JsonFields(Metric):
    """The share of right fields, over all fields of all rows; an answer that is no JSON has none right."""

    name = "json_fields"
    reads_structure = True
    fields: tuple[str, ...] | None = None

    def score(self, pair: TextPair) -> Score:
        """The row's share of right fields; None when its ground truth is no JSON or has none of the fields."""
        try:
            true = parse_json(pair.ground_truth)
        except InvalidJsonError:
            return Score(None, {"ground_truth_invalid_json": True})
        try:
            predicted, invalid = parse_json(pair.prediction), False
        except InvalidJsonError:
            predicted, invalid = {}, True
        result = compare_fields(predicted, true, comparable=pair.comparable)
        counted = {path: right and not invalid for path, right in result.items() if self._wanted(path)}
        details = {"fields": counted, "unexpected_fields": self._unexpected(predicted, result)}
        if invalid:
            details["invalid_json"] = True
        return Score(sum(counted.values()) / len(counted) if counted else None, details)

    def _wanted(self, path: str) -> bool:
        return self.fields is None or any(
            path == field or path.startswith((f"{field}.", f"{field}[")) for field in self.fields
        )

    def _unexpected(self, predicted: Any, expected: Mapping[str, bool]) -> int:
        return sum(path not in expected and self._wanted(path) for path in leaves(predicted))

    def parts(self, value: float | None, details: Mapping[str, Any]) -> tuple[float, float]:
        """Right fields and all fields: a row counts by its number of fields."""
        counted = details.get("fields", {})
        return float(sum(counted.values())), float(len(counted))

    def totals(self) -> Totals:
        """The share over all fields, and each field's own."""
        return _FieldTotals(self)

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """The JSON Schema of the parameters."""
        paths = {
            "type": ["array", "null"],
            "items": {"type": "string", "minLength": 1, "maxLength": LONGEST_FIELD},
            "minItems": 1,
            "maxItems": MOST_FIELDS,
            "default": None,
            "description": "Paths that count, with all below them; null: every field of the ground truth.",
        }
        return {
            "type": "object",
            "description": str(cls.__doc__),
            "additionalProperties": False,
            "properties": {"fields": paths},
        }

    @classmethod
    def read(cls, data: Mapping[str, Any], path: str) -> tuple[dict[str, Any], list[ConfigProblem]]:
        """The checked list of fields."""
        given = data.get("fields")
        _, problems = read_section(cls, {name: value for name, value in data.items() if name != "fields"}, path)
        message = _problem_of_fields(given)
        if message:
            return {}, [*problems, ConfigProblem(f"{path}fields", "invalid_fields", message)]
        return {"fields": None if given is None else tuple(given)}, problems


def _problem_of_fields(given: Any) -> str | None:
    if given is None:
        return None
    if not isinstance(given, list | tuple):
        return f"must be a list of paths or null, not {type_name(given)}"
    if not 1 <= len(given) <= MOST_FIELDS:
        return f"must name 1 to {MOST_FIELDS} paths, not {len(given)}; null takes every field"
    wrong = [item for item in given if not isinstance(item, str) or not 1 <= len(item) <= LONGEST_FIELD]
    if wrong:
        return (
            f"holds {str(wrong[0])[:50]!r}: a path such as shop.name or items[0].id has 1 to {LONGEST_FIELD} characters"
        )
    if not all(map(storable, given)):
        return "must not hold NUL or half a surrogate pair"
    return None


class _FieldTotals(Totals):
    def __init__(self, metric: Metric) -> None:
        super().__init__(metric)
        self.counts = dict.fromkeys(("invalid_json", "ground_truth_invalid_json", "unexpected_fields"), 0)
        self.all_right = 0
        self.fields: dict[str, list[int]] = {}
        self.unlisted: int = 0

    def add(self, value: float | None, details: Mapping[str, Any]) -> None:
        super().add(value, details)
        for name in self.counts:
            self.counts[name] += int(details.get(name, 0))
        self.all_right += value == 1.0
        for path, right in details.get("fields", {}).items():
            if path not in self.fields and len(self.fields) >= MOST_LISTED_FIELDS:
                self.unlisted += 1
                continue
            field = self.fields.setdefault(path, [0, 0])
            field[0] += right
            field[1] += 1

    def details(self) -> dict[str, Any]:
        judged = self.rows - self.undefined
        return {
            **super().details(),
            **self.counts,
            "rows_all_right": self.all_right / judged if judged else None,
            "fields": {
                path: {"accuracy": right / count, "count": count}
                for path, (right, count) in sorted(self.fields.items())
            },
            "values_of_unlisted_fields": self.unlisted,
        }
