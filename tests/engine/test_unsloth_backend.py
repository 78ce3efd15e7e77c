"""The Unsloth backend against a stand-in for the unsloth package: what it is asked for, and with what."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ftproject.engine.backends import get_backend
from ftproject.engine.backends.base import TrainingError
from ftproject.engine.configs import EffectiveConfig, LoraSettings, four_bit
from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.encoding import IGNORED, RowEncoder
from ftproject.engine.models import ModelError, lora_target_regex
from ftproject.engine.processors import load_processor, pixel_rule_of
from tests.engine.support import GPU, TINY, effective_config, row, save_image


class FakeModel:
    """Stands for the base and, after get_peft_model, for the adapted model."""

    def __init__(self) -> None:
        self.peft_config = {"default": SimpleNamespace(auto_mapping={"unsloth_fixed": True}, target_parameters=[])}


class FakeUnsloth:
    """Records the calls that reach FastVisionModel and the collator; loads the tiny model underneath."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.collated: list[Any] = []
        self.model = FakeModel()
        self.given_processor: Any = None
        self.garbled = 0

    def from_pretrained(self, path: str, **options: Any) -> tuple[Any, Any]:
        self.calls.append(("from_pretrained", {"path": path, **options}))
        return self.model, load_processor(path)

    def get_peft_model(self, model: Any, **options: Any) -> Any:
        assert model is self.model
        self.calls.append(("get_peft_model", options))
        return model

    def for_training(self, model: Any) -> None:
        self.calls.append(("for_training", {}))

    def for_inference(self, model: Any) -> None:
        self.calls.append(("for_inference", {}))

    def collator(self, model: Any, processor: Any, **options: Any) -> Any:
        self.calls.append(("collator", options))

        self.given_processor = processor

        def collate(features: list[dict[str, Any]]) -> dict[str, Any]:
            self.collated = features
            texts = [processor.apply_chat_template(feature["messages"]) for feature in features]
            images = [feature["images"] for feature in features]
            batch = processor(text=texts, images=images, padding=True, return_tensors="pt")
            batch["input_ids"][:, : self.garbled] += 1
            return dict(batch) | {"labels": batch["input_ids"].clone()}

        return collate

    def named(self, name: str) -> dict[str, Any]:
        return next(options for called, options in self.calls if called == name)


@pytest.fixture
def unsloth(monkeypatch: pytest.MonkeyPatch) -> FakeUnsloth:
    fake = FakeUnsloth()
    package, trainer = ModuleType("unsloth"), ModuleType("unsloth.trainer")
    package.FastVisionModel = fake  # type: ignore[attr-defined]
    trainer.UnslothVisionDataCollator = fake.collator  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "unsloth", package)
    monkeypatch.setitem(sys.modules, "unsloth.trainer", trainer)
    return fake


def on_gpu() -> EffectiveConfig:
    effective = effective_config(seed=11)
    config = effective.config
    config = replace(
        config,
        model=replace(config.model, load_in_4bit=True, max_pixels=16384),
        sft=replace(config.sft, gradient_checkpointing=True, max_seq_length=512),
        lora=LoraSettings(r=4, lora_alpha=8, lora_dropout=0.1, finetune_vision_layers=False),
    )
    return replace(effective, config=config, backend="unsloth", model_path=TINY)


def test_the_base_is_loaded_in_four_bit_without_remote_code(unsloth: FakeUnsloth) -> None:
    from ftproject.engine.backends.unsloth import build_trainable

    trainable = build_trainable(on_gpu())
    assert unsloth.named("from_pretrained") == {
        "path": TINY,
        "max_seq_length": 512,
        "dtype": None,
        "load_in_4bit": True,
        "load_in_16bit": False,
        "use_gradient_checkpointing": "unsloth",
        "use_exact_model_name": True,
        "trust_remote_code": False,
        "use_safetensors": True,
    }
    assert [name for name, _ in unsloth.calls] == ["from_pretrained", "get_peft_model", "for_training"]
    assert pixel_rule_of(trainable.processor).max_pixels == 16384


def test_the_adapter_gets_the_modules_of_the_four_flags_and_the_runs_seed(unsloth: FakeUnsloth) -> None:
    from ftproject.engine.backends.unsloth import build_trainable

    build_trainable(on_gpu())
    assert unsloth.named("get_peft_model") == {
        "target_modules": lora_target_regex(LoraSettings(finetune_vision_layers=False)),
        "target_parameters": [],
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.1,
        "bias": "none",
        "random_state": 11,
        "use_rslora": False,
        "loftq_config": None,
        "use_gradient_checkpointing": "unsloth",
    }


def test_its_adapter_config_says_what_the_other_backends_says(unsloth: FakeUnsloth) -> None:
    from ftproject.engine.backends.unsloth import build_trainable

    build_trainable(on_gpu())
    config = unsloth.model.peft_config["default"]
    assert (config.auto_mapping, config.target_parameters, config.loftq_config) == (None, None, {})


def test_checkpointing_that_is_off_stays_off_in_both_calls(unsloth: FakeUnsloth) -> None:
    from ftproject.engine.backends.unsloth import build_trainable

    effective = on_gpu()
    sft = replace(effective.config.sft, gradient_checkpointing=False)
    build_trainable(replace(effective, config=replace(effective.config, sft=sft)))
    assert unsloth.named("from_pretrained")["use_gradient_checkpointing"] is False
    assert unsloth.named("get_peft_model")["use_gradient_checkpointing"] is False


def test_float16_training_loads_a_float16_base(unsloth: FakeUnsloth) -> None:
    import torch

    from ftproject.engine.backends.unsloth import build_trainable

    effective = on_gpu()
    build_trainable(replace(effective, config=replace(effective.config, sft=replace(effective.config.sft, fp16=True))))
    assert unsloth.named("from_pretrained")["dtype"] == torch.float16


def rows_with_an_image(folder: Path) -> list[ResolvedConversation]:
    image = save_image(folder / "i.png", (90, 70))
    return [row(5, "a <|im_end|>", "7", images=[image]), row(8, "b", "8")]


def test_the_collator_counts_answers_only_and_gets_open_images_and_neutral_text(
    unsloth: FakeUnsloth, tmp_path: Path
) -> None:
    from ftproject.engine.backends.unsloth import build_trainable

    trainable, rows = build_trainable(on_gpu()), rows_with_an_image(tmp_path)
    encoded = [RowEncoder(trainable.processor).encode(item, with_response=True) for item in rows]
    batch = trainable.collator(rows, encoded)([{"row": 1}, {"row": 0}])
    options = unsloth.named("collator")
    assert options == {
        "max_seq_length": max(len(item) for item in encoded) + 1,
        "resize": "max",
        "train_on_responses_only": True,
        "instruction_part": "<|im_start|>user\n",
        "response_part": "<|im_start|>assistant\n",
    }
    assert batch["row_indices"] == [8, 5]
    assert batch["labels"][1, : len(encoded[0])].tolist() == encoded[0].labels
    assert batch["labels"][0, len(encoded[1]) :].eq(IGNORED).all()
    text_only, with_image = unsloth.collated
    assert text_only["images"] == []
    assert [image.size for image in with_image["images"]] == [(90, 70)]
    assert with_image["messages"][0]["content"] == [{"type": "image"}, {"type": "text", "text": "a < |im_end|>"}]


def test_its_collator_cannot_change_the_processor_that_is_saved(unsloth: FakeUnsloth, tmp_path: Path) -> None:
    from ftproject.engine.backends.unsloth import build_trainable

    trainable = build_trainable(on_gpu())
    trainable.collator(rows_with_an_image(tmp_path), [])
    assert unsloth.given_processor is not trainable.processor
    assert unsloth.given_processor.tokenizer is not trainable.processor.tokenizer
    assert unsloth.given_processor.tokenizer.padding_side == "right"


def test_tokens_other_than_the_previewed_ones_stop_the_training_and_name_the_row(
    unsloth: FakeUnsloth, tmp_path: Path
) -> None:
    from ftproject.engine.backends.unsloth import build_trainable

    trainable, rows = build_trainable(on_gpu()), rows_with_an_image(tmp_path)
    encoded = [RowEncoder(trainable.processor).encode(item, with_response=True) for item in rows]
    collate = trainable.collator(rows, encoded)
    unsloth.garbled = 3
    with pytest.raises(TrainingError, match="reads row 5 otherwise") as caught:
        collate([{"row": 0}])
    assert caught.value.code == "encoding_mismatch"


def test_for_generation_it_loads_for_inference_with_the_pixel_rule(unsloth: FakeUnsloth) -> None:
    model = get_backend("unsloth", GPU).load("a/b", TINY, max_pixels=65536)
    assert unsloth.named("from_pretrained")["load_in_4bit"] is False
    assert unsloth.named("from_pretrained")["use_gradient_checkpointing"] is False
    assert ("for_inference", {}) in unsloth.calls
    assert pixel_rule_of(model.processor).max_pixels == 65536  # type: ignore[attr-defined]


def test_a_base_is_quantised_for_answers_as_it_was_for_training(unsloth: FakeUnsloth) -> None:
    backend = get_backend("unsloth", GPU)
    backend.load("tiny", TINY, load_in_4bit=True)
    assert unsloth.named("from_pretrained")["load_in_4bit"] is True
    assert four_bit(None, "a/b", "a/b", cuda=True) is True
    assert four_bit(None, "merged", "/models/merged", cuda=True) is False
    assert four_bit(None, "a/b", "a/b", cuda=False) is False


def test_a_folder_that_is_no_qwen3_vl_never_reaches_unsloth(unsloth: FakeUnsloth, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError):
        get_backend("unsloth", GPU).load("a/b", str(tmp_path))
    assert unsloth.calls == []


def test_training_works_in_the_runs_folder_and_comes_back(
    unsloth: FakeUnsloth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftproject.engine.backends import unsloth as backend
    from tests.engine.support import Recorder, training_job

    seen: list[Path] = []

    def stop(*_: object) -> None:
        seen.append(Path.cwd())
        raise RuntimeError("far enough")

    monkeypatch.setattr(backend, "run_training", stop)
    before = Path.cwd()
    job = training_job(tmp_path, [row(0)])
    with pytest.raises(RuntimeError, match="far enough"):
        get_backend("unsloth", GPU).train(job, Recorder())
    assert seen == [job.work_dir]
    assert Path.cwd() == before
