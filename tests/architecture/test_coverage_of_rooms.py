"""Every command, route and event type has a test that names it; a new one without a test fails here."""

import re
from pathlib import Path

from django.core.management import get_commands
from django.urls import URLPattern, URLResolver, get_resolver

from ftproject.core.events import EVENT_TYPES

ROOT = Path(__file__).resolve().parents[2]
TESTS = {path: path.read_text() for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)}
ALL_TESTS = "\n".join(TESTS.values())
OURS = ("ftproject.", "datasets_app", "training_app", "evaluation_app", "inference_app", "sessions_app")


def our_commands() -> list[str]:
    return sorted(name for name, app in get_commands().items() if str(app).startswith(OURS))


def test_every_command_is_called_by_a_test() -> None:
    untested = [name for name in our_commands() if not re.search(rf"[\"'/ ]{name}[\"' ]", ALL_TESTS)]
    assert untested == []


def test_every_event_type_is_named_by_a_test() -> None:
    assert [name for name in EVENT_TYPES if name not in ALL_TESTS] == []


def api_patterns() -> list[str]:
    def walk(patterns: list[URLPattern | URLResolver], prefix: str = "") -> list[str]:
        found: list[str] = []
        for pattern in patterns:
            text = prefix + str(pattern.pattern)
            if isinstance(pattern, URLResolver):
                found += walk(pattern.url_patterns, text)
            else:
                found.append(text)
        return found

    return [text for text in walk(get_resolver().url_patterns) if text.lstrip("^").startswith(("api/", "v1/"))]


def test_every_route_answers_with_and_without_a_trailing_slash() -> None:
    assert len(api_patterns()) > 30
    assert [text for text in api_patterns() if not text.endswith(("/?$", "/?\\Z"))] == []


def test_every_fixed_route_is_called_by_a_test() -> None:
    fixed = [text.strip("^").removesuffix("/?$") for text in api_patterns() if "(" not in text]
    assert fixed
    assert [route for route in fixed if f"/{route}" not in ALL_TESTS] == []
