"""Turns the body of a training start into a checked TrainingConfig, and publishes the body's JSON Schema."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from ftproject.engine.fields import (
    ConfigError,
    ConfigProblem,
    field_schema,
    read_section,
    section_schema,
    unknown_names,
)
from ftproject.engine.hyperparameters import (
    GenerationParams,
    LoraSettings,
    ModelConfig,
    SftSettings,
    TrainingConfig,
    TrainingOptions,
)

SECTIONS: dict[str, tuple[str, type]] = {
    "model_config_data": ("model", ModelConfig),
    "sft_config": ("sft", SftSettings),
    "lora_config": ("lora", LoraSettings),
}
OPTION_NAMES = tuple(item.name for item in fields(TrainingOptions))
SCHEMA_HINT = "GET /api/training/schema lists every field with its type, range and default."


def parse_training_config(
    body: Mapping[str, Any],
    *,
    defaults: TrainingConfig | None = None,
    extra_keys: Collection[str] = (),
) -> TrainingConfig:
    """The checked configuration of a training start.

    `extra_keys` are further top-level keys of the caller's body (dataset_id, dry_run), passed over here.
    Raises ConfigError with every problem at once.
    """
    base = defaults or TrainingConfig()
    if not isinstance(body, Mapping):
        raise ConfigError([ConfigProblem("body", "invalid_type", "must be an object")], SCHEMA_HINT)
    problems = list(unknown_names(body, [*SECTIONS, *OPTION_NAMES, *extra_keys], ""))
    parts: dict[str, Any] = {}
    given: dict[str, dict[str, Any]] = {}
    for key, (part, cls) in SECTIONS.items():
        given[key], found = read_section(cls, body.get(key), f"{key}.")
        problems += found
        if given[key].get("fp16"):
            # bf16 is on by default; asking for fp16 alone means the other one off, not a conflict.
            given[key].setdefault("bf16", False)
        parts[part] = replace(getattr(base, part), **given[key])
    options, found = read_section(TrainingOptions, {k: body[k] for k in OPTION_NAMES if k in body}, "")
    config = TrainingConfig(**parts, options=replace(base.options, **options))
    problems += found
    problems += _length_problems(given)
    problems += _combination_problems(config)
    if problems:
        raise ConfigError(problems, SCHEMA_HINT)
    return _with_one_length(config, given)


def _length_problems(given: Mapping[str, Mapping[str, Any]]) -> list[ConfigProblem]:
    model, sft = (given[key].get("max_seq_length") for key in ("model_config_data", "sft_config"))
    if model is None or sft is None or model == sft:
        return []
    message = f"is {sft}, but model_config_data.max_seq_length is {model}; give one of them"
    return [ConfigProblem("sft_config.max_seq_length", "conflicting_max_seq_length", message)]


def _with_one_length(config: TrainingConfig, given: Mapping[str, Mapping[str, Any]]) -> TrainingConfig:
    length = given["sft_config"].get("max_seq_length")
    if length is None:
        return config
    return replace(config, model=replace(config.model, max_seq_length=length))


def _combination_problems(config: TrainingConfig) -> list[ConfigProblem]:
    return [*_lora_problems(config.lora), *_precision_problems(config), *_holdout_problems(config)]


def _lora_problems(lora: LoraSettings) -> list[ConfigProblem]:
    problems = []
    if not (lora.finetune_vision_layers or lora.finetune_language_layers):
        message = "finetune_vision_layers and finetune_language_layers are both false: no part is left to train"
        problems.append(ConfigProblem("lora_config.finetune_language_layers", "nothing_to_train", message))
    if not (lora.finetune_attention_modules or lora.finetune_mlp_modules):
        message = "finetune_attention_modules and finetune_mlp_modules are both false: no module is left to train"
        problems.append(ConfigProblem("lora_config.finetune_attention_modules", "nothing_to_train", message))
    return problems


def _precision_problems(config: TrainingConfig) -> list[ConfigProblem]:
    problems = []
    if config.sft.fp16 and config.sft.bf16:
        message = "fp16 and bf16 cannot both be true; set the other one to false"
        problems.append(ConfigProblem("sft_config.fp16", "conflicting_precision", message))
    low, high = config.model.min_pixels, config.model.max_pixels
    if low is not None and high is not None and low > high:
        message = f"is {low}, above max_pixels {high}"
        problems.append(ConfigProblem("model_config_data.min_pixels", "conflicting_pixels", message))
    return problems


def _holdout_problems(config: TrainingConfig) -> list[ConfigProblem]:
    """Settings about held-out rows that would have no effect are refused, never passed over."""
    sft, options, problems = config.sft, config.options, []
    if options.holdout_fraction == 0:
        message = "needs held-out rows: set holdout_fraction above 0"
        wanted = {"sft_config.eval_steps": sft.eval_steps is not None, "holdout_stratify": options.holdout_stratify}
        problems += [ConfigProblem(name, "no_heldout_rows", message) for name, given in wanted.items() if given]
    if sft.eval_steps is None:
        message = "needs eval_steps, the interval at which the held-out rows are looked at"
        names = ("early_stopping_patience", "eval_generation_rows")
        given_names = [name for name in names if getattr(sft, name) is not None]
        problems += [ConfigProblem(f"sft_config.{name}", "no_eval_steps", message) for name in given_names]
    return problems


def nest_flat_settings(body: Mapping[str, Any]) -> dict[str, Any]:
    """Moves settings written at the top level into their section: {"max_steps": 60} -> {"sft_config": {...}}.

    Sessions of the user's document hold such flat bodies. A name of two sections (max_seq_length) goes to the
    first; a key that is no setting stays where it is, for parse_training_config to name. Raises ConfigError where a
    setting stands in both places with different values.
    """
    nested: dict[str, Any] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in body.items()}
    problems: list[ConfigProblem] = []
    for key, (_, cls) in SECTIONS.items():
        for name in [item.name for item in fields(cls) if item.name in nested]:
            section = nested.setdefault(key, {})
            if not isinstance(section, dict):
                continue
            value = nested.pop(name)
            if section.setdefault(name, value) != value:
                message = f"is given twice, as {value!r} and as {section[name]!r}: keep one"
                problems.append(ConfigProblem(f"{key}.{name}", "conflicting_values", message))
    if problems:
        raise ConfigError(problems)
    return nested


def parse_generation_params(
    body: Mapping[str, Any] | None, defaults: GenerationParams, *, path: str = "generation_params."
) -> GenerationParams:
    """The generation settings of a request over `defaults`; raises ConfigError with every problem at once."""
    values, problems = read_section(GenerationParams, body, path)
    if problems:
        raise ConfigError(problems)
    return replace(defaults, **values)


def to_dict(config: TrainingConfig) -> dict[str, Any]:
    """The configuration in the shape of the start body, every field present."""
    body: dict[str, Any] = {key: asdict(getattr(config, part)) for key, (part, _) in SECTIONS.items()}
    return body | asdict(config.options)


def from_dict(data: Mapping[str, Any]) -> TrainingConfig:
    """The configuration that to_dict wrote; raises ConfigError like parse_training_config."""
    return parse_training_config(data)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the start body, with all defaults."""
    sections = {key: section_schema(cls, str(cls.__doc__)) for key, (_, cls) in SECTIONS.items()}
    # Null means what leaving a section out means.
    properties = {key: {**section, "type": ["object", "null"]} for key, section in sections.items()}
    options = {item.name: field_schema(TrainingOptions, item) for item in fields(TrainingOptions)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Training start",
        "type": "object",
        "additionalProperties": False,
        "properties": {**properties, **options},
    }
