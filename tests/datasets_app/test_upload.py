"""The upload route: the document's answer, refusals that store nothing, and the same file stored once."""

import errno
import gzip
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile, TemporaryUploadedFile
from rest_framework.test import APIClient

from datasets_app.models import Dataset
from datasets_app.services import dataset_upload
from tests.datasets_app.conftest import SMALL, Upload


def stored_files(data_dir: Path) -> list[str]:
    return sorted(path.name for path in (data_dir / "datasets").glob("*"))


def test_the_answer_is_the_documents_with_our_additions(upload: Upload) -> None:
    answer = upload(SMALL, "my data.csv")
    assert answer.status_code == 200
    body = answer.json()
    assert body["filename"] == "my data.csv"
    assert (body["num_rows"], body["num_columns"]) == (2, 3)
    assert body["columns"] == ["prompt", "response", "image"]
    assert body["sample_rows"][0] == {"prompt": "What is 1+1?", "response": "2", "image": ""}
    assert (body["format"], body["encoding"], body["delimiter"]) == ("csv", "utf-8", ",")
    assert len(body["sha256"]) == 64
    assert body["dataset_id"] == Dataset.objects.get(is_current=True).pk


def test_there_are_at_most_five_sample_rows(upload: Upload) -> None:
    body = upload(b"a,b\n" + b"1,2\n" * 9).json()
    assert (len(body["sample_rows"]), body["num_rows"]) == (5, 9)


def test_the_route_answers_with_a_slash_too(client: APIClient, db: None) -> None:
    answer = client.post("/api/datasets/upload/", {"file": SimpleUploadedFile("a.csv", SMALL)}, format="multipart")
    assert answer.status_code == 200


def test_a_new_upload_becomes_the_only_current_dataset(upload: Upload) -> None:
    upload(SMALL)
    second = upload(b"a,b\n1,2\n", "second.csv").json()
    assert list(Dataset.objects.filter(is_current=True).values_list("pk", flat=True)) == [second["dataset_id"]]
    assert Dataset.objects.count() == 2


def test_the_same_file_twice_is_stored_once_and_current_again(upload: Upload, own_data_dir: Path) -> None:
    first = upload(SMALL, "first.csv").json()
    upload(b"a,b\n1,2\n")
    again = upload(SMALL, "renamed.csv").json()
    assert again["dataset_id"] == first["dataset_id"]
    assert again["is_current"] is True
    assert again["filename"] == "renamed.csv"
    assert len(stored_files(own_data_dir)) == 2


def test_a_table_that_was_lost_comes_back_with_the_same_upload(upload: Upload) -> None:
    first = upload(SMALL).json()
    Dataset.objects.get().table_path.unlink()
    again = upload(SMALL).json()
    assert again["dataset_id"] == first["dataset_id"]
    assert Dataset.objects.get().table_path.exists()


@pytest.mark.parametrize("content", [b"", b"a,b\n", b"a,a\n1,2\n", b"a,b\n1\n", b'a,b\n1,"2\n', b"a,b\n1,\0\n"])
def test_a_refused_upload_leaves_the_current_dataset_and_nothing_else(
    upload: Upload, content: bytes, own_data_dir: Path, settings: Any
) -> None:
    before = upload(SMALL).json()
    answer = upload(content)
    assert answer.status_code == 400
    assert answer["Content-Type"] == "application/problem+json"
    assert Dataset.objects.get(is_current=True).pk == before["dataset_id"]
    assert stored_files(own_data_dir) == [f"{before['sha256']}.parquet"]
    assert list(Path(settings.FILE_UPLOAD_TEMP_DIR).glob("*.upload*")) == []


def test_a_refusal_names_row_and_column_for_people_and_programs(upload: Upload) -> None:
    body = upload(b"prompt,response\na,b\nc\n").json()
    assert body["code"] == "ragged_row"
    assert body["errors"][0]["row"] == 2
    assert body["errors"][0]["column"] == "response"
    assert "row 2" in body["detail"]
    assert body["hint"]


@pytest.mark.parametrize(
    "content", [gzip.compress(SMALL, mtime=0), b"PK\x03\x04" + SMALL, b"\x89PNG\r\n\x1a\n" + SMALL]
)
def test_a_file_that_is_no_table_is_415(upload: Upload, content: bytes) -> None:
    answer = upload(content, "data.csv")
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_file_type")


def test_a_form_without_the_field_file_is_400(client: APIClient, db: None) -> None:
    answer = client.post("/api/datasets/upload", {}, format="multipart")
    assert (answer.status_code, answer.json()["code"]) == (400, "missing_file")
    assert "file=@" in answer.json()["hint"]


def test_a_field_of_another_name_is_400_that_names_it(client: APIClient, db: None) -> None:
    answer = client.post("/api/datasets/upload", {"fle": SimpleUploadedFile("a.csv", SMALL)}, format="multipart")
    assert (answer.status_code, answer.json()["code"]) == (400, "unknown_field")
    assert "'file'" in answer.json()["hint"]


def test_a_path_instead_of_a_file_is_400(client: APIClient, db: None) -> None:
    answer = client.post("/api/datasets/upload", {"file": "data.csv"}, format="multipart")
    assert (answer.status_code, answer.json()["code"]) == (400, "missing_file")


def test_two_files_at_once_are_400(client: APIClient, db: None) -> None:
    files = [SimpleUploadedFile("a.csv", SMALL), SimpleUploadedFile("b.csv", SMALL)]
    answer = client.post("/api/datasets/upload", {"file": files}, format="multipart")
    assert (answer.status_code, answer.json()["code"]) == (400, "too_many_files")


def test_json_to_the_upload_route_is_415(client: APIClient, db: None) -> None:
    assert client.post("/api/datasets/upload", {"file": "x"}, format="json").status_code == 415


def test_a_broken_multipart_body_is_400(client: APIClient, db: None) -> None:
    answer = client.post("/api/datasets/upload", b"no boundary here", content_type="multipart/form-data")
    assert answer.status_code == 400


def test_an_upload_announced_too_large_is_413_before_a_byte_is_written(
    upload: Upload, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.MAX_UPLOAD_MB = 1
    written: list[int] = []
    monkeypatch.setattr(TemporaryUploadedFile, "write", lambda self, data: written.append(len(data)), raising=False)
    answer = upload(b"a,b\n" + b"1,2\n" * 400_000)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert written == []


def test_an_upload_just_over_the_limit_is_413_while_it_is_counted(upload: Upload, settings: Any) -> None:
    settings.MAX_UPLOAD_MB = 1
    content = b"a,b\n" + b"1,2\n" * (1024 * 1024 // 4)
    answer = upload(content)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert list(Path(settings.FILE_UPLOAD_TEMP_DIR).glob("*.upload*")) == []
    assert not Dataset.objects.exists()


def test_an_upload_at_the_limit_is_taken(upload: Upload, settings: Any) -> None:
    settings.MAX_UPLOAD_MB = 1
    assert upload(b"a,b\n" + b"1,2\n" * (1024 * 1024 // 4 - 1)).status_code == 200


def test_too_little_free_space_is_503_before_the_upload(upload: Upload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    answer = upload(SMALL)
    assert (answer.status_code, answer.json()["code"]) == (503, "disk_full")


def test_a_disk_that_fills_up_during_the_transfer_ends_it_with_space_left(
    upload: Upload, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([2**40, 0])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=next(free)))
    answer = upload(b"a,b\n" + b"1,2\n" * (5 * 1024 * 1024))
    assert (answer.status_code, answer.json()["code"]) == (503, "disk_full")
    assert list(Path(settings.FILE_UPLOAD_TEMP_DIR).glob("*.upload*")) == []


def test_a_disk_that_fills_up_while_the_table_is_written_keeps_the_old_dataset(
    upload: Upload, own_data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = upload(SMALL).json()
    import pyarrow.parquet as pq

    def no_space(self: Any, *args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", no_space)
    answer = upload(b"a,b\n1,2\n")
    assert (answer.status_code, answer.json()["code"]) == (503, "disk_full")
    assert Dataset.objects.get(is_current=True).pk == before["dataset_id"]
    assert stored_files(own_data_dir) == [f"{before['sha256']}.parquet"]


def test_the_service_takes_a_file_that_lies_on_disk(db: None) -> None:
    file = TemporaryUploadedFile("a.csv", "text/csv", len(SMALL), None)
    file.write(SMALL)
    file.flush()
    assert dataset_upload(file=file, filename="../../etc/evil.csv").filename == "evil.csv"


@pytest.mark.parametrize(
    ("name", "label"), [("..\\..\\evil.csv", "evil.csv"), ("ü" * 300 + ".csv", None), ("data", "data")]
)
def test_the_clients_file_name_is_a_label_and_never_a_path(upload: Upload, name: str, label: str | None) -> None:
    shown = upload(SMALL, name).json()["filename"]
    assert len(shown) <= 255
    assert label is None or shown == label
