"""The mapping routes: the document's body, refusals with the nearest name, and immutable versions."""

import time
from typing import Any

import pytest
from rest_framework.test import APIClient

from datasets_app.models import ColumnMapping, Dataset
from datasets_app.services import mapping_set
from datasets_app.suggestions import suggest_mapping
from tests.datasets_app.conftest import Upload

TABLE = b"prompt,response,truth,input_image_url,swapped_image,note \na,b,c,,,x\n"
FULL = {
    "prompt_column": "prompt",
    "response_column": "response",
    "ground_truth_column": None,
    "image_url_columns": ["input_image_url", "swapped_image"],
    "image_separator": None,
    "mandatory_columns": ["input_image_url"],
}
LEAST = {"prompt_column": "prompt", "response_column": "response"}


@pytest.fixture(autouse=True)
def table(upload: Upload) -> Any:
    return upload(TABLE).json()


def post(client: APIClient, body: dict[str, Any], query: str = "") -> Any:
    return client.post(f"/api/datasets/mapping{query}", body, format="json")


def test_the_documents_own_body_is_taken_and_given_back(client: APIClient) -> None:
    answer = post(client, FULL)
    assert answer.status_code == 200
    assert {name: answer.json()[name] for name in FULL} == FULL
    assert client.get("/api/datasets/mapping").json() == answer.json()


def test_only_prompt_and_response_are_required(client: APIClient) -> None:
    body = post(client, LEAST).json()
    assert body["image_url_columns"] == []
    assert body["mandatory_columns"] == []
    assert body["image_separator"] is None
    assert body["ground_truth_column"] is None
    assert body["version"] == 1


def test_the_same_mapping_again_is_the_same_version(client: APIClient) -> None:
    assert post(client, FULL).json()["version"] == post(client, FULL).json()["version"] == 1
    assert post(client, LEAST).json()["version"] == 2
    assert post(client, FULL).json()["version"] == 3
    assert ColumnMapping.objects.count() == 3


def test_a_new_version_leaves_the_old_one_as_it_was(client: APIClient) -> None:
    first = post(client, FULL).json()
    post(client, {**LEAST, "image_separator": "|"})
    old = ColumnMapping.objects.get(version=1)
    assert old.image_url_columns == first["image_url_columns"]
    assert client.get("/api/datasets/mapping").json()["version"] == 2


@pytest.mark.parametrize(
    ("changes", "field", "near"),
    [
        ({"prompt_column": "promt"}, "prompt_column", "'prompt'"),
        ({"response_column": "Response"}, "response_column", "'response'"),
        ({"ground_truth_column": "truths"}, "ground_truth_column", "'truth'"),
        ({"image_url_columns": ["image_url"]}, "image_url_columns", "'input_image_url'"),
        ({"mandatory_columns": ["prompts"]}, "mandatory_columns", "'prompt'"),
        ({"mandatory_columns": ["note"]}, "mandatory_columns", "'note '"),
    ],
)
def test_a_column_that_is_not_there_is_400_with_the_nearest_name(
    client: APIClient, changes: dict[str, Any], field: str, near: str
) -> None:
    answer = post(client, {**FULL, **changes})
    assert answer.status_code == 400
    body = answer.json()
    assert body["code"] == "unknown_column"
    assert [error["field"] for error in body["errors"]] == [field]
    assert near in body["errors"][0]["message"]
    assert not ColumnMapping.objects.exists()


def test_every_wrong_column_is_named_at_once(client: APIClient) -> None:
    body = post(client, {**FULL, "prompt_column": "x", "image_url_columns": ["y", "z"]}).json()
    assert [error["column"] for error in body["errors"]] == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompt_column"),
        ({"prompt_column": "prompt"}, "response_column"),
        ({**LEAST, "prompt_column": 7}, "prompt_column"),
        ({**LEAST, "prompt_column": ["prompt"]}, "prompt_column"),
        ({**LEAST, "prompt_column": None}, "prompt_column"),
        ({**LEAST, "prompt_column": ""}, "prompt_column"),
        ({**LEAST, "image_url_columns": "input_image_url"}, "image_url_columns"),
        ({**LEAST, "image_url_columns": [1]}, "image_url_columns"),
        ({**LEAST, "image_url_columns": None}, "image_url_columns"),
        ({**LEAST, "image_separator": ""}, "image_separator"),
        ({**LEAST, "image_separator": "x" * 17}, "image_separator"),
        ({**LEAST, "dataset_id": "one"}, "dataset_id"),
        ({**LEAST, "dataset_id": 0}, "dataset_id"),
        ({**LEAST, "dataset_id": True}, "dataset_id"),
        ({**LEAST, "dataset_id": 2**64}, "dataset_id"),
    ],
)
def test_a_value_of_the_wrong_kind_is_400_that_names_the_field(
    client: APIClient, body: dict[str, Any], field: str
) -> None:
    answer = post(client, body)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"].startswith(field)


def test_an_unknown_field_is_400_with_the_nearest_one(client: APIClient) -> None:
    answer = post(client, {**LEAST, "image_column": "x"})
    assert answer.status_code == 400
    assert "image_url_columns" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"response_column": "prompt"}, "same_column"),
        ({"image_url_columns": ["swapped_image", "swapped_image"]}, "duplicate_column"),
        ({"mandatory_columns": ["prompt", "prompt"]}, "duplicate_column"),
    ],
)
def test_a_mapping_that_makes_no_sense_is_400(client: APIClient, changes: dict[str, Any], code: str) -> None:
    answer = post(client, {**FULL, **changes})
    assert (answer.status_code, answer.json()["code"]) == (400, code)


def test_a_blank_at_the_end_of_a_name_is_part_of_it(client: APIClient) -> None:
    assert post(client, {**LEAST, "mandatory_columns": ["note "]}).status_code == 200


def test_a_blank_is_a_separator(client: APIClient) -> None:
    assert post(client, {**LEAST, "image_separator": " "}).json()["image_separator"] == " "


def test_without_a_mapping_the_answer_suggests_one(client: APIClient) -> None:
    answer = client.get("/api/datasets/mapping")
    assert (answer.status_code, answer.json()["code"]) == (404, "mapping_not_set")
    suggestion = answer.json()["suggestion"]
    assert (suggestion["prompt_column"], suggestion["response_column"]) == ("prompt", "response")
    assert suggestion["image_url_columns"] == ["input_image_url", "swapped_image"]
    assert post(client, suggestion).status_code == 200


def test_another_dataset_is_mapped_by_its_id(client: APIClient, table: Any, upload: Upload) -> None:
    upload(b"q,a\n1,2\n", "other.csv")
    first = table["dataset_id"]
    assert post(client, {**LEAST, "dataset_id": first}).json()["dataset_id"] == first
    assert post(client, LEAST, f"?dataset_id={first}").json()["dataset_id"] == first
    assert post(client, LEAST).status_code == 400
    assert client.get(f"/api/datasets/mapping?dataset_id={first}").status_code == 200
    assert client.get("/api/datasets/mapping").status_code == 404


def test_two_ids_that_differ_are_400(client: APIClient, table: Any) -> None:
    first = table["dataset_id"]
    assert post(client, {**LEAST, "dataset_id": first}, f"?dataset_id={first + 1}").status_code == 400


def test_an_unknown_dataset_is_404(client: APIClient) -> None:
    answer = post(client, {**LEAST, "dataset_id": 999})
    assert (answer.status_code, answer.json()["code"]) == (404, "dataset_not_found")


def test_the_service_numbers_versions_per_dataset(upload: Upload) -> None:
    upload(b"q,a\n1,2\n", "other.csv")
    versions = []
    for dataset in Dataset.objects.all():
        prompt, response, *_ = dataset.columns
        versions.append(mapping_set(dataset=dataset, prompt_column=prompt, response_column=response).version)
    assert versions == [1, 1]


def rows(**columns: list[str]) -> tuple[list[str], list[dict[str, str]]]:
    names = list(columns)
    return names, [dict(zip(names, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


@pytest.mark.parametrize(
    ("columns", "prompt", "response", "images"),
    [
        ({"question": ["q"], "answer": ["a"]}, "question", "answer", []),
        ({"Instruction": ["q"], "Output": ["a"]}, "Instruction", "Output", []),
        ({"id": ["1"], "user_prompt": ["q"], "gold_label": ["a"]}, "user_prompt", "gold_label", []),
        ({"pic": ["https://x.test/a.png"], "prompt": ["q"], "answer": ["a"]}, "prompt", "answer", ["pic"]),
        ({"x": ["data:image/png;base64,AA"], "prompt": ["q"], "answer": ["a"]}, "prompt", "answer", ["x"]),
        ({"n": ["1"], "long": ["a long question"], "short": ["yes"]}, "long", "short", []),
        ({"file": ["shapes/a b.PNG"], "q": ["what?"], "answer": ["a"]}, "q", "answer", ["file"]),
        ({"link": ["https://x.test/page.html"], "prompt": ["q"], "answer": ["a"]}, "prompt", "answer", []),
        ({"prompt": ["https://x.test/a.png what is this?"], "answer": ["a"]}, "prompt", "answer", []),
        ({"a": ["https://x.test/1"], "b": ["b.jpg"], "prompt": ["q"], "answer": ["z"]}, "prompt", "answer", ["a", "b"]),
        (
            {"nr": ["1", "2", "3", "4"], "seen": ["on Monday"] * 4, "what": list("abcd"), "ok": ["y", "n", "n", "y"]},
            "seen",
            "ok",
            [],
        ),
    ],
)
def test_a_suggestion_goes_by_name_and_by_content(
    columns: dict[str, list[str]], prompt: str, response: str, images: list[str]
) -> None:
    suggestion = suggest_mapping(*rows(**columns))
    assert suggestion is not None
    assert (suggestion["prompt_column"], suggestion["response_column"]) == (prompt, response)
    assert suggestion["image_url_columns"] == images


def test_a_ground_truth_beside_a_response_is_suggested_as_such() -> None:
    suggestion = suggest_mapping(*rows(prompt=["q"], response=["r"], ground_truth=["t"]))
    assert suggestion is not None
    assert (suggestion["response_column"], suggestion["ground_truth_column"]) == ("response", "ground_truth")


@pytest.mark.parametrize(
    ("cell", "separator"),
    [
        ("https://x.test/a.png|https://x.test/b.png", "|"),
        ("https://x.test/a.png; https://x.test/b.png", ";"),
        ("https://x.test/a.png https://x.test/b.png", " "),
        ("https://x.test/a.png\nhttps://x.test/b.png", "\n"),
        ("https://x.test/a,https://x.test/b", ","),
        ("shapes/a.png,shapes/b c.png", ","),
        ("a.png|b.jpeg|c.webp", "|"),
        ("data:image/png;base64,AA|data:image/png;base64,BB", "|"),
        ("https://x.test/a.png?size=1,2", None),
        ("data:image/png;base64,AA", None),
        ("a, b.png", None),
    ],
)
def test_several_images_in_one_cell_suggest_their_separator(cell: str, separator: str | None) -> None:
    suggestion = suggest_mapping(*rows(prompt=["q", "q"], answer=["a", "b"], image=[cell, ""]))
    assert suggestion is not None
    assert (suggestion["image_url_columns"], suggestion["image_separator"]) == (["image"], separator)
    assert suggestion["mandatory_columns"] == []


def test_a_guess_from_hostile_cells_takes_no_time() -> None:
    cells = ["a.png " * 2000 + "x", " " * 100_000, "|" * 100_000, "data:image/png;base64," + "A" * 5_000_000]
    began = time.monotonic()
    assert suggest_mapping(*rows(prompt=cells, answer=cells, image=cells)) is not None
    assert time.monotonic() - began < 2


def test_the_nearest_name_is_found_in_a_wide_table(client: APIClient, upload: Upload) -> None:
    names = [f"a question of the survey number {number}" for number in range(5000)]
    header = ",".join([*names, "Prompt Text", "response"])
    upload(f"{header}\n{header}\n".encode())
    body = post(client, {**LEAST, "prompt_column": "prompt text"}).json()
    assert "'Prompt Text'" in body["errors"][0]["message"]
    assert len(body["detail"]) < 500


@pytest.mark.parametrize(("column", "cell"), [("note ", ""), ("note ", " \t"), ("truth", ""), ("swapped_image", "")])
def test_a_mandatory_column_of_any_kind_skips_the_rows_where_it_is_blank(
    client: APIClient, upload: Upload, column: str, cell: str
) -> None:
    names = ["prompt", "response", "truth", "input_image_url", "swapped_image", "note "]
    blank = [cell if name == column else "x" for name in names]
    upload("\n".join([",".join(names), ",".join("x" * len(names)), ",".join(blank)]).encode(), "marks.csv")
    assert post(client, {**FULL, "mandatory_columns": [column]}).status_code == 200
    found = client.get("/api/datasets/preview/conversations?start=0&count=2").json()["conversations"]
    assert [conversation["skipped"] for conversation in found] == [False, True]
    assert repr(column) in found[1]["skipped_reason"]


def test_several_columns_and_several_images_in_a_cell_keep_their_order(client: APIClient, upload: Upload) -> None:
    upload(
        b"prompt,response,input_image_url,swapped_image\nq,a,https://x.test/1| https://x.test/2 |,https://x.test/3\n"
    )
    assert post(client, {**FULL, "image_separator": "|"}).status_code == 200
    [found] = client.get("/api/datasets/preview/conversations?start=0&count=1").json()["conversations"]
    content = found["messages"][0]["content"]
    assert [part["image"] for part in content[:-1]] == [f"https://x.test/{number}" for number in (1, 2, 3)]
    assert content[-1] == {"type": "text", "text": "q"}


def test_a_saved_version_never_changes(client: APIClient) -> None:
    post(client, FULL)
    before = ColumnMapping.objects.values().get(version=1)
    later: list[dict[str, Any]] = [
        {"image_separator": ";"},
        {"mandatory_columns": []},
        {"ground_truth_column": "truth"},
    ]
    for changes in later:
        post(client, {**FULL, **changes})
    assert ColumnMapping.objects.values().get(version=1) == before
    assert list(ColumnMapping.objects.values_list("version", flat=True)) == [4, 3, 2, 1]


def test_one_text_column_is_too_little_for_a_suggestion() -> None:
    assert suggest_mapping(*rows(prompt=["q"], image=["https://x.test/a.png"])) is None
