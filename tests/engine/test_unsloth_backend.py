"""The Unsloth backend against a stand-in for the unsloth package: what it is asked for, and with what."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ftproject.engine.backends import get_backend
from ftproject.engine.configs import EffectiveConfig, LoraSettings
from ftproject.engine.models import ModelError
from ftproject.engine.processors import load_processor, pixel_rule_of
from tests.engine.support import GPU, TINY, effective_config, row, save_image


class FakeUnsloth:
    """Records the calls that reach FastVisionModel and the collator; loads the tiny model underneath."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.collated: list[Any] = []
        self.model = object()

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

        def collate(features: list[dict[str, Any]]) -> dict[str, Any]:
            self.collated = features
            return {"input_ids": len(features)}

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
        "load_in_4bit": True,
        "use_gradient_checkpointing": "unsloth",
        "trust_remote_code": False,
        "use_safetensors": True,
    }
    assert [name for name, _ in unsloth.calls] == ["from_pretrained", "get_peft_model", "for_training"]
    assert pixel_rule_of(trainable.processor).max_pixels == 16384
    assert trainable.device == "cuda"


def test_the_adapter_gets_the_four_flags_and_the_runs_seed(unsloth: FakeUnsloth) -> None:
    from ftproject.engine.backends.unsloth import build_trainable

    build_trainable(on_gpu())
    assert unsloth.named("get_peft_model") == {
        "finetune_vision_layers": False,
        "finetune_language_layers": True,
        "finetune_attention_modules": True,
        "finetune_mlp_modules": True,
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.1,
        "bias": "none",
        "random_state": 11,
        "use_rslora": False,
        "loftq_config": None,
    }


def test_the_collator_counts_answers_only_and_gets_open_images_and_neutral_text(
    unsloth: FakeUnsloth, tmp_path: Path
) -> None:
    from ftproject.engine.backends.unsloth import build_trainable

    rows = [row(5, "a <|im_end|>", "7", images=[save_image(tmp_path / "i.png", (9, 7))]), row(8, "b", "8")]
    collate = build_trainable(on_gpu()).collator(rows, [])
    batch = collate([{"row": 1}, {"row": 0}])
    options = unsloth.named("collator")
    assert options["train_on_responses_only"] is True
    assert (options["instruction_part"], options["response_part"]) == (
        "<|im_start|>user\n",
        "<|im_start|>assistant\n",
    )
    assert options["max_seq_length"] == 512
    assert batch == {"input_ids": 2, "row_indices": [8, 5]}
    user = unsloth.collated[1]["messages"][0]["content"]
    assert user[0]["image"].size == (9, 7)
    assert user[1]["text"] == "a < |im_end|>"


def test_for_generation_it_loads_for_inference_with_the_pixel_rule(unsloth: FakeUnsloth) -> None:
    class Loadable:
        pass

    unsloth.model = Loadable()
    model = get_backend("unsloth", GPU).load("a/b", TINY, max_pixels=65536)
    assert unsloth.named("from_pretrained")["load_in_4bit"] is True
    assert unsloth.named("from_pretrained")["use_gradient_checkpointing"] is False
    assert ("for_inference", {}) in unsloth.calls
    assert model.device == "cuda"
    assert pixel_rule_of(model.processor).max_pixels == 65536  # type: ignore[attr-defined]


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


def test_the_real_unsloth_has_the_signatures_we_call() -> None:
    pytest.importorskip("unsloth_zoo", reason="unsloth is installed on GPU machines only")
    import inspect

    from unsloth_zoo.vision_utils import UnslothVisionDataCollator

    parameters = inspect.signature(UnslothVisionDataCollator.__init__).parameters
    assert {"max_seq_length", "train_on_responses_only", "instruction_part", "response_part"} <= parameters.keys()
