"""Pictures of a row: from the row, the cache or an archive; what is not there says why; nothing a browser could run."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from PIL import Image
from rest_framework.test import APIClient

from datasets_app.image_cache import known_image, remember_failure, remember_image, store_image
from datasets_app.images import ImageRefusedError
from datasets_app.models import Dataset
from datasets_app.services import mapping_set
from tests.datasets_app.conftest import Upload
from tests.datasets_app.test_archives import zipped
from tests.datasets_app.test_images import data_uri, png

URL = "https://pictures.example.org/cat.png"
Table = Callable[..., Dataset]


@pytest.fixture
def table(upload: Upload) -> Table:
    """A dataset with one row per cell of its image column, mapped."""

    def make(cells: Sequence[str], **mapping: Any) -> Dataset:
        stream = io.StringIO()
        csv.writer(stream).writerows([("prompt", "answer", "image"), *(("ask", "truth", cell) for cell in cells)])
        dataset = Dataset.objects.get(pk=upload(stream.getvalue().encode()).json()["dataset_id"])
        rules = {"prompt_column": "prompt", "response_column": "answer", "image_url_columns": ["image"]}
        mapping_set(dataset=dataset, **{**rules, **mapping})
        return dataset

    return make


def picture(
    client: APIClient, dataset: Dataset, index: int = 0, number: int = 0, query: str = "", **headers: Any
) -> Any:
    return client.get(f"/api/datasets/{dataset.pk}/rows/{index}/images/{number}?{query}", **headers)


def problem(answer: Any) -> tuple[int, str]:
    assert answer["Content-Type"] == "application/problem+json"
    assert answer.json()["hint"]
    return answer.status_code, answer.json()["code"]


def size_of(answer: Any) -> tuple[int, int]:
    assert answer.status_code == 200, answer.content
    return Image.open(io.BytesIO(answer.content)).size


def test_a_url_that_was_not_fetched_is_not_fetched_now(client: APIClient, table: Table) -> None:
    answer = picture(client, table([URL]))
    assert problem(answer) == (404, "image_not_cached")
    assert "/api/datasets/images/prefetch" in answer.json()["hint"]
    assert answer.json()["errors"] == [
        {"code": "image_not_fetched", "message": "this URL was not fetched yet", "column": "image"}
    ]


def test_a_url_that_failed_says_how(client: APIClient, table: Table) -> None:
    remember_failure(URL, ImageRefusedError("image_fetch_failed", "the server answered 404"))
    answer = picture(client, table([URL]))
    assert problem(answer) == (404, "image_not_cached")
    assert answer.json()["errors"][0]["code"] == "image_fetch_failed"
    assert "the server answered 404" in answer.json()["detail"]


@pytest.mark.parametrize("cell", ["../../etc/passwd", "/etc/passwd", "cat.png", "C:\\cat.png"])
def test_a_path_leads_to_an_archive_and_nowhere_else(client: APIClient, table: Table, cell: str) -> None:
    answer = picture(client, table([cell]))
    assert problem(answer) == (404, "image_not_cached")
    assert answer.json()["errors"][0]["code"] == "image_path_unknown"
    assert "/images" in answer.json()["hint"]


@pytest.mark.parametrize(
    ("cell", "code"),
    [
        (data_uri(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "image/svg+xml"), "image_is_svg"),
        (data_uri(b"<!doctype html><script>alert(1)</script>", "image/png"), "image_is_web_page"),
        (data_uri(b"GIF89a/*<script>alert(1)</script>*/=1"), "image_not_an_image"),
        ("data:text/html;base64,PHNjcmlwdD4=", "data_uri_not_image"),
        ("data:image/png;base64,###", "data_uri_bad_base64"),
        (data_uri(png(size=(200, 200))[:-30]), "image_corrupt"),
        (data_uri(png(kind="TIFF"), "image/tiff"), "image_not_an_image"),
    ],
)
def test_nothing_but_pixels_made_anew_is_ever_served(client: APIClient, table: Table, cell: str, code: str) -> None:
    answer = picture(client, table([cell]))
    assert problem(answer) == (404, "image_unusable")
    assert answer.json()["errors"][0]["code"] == code


def test_a_file_that_changed_in_the_cache_is_not_there(client: APIClient, table: Table) -> None:
    dataset = table([URL])
    path = store_image(png())
    remember_image(URL, path)
    path.write_bytes(b"<html><script>alert(1)</script></html>")
    assert problem(picture(client, dataset)) == (404, "image_not_cached")
    assert known_image(URL) is None


@pytest.mark.parametrize("number", [1, 7, 10**17, 10**39])
def test_a_number_beyond_the_last_is_not_found(client: APIClient, table: Table, number: int) -> None:
    assert problem(picture(client, table([data_uri(png())]), number=number)) == (404, "image_not_found")


@pytest.mark.parametrize("index", [2, 10**17, 10**39])
def test_a_row_beyond_the_last_is_not_found(client: APIClient, table: Table, index: int) -> None:
    assert problem(picture(client, table(["", data_uri(png())]), index=index)) == (404, "row_not_found")


def test_a_row_without_an_image_has_none(client: APIClient, table: Table) -> None:
    dataset = table(["  ", data_uri(png())])
    assert problem(picture(client, dataset)) == (404, "image_not_found")
    assert client.get(f"/api/datasets/{dataset.pk}/rows/0/images").json()["images"] == []


def test_a_mapping_without_image_columns_has_none_either(client: APIClient, table: Table) -> None:
    dataset = table([data_uri(png())], image_url_columns=[])
    assert problem(picture(client, dataset)) == (404, "image_not_found")


@pytest.mark.parametrize("route", ["/api/datasets/77/rows/0/images", "/api/datasets/77/rows/0/images/0"])
def test_an_unknown_dataset_is_not_found(client: APIClient, db: None, route: str) -> None:
    assert problem(client.get(route)) == (404, "dataset_not_found")


def test_without_a_mapping_nobody_knows_which_column_holds_images(client: APIClient, upload: Upload) -> None:
    dataset_id = upload().json()["dataset_id"]
    answer = client.get(f"/api/datasets/{dataset_id}/rows/0/images/0")
    assert problem(answer) == (404, "mapping_not_set")


def test_a_run_s_own_mapping_can_be_named(client: APIClient, table: Table) -> None:
    dataset = table([data_uri(png())])
    mapping_set(dataset=dataset, prompt_column="prompt", response_column="answer")
    assert problem(picture(client, dataset)) == (404, "image_not_found")
    assert picture(client, dataset, query="mapping_version=1").status_code == 200
    assert problem(picture(client, dataset, query="mapping_version=3")) == (404, "mapping_not_found")


@pytest.mark.parametrize(
    "query", ["size=0", "size=15", "size=2049", "size=x", "size=1e2", "width=9", "mapping_version=0"]
)
def test_a_wrong_query_is_refused_by_name(client: APIClient, table: Table, query: str) -> None:
    answer = picture(client, table([data_uri(png())]), query=query)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"] == query.split("=")[0]


@pytest.mark.parametrize("route", ["rows/-1/images/0", "rows/0/images/-1", "rows/x/images/0", "rows/0/images/0.5"])
def test_what_is_no_number_is_no_route(client: APIClient, table: Table, route: str) -> None:
    assert client.get(f"/api/datasets/{table([URL]).pk}/{route}").status_code == 404


def test_a_data_uri_a_cached_url_and_a_path_become_small_jpegs(client: APIClient, table: Table) -> None:
    dataset = table([data_uri(png(size=(400, 200))), URL, "photos/cat.png"])
    remember_image(URL, store_image(png("blue", size=(300, 300))))
    archive = SimpleUploadedFile("images.zip", zipped(("photos/cat.png", png("green", size=(20, 10)))))
    client.post(f"/api/datasets/{dataset.pk}/images", {"file": archive}, format="multipart")
    sizes = [size_of(picture(client, dataset, index, query="size=100")) for index in range(3)]
    assert sizes == [(100, 50), (100, 100), (20, 10)]
    assert size_of(picture(client, dataset)) == (160, 80)


def test_several_images_of_a_row_are_counted_as_training_counts_them(client: APIClient, table: Table) -> None:
    dataset = table([f"{data_uri(png(size=(30, 10)))}| |{URL}|"], image_separator="|")
    images = client.get(f"/api/datasets/{dataset.pk}/rows/0/images/").json()["images"]
    assert [(image["number"], image["available"], image["code"]) for image in images] == [
        (0, True, None),
        (1, False, "image_not_fetched"),
    ]
    assert len(images[0]["cell"]) <= 201
    assert size_of(client.get(images[0]["thumbnail"])) == (30, 10)
    assert problem(client.get(images[1]["thumbnail"])) == (404, "image_not_cached")


def test_the_answer_is_safe_to_look_at_and_known_again(client: APIClient, table: Table) -> None:
    dataset = table([data_uri(png())])
    answer = picture(client, dataset)
    assert (answer["Content-Type"], answer["X-Content-Type-Options"]) == ("image/jpeg", "nosniff")
    assert answer["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert answer["Cross-Origin-Resource-Policy"] == "same-origin"
    assert answer["Cache-Control"].startswith("private")
    again = picture(client, dataset, HTTP_IF_NONE_MATCH=answer["ETag"])
    assert (again.status_code, again.content, again["ETag"]) == (304, b"", answer["ETag"])
    assert picture(client, dataset, query="size=64", HTTP_IF_NONE_MATCH=answer["ETag"]).status_code == 200


def test_a_new_image_under_the_same_path_has_a_new_tag(client: APIClient, table: Table) -> None:
    dataset = table(["cat.png"])
    tags: list[str] = []
    for color in ("red", "blue"):
        archive = SimpleUploadedFile("images.zip", zipped(("cat.png", png(color))))
        client.post(f"/api/datasets/{dataset.pk}/images", {"file": archive}, format="multipart")
        tags.append(picture(client, dataset, HTTP_IF_NONE_MATCH=tags[-1] if tags else "")["ETag"])
    assert tags[0] != tags[1]


def test_a_wide_table_gives_its_pictures_too(client: APIClient, upload: Upload, own_data_dir: Path) -> None:
    names = ["prompt", "answer", "image", *(f"c{n}" for n in range(100))]
    stream = io.StringIO()
    csv.writer(stream).writerows([names, ["ask", "truth", data_uri(png()), *["x"] * 100]])
    dataset = Dataset.objects.get(pk=upload(stream.getvalue().encode()).json()["dataset_id"])
    mapping_set(dataset=dataset, prompt_column="prompt", response_column="answer", image_url_columns=["image"])
    assert size_of(picture(client, dataset)) == (8, 8)
