"""Reads the body of a request from a JSON or YAML file, or from standard input, for commands."""

import json
import re
import sys
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from ftproject.core.errors import InvalidInputError

STANDARD_INPUT = Path("-")
JSON_SUFFIXES = (".json",)
LARGEST_CHARACTERS = 1_000_000
# YAML 1.1 wants a dot and a sign in "2e-4", and would read it as a text.
JSON_FLOAT = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+\Z")


class ConfigLoader(yaml.SafeLoader):
    """Plain values only; numbers as JSON writes them; a name that stands twice is an error, not the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


ConfigLoader.add_implicit_resolver("tag:yaml.org,2002:float", JSON_FLOAT, list("-+0123456789"))


def read_config_file(path: Path) -> dict[str, Any]:
    """The object in a .json or YAML file; "-" is standard input, in either form. Raises InvalidInputError."""
    try:
        text = sys.stdin.read() if path == STANDARD_INPUT else path.read_text(encoding="utf-8-sig")
        if len(text) > LARGEST_CHARACTERS:
            raise ValueError(f"it has more than {LARGEST_CHARACTERS:,} characters")
        as_json = path.suffix.lower() in JSON_SUFFIXES or text.lstrip()[:1] == "{"
        body = json.loads(text, object_pairs_hook=once_each) if as_json else parse_yaml(text)
        json.dumps(body)  # YAML also has dates, sets and values that hold themselves
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise unreadable(path, f"cannot be read: {error}") from error
    if not isinstance(body, dict) or not all(isinstance(name, str) for name in body):
        raise unreadable(path, "must hold an object, like the body of POST /api/training/start")
    return body


def parse_yaml(text: str) -> Any:
    try:
        return yaml.load(text, Loader=ConfigLoader)  # nosec B506 # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{twice!r} is given twice")
    return dict(pairs)


def unreadable(path: Path, reason: str) -> InvalidInputError:
    hint = "JSON or YAML is taken; GET /api/training/schema lists every setting."
    return InvalidInputError(f"{path} {reason}.", code="config_file_invalid", hint=hint)
