"""Reads the body of a training start and works out what this machine would run, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from django.conf import settings

from ftproject.core.errors import InvalidInputError, Problem
from ftproject.core.storage import models_dir
from ftproject.engine.configs import (
    GPU_MODEL_NAME,
    TINY_MODEL_NAME,
    ConfigError,
    DeviceFacts,
    EffectiveConfig,
    ModelConfig,
    TrainingConfig,
    json_schema,
    parse_training_config,
    resolve_training_config,
)
from ftproject.engine.fields import field_schema, read_section, setting
from ftproject.engine.gpu import device_facts

LARGEST_ID = 2**63 - 1


@dataclass(frozen=True)
class StartOptions:
    """The part of a start body that is about the request, not about the training."""

    dataset_id: int | None = setting(None, min=1, max=LARGEST_ID, help="Dataset to train on; null: the current one.")
    dry_run: bool = setting(False, help="Answer the effective configuration and start nothing.")


OPTION_NAMES = tuple(item.name for item in fields(StartOptions))


def default_config() -> TrainingConfig:
    """The engine's defaults with this installation's own maximum length."""
    return replace(TrainingConfig(), model=ModelConfig(max_seq_length=settings.DEFAULT_MAX_SEQ_LENGTH))


def read_training_config(body: Mapping[str, Any]) -> TrainingConfig:
    """The checked configuration of a start body; every problem at once as InvalidInputError."""
    return read_start_body(body)[1]


def read_start_body(body: Mapping[str, Any]) -> tuple[StartOptions, TrainingConfig]:
    """Both parts of a start body, checked; every problem of either at once as InvalidInputError."""
    given = {name: body[name] for name in OPTION_NAMES if name in body}
    options, problems = read_section(StartOptions, given, "")
    try:
        config = parse_training_config(body, defaults=default_config(), extra_keys=OPTION_NAMES)
    except ConfigError as exc:
        raise refusal(ConfigError([*problems, *exc.problems], exc.hint)) from exc
    if problems:
        raise refusal(ConfigError(problems))
    return StartOptions(**options), config


def resolve_config(config: TrainingConfig, *, backend: str | None = None) -> tuple[EffectiveConfig, DeviceFacts]:
    """The configuration as this machine would run it, and the machine."""
    device = device_facts()
    try:
        effective = resolve_training_config(
            config,
            device,
            default_model=settings.DEFAULT_MODEL_NAME,
            models_dir=models_dir(),
            backend=backend or settings.BACKEND,
        )
    except ConfigError as exc:
        raise refusal(exc) from exc
    return effective, device


def refusal(exc: ConfigError) -> InvalidInputError:
    """The engine's refusal as an answer of the API: same code, same hint, the fields as `errors`."""
    problems = [Problem(code=item.code, message=item.message, field=item.field) for item in exc.problems]
    code = exc.code if len(problems) == 1 else "invalid_input"
    return InvalidInputError(f"{exc}.", code=code, hint=exc.hint or "", errors=problems)


def device_name(device: DeviceFacts) -> str:
    return (device.name or "cuda") if device.cuda else "cpu"


def openapi_start_schema() -> dict[str, Any]:
    """The start body for the published OpenAPI schema: the same on every machine."""
    schema = json_schema()
    schema["properties"] |= option_schemas()
    del schema["$schema"]
    return schema


def start_schema() -> dict[str, Any]:
    """The JSON Schema of the start body on this machine, with all defaults."""
    schema = json_schema()
    device = device_facts()
    model = schema["properties"]["model_config_data"]["properties"]
    default = settings.DEFAULT_MODEL_NAME or (GPU_MODEL_NAME if device.cuda else TINY_MODEL_NAME)
    model["model_name"]["description"] += f" Here: {default}."
    model["model_name"]["examples"] = [TINY_MODEL_NAME, *local_model_names()]
    model["max_seq_length"]["default"] = settings.DEFAULT_MAX_SEQ_LENGTH
    schema["properties"] |= option_schemas()
    return schema


def local_model_names() -> list[str]:
    """The folders of the models directory that a request may name: own models, and merged ones."""
    return sorted(path.name for path in models_dir().iterdir() if path.is_dir() and not path.name.startswith("."))


def option_schemas() -> dict[str, Any]:
    return {item.name: field_schema(StartOptions, item) for item in fields(StartOptions)}
