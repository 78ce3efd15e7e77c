"""The token preview: what a row becomes, for a start body, a run, or the defaults, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest

from datasets_app.models import Dataset
from ftproject.engine.configs import TINY_MODEL_PATH
from ftproject.engine.encoding import IGNORED, RowEncoder
from ftproject.engine.processors import load_processor
from ftproject.engine.training import usable_rows
from tests.training_app.world import Api, load_dataset, picture, trained_run
from training_app.models import TrainingRun

URL = "/api/training/token-preview"


def shown(api: Api, **query: Any) -> Any:
    answer = api.get(URL, **query)
    assert answer.status_code == 200, answer.json()
    return answer.json()


def asked(api: Api, **body: Any) -> Any:
    answer = api.post(URL, body)
    assert answer.status_code == 200, answer.json()
    return answer.json()


def labels_of(body: Any) -> list[int]:
    return [token["id"] if token["trained"] else IGNORED for token in body["tokens"] for _ in range(token["count"])]


def test_a_row_is_shown_as_training_encodes_it(api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets_app.preparation import prepare_rows

    prepared = prepare_rows(
        dataset=dataset,
        mapping=dataset.mappings.get(),
        limit=None,
        should_stop=lambda: False,
        on_progress=lambda done, total: None,
    )
    encoder = RowEncoder(load_processor(TINY_MODEL_PATH))
    for row in prepared.rows:
        body = shown(api, row=row.index)
        encoded = encoder.encode(row.resolved, with_response=True)
        assert labels_of(body) == encoded.labels
        assert body["counts"]["total"] == len(encoded)
    assert body["model_name"] == "tiny-qwen3-vl"
    assert (body["fits"], body["skipped"], body["skipped_reason"], body["consequence"]) == (True, False, None, None)
    assert body["images"][0]["width"] == 64


def test_the_first_row_of_the_current_dataset_is_the_default(api: Api, dataset: Dataset) -> None:
    assert shown(api) == shown(api, row=0, dataset_id=dataset.pk) == asked(api)


def test_the_body_decides_pixels_and_length(api: Api, dataset: Dataset) -> None:
    small = asked(api, row=1, model_config_data={"max_pixels": 1024, "max_seq_length": 64})
    large = asked(api, row=1, model_config_data={"min_pixels": 65_536})
    assert small["counts"]["image"] < large["counts"]["image"]
    assert small["pixel_rule"]["max_pixels"] == 1024
    assert large["images"][0]["resized_width"] == 256


def test_a_row_that_is_too_long_is_shown_with_the_reason_that_training_gives(api: Api, dataset: Dataset) -> None:
    from datasets_app.preparation import prepare_row

    body = asked(api, row=2, sft_config={"max_seq_length": 16})
    row, _ = prepare_row(dataset=dataset, mapping=dataset.mappings.get(), index=2)
    theirs: Any = usable_rows([row.resolved], load_processor(TINY_MODEL_PATH), 16)
    assert (body["fits"], body["skipped"]) == (False, True)
    assert body["skipped_reason"] == theirs.skipped[0].reason
    assert "never cuts" in body["consequence"]
    assert body["tokens"]


def test_a_run_of_the_past_shows_the_row_as_it_saw_it(api: Api, dataset: Dataset, tmp_path: Path) -> None:
    run = trained_run(api, model_config_data={"max_pixels": 1024, "max_seq_length": 512})
    load_dataset(tmp_path, [("other", picture(1), "9")], name="other.csv")
    body = shown(api, row=5, run_id=run.pk)
    assert (body["dataset_id"], body["max_seq_length"]) == (dataset.pk, 512)
    assert body["pixel_rule"]["max_pixels"] == 1024


def test_a_run_tells_which_side_of_the_split_the_row_was_on(api: Api, dataset: Dataset) -> None:
    run = trained_run(api, holdout_fraction=0.5)
    sides = [shown(api, row=row, run_id=run.pk)["split"] for row in range(12)]
    assert (sides.count("trained"), sides.count("heldout")) == (run.num_train_rows, run.num_heldout_rows)
    assert shown(api, row=0)["split"] is None


def test_tokens_come_in_pages(api: Api, dataset: Dataset) -> None:
    whole = shown(api)
    pages = [shown(api, offset=at, limit=7)["tokens"] for at in range(0, whole["num_entries"], 7)]
    assert [token for page in pages for token in page] == whole["tokens"]
    assert shown(api, offset=100_000)["tokens"] == []


def test_special_tokens_of_a_cell_are_shown_as_the_model_reads_them(api: Api, tmp_path: Path) -> None:
    load_dataset(tmp_path, [("Say <|im_end|><|im_start|>system", picture(1), "<|image_pad|>")])
    body = shown(api)
    assert [token["text"] for token in body["tokens"] if token["kind"] == "special"].count("<|im_start|>") == 2
    learnt = "".join(token["text"] for token in body["tokens"] if token["trained"])
    assert learnt == "< |image_pad|><|im_end|>\n"


# Rows that training leaves out


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("Which?", "", "5"), "mandatory column 'image' empty"),
        (("Which?", "data:image/png;base64,AAAA", "5"), "image in 'image'"),
    ],
)
def test_a_skipped_row_says_why_and_has_no_tokens(
    api: Api, tmp_path: Path, row: tuple[str, str, str], reason: str
) -> None:
    load_dataset(tmp_path, [row])
    body = shown(api)
    assert body["skipped"] is True
    assert reason in body["skipped_reason"]
    assert (body["tokens"], body["counts"], body["fits"]) == ([], None, None)


def test_a_row_without_an_answer_is_shown_and_said_to_be_left_out(api: Api, tmp_path: Path) -> None:
    load_dataset(tmp_path, [("Which?", picture(1), " ")])
    body = shown(api)
    assert (body["skipped"], body["skipped_reason"]) == (True, "the response is empty")
    assert body["counts"]["total"] > 0


# Refusals


def test_without_dataset_or_mapping_it_is_the_start_routes_conflict(api: Api, tmp_path: Path) -> None:
    answer = api.get(URL)
    assert (answer.status_code, answer.json()["code"]) == (409, "dataset_not_loaded")
    load_dataset(tmp_path, mapped=False)
    answer = api.get(URL)
    assert (answer.status_code, answer.json()["code"]) == (409, "mapping_not_set")


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ({"row": 12}, 404, "row_not_found"),
        ({"row": 2**63 - 1}, 404, "row_not_found"),
        ({"row": -1}, 400, "invalid_input"),
        ({"row": 2**63}, 400, "invalid_input"),
        ({"row": "first"}, 400, "invalid_input"),
        ({"limit": 0}, 400, "invalid_input"),
        ({"limit": 1_000_000}, 400, "invalid_input"),
        ({"rows": 1}, 400, "invalid_input"),
        ({"dataset_id": 99}, 404, "dataset_not_found"),
        ({"run_id": 99}, 404, "run_not_found"),
    ],
)
def test_a_wrong_query_is_refused(api: Api, dataset: Dataset, query: dict[str, Any], status: int, code: str) -> None:
    answer = api.get(URL, **query)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_a_run_and_a_dataset_together_are_refused(api: Api, dataset: Dataset) -> None:
    run = trained_run(api)
    answer = api.get(URL, run_id=run.pk, dataset_id=dataset.pk)
    assert (answer.status_code, answer.json()["code"]) == (400, "conflicting_values")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"row": "1"}, "invalid_type"),
        ({"row": -1}, "out_of_range"),
        ({"row": True}, "invalid_type"),
        ({"rwo": 1}, "unknown_field"),
        ({"sft_config": {"max_seq_length": 1}}, "out_of_range"),
        ({"model_config_data": {"model_name": "evil/model"}}, "model_not_allowed"),
    ],
)
def test_a_wrong_body_is_refused(api: Api, dataset: Dataset, body: dict[str, Any], code: str) -> None:
    answer = api.post(URL, body)
    assert (answer.status_code, answer.json()["code"]) == (400, code)


def test_a_hub_model_whose_files_are_not_here_is_a_conflict_and_nothing_is_fetched(api: Api, dataset: Dataset) -> None:
    answer = api.post(URL, {"model_config_data": {"model_name": "unsloth/Qwen3-VL-8B-Instruct"}})
    assert (answer.status_code, answer.json()["code"]) == (409, "model_files_missing")


def test_looking_starts_nothing(api: Api, dataset: Dataset) -> None:
    asked(api, row=1, dry_run=False)
    assert not TrainingRun.objects.exists()
