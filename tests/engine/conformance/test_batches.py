"""A training batch is the same in both backends: tokens, loss mask, pixels; and nothing shrinks or cuts it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ftproject.engine.configs import ModelConfig
from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.encoding import IGNORED, RowEncoder
from ftproject.engine.images import open_image
from ftproject.engine.processors import load_processor
from ftproject.engine.training import TrainableModel
from tests.engine.conformance.subjects import Subject
from tests.engine.support import TINY, row, save_image

pytestmark = pytest.mark.slow
RULES = {
    "the model's own rule": ModelConfig(),
    "large images": ModelConfig(max_pixels=2_000_000),
    "small images enlarged": ModelConfig(min_pixels=65_536, max_pixels=262_144),
}


@pytest.fixture(scope="module", params=RULES, ids=list(RULES))
def rule(request: pytest.FixtureRequest) -> ModelConfig:
    return RULES[request.param]


@pytest.fixture(scope="module")
def trainable(subject: Subject, rule: ModelConfig) -> TrainableModel:
    return subject.build(model=rule)


@pytest.fixture(scope="module")
def rows(varied_rows: list[ResolvedConversation], tmp_path_factory: pytest.TempPathFactory) -> Sequence[Any]:
    """With an image wider than the 512 pixels that Unsloth's collator would allow by itself."""
    large = save_image(tmp_path_factory.mktemp("large") / "large.png", (1200, 700), (250, 200, 10))
    return [*varied_rows, row(66, "What colour?", "yellow", images=[large])]


@pytest.fixture(scope="module")
def batch(trainable: TrainableModel, rows: Sequence[Any]) -> dict[str, Any]:
    encoder = RowEncoder(trainable.processor)
    encoded = [encoder.encode(item, with_response=True) for item in rows]
    return trainable.collator(rows, encoded)([{"row": place} for place in range(len(rows))])


def test_the_tokens_are_those_of_the_processor_on_the_rows_messages(
    batch: dict[str, Any], rule: ModelConfig, rows: Sequence[Any]
) -> None:
    """Worked out here with transformers alone: no encoder, no collator of ours or of Unsloth."""
    processor = load_processor(TINY, min_pixels=rule.min_pixels, max_pixels=rule.max_pixels)
    texts, images = [], []
    for item in rows:
        conversation = item.conversation
        content: list[dict[str, str]] = [{"type": "image"} for _ in item.image_paths]
        content.append({"type": "text", "text": conversation.prompt.replace("<|", "< |")})
        messages = [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": conversation.response.replace("<|", "< |")}]},
        ]
        texts.append(processor.apply_chat_template(messages, tokenize=False))
        images += [open_image(path) for path in item.image_paths]
    expected = processor(text=texts, images=images, padding=True, padding_side="right", return_tensors="pt")
    for name in ("input_ids", "attention_mask", "image_grid_thw"):
        assert batch[name].tolist() == expected[name].tolist(), name
    difference = (batch["pixel_values"].float() - expected["pixel_values"]).abs().max()
    assert difference <= 1 / 127.5  # one grey level: image backends differ by that much where they resize


def test_only_the_answer_and_its_end_count(
    batch: dict[str, Any], trainable: TrainableModel, rows: Sequence[Any]
) -> None:
    for place, item in enumerate(rows):
        labels = batch["labels"][place]
        kept = labels[labels != IGNORED]
        answer = item.conversation.response.replace("<|", "< |")
        assert trainable.processor.tokenizer.decode(kept) == f"{answer}<|im_end|>\n"
        places = (labels != IGNORED).nonzero().flatten().tolist()
        assert places == list(range(places[0], places[-1] + 1))
        assert batch["input_ids"][place, places].tolist() == kept.tolist()


def test_no_image_or_padding_token_counts(batch: dict[str, Any], trainable: TrainableModel) -> None:
    images = batch["input_ids"] == trainable.processor.image_token_id
    assert images.any()
    assert batch["labels"][images].eq(IGNORED).all()
    assert batch["labels"][batch["attention_mask"] == 0].eq(IGNORED).all()


def test_the_batch_names_its_rows_and_is_padded_right(batch: dict[str, Any], rows: Sequence[Any]) -> None:
    assert batch["row_indices"] == [item.conversation.index for item in rows]
    assert batch["attention_mask"][:, 0].tolist() == [1] * len(rows)
    assert (batch["attention_mask"].diff(dim=1) <= 0).all()


def test_a_batch_without_any_image_is_fine(trainable: TrainableModel) -> None:
    rows = [row(0, "one", "two"), row(1, "three and four", "five")]
    encoder = RowEncoder(trainable.processor)
    batch = trainable.collator(rows, [encoder.encode(item, with_response=True) for item in rows])(
        [{"row": 1}, {"row": 0}]
    )
    assert batch["row_indices"] == [1, 0]
    assert batch.get("pixel_values") is None


def test_the_saved_processor_is_untouched_by_batches(
    trainable: TrainableModel, batch: dict[str, Any], rule: ModelConfig, tmp_path: Path
) -> None:
    fresh = load_processor(TINY, min_pixels=rule.min_pixels, max_pixels=rule.max_pixels)
    assert trainable.processor.tokenizer.padding_side == fresh.tokenizer.padding_side
    assert trainable.processor.tokenizer.pad_token == fresh.tokenizer.pad_token == "<|endoftext|>"
    assert trainable.processor.chat_template == fresh.chat_template
    assert trainable.processor.image_processor.size == fresh.image_processor.size
