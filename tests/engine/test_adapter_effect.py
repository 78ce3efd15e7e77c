"""Whether a saved adapter is the trained one and does anything: each thing that is looked at, broken alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftproject.engine.adapters import WEIGHTS_FILE, verify_adapter
from ftproject.engine.encoding import RowEncoder, build_batch
from ftproject.engine.models import load_base_model
from ftproject.engine.pixel_cache import PixelCache
from ftproject.engine.processors import load_processor
from tests.engine.conftest import TrainedAdapter
from tests.engine.support import TINY

pytestmark = pytest.mark.slow


def as_trained(weights: dict[str, Any]) -> dict[str, Any]:
    return weights


def first_matrices_zero(weights: dict[str, Any]) -> dict[str, Any]:
    """Every lora_B is as trained, and no update is left."""
    return {name: tensor * (0 if "lora_A" in name else 1) for name, tensor in weights.items()}


def one_number_off(weights: dict[str, Any]) -> dict[str, Any]:
    name = min(weights)
    changed = weights[name].clone()
    changed[0, 0] += 1
    return weights | {name: changed}


def one_missing(weights: dict[str, Any]) -> dict[str, Any]:
    return {name: weights[name] for name in sorted(weights)[1:]}


@pytest.mark.parametrize(
    ("in_model", "in_file", "expected"),
    [
        (as_trained, as_trained, True),
        (first_matrices_zero, first_matrices_zero, False),
        (as_trained, one_number_off, False),
        (as_trained, one_missing, False),
    ],
)
def test_an_adapter_is_effective_when_it_was_saved_as_trained_and_changes_the_logits(
    trained: TrainedAdapter, tmp_path: Path, in_model: Callable[..., Any], in_file: Callable[..., Any], expected: bool
) -> None:
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import save_file

    model = PeftModel.from_pretrained(load_base_model(TINY, device="cpu"), str(trained.path))
    weights = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}
    set_peft_model_state_dict(model, in_model(weights))
    save_file(in_file(weights), str(tmp_path / WEIGHTS_FILE))
    processor = load_processor(TINY)
    probe = build_batch(
        [RowEncoder(processor).encode(trained.rows[0], with_response=True)],
        PixelCache(processor),
        image_token_id=processor.image_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
        padding_side="right",
        with_labels=False,
    )
    assert verify_adapter(model, probe, tmp_path) is expected
