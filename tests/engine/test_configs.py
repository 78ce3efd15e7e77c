"""Settings: one home of defaults, strict reading, and a schema that says the same."""

import json
import math
from dataclasses import fields
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftproject.engine.configs import (
    EVALUATION_GENERATION,
    ConfigError,
    GenerationParams,
    LoraSettings,
    ModelConfig,
    SftSettings,
    TrainingConfig,
    TrainingOptions,
    from_dict,
    json_schema,
    nest_flat_settings,
    parse_generation_params,
    parse_training_config,
    to_dict,
)

SEED_BODY: dict[str, dict[str, Any]] = {
    "model_config_data": {
        "model_name": "unsloth/Qwen3-VL-8B-Instruct-unsloth-bnb-4bit",
        "max_seq_length": 2048,
    },
    "sft_config": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "learning_rate": 2e-4,
        "max_steps": 30,
        "warmup_steps": 5,
        "weight_decay": 0.01,
        "lr_scheduler_type": "linear",
        "max_seq_length": 2048,
        "optim": "adamw_8bit",
        "logging_steps": 1,
        "seed": 3407,
        "fp16": False,
        "bf16": True,
        "use_epochs": False,
    },
    "lora_config": {
        "r": 16,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "finetune_vision_layers": True,
        "finetune_language_layers": True,
        "finetune_attention_modules": True,
        "finetune_mlp_modules": True,
    },
}


def problems_of(body: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        parse_training_config(body)
    assert caught.value.hint
    return {problem.field: problem.code for problem in caught.value.problems}


def message_of(body: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_training_config(body)
    return caught.value.problems[0].message


def test_an_empty_body_takes_every_default_and_the_documents_example_is_those_defaults() -> None:
    empty = parse_training_config({})
    example = parse_training_config(SEED_BODY)
    assert empty == TrainingConfig()
    assert to_dict(empty)["lora_config"] == SEED_BODY["lora_config"]
    shared = SEED_BODY["sft_config"].keys() - {"max_seq_length"}
    assert {key: to_dict(empty)["sft_config"][key] for key in shared} == {
        key: SEED_BODY["sft_config"][key] for key in shared
    }
    assert empty.max_seq_length == example.max_seq_length == 2048


@pytest.mark.parametrize("cls", [ModelConfig, SftSettings, LoraSettings, TrainingOptions, GenerationParams])
def test_every_setting_explains_itself_and_its_default_is_within_its_own_limits(cls: type) -> None:
    from ftproject.engine.fields import read_value

    for item in fields(cls):
        assert len(item.metadata["help"]) > 10
        value, problem = read_value(cls, item, item.default, "")
        assert problem is None
        assert value == item.default


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({"sft_confg": {}}, "sft_confg", "unknown_field"),
        ({"sft_config": {"max_step": 3}}, "sft_config.max_step", "unknown_field"),
        ({"sft_config": {"max_steps": "30"}}, "sft_config.max_steps", "invalid_type"),
        ({"sft_config": {"max_steps": True}}, "sft_config.max_steps", "invalid_type"),
        ({"sft_config": {"max_steps": 1.5}}, "sft_config.max_steps", "invalid_type"),
        ({"sft_config": {"max_steps": None}}, "sft_config.max_steps", "invalid_type"),
        ({"sft_config": {"max_steps": 0}}, "sft_config.max_steps", "out_of_range"),
        ({"sft_config": {"learning_rate": 0}}, "sft_config.learning_rate", "out_of_range"),
        ({"sft_config": {"learning_rate": math.nan}}, "sft_config.learning_rate", "not_finite"),
        ({"sft_config": {"learning_rate": math.inf}}, "sft_config.learning_rate", "not_finite"),
        ({"sft_config": {"learning_rate": 10**400}}, "sft_config.learning_rate", "not_finite"),
        ({"sft_config": {"optim": "adam8bit"}}, "sft_config.optim", "invalid_choice"),
        ({"sft_config": {"bf16": 1}}, "sft_config.bf16", "invalid_type"),
        ({"sft_config": {"seed": 2**32}}, "sft_config.seed", "out_of_range"),
        ({"sft_config": []}, "sft_config", "invalid_type"),
        ({"lora_config": {"lora_dropout": 1}}, "lora_config.lora_dropout", "out_of_range"),
        ({"lora_config": {"r": 0}}, "lora_config.r", "out_of_range"),
        ({"model_config_data": {"model_name": 8}}, "model_config_data.model_name", "invalid_type"),
        ({"holdout_fraction": 1}, "holdout_fraction", "out_of_range"),
        ({"holdout_stratify": True}, "holdout_stratify", "no_heldout_rows"),
        ({"holdout_fraction": 0.2, "holdout_stratify": "yes"}, "holdout_stratify", "invalid_type"),
        ({"sft_config": {"eval_generation_rows": 8}}, "sft_config.eval_generation_rows", "no_eval_steps"),
        ({"sft_config": {"eval_generation_rows": 0}}, "sft_config.eval_generation_rows", "out_of_range"),
        ({"sft_config": {"report_to": "wandb"}}, "sft_config.report_to", "invalid_choice"),
        ({"sft_config": {"group_by_length": 1}}, "sft_config.group_by_length", "invalid_type"),
        ({"sft_config": {"dataloader_num_workers": 65}}, "sft_config.dataloader_num_workers", "out_of_range"),
        ({"sft_config": {"save_steps": 0}}, "sft_config.save_steps", "out_of_range"),
        ({"sft_config": {"fp16": True, "bf16": True}}, "sft_config.fp16", "conflicting_precision"),
        ({"sft_config": {"eval_steps": 5}}, "sft_config.eval_steps", "no_heldout_rows"),
        (
            {"sft_config": {"early_stopping_patience": 2}},
            "sft_config.early_stopping_patience",
            "no_eval_steps",
        ),
        (
            {"model_config_data": {"min_pixels": 5000, "max_pixels": 4000}},
            "model_config_data.min_pixels",
            "conflicting_pixels",
        ),
    ],
)
def test_a_wrong_setting_is_refused_by_name(body: Any, field: str, code: str) -> None:
    assert problems_of(body) == {field: code}


@pytest.mark.parametrize("body", [None, [], "x", 3])
def test_a_body_that_is_no_object_is_refused(body: Any) -> None:
    assert problems_of(body) == {"body": "invalid_type"}


def test_all_problems_are_named_at_once() -> None:
    body = {"sft_config": {"max_steps": 0, "seed": "x"}, "lora_config": {"rank": 8}}
    assert len(problems_of(body)) == 3


def test_the_nearest_known_name_is_suggested() -> None:
    assert "'learning_rate'" in message_of({"sft_config": {"learningrate": 1e-4}})
    assert "'sft_config'" in message_of({"sft_cfg": {}})
    assert "'adamw_torch'" in message_of({"sft_config": {"optim": "adamw_torhc"}})


def test_two_different_lengths_are_refused_and_one_of_them_is_enough() -> None:
    both = {"model_config_data": {"max_seq_length": 1024}, "sft_config": {"max_seq_length": 512}}
    assert problems_of(both) == {"sft_config.max_seq_length": "conflicting_max_seq_length"}
    assert parse_training_config({"sft_config": {"max_seq_length": 512}}).model.max_seq_length == 512
    assert parse_training_config({"model_config_data": {"max_seq_length": 512}}).max_seq_length == 512


def test_the_seven_flag_combinations_that_leave_nothing_are_refused_and_the_nine_others_taken() -> None:
    names = [item.name for item in fields(LoraSettings) if item.name.startswith("finetune_")]
    refused = 0
    for bits in range(16):
        flags = {name: bool(bits & (1 << place)) for place, name in enumerate(names)}
        part = flags["finetune_vision_layers"] or flags["finetune_language_layers"]
        kind = flags["finetune_attention_modules"] or flags["finetune_mlp_modules"]
        if part and kind:
            parse_training_config({"lora_config": flags})
        else:
            refused += 1
            assert set(problems_of({"lora_config": flags}).values()) == {"nothing_to_train"}
    assert refused == 7


def test_fp16_alone_turns_the_default_bf16_off() -> None:
    sft = parse_training_config({"sft_config": {"fp16": True}}).sft
    assert (sft.fp16, sft.bf16) == (True, False)


def test_keys_of_the_caller_are_passed_over_and_known_when_misspelt() -> None:
    parse_training_config({"dataset_id": 3}, extra_keys=["dataset_id"])
    with pytest.raises(ConfigError, match="did you mean 'dataset_id'"):
        parse_training_config({"datasetid": 3}, extra_keys=["dataset_id"])


def test_flat_settings_of_a_saved_session_find_their_section() -> None:
    flat = {"max_steps": 60, "learning_rate": 1e-4, "r": 8, "holdout_fraction": 0.2}
    config = parse_training_config(nest_flat_settings(flat))
    assert (config.sft.max_steps, config.sft.learning_rate, config.lora.r) == (60, 1e-4, 8)
    assert nest_flat_settings(SEED_BODY) == SEED_BODY
    assert "nonsense" in nest_flat_settings({"nonsense": 1})


def test_a_flat_setting_that_contradicts_its_section_is_refused_and_not_dropped() -> None:
    assert nest_flat_settings({"max_steps": 5, "sft_config": {"max_steps": 5}}) == {"sft_config": {"max_steps": 5}}
    with pytest.raises(ConfigError) as refused:
        nest_flat_settings({"max_steps": 5, "sft_config": {"max_steps": 60}})
    (problem,) = refused.value.problems
    assert (problem.field, problem.code) == ("sft_config.max_steps", "conflicting_values")


def test_a_configuration_survives_the_way_through_json() -> None:
    body = {"sft_config": {"max_seq_length": 256, "eval_steps": 3}, "holdout_fraction": 0.25}
    config = parse_training_config(body)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_generation_params_start_from_the_callers_defaults() -> None:
    params = parse_generation_params({"max_new_tokens": 8}, EVALUATION_GENERATION)
    assert (params.max_new_tokens, params.do_sample) == (8, False)
    assert parse_generation_params(None, GenerationParams()) == GenerationParams()
    assert GenerationParams(temperature=0.0).greedy
    assert not GenerationParams().greedy


@pytest.mark.parametrize(
    "body",
    [
        {"max_new_tokens": 8193},
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"top_p": 0},
        {"min_p": 1.1},
        {"temprature": 1},
        {"seed": -1},
        [],
    ],
)
def test_generation_params_out_of_range_are_refused(body: Any) -> None:
    with pytest.raises(ConfigError):
        parse_generation_params(body, GenerationParams())


def test_the_schema_is_valid_and_holds_every_default() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for key in ("model_config_data", "sft_config", "lora_config"):
        defaults = {name: part["default"] for name, part in schema["properties"][key]["properties"].items()}
        assert defaults == to_dict(TrainingConfig())[key]
    jsonschema.validate(to_dict(TrainingConfig()), schema)


VALIDATOR = jsonschema.Draft202012Validator(json_schema())
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 10**9), st.floats(-2, 2000, allow_nan=False), st.text(max_size=5)
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first draw imports half of hypothesis
@given(
    VALUES
    | st.fixed_dictionaries(
        {},
        optional={
            "max_steps": VALUES,
            "learning_rate": VALUES,
            "bf16": VALUES,
            "save_steps": VALUES,
            "lr_scheduler_type": st.one_of(VALUES, st.just("cosine")),
        },
    )
)
def test_the_schema_and_the_reader_accept_the_same_bodies(section: Any) -> None:
    body = {"sft_config": section}
    try:
        parse_training_config(body)
        accepted = True
    except ConfigError:
        accepted = False
    assert accepted == VALIDATOR.is_valid(body)
