"""Token counts without torch are those of the real processor, row by row."""

import csv
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ftproject.engine.backends.base import RowError
from ftproject.engine.conversations import Conversation, ResolvedConversation, RowMapping, build_conversation
from ftproject.engine.encoding import RowEncoder
from ftproject.engine.images import decode_data_uri
from ftproject.engine.processors import load_processor
from ftproject.engine.token_counts import (
    TokenCounter,
    TokenCountError,
    load_token_counter,
    load_vision_rule,
    smart_resize,
)
from tests.engine.support import TINY, row, save_image

DEMO = Path(TINY).parent / "demo"
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|endoftext|>"]
MAPPING = RowMapping("prompt", "answer", image_url_columns=("image",))


@pytest.fixture(scope="module")
def counter() -> TokenCounter:
    return load_token_counter(TINY)


@pytest.fixture(scope="module")
def encoder() -> RowEncoder:
    return RowEncoder(load_processor(TINY))


def demo_rows(name: str, folder: Path) -> Iterator[ResolvedConversation]:
    with (DEMO / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        for index, cells in enumerate(csv.DictReader(stream)):
            conversation = build_conversation(index, cells, MAPPING)
            path = folder / f"{index}.png"
            path.write_bytes(decode_data_uri(conversation.images[0]))
            yield ResolvedConversation(conversation, (path,))


@pytest.mark.parametrize("name", ["digits", "shapes"])
def test_every_row_of_a_demo_set_has_the_count_of_the_processor(
    name: str, counter: TokenCounter, encoder: RowEncoder, tmp_path: Path
) -> None:
    rows = list(demo_rows(name, tmp_path))
    assert len(rows) in (1797, 700)
    theirs = [len(encoder.encode(item, with_response=True)) for item in rows]
    assert [counter.count(item).total for item in rows] == theirs


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> list[ResolvedConversation]:
    """120 rows with none to four pictures of many sizes and formats, some turned by EXIF."""
    folder = tmp_path_factory.mktemp("mixed")
    chance = random.Random(5)
    texts = ["Was ist das? Größe, café, 数字 42", "a" * 300, "", "line\nline\t\t x", "👩‍👩‍👧 <b>&amp;</b>", "e\u0301"]
    rows = []
    for index in range(120):
        paths = []
        for place in range(index % 5):
            size = (chance.randint(1, 900), chance.randint(1, 900))
            size = (max(size[0], size[1] // 150 + 1), max(size[1], size[0] // 150 + 1))
            path = folder / f"{index}-{place}.{chance.choice(['png', 'jpg', 'webp', 'gif', 'bmp'])}"
            exif = Image.Exif()
            exif[0x0112] = chance.randint(1, 8)
            options: dict[str, Any] = {"exif": exif} if path.suffix in (".jpg", ".png") else {}
            Image.new("RGB", size, "teal").save(path, **options)
            paths.append(path)
        rows.append(row(index, chance.choice(texts), chance.choice(texts), images=paths))
    return rows


@pytest.mark.parametrize(
    "pixels",
    [(None, None), (1024, 300_000), (65_536, 16_777_216), (None, 2048), (50_000, None), (1024, 1024)],
)
def test_every_row_of_a_set_with_many_images_of_many_sizes_has_the_count_of_the_processor(
    mixed: list[ResolvedConversation], pixels: tuple[int | None, int | None]
) -> None:
    low, high = pixels
    counter = load_token_counter(TINY, min_pixels=low, max_pixels=high)
    encoder = RowEncoder(load_processor(TINY, min_pixels=low, max_pixels=high))
    for item in mixed:
        encoded = encoder.encode(item, with_response=True)
        count = counter.count(item)
        assert count.total == len(encoded), item.conversation.index
        assert sum(count.images) == encoded.input_ids.count(encoder.image_token_id)


@given(
    height=st.integers(1, 20_000), width=st.integers(1, 20_000), low=st.integers(1, 10**6), span=st.integers(0, 10**7)
)
def test_the_resize_rule_is_that_of_transformers(height: int, width: int, low: int, span: int) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as theirs

    bounds = {"factor": 32, "min_pixels": low, "max_pixels": low + span}
    if max(height, width) / min(height, width) > 200:
        with pytest.raises(ValueError, match="200"):
            smart_resize(height, width, **bounds)
    else:
        assert smart_resize(height, width, **bounds) == theirs(height, width, **bounds)


cells = st.lists(st.one_of(st.sampled_from(SPECIAL), st.text(max_size=6))).map("".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(prompt=cells, response=cells, planted=cells, count=st.integers(0, 2))
def test_special_tokens_planted_in_any_cell_add_no_role_and_no_image(
    counter: TokenCounter,
    encoder: RowEncoder,
    mixed: list[ResolvedConversation],
    prompt: str,
    response: str,
    planted: str,
    count: int,
) -> None:
    paths = mixed[2].image_paths[:count]
    images = tuple(f"https://example.com/{planted}.png" for _ in paths)
    item = ResolvedConversation(Conversation(0, prompt, response, response, images), paths)
    encoded = encoder.encode(item, with_response=True)
    ids = counter.token_ids(item.conversation)
    found = {token: ids.count(counter.token_id(token) or 0) for token in SPECIAL[:5]}
    assert found["<|im_start|>"] == found["<|im_end|>"] == 2
    assert found["<|vision_start|>"] == found["<|vision_end|>"] == found["<|image_pad|>"] == count
    counted = counter.count(item)
    assert counted.total == len(encoded)
    assert sum(counted.images) == encoded.input_ids.count(encoder.image_token_id)


def test_a_picture_too_long_and_thin_is_refused_as_the_processor_refuses_it(
    counter: TokenCounter, encoder: RowEncoder, tmp_path: Path
) -> None:
    item = row(0, images=[save_image(tmp_path / "thin.png", (1000, 2))])
    for count in (counter.count, lambda it: encoder.encode(it, with_response=True)):
        with pytest.raises(RowError) as caught:
            count(item)
        assert caught.value.code == "image_aspect_ratio"


def test_a_missing_image_file_is_an_error_with_the_images_code(counter: TokenCounter, tmp_path: Path) -> None:
    with pytest.raises(RowError) as caught:
        counter.count(row(0, images=[tmp_path / "gone.png"]))
    assert caught.value.code == "image_missing"


def test_more_image_places_than_files_is_an_error(counter: TokenCounter, tmp_path: Path) -> None:
    item = row(0, images=[save_image(tmp_path / "a.png"), save_image(tmp_path / "b.png")])
    with pytest.raises(RowError, match="2 image places for 1 image files"):
        counter.count(ResolvedConversation(item.conversation, item.image_paths[:1]))


def test_a_hub_model_that_was_never_fetched_is_refused_without_a_request() -> None:
    with pytest.raises(
        TokenCountError, match=r"tokenizer\.json of unsloth/Qwen3-VL-8B-Instruct is not on this disk"
    ) as e:
        load_token_counter("unsloth/Qwen3-VL-8B-Instruct")
    assert e.value.code == "model_files_missing"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copytree(TINY, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{}"),
        ("preprocessor_config.json", "not json"),
        ("preprocessor_config.json", "[]"),
        ("preprocessor_config.json", '{"patch_size": 16}'),
    ],
)
def test_model_files_that_make_no_sense_are_refused_by_name(model: Path, name: str, content: str) -> None:
    (model / name).write_text(content)
    with pytest.raises(TokenCountError, match=name.replace(".", r"\.")) as caught:
        load_token_counter(str(model))
    assert caught.value.code == "model_files_invalid"


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json", "chat_template.jinja"])
def test_a_folder_without_a_needed_file_is_refused_by_name(model: Path, name: str) -> None:
    (model / name).unlink()
    with pytest.raises(TokenCountError, match=f"{name} of model is not on this disk"):
        load_token_counter(str(model))


def test_a_template_that_refuses_a_row_is_an_error_of_that_row(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ raise_exception('no pictures') }}")
    with pytest.raises(RowError, match="no pictures") as caught:
        load_token_counter(str(model)).count(row(0))
    assert caught.value.code == "template_refused"


def test_a_template_cannot_reach_python(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}")
    with pytest.raises(RowError, match="unsafe"):
        load_token_counter(str(model)).count(row(0))


def test_a_template_of_the_older_files_is_found(model: Path, counter: TokenCounter) -> None:
    source = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").unlink()
    (model / "chat_template.json").write_text(json.dumps({"chat_template": source}))
    assert load_token_counter(str(model)).count(row(0)) == counter.count(row(0))


def test_the_nested_file_of_newer_processors_is_read(model: Path) -> None:
    facts = json.loads((model / "preprocessor_config.json").read_text())
    (model / "preprocessor_config.json").unlink()
    (model / "processor_config.json").write_text(json.dumps({"image_processor": facts}))
    assert load_vision_rule(str(model)) == load_vision_rule(TINY)


def test_a_saved_processor_counts_as_the_one_it_was(tmp_path: Path, mixed: list[ResolvedConversation]) -> None:
    processor: Any = load_processor(TINY, min_pixels=2048, max_pixels=100_000)
    processor.save_pretrained(tmp_path)
    counter, encoder = load_token_counter(str(tmp_path)), RowEncoder(processor)
    for item in mixed[:40]:
        assert counter.count(item).total == len(encoder.encode(item, with_response=True))
