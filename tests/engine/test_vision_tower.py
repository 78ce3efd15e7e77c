"""The quicker forms of the vision tower compute what transformers computes, and step aside where they may not."""

from __future__ import annotations

from typing import Any

import pytest

from ftproject.engine.vision_tower import quicken_vision_tower
from tests.engine.support import TINY

# Images of one size, of several sizes in turn, and one alone: as grids of (time, height, width) in patches.
SAME = [[1, 4, 4]] * 5
MIXED = [[1, 4, 4], [1, 2, 8], [1, 8, 4], [1, 4, 4]]


@pytest.fixture(scope="module")
def towers() -> tuple[Any, Any]:
    """The tiny model as transformers loads it, and the same with the quicker forms."""
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    plain, quick = (Qwen3VLForConditionalGeneration.from_pretrained(TINY, dtype=torch.float32) for _ in range(2))
    assert quicken_vision_tower(quick), "look at the forms again: this transformers was not tested with them"
    return plain, quick


def seen(model: Any, grids: list[list[int]]) -> Any:
    import torch

    patches = sum(time * height * width for time, height, width in grids)
    pixels = torch.rand(patches, 1536, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        return model.model.visual(pixels, grid_thw=torch.tensor(grids)).pooler_output


@pytest.mark.parametrize("grids", [SAME, MIXED, SAME[:1]])
def test_the_tower_sees_the_same(towers: tuple[Any, Any], grids: list[list[int]]) -> None:
    import torch

    plain, quick = towers
    torch.testing.assert_close(seen(quick, grids), seen(plain, grids), rtol=0, atol=5e-5)


@pytest.mark.parametrize("grids", [SAME, MIXED])
def test_batched_attention_alone_changes_no_bit(
    towers: tuple[Any, Any], grids: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    plain, quick = towers
    monkeypatch.setattr(quick.model.visual.patch_embed.proj, "__class__", torch.nn.Conv3d)
    assert torch.equal(seen(quick, grids), seen(plain, grids))


def test_gradients_reach_the_same_places(towers: tuple[Any, Any]) -> None:
    import torch

    gradients = []
    for model in towers:
        pixels = torch.rand(32, 1536, generator=torch.Generator().manual_seed(1)).requires_grad_()
        model.model.visual(pixels, grid_thw=torch.tensor([[1, 4, 4]] * 2)).pooler_output.square().sum().backward()
        gradients.append(pixels.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)


def test_parameters_and_modules_keep_their_names(towers: tuple[Any, Any]) -> None:
    plain, quick = towers
    assert list(plain.state_dict()) == list(quick.state_dict())
    assert [name for name, _ in plain.named_modules()] == [name for name, _ in quick.named_modules()]


def test_doing_it_twice_is_doing_it_once(towers: tuple[Any, Any]) -> None:
    _, quick = towers
    before = type(quick.model.visual.blocks[0].attn)
    assert quicken_vision_tower(quick)
    assert type(quick.model.visual.blocks[0].attn) is before


def test_another_version_of_transformers_keeps_its_own_forms(
    towers: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    plain, _ = towers
    monkeypatch.setattr(transformers, "__version__", "5.18.0")
    assert not quicken_vision_tower(plain)
    assert type(plain.model.visual.blocks[0].attn).__name__ == "Qwen3VLVisionAttention"


def test_another_model_is_left_alone() -> None:
    assert not quicken_vision_tower(object())
