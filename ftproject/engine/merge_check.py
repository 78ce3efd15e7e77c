"""Compares a merged model with base + adapter by the logits of one drawn image and a question."""

from __future__ import annotations

import gc
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftproject.engine.adapters import AdapterInfo, check_adapter_fits
from ftproject.engine.conversations import Conversation, ResolvedConversation
from ftproject.engine.encoding import RowEncoder, build_batch
from ftproject.engine.models import load_base_model, torch_device
from ftproject.engine.pixel_cache import PixelCache
from ftproject.engine.processors import load_processor

QUESTION = "What is shown in the image?"
IMAGE_SIZE = 64
# Rounding adds noise of 0.1 % of the logits and keeps the adapter's effect: 1.00 of a strong one's, 0.9 of the weakest
# (docs/benchmarks.md). A part of the adapter left out, or added twice, moves `kept_effect` further.
LARGEST_DIFFERENCE = 0.1
KEPT_EFFECT = (0.7, 1.3)
LOUD_NOISE = 0.25
NOISE_FLOOR = {"cpu": 0.002, "cuda": 0.01}  # below it, rounding (on CUDA that of the computation too) explains anything


@dataclass(frozen=True)
class MergeCheck:
    """Logits of the merged model against base + adapter, over every position of the probe.

    `difference` is rms(merged - tuned) and `effect` rms(tuned - base), both relative to rms(tuned); `kept_effect` is
    the part of the adapter's effect that the merged model has: the projection of merged - base on tuned - base.
    """

    difference: float
    effect: float
    kept_effect: float
    same_next_token: bool
    noise_floor: float

    @property
    def passed(self) -> bool:
        """Whether rounding explains the difference."""
        low, high = KEPT_EFFECT
        keeps = low <= self.kept_effect <= high
        return self.difference <= self.noise_floor or (keeps and self.difference <= LARGEST_DIFFERENCE)

    @property
    def noisy(self) -> bool:
        """Whether rounding to 16 bit adds noise that is not small beside what a weak adapter changes."""
        return self.difference > LOUD_NOISE * self.effect


class MergeProbe:
    """Holds the logits of base and base + adapter; the models themselves are gone once it is made."""

    def __init__(self, base: Path, adapter: AdapterInfo) -> None:
        self._device = torch_device()
        self._batch = _probe_batch(base, adapter)
        self._base, self._tuned = self._reference(base, adapter)

    def _reference(self, base: Path, adapter: AdapterInfo) -> tuple[Any, Any]:
        from peft import PeftModel

        model = load_base_model(str(base), device=self._device)
        check_adapter_fits(model, adapter.path)
        logits = self._logits(model)
        tuned = self._logits(PeftModel.from_pretrained(model, str(adapter.path)).eval())
        del model
        _release_memory()
        return logits, tuned

    def _logits(self, model: Any) -> Any:
        import torch

        inputs = {name: tensor.to(self._device) for name, tensor in self._batch.items()}
        with torch.inference_mode():
            return model(**inputs).logits.float().cpu()

    @property
    def effect(self) -> float:
        """How much the adapter changes the logits, relative to them; 0.0 when not at all."""
        return _rms(self._tuned - self._base) / _rms(self._tuned)

    def compare(self, merged: Path) -> MergeCheck:
        """Loads the merged folder as every run would, and compares; raises ModelError when it does not load."""
        model = load_base_model(str(merged), device=self._device)
        check = self.check(model)
        del model
        _release_memory()
        return check

    def check(self, model: Any) -> MergeCheck:
        """Compares a loaded model, which stands for the merged one."""
        logits = self._logits(model)
        wanted = self._tuned - self._base
        return MergeCheck(
            difference=_rms(logits - self._tuned) / _rms(self._tuned),
            effect=self.effect,
            kept_effect=float(((logits - self._base) * wanted).sum() / wanted.pow(2).sum()),
            same_next_token=bool(logits[0, -1].argmax() == self._tuned[0, -1].argmax()),
            noise_floor=NOISE_FLOOR[self._device],
        )


def _rms(values: Any) -> float:
    return float(values.pow(2).mean().sqrt())


def _release_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _probe_batch(base: Path, adapter: AdapterInfo) -> dict[str, Any]:
    """One drawn image (a vision-only adapter changes nothing without one) and a question, as the adapter saw images."""
    from PIL import Image, ImageDraw

    rule = adapter.pixel_rule
    processor = load_processor(
        base, min_pixels=rule.min_pixels if rule else None, max_pixels=rule.max_pixels if rule else None
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.png"
        image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "white")
        ImageDraw.Draw(image).ellipse((12, 8, 44, 52), fill="red", outline="blue", width=4)
        image.save(path)
        row = ResolvedConversation(Conversation(0, QUESTION, "", "", (str(path),)), (path,))
        return build_batch(
            [RowEncoder(processor).encode(row, with_response=False)],
            PixelCache(processor),
            image_token_id=processor.image_token_id,
            pad_token_id=processor.tokenizer.pad_token_id,
            padding_side="right",
            with_labels=False,
        )
