"""Preflight judges each row as a training run does; the oracle is the training code itself."""

import base64
import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets_app.image_cache import remember_failure, remember_image, store_image
from datasets_app.images import ImageRefusedError
from datasets_app.models import ColumnMapping, Dataset
from datasets_app.preflight.rows import JudgedRow, judge_rows, row_chunks
from datasets_app.preparation import prepare_rows
from datasets_app.services import dataset_import, mapping_set
from ftproject.engine.configs import TINY_MODEL_PATH
from ftproject.engine.processors import load_processor
from ftproject.engine.token_counts import TokenCounter, load_token_counter
from ftproject.engine.training import usable_rows

LIMIT = 120
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|endoftext|>"]


@pytest.fixture
def counter() -> TokenCounter:
    return load_token_counter(str(TINY_MODEL_PATH))


def picture(width: int, height: int, shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (shade, 10, 10)).save(buffer, "PNG")
    return buffer.getvalue()


def data_uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def load(folder: Path, rows: list[dict[str, str]], **mapping: Any) -> tuple[Dataset, ColumnMapping]:
    path = folder / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    dataset = dataset_import(path=path)
    fields: dict[str, Any] = {
        "prompt_column": "prompt",
        "response_column": "answer",
        "ground_truth_column": None,
        "image_url_columns": ["image", "extra"],
        "image_separator": "|",
        "mandatory_columns": ["image"],
    }
    return dataset, mapping_set(dataset=dataset, **(fields | mapping))


def judged(
    dataset: Dataset, mapping: ColumnMapping, counter: TokenCounter | None, limit: int = LIMIT
) -> list[JudgedRow]:
    return list(judge_rows(dataset=dataset, mapping=mapping, counter=counter, max_seq_length=limit))


def row(prompt: str = "What?", answer: str = "7", image: str = "", extra: str = "") -> dict[str, str]:
    return {"prompt": prompt, "answer": answer, "image": image, "extra": extra}


def mixed_rows() -> list[dict[str, str]]:
    good, wide, thin = (data_uri(picture(*size)) for size in [(64, 64), (640, 200), (900, 3)])
    broken = data_uri(b"\x89PNG\r\n\x1a\nnothing")
    return [
        row(image=good),
        row(image=f"{good}|{wide}", extra=wide),
        row(image=""),
        row(prompt="  ", image=good),
        row(prompt="", image=broken),
        row(image=broken),
        row(image=good, extra=broken),
        row(answer=" \n", image=good),
        row(prompt="long " * 200, image=good),
        row(image=thin),
        row(image="not a url", extra=good),
        row(image=good, extra="data:text/plain,hello"),
        row(prompt="<|im_end|><|image_pad|>", answer="<|im_start|>user", image=good),
    ]


@pytest.mark.django_db
@pytest.mark.parametrize("mandatory", [["image"], [], ["image", "extra"], ["prompt"]])
def test_the_verdict_on_every_row_is_that_of_training(
    own_data_dir: Path, counter: TokenCounter, mandatory: list[str]
) -> None:
    dataset, mapping = load(own_data_dir, mixed_rows(), mandatory_columns=mandatory)
    rows = judged(dataset, mapping, counter)
    prepared = prepare_rows(
        dataset=dataset, mapping=mapping, limit=None, should_stop=lambda: False, on_progress=lambda *_: None
    )
    kept = [item.resolved for item in prepared.rows if not item.skipped]
    usable = usable_rows(kept, load_processor(TINY_MODEL_PATH), LIMIT)
    theirs = {item.conversation.index: len(encoded) for item, encoded in zip(usable.rows, usable.encoded, strict=True)}
    ours = {item.index: item.tokens.total for item in rows if item.trainable and item.tokens}
    assert ours == theirs
    assert ours
    assert {item.index for item in rows if item.in_split} == {item.conversation.index for item in kept}
    assert [item.conversation.images for item in rows if item.in_split] == [item.conversation.images for item in kept]


cells = st.lists(st.one_of(st.sampled_from(SPECIAL), st.text("ab é\n,\"'<|>", max_size=5)), max_size=6).map("".join)
tables = st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=4)


@pytest.mark.django_db
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=30
)
@given(table=tables)
def test_special_tokens_planted_in_any_cell_of_a_csv_change_no_role_and_no_image(
    own_data_dir: Path, counter: TokenCounter, table: list[tuple[str, str, str]]
) -> None:
    good = data_uri(picture(64, 64))
    rows = [row(prompt, answer, good, extra) for prompt, answer, extra in table]
    dataset, mapping = load(own_data_dir, rows, mandatory_columns=[])
    ids = {token: counter.token_id(token) or 0 for token in SPECIAL}
    for item in judged(dataset, mapping, counter, 10_000):
        if item.trainable:
            found = counter.token_ids(item.conversation)
            assert found.count(ids["<|im_start|>"]) == found.count(ids["<|im_end|>"]) == 2
            assert found.count(ids["<|image_pad|>"]) == len(item.sizes)
            assert item.tokens is not None
            assert item.tokens.total == len(found) - len(item.sizes) + sum(item.tokens.images)


@pytest.mark.django_db
def test_a_url_that_nobody_fetched_is_counted_as_such_and_not_asked(own_data_dir: Path, counter: TokenCounter) -> None:
    dataset, mapping = load(own_data_dir, [row(image="https://example.com/a.png"), row(image="")])
    first, second = judged(dataset, mapping, counter)
    assert (first.not_fetched, first.tokens, first.trainable) == (1, None, True)
    assert first.conversation.images == ("https://example.com/a.png",)
    assert second.reason == "mandatory column 'image' empty"


@pytest.mark.django_db
def test_a_fetched_url_is_its_image_and_a_failed_one_its_failure(own_data_dir: Path, counter: TokenCounter) -> None:
    good, bad = "https://example.com/a.png", "https://example.com/b.png"
    remember_image(good, store_image(picture(64, 64)))
    remember_failure(bad, ImageRefusedError("image_http_status", "404 Not Found"))
    dataset, mapping = load(own_data_dir, [row(image=good), row(image=bad), row(image=good, extra=bad)])
    first, second, third = judged(dataset, mapping, counter)
    assert first.tokens is not None
    assert sum(first.tokens.images) == 4
    assert second.reason == "image in 'image': image_http_status"
    assert not second.in_split
    assert third.trainable
    assert [(item.column, item.code) for item in third.failures] == [("extra", "image_http_status")]


@pytest.mark.django_db
def test_without_a_counter_rows_are_judged_by_all_but_their_length(own_data_dir: Path) -> None:
    dataset, mapping = load(own_data_dir, mixed_rows())
    rows = judged(dataset, mapping, None)
    assert all(item.tokens is None for item in rows)
    assert rows[8].trainable
    assert not rows[7].trainable


def test_a_chunk_ends_early_where_cells_are_large() -> None:
    rows = ((index, {"image": "x" * 3_000_000}) for index in range(5))
    assert [len(chunk) for chunk in row_chunks(rows)] == [2, 2, 1]
    assert [len(chunk) for chunk in row_chunks(iter([]))] == []
    assert [len(chunk) for chunk in row_chunks((index, {"a": "b"}) for index in range(300))] == [256, 44]
