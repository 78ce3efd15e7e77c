"""What it costs to change the active adapter, and whether base and adapter in one mixed batch pay."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROWS, ROUNDS = 32, 15


def main() -> None:
    from django.conf import settings

    from benchmarks.instance import print_table

    folder = Path(settings.DATA_DIR) / "switching"
    lines = [switching("tiny model", tiny_with_two_adapters()), switching("8B shape", large_with_two_adapters())]
    print_table(f"Changing the active adapter, median of {ROUNDS}, ms", lines)
    print_table(f"Base and adapter on {ROWS} rows", [mixed(folder)])


def switching(name: str, model: Any) -> tuple[str, str, str]:
    """PEFT's set_adapter and disable_adapter against AdapterSwitch."""
    from ftproject.engine.adapter_switch import AdapterSwitch

    def disabled() -> None:
        with model.disable_adapter():
            pass

    switch = AdapterSwitch(model)
    peft = median_ms(lambda turn: model.set_adapter(("one", "two")[turn % 2]))
    off_and_on = median_ms(lambda turn: disabled())
    ours = median_ms(lambda turn: switch.activate(("one", "two", None)[turn % 3]))
    text = f"PEFT {peft:.1f}, to the base and back {off_and_on:.1f}; ours {ours:.3f} either way"
    return f"{name}, {len(switch)} layers", text, "under 20"


def median_ms(action: Callable[[int], None]) -> float:
    spent = []
    for turn in range(ROUNDS):
        started = time.process_time()
        action(turn)
        spent.append((time.process_time() - started) * 1000)
    return statistics.median(spent)


def with_two_adapters(model: Any, *, vision: bool = True) -> Any:
    from peft import LoraConfig, get_peft_model

    from ftproject.engine.configs import LoraSettings
    from ftproject.engine.models import lora_target_regex

    targets = lora_target_regex(LoraSettings(finetune_vision_layers=vision))
    config = LoraConfig(r=16, target_modules=targets, init_lora_weights="gaussian", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config, adapter_name="one")
    adapted.add_adapter("two", config)
    return adapted.eval()


def tiny_with_two_adapters() -> Any:
    from ftproject.engine.configs import TINY_MODEL_PATH
    from ftproject.engine.models import load_base_model

    return with_two_adapters(load_base_model(str(TINY_MODEL_PATH), device="cpu"))


def large_with_two_adapters() -> Any:
    """All modules of the 8B model, without a byte of weights."""
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    from benchmarks.random_model import config_of

    with torch.device("meta"):
        return with_two_adapters(Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config_of("8b"))))


def mixed(folder: Path) -> tuple[str, str, str]:
    """One batch of twice the rows with PEFT's adapter_names against a pass each; language modules only.

    With an adapter on the vision tower PEFT refuses: its layers see patches, not rows.
    """
    import torch

    from benchmarks.gpu_digits import conversations, write_digits
    from ftproject.engine.configs import TINY_MODEL_PATH
    from ftproject.engine.encoding import RowEncoder, build_batch
    from ftproject.engine.models import load_base_model
    from ftproject.engine.pixel_cache import PixelCache
    from ftproject.engine.processors import load_processor

    processor = load_processor(TINY_MODEL_PATH)
    encoder = RowEncoder(processor)
    rows = [encoder.encode(row, with_response=False) for row in conversations(write_digits(folder))[:ROWS]]
    pixels = PixelCache(processor)
    torch.manual_seed(0)
    model = with_two_adapters(load_base_model(str(TINY_MODEL_PATH), device="cpu"), vision=False)
    for name, weight in model.named_parameters():
        if ".lora_B.one" in name:
            weight.data.normal_(std=0.05)

    def answers(count: int, **options: Any) -> list[list[int]]:
        batch = build_batch(
            rows * count,
            pixels,
            image_token_id=processor.image_token_id,
            pad_token_id=processor.tokenizer.pad_token_id,
            padding_side="left",
            with_labels=False,
        )
        with torch.inference_mode():
            output = model.generate(**batch, max_new_tokens=8, do_sample=False, **options)
        return [list(map(int, row[batch["input_ids"].shape[1] :])) for row in output]

    def apart() -> list[list[int]]:
        model.set_adapter("one")
        with model.disable_adapter():
            base = answers(1)
        return base + answers(1)

    def together() -> list[list[int]]:
        return answers(2, adapter_names=["__base__"] * ROWS + ["one"] * ROWS)

    (two, first), (one, second) = timed(apart), timed(together)
    same = sum(_text(a, processor) == _text(b, processor) for a, b in zip(first, second, strict=True))
    text = f"{two:.3f} cpu s apart, {one:.3f} together ({one / two:.2f} x); {same} of {2 * ROWS} answers equal"
    return "plain generate, tiny model", text, "below 1 x, all equal"


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    spent, result = [], None
    for _ in range(5):
        started = time.process_time()
        result = action()
        spent.append(time.process_time() - started)
    return min(spent), result


def _text(ids: list[int], processor: Any) -> str:
    return str(processor.tokenizer.decode(ids, skip_special_tokens=True))
