"""Typed settings described once: a dataclass field gives default, strict check and JSON Schema."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from functools import cache
from typing import Any, get_args, get_type_hints

JSON_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}
_LIMITS = (
    ("min", operator.ge, "at least"),
    ("max", operator.le, "at most"),
    ("exclusive_min", operator.gt, "greater than"),
    ("exclusive_max", operator.lt, "less than"),
)


@dataclass(frozen=True)
class ConfigProblem:
    """One thing wrong with one setting; `field` is the dotted path in the request body."""

    field: str
    code: str
    message: str


class ConfigError(ValueError):
    """Settings that cannot be used, with every problem found and what to do next."""

    def __init__(self, problems: Sequence[ConfigProblem], hint: str | None = None) -> None:
        self.problems = list(problems)
        self.hint = hint
        super().__init__("; ".join(f"{problem.field}: {problem.message}" for problem in self.problems))

    @property
    def code(self) -> str:
        """The code of the first problem: the one that an answer to a client carries."""
        return self.problems[0].code if self.problems else "invalid_config"


def setting(
    default: Any,
    *,
    help: str,  # noqa: A002 - the word that argparse and Django use
    min: float | None = None,  # noqa: A002
    max: float | None = None,  # noqa: A002
    exclusive_min: float | None = None,
    exclusive_max: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A dataclass field with its default, range or choices, and one line of help."""
    return field(
        default=default,
        metadata={
            "min": min,
            "max": max,
            "exclusive_min": exclusive_min,
            "exclusive_max": exclusive_max,
            "choices": choices,
            "help": help,
        },
    )


@cache
def field_type(cls: type, name: str) -> tuple[type, bool]:
    """The plain type of a setting and whether null is allowed: `int | None` -> (int, True)."""
    hint = get_type_hints(cls)[name]
    members = get_args(hint)
    if not members:
        return hint, False
    return next(member for member in members if member is not type(None)), type(None) in members


def read_section(
    cls: type, data: object, path: str, known: Collection[str] | None = None
) -> tuple[dict[str, Any], list[ConfigProblem]]:
    """The given settings of one dataclass, converted and checked; `path` prefixes the names in problems."""
    if data is None:
        return {}, []
    if not isinstance(data, Mapping):
        name = path.rstrip(".") or "body"
        return {}, [ConfigProblem(name, "invalid_type", f"must be an object, not {type_name(data)}")]
    by_name = {item.name: item for item in fields(cls)}
    problems = list(unknown_names(data, [*by_name, *(known or ())], path))
    values: dict[str, Any] = {}
    for name in data:
        if name not in by_name:
            continue
        value, problem = read_value(cls, by_name[name], data[name], path)
        if problem is not None:
            problems.append(problem)
        else:
            values[name] = value
    return values, problems


def unknown_names(data: Mapping[str, object], known: Collection[str], path: str) -> Iterator[ConfigProblem]:
    """A problem for every name that is not known, with the nearest name that is."""
    for name in data:
        if name in known:
            continue
        near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
        message = "is not a known field" + (f"; did you mean {near[0]!r}?" if near else "")
        yield ConfigProblem(f"{path}{name}", "unknown_field", message)


def read_value(cls: type, item: Field[Any], value: object, path: str) -> tuple[Any, ConfigProblem | None]:
    """One value in its setting's type, or the problem with it."""
    name = f"{path}{item.name}"
    plain, nullable = field_type(cls, item.name)
    if value is None:
        return None, None if nullable else ConfigProblem(name, "invalid_type", "must not be null")
    converted = _in_type(plain, value)
    if converted is None:
        wanted = JSON_TYPES[plain] + (" or null" if nullable else "")
        return None, ConfigProblem(name, "invalid_type", f"must be {wanted}, not {type_name(value)}")
    if isinstance(converted, float) and not math.isfinite(converted):
        return None, ConfigProblem(name, "not_finite", "must be a finite number")
    message = _outside(item.metadata, converted)
    return converted, ConfigProblem(name, *message) if message else None


def _in_type(plain: type, value: object) -> Any:
    # JSON Schema counts 30.0 as an integer, so we do; bool is an int in Python only.
    if isinstance(value, bool):
        return value if plain is bool else None
    if plain is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if plain is float and isinstance(value, int):
        return float(value) if abs(value) < 2**1023 else math.inf
    return value if isinstance(value, plain) else None


def _outside(limits: Mapping[str, Any], value: Any) -> tuple[str, str] | None:
    choices = limits.get("choices")
    if choices is not None and value not in choices:
        near = difflib.get_close_matches(value, choices, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return "invalid_choice", f"must be one of {', '.join(choices)}{hint}"
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    for key, holds, words in _LIMITS:
        bound = limits.get(key)
        if bound is not None and not holds(value, bound):
            return "out_of_range", f"must be {words} {bound}, not {value}"
    return None


def type_name(value: object) -> str:
    """The JSON name of a value's type, for messages."""
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "object"
    if isinstance(value, list | tuple):
        return "array"
    return JSON_TYPES.get(type(value), type(value).__name__)


def section_schema(cls: type, description: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) object of one settings dataclass, with every default."""
    return {
        "type": "object",
        "description": description,
        "additionalProperties": False,
        "properties": {item.name: field_schema(cls, item) for item in fields(cls)},
    }


def field_schema(cls: type, item: Field[Any]) -> dict[str, Any]:
    """The JSON Schema of one setting."""
    plain, nullable = field_type(cls, item.name)
    kind = JSON_TYPES[plain]
    schema: dict[str, Any] = {
        "type": [kind, "null"] if nullable else kind,
        "default": item.default,
        "description": item.metadata["help"],
    }
    keywords = {
        "min": "minimum",
        "max": "maximum",
        "exclusive_min": "exclusiveMinimum",
        "exclusive_max": "exclusiveMaximum",
    }
    schema |= {word: item.metadata[key] for key, word in keywords.items() if item.metadata[key] is not None}
    if item.metadata["choices"] is not None:
        schema["enum"] = [*item.metadata["choices"], *([None] if nullable else [])]
    return schema
