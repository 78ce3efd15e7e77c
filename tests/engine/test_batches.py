"""Batches of like lengths, checkpoints' interval, and how batches reach the device."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftproject.engine.batches import PositionIndex, RowCollator, length_grouped_sampler
from ftproject.engine.configs import TrainingConfig, parse_training_config
from ftproject.engine.encoding import EncodedRow
from ftproject.engine.heldout_answers import spread
from ftproject.engine.hyperparameters import SftSettings
from ftproject.engine.out_of_memory import ROWS_SHOWN, memory_advice
from ftproject.engine.trainer import loader_arguments, planned_steps, trainer_arguments, with_save_steps
from tests.engine.support import TINY, effective_config, row, save_image

LENGTHS = [(place * 37) % 90 + 10 for place in range(200)]


def padding(order: list[int], size: int) -> int:
    batches = [[LENGTHS[place] for place in order[start : start + size]] for start in range(0, len(order), size)]
    return sum(max(batch) * len(batch) - sum(batch) for batch in batches)


def test_grouping_by_length_keeps_every_row_and_saves_most_of_the_padding() -> None:
    order = list(length_grouped_sampler(LENGTHS, 8, seed=3))
    assert sorted(order) == list(range(200))
    assert padding(order, 8) < padding(list(range(200)), 8) / 4


def test_each_epoch_has_an_order_of_its_own_that_depends_on_seed_and_epoch_alone() -> None:
    import torch

    sampler = length_grouped_sampler(LENGTHS, 8, seed=3)
    first = list(sampler)
    torch.manual_seed(99)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(length_grouped_sampler(LENGTHS, 8, seed=4)) != first


@pytest.mark.parametrize(
    ("sft", "rows", "steps"),
    [
        ({"max_steps": 7}, 1000, 7),
        ({"use_epochs": True, "num_train_epochs": 1.0}, 16, 2),
        ({"use_epochs": True, "num_train_epochs": 1.0}, 17, 3),
        ({"use_epochs": True, "num_train_epochs": 2.5, "gradient_accumulation_steps": 1}, 16, 20),
        ({"use_epochs": True, "num_train_epochs": 0.1}, 3, 1),
    ],
)
def test_steps_are_counted_as_the_trainer_counts_them(sft: dict[str, object], rows: int, steps: int) -> None:
    assert planned_steps(parse_training_config({"sft_config": sft}).sft, rows) == steps


def test_the_interval_of_checkpoints_is_decided_when_the_rows_are_known() -> None:
    config = parse_training_config({"sft_config": {"use_epochs": True, "num_train_epochs": 10}})
    assert with_save_steps(config, 8000).sft.save_steps == 250
    assert with_save_steps(config, 160).sft.save_steps == 20
    asked = parse_training_config({"sft_config": {"save_steps": 3}})
    assert with_save_steps(asked, 8000).sft.save_steps == 3


def test_loader_processes_live_on_and_hand_pinned_batches_over_on_cuda_only(tmp_path: Path) -> None:
    config = effective_config().config
    on_cpu = trainer_arguments(config, tmp_path, heldout=False, cuda=False)
    assert (on_cpu.dataloader_num_workers, on_cpu.dataloader_pin_memory) == (0, False)
    assert on_cpu.dataloader_persistent_workers is False
    on_cuda = loader_arguments(SftSettings(dataloader_num_workers=4), cuda=True)
    assert on_cuda["dataloader_persistent_workers"] is True
    assert on_cuda["dataloader_pin_memory"] is True
    assert on_cuda["dataloader_multiprocessing_context"] == "fork"


def encoded(index: int, tokens: int, image_tokens: int) -> EncodedRow:
    return EncodedRow(index, [9] * image_tokens + [1] * (tokens - image_tokens), [1] * tokens, ())


def test_advice_begins_with_what_leaves_the_training_as_it_is() -> None:
    config = parse_training_config({"sft_config": {"per_device_train_batch_size": 8}})
    advice = memory_advice(config, [encoded(3, 100, 10)], image_token_id=9)
    order = [advice.index(word) for word in ("batch_size from 8 to 4", "gradient_checkpointing to", "max_seq_length")]
    assert order == sorted(order)
    assert "gradient_accumulation_steps 8 keeps" in advice


def test_advice_about_rows_of_images_is_to_lower_the_pixels() -> None:
    body = {
        "sft_config": {"per_device_train_batch_size": 1, "gradient_checkpointing": True},
        "model_config_data": {"load_in_4bit": True, "max_pixels": 900_000},
    }
    advice = memory_advice(parse_training_config(body), [encoded(3, 1000, 900)], image_token_id=9)
    assert advice.startswith("lower max_pixels (now 900000): images take 900 of 1000 tokens")
    assert "row 3: 1000 tokens, 900 of them image" in advice


def test_a_large_batch_is_not_listed_whole_and_says_how_many_are_not() -> None:
    rows = [encoded(place, 10, 0) for place in range(ROWS_SHOWN + 5)]
    assert "and 5 more" in memory_advice(TrainingConfig(), rows, image_token_id=9)


def test_rows_answered_while_training_are_spread_over_the_table() -> None:
    rows = [encoded(place, 10, 0) for place in range(10)]
    assert spread(rows, 5) == [0, 2, 4, 6, 8]
    assert spread(rows, 50) == list(range(10))
    assert spread([], 5) == []


def test_positions_are_the_models_own_and_are_computed_once_for_rows_of_one_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    from ftproject.engine.encoding import RowEncoder
    from ftproject.engine.processors import load_processor

    model = Qwen3VLForConditionalGeneration.from_pretrained(TINY, dtype=torch.float32).model
    processor = load_processor(TINY, min_pixels=1024, max_pixels=65536)
    asked: list[object] = []

    def counted(*args: object, **kwargs: object) -> object:
        asked.append(args)
        return model.get_rope_index(*args, **kwargs)

    small, wide = save_image(tmp_path / "a.png"), save_image(tmp_path / "b.png", (256, 64))
    rows = [
        row(0, images=[small]),
        row(1, prompt="Look.", images=[wide, small]),
        row(2, prompt="No image here."),
        row(3, images=[small]),
    ]
    encoder = RowEncoder(processor)
    encoded_rows = [encoder.encode(item, with_response=True) for item in rows]
    collate = RowCollator(encoded_rows, processor, positions=PositionIndex(counted))
    batch = collate([{"row": place} for place in range(4)])
    expected, _ = model.get_rope_index(
        batch["input_ids"],
        batch["mm_token_type_ids"],
        image_grid_thw=batch["image_grid_thw"],
        attention_mask=batch["attention_mask"],
    )
    assert batch["position_ids"].equal(expected)
    assert len(asked) == 3
    collate([{"row": 0}, {"row": 1}])
    assert len(asked) == 3
    assert "position_ids" not in collate([{"row": 2}])
