"""The JSON Schema of a start says what the start takes: every field, default and limit, old and new."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from datasets_app.models import Dataset
from ftproject.core.errors import InvalidInputError
from ftproject.core.storage import models_dir
from ftproject.engine.config_parsing import SECTIONS
from ftproject.engine.configs import TrainingOptions, to_dict
from tests.training_app.world import Api
from training_app.configuration import (
    StartOptions,
    default_config,
    openapi_start_schema,
    read_start_body,
    start_schema,
)
from training_app.openapi_examples import START

pytestmark = pytest.mark.django_db
Place = tuple[str | None, str]


def settings_of(schema: dict[str, Any]) -> Iterator[tuple[Place, dict[str, Any]]]:
    for name, found in schema["properties"].items():
        if name in SECTIONS:
            yield from (((name, field), described) for field, described in found["properties"].items())
        else:
            yield (None, name), found


def body_with(place: Place, value: Any) -> dict[str, Any]:
    section, name = place
    return {name: value} if section is None else {section: {name: value}}


def wrong_fields(body: dict[str, Any]) -> set[str]:
    try:
        read_start_body(body)
    except InvalidInputError as refusal:
        return {problem.field or "" for problem in refusal.errors}
    return set()


def dotted(place: Place) -> str:
    return place[1] if place[0] is None else f"{place[0]}.{place[1]}"


@pytest.fixture
def schema(api: Api) -> dict[str, Any]:
    found: dict[str, Any] = api.get("/api/training/schema").json()
    return found


def test_every_setting_of_the_engine_stands_in_it_with_default_and_help(schema: dict[str, Any]) -> None:
    classes = {name: cls for name, (_, cls) in SECTIONS.items()}
    expected: set[Place] = {(name, item.name) for name, cls in classes.items() for item in fields(cls)}
    expected |= {(None, item.name) for cls in (TrainingOptions, StartOptions) for item in fields(cls)}
    found = dict(settings_of(schema))
    assert set(found) == expected
    assert [place for place, described in found.items() if "default" not in described] == []
    assert [place for place, described in found.items() if not described.get("description")] == []


def test_it_is_a_schema_and_takes_the_users_own_example(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    for body in ({}, START, {"dry_run": True, "dataset_id": None}, to_dict(default_config())):
        jsonschema.validate(body, schema)


def test_its_defaults_are_what_an_empty_body_means(schema: dict[str, Any]) -> None:
    defaults: dict[str, Any] = {}
    for (section, name), described in settings_of(schema):
        target = defaults if section is None else defaults.setdefault(section, {})
        target[name] = described["default"]
    _, config = read_start_body(defaults)
    assert config == read_start_body({})[1]


def limits() -> list[tuple[Place, Any]]:
    """One value just outside each limit that the schema names."""
    outside = []
    for place, described in settings_of(openapi_start_schema()):
        if "enum" in described:
            outside.append((place, "wavy"))
        step = 1 if "integer" in described["type"] else 1e-6
        for key, sign in (("minimum", -1), ("maximum", 1)):
            if key in described:
                outside.append((place, described[key] + sign * step))
        outside += [(place, described[key]) for key in ("exclusiveMinimum", "exclusiveMaximum") if key in described]
    return outside


@pytest.mark.parametrize(("place", "value"), limits(), ids=str)
def test_what_it_refuses_the_start_refuses_by_name(place: Place, value: Any) -> None:
    body = body_with(place, value)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(body, start_schema())
    assert dotted(place) in wrong_fields(body)


@pytest.mark.parametrize("value", ["text", [], {}, 1.5, True], ids=str)
def test_a_value_of_another_type_is_refused_by_both(schema: dict[str, Any], value: Any) -> None:
    for place, _ in settings_of(schema):
        body = body_with(place, value)
        try:
            jsonschema.validate(body, schema)
        except jsonschema.ValidationError:
            assert dotted(place) in wrong_fields(body), place


def test_a_dry_run_shows_every_setting_in_effect(api: Api, dataset: Dataset, schema: dict[str, Any]) -> None:
    answer = api.post("/api/training/start", {"dry_run": True}).json()
    shown = answer["config"]
    for (section, name), _ in settings_of(schema):
        if section is not None or name in {item.name for item in fields(TrainingOptions)}:
            assert name in (shown if section is None else shown[section])
    assert {"status", "model_name", "device", "backend", "warnings", "dataset_id", "preflight"} <= set(answer)


def test_it_names_the_models_of_this_machine(api: Api) -> None:
    for name in ("mine", "merged", ".partial-half"):
        (models_dir() / name).mkdir()
    model = api.get("/api/training/schema").json()["properties"]["model_config_data"]["properties"]["model_name"]
    assert model["examples"] == ["tiny-qwen3-vl", "merged", "mine"]


def test_a_half_written_model_cannot_be_named(api: Api, dataset: Dataset) -> None:
    (models_dir() / ".partial-half").mkdir()
    answer = api.post("/api/training/start", {"model_config_data": {"model_name": ".partial-half"}})
    assert (answer.status_code, answer.json()["code"]) == (400, "model_not_allowed")
