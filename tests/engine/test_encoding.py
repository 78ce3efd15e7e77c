"""Tokens, labels and pixels: those of the processor and of TRL's collator, made once per row."""

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftproject.engine.backends.base import RowError
from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.encoding import IGNORED, RowEncoder, build_batch
from ftproject.engine.images import open_image
from ftproject.engine.pixel_cache import PixelCache
from ftproject.engine.processors import apply_pixel_rule, load_processor, pixel_rule_of
from tests.engine.support import TINY, row, save_image

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|endoftext|>"]


@pytest.fixture(scope="module")
def processor() -> Any:
    return load_processor(TINY)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    sizes = [(64, 64), (640, 480), (30, 200)]
    return [save_image(folder / f"{width}.png", (width, height)) for width, height in sizes]


def batch_of(processor: Any, rows: list[ResolvedConversation], side: Any = "right") -> dict[str, Any]:
    encoder = RowEncoder(processor)
    return build_batch(
        [encoder.encode(item, with_response=side == "right") for item in rows],
        PixelCache(processor),
        image_token_id=processor.image_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
        padding_side=side,
        with_labels=side == "right",
    )


def trl_batch(processor: Any, rows: list[ResolvedConversation]) -> Any:
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    collator = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)
    return collator(
        [
            {
                "images": [open_image(path) for path in item.image_paths],
                "prompt": [{"role": "user", "content": item.conversation.prompt}],
                "completion": [{"role": "assistant", "content": item.conversation.response}],
            }
            for item in rows
        ]
    )


@pytest.mark.parametrize("kind", ["single", "several", "none", "mixed"])
def test_a_training_batch_is_that_of_trls_collator(processor: Any, pictures: list[Path], kind: str) -> None:
    import torch

    one, wide, tall = pictures
    rows = {
        "single": [row(0, images=[one]), row(1, "What is it?", "a red square", images=[wide])],
        "several": [row(0, images=[one, tall]), row(1, images=[wide, one, tall])],
        "none": [row(0, "one two", "three"), row(1, "a longer prompt than that", "x")],
        "mixed": [row(0, images=[tall]), row(1, "no image here", "y"), row(2, images=[one, wide])],
    }[kind]
    ours, theirs = batch_of(processor, rows), trl_batch(processor, rows)
    assert set(ours) == set(theirs)
    for name in theirs:
        assert torch.equal(ours[name], theirs[name].to(ours[name].dtype)), name


def test_labels_are_the_answer_and_its_end_and_nothing_else(processor: Any, pictures: list[Path]) -> None:
    encoded = RowEncoder(processor).encode(row(0, response="7", images=pictures[:1]), with_response=True)
    kept = [token for token in encoded.labels if token != IGNORED]
    assert processor.tokenizer.decode(kept) == "7<|im_end|>\n"
    assert encoded.labels[-len(kept) :] == kept
    assert len(encoded.labels) == len(encoded)


def test_a_generation_batch_is_padded_left_and_leaves_the_tokenizer_as_it_is(
    processor: Any, pictures: list[Path]
) -> None:
    import torch

    before = processor.tokenizer.padding_side
    rows = [row(0, "short", images=pictures[:1]), row(1, "a prompt that is much longer", images=pictures[:1])]
    batch = batch_of(processor, rows, "left")
    assert batch["attention_mask"][0, 0] == 0
    assert batch["attention_mask"][:, -1].tolist() == [1, 1]
    assert "labels" not in batch
    assert processor.tokenizer.padding_side == before
    messages = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": item.conversation.prompt}]}]
        for item in rows
    ]
    texts = [processor.apply_chat_template(m, tokenize=False, add_generation_prompt=True) for m in messages]
    images = [[open_image(pictures[0])] for _ in rows]
    expected = processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")
    for name in expected:
        assert torch.equal(batch[name], expected[name].to(batch[name].dtype)), name


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(
    prompt=st.lists(st.one_of(st.sampled_from(SPECIAL), st.text(max_size=6))).map("".join),
    response=st.lists(st.one_of(st.sampled_from(SPECIAL), st.text(max_size=6))).map("".join),
    count=st.integers(0, 2),
)
def test_user_text_never_adds_a_role_or_an_image(
    processor: Any, pictures: list[Path], prompt: str, response: str, count: int
) -> None:
    encoded = RowEncoder(processor).encode(row(0, prompt, response, images=pictures[:1] * count), with_response=True)
    ids = {token: processor.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    found = {token: encoded.input_ids.count(number) for token, number in ids.items()}
    assert found["<|im_start|>"] == found["<|im_end|>"] == 2
    assert found["<|vision_start|>"] == found["<|vision_end|>"] == count
    assert found["<|image_pad|>"] == 4 * count
    assert found["<|endoftext|>"] == 0


def test_more_image_files_than_places_is_an_error(processor: Any, pictures: list[Path]) -> None:
    item = row(0, images=pictures[:2])
    with pytest.raises(RowError, match="2 image places for 1 image files"):
        RowEncoder(processor).encode(ResolvedConversation(item.conversation, item.image_paths[:1]), with_response=False)


@pytest.mark.parametrize(
    ("content", "code"), [(None, "image_missing"), (b"", "image_unreadable"), (b"<html>", "image_unreadable")]
)
def test_an_unusable_image_file_is_an_error_with_the_images_code(
    processor: Any, tmp_path: Path, content: bytes | None, code: str
) -> None:
    path = tmp_path / "x.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RowError) as caught:
        RowEncoder(processor).encode(row(0, images=[path]), with_response=False)
    assert caught.value.code == code


def test_an_image_turned_by_exif_has_as_many_tokens_as_patches(tmp_path: Path) -> None:
    from PIL import Image

    processor = load_processor(TINY, min_pixels=4096, max_pixels=65536)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    Image.new("RGB", (300, 40), "red").save(path, exif=exif)
    batch = batch_of(processor, [row(0, images=[path])], "left")
    grid = batch["image_grid_thw"][0].tolist()
    assert grid[1] > grid[2]
    assert int(batch["mm_token_type_ids"].sum()) == grid[1] * grid[2] // 4


def test_pixels_are_prepared_once_and_the_cache_stays_within_its_size(
    processor: Any, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []

    def counting(path: Path) -> Any:
        opened.append(path)
        return open_image(path)

    monkeypatch.setattr("ftproject.engine.pixel_cache.open_image", counting)
    cache = PixelCache(processor)
    first = cache.get(pictures[0])
    assert cache.get(pictures[0])[0].equal(first[0])
    assert opened == [pictures[0]]
    small = PixelCache(processor, max_bytes=first[0].nbytes // 8)
    for path in (pictures[0], pictures[1], pictures[0]):
        small.get(path)
    assert len(opened) == 4


def test_the_pixel_rule_is_the_models_unless_given(processor: Any) -> None:
    assert pixel_rule_of(processor) == pixel_rule_of(load_processor(TINY))
    rule = pixel_rule_of(load_processor(TINY, min_pixels=1024, max_pixels=16384))
    assert (rule.min_pixels, rule.max_pixels) == (1024, 16384)
    only_max = pixel_rule_of(load_processor(TINY, max_pixels=2048))
    assert (only_max.min_pixels, only_max.max_pixels) == (2048, 2048)
    only_min = pixel_rule_of(load_processor(TINY, min_pixels=8192))
    assert (only_min.min_pixels, only_min.max_pixels) == (8192, 8192)


def test_a_rule_set_on_one_processor_does_not_leak_into_another(processor: Any) -> None:
    before = pixel_rule_of(processor)
    apply_pixel_rule(copy.deepcopy(processor), 1024, 2048)
    load_processor(TINY, min_pixels=1024, max_pixels=2048)
    assert pixel_rule_of(processor) == before


def test_the_processor_survives_saving_under_its_ordinary_class_name(processor: Any, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    text = "".join(path.read_text() for path in tmp_path.glob("*.json") if "tokenizer.json" not in path.name)
    assert '"Qwen3VLProcessor"' in text
    assert "ImageOnly" not in text
    assert pixel_rule_of(load_processor(tmp_path)) == pixel_rule_of(processor)


THINKING_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{{ c.text }}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def test_a_template_that_opens_a_thought_still_gives_the_answer_as_labels(processor: Any) -> None:
    thinking = copy.copy(processor)
    thinking.chat_template = THINKING_TEMPLATE
    encoded = RowEncoder(thinking).encode(row(0, "q", "seven"), with_response=True)
    kept = [token for token in encoded.labels if token != IGNORED]
    assert processor.tokenizer.decode(kept) == "seven<|im_end|>\n"


def test_a_template_of_another_family_is_refused(processor: Any) -> None:
    other = copy.copy(processor)
    other.chat_template = "{{ messages | length }}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    with pytest.raises(RowError) as caught:
        RowEncoder(other).encode(row(0), with_response=True)
    assert caught.value.code == "template_mismatch"
