"""The four flags choose the same modules in both backends, and a seed the same weights."""

from __future__ import annotations

import itertools
import re

import pytest

from ftproject.engine.configs import ConfigError, LoraSettings, parse_training_config
from tests.engine.conformance.subjects import Subject

pytestmark = pytest.mark.slow
FLAGS = ("finetune_vision_layers", "finetune_language_layers", "finetune_attention_modules", "finetune_mlp_modules")
ALL = list(itertools.product([True, False], repeat=4))
LEGAL = [bits for bits in ALL if any(bits[:2]) and any(bits[2:])]
KINDS = {
    (0, 2): {"visual.blocks.N.attn.qkv", "visual.blocks.N.attn.proj"},
    (0, 3): {"visual.blocks.N.mlp.linear_fc1", "visual.blocks.N.mlp.linear_fc2"},
    (1, 2): {f"language_model.layers.N.self_attn.{part}_proj" for part in "qkvo"},
    (1, 3): {f"language_model.layers.N.mlp.{part}_proj" for part in ("gate", "up", "down")},
}


def flags(bits: tuple[bool, ...]) -> dict[str, bool]:
    return dict(zip(FLAGS, bits, strict=True))


def test_nine_combinations_are_legal() -> None:
    assert len(LEGAL) == 9


@pytest.mark.parametrize(
    "bits", LEGAL, ids=lambda bits: "".join("VLAM"[n] if bit else "-" for n, bit in enumerate(bits))
)
def test_a_legal_combination_trains_exactly_its_modules(subject: Subject, bits: tuple[bool, ...]) -> None:
    import torch

    model = subject.build(lora=LoraSettings(r=2, **flags(bits))).model
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    modules = [re.sub(r"\.lora_[AB]\.default\.weight$", "", name) for name in trained]
    kinds = {re.sub(r"\.\d+\.", ".N.", name).removeprefix("base_model.model.model.") for name in modules}
    assert kinds == set().union(*(KINDS[part, kind] for part, kind in KINDS if bits[part] and bits[kind]))
    assert len(trained) == 2 * 3 * len(kinds)  # two matrices in each of three layers
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    assert all(not weight.any() for name, weight in trained.items() if "lora_B" in name)


@pytest.mark.parametrize("bits", [bits for bits in ALL if bits not in LEGAL])
def test_an_illegal_combination_is_refused_before_anything_is_loaded(bits: tuple[bool, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_training_config({"lora_config": flags(bits)})
    assert caught.value.hint or caught.value.problems[0].message


def test_the_seed_decides_the_adapters_first_weights(subject: Subject) -> None:
    import torch

    def first_weights(seed: int) -> list[torch.Tensor]:
        model = subject.build(lora=LoraSettings(r=2), seed=seed).model
        return [weight.detach().cpu() for name, weight in model.named_parameters() if "lora_A" in name]

    one, same, other = first_weights(11), first_weights(11), first_weights(12)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_dropout_and_scale_are_those_asked_for(subject: Subject) -> None:
    model = subject.build(lora=LoraSettings(r=4, lora_alpha=6, lora_dropout=0.25)).model
    layers = [part for part in model.modules() if hasattr(part, "lora_A")]
    assert {layer.scaling["default"] for layer in layers} == {1.5}
    assert {layer.lora_dropout["default"].p for layer in layers} == {0.25}
