"""Adapters: the list, naming one safely, the download, and what may be deleted."""

import io
import os
import socket
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from datasets_app.models import Dataset
from evaluation_app.models import EvaluationRun
from ftproject.core.errors import NotFoundError
from ftproject.core.storage import adapters_dir
from tests.training_app.world import Api, trained_run
from training_app import adapter_services
from training_app.models import Adapter
from training_app.selectors import find_adapter, heldout_row_numbers, trained_row_numbers

URL = "/api/training/adapters"
LISTED = {
    "id",
    "name",
    "path",
    "created_at",
    "run_id",
    "base_model_name",
    "r",
    "size_bytes",
    "effective",
}


@pytest.fixture
def adapter(api: Api, dataset: Dataset) -> Adapter:
    return trained_run(api, holdout_fraction=0.5).adapter


def evaluate_with(adapter: Adapter) -> EvaluationRun:
    run = adapter.run
    assert run is not None
    return EvaluationRun.objects.create(
        dataset=run.dataset, mapping=run.mapping, model_name="tiny", model_type="finetuned", adapter=adapter
    )


def test_the_list_is_empty_before_any_training(api: Api) -> None:
    assert api.get(URL).json() == {"adapters": []}


def test_the_list_ascends_so_that_the_last_one_is_the_newest(api: Api, dataset: Dataset) -> None:
    runs = [trained_run(api), trained_run(api), trained_run(api)]
    listed = api.get(URL + "/").json()["adapters"]
    assert [item["run_id"] for item in listed] == [run.pk for run in runs]
    assert set(listed[0]) == LISTED
    assert all(Path(item["path"]).is_dir() for item in listed)
    assert listed[0]["created_at"].endswith("Z")


def test_two_adapters_of_one_second_get_different_names(api: Api, dataset: Dataset) -> None:
    moment = datetime(2026, 2, 15, 14, 30, 22, tzinfo=UTC)
    first = adapter_services.new_adapter_dir(moment)
    assert first.name == "adapter_20260215_143022"
    first.mkdir()
    assert adapter_services.new_adapter_dir(moment).name == "adapter_20260215_143022_2"


def test_one_adapter_is_shown_with_its_hash(api: Api, adapter: Adapter) -> None:
    body = api.get(f"{URL}/{adapter.name}").json()
    assert body["sha256"] == adapter_services.file_sha256(adapter.path / "adapter_model.safetensors")
    assert body["provenance"]["run_id"] == adapter.run_id


# Naming an adapter


def test_name_path_and_id_mean_the_same_adapter(adapter: Adapter) -> None:
    for reference in (adapter.name, str(adapter.path), adapter.pk, str(adapter.pk)):
        assert find_adapter(reference=reference) == adapter


def bad_references(adapter: Adapter) -> list[Any]:
    folder, name = str(adapters_dir()), adapter.name
    return [
        "",
        ".",
        "..",
        "/",
        "../" + name,
        f"./{name}",
        f"{folder}/../adapters/{name}",
        f"{folder}/{name}/",
        f"{folder}//{name}",
        f"{folder}/{name}/../{name}",
        f"{folder}/{name}\0",
        f"{name}\0.png",
        f"%2e%2e/{name}",
        f"..%2f{name}",
        f"file://{folder}/{name}",
        name.upper(),
        f" {name}",
        name + "x" * 4096,
        "a" * 4096,
        "unsloth/Qwen3-VL-8B-Instruct",
        "Qwen/Qwen3-VL-2B-Instruct",
        "/etc/passwd",
        "/path/to/adapter_20260215_143022",
        "0",
        "-1",
        "1.0",
        "²",
        "9" * 30,
        0,
        -1,
        2**63,
        True,
        1.5,
        None,
        [name],
        "\ud800",
        "'; DROP TABLE training_app_adapter; --",
    ]


def test_anything_else_is_404_and_opens_neither_file_nor_socket(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: opened.append(address))
    for name in ("read_text", "read_bytes", "open", "iterdir"):
        monkeypatch.setattr(Path, name, lambda self, *_, **__: opened.append(self))
    for reference in bad_references(adapter):
        with pytest.raises(NotFoundError) as refusal:
            find_adapter(reference=reference)
        assert refusal.value.code == "adapter_not_found"
    assert opened == []


def test_a_folder_without_a_row_is_no_adapter(adapter: Adapter) -> None:
    stranger = adapters_dir() / "stranger"
    stranger.mkdir()
    for reference in ("stranger", str(stranger)):
        with pytest.raises(NotFoundError):
            find_adapter(reference=reference)


def test_a_folder_that_became_a_link_to_elsewhere_is_not_followed(adapter: Adapter, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    adapter.path.rename(outside)
    adapter.path.symlink_to(outside, target_is_directory=True)
    with pytest.raises(NotFoundError):
        find_adapter(reference=adapter.name)


def test_a_link_inside_the_folder_is_not_followed(adapter: Adapter) -> None:
    (adapter.path / "extra.json").symlink_to("/etc/passwd")
    with pytest.raises(NotFoundError):
        find_adapter(reference=adapter.name)


@pytest.mark.parametrize("name", ["adapter_model.bin", "weights.pt", "more.pkl"])
def test_a_folder_with_a_pickle_is_never_used(adapter: Adapter, name: str) -> None:
    (adapter.path / name).write_bytes(b"\x80")
    with pytest.raises(NotFoundError):
        find_adapter(reference=adapter.name)


def test_a_folder_that_lost_its_weights_is_never_used(adapter: Adapter) -> None:
    (adapter.path / "adapter_model.safetensors").unlink()
    with pytest.raises(NotFoundError):
        find_adapter(reference=str(adapter.path))


@pytest.mark.parametrize("name", ["..", "%2e%2e", "%00", "no-such-adapter", "a" * 4000])
@pytest.mark.parametrize("tail", ["", "/download"])
def test_a_wrong_name_in_the_route_is_a_404_problem(api: Api, adapter: Adapter, name: str, tail: str) -> None:
    answer = api.get(f"{URL}/{name}{tail}")
    assert answer.status_code == 404
    assert answer["Content-Type"] == "application/problem+json"


def test_the_rows_of_the_split_are_known_by_adapter(adapter: Adapter) -> None:
    trained, heldout = trained_row_numbers(adapter=adapter), heldout_row_numbers(adapter=adapter)
    assert trained is not None
    assert heldout is not None
    assert trained | heldout == set(range(12))
    adapter.run = None
    assert trained_row_numbers(adapter=adapter) is None
    assert heldout_row_numbers(adapter=adapter) is None


# Download


def test_the_download_is_a_zip_of_the_whole_folder(api: Api, adapter: Adapter) -> None:
    answer = api.get(f"{URL}/{adapter.name}/download")
    assert answer["Content-Disposition"] == f'attachment; filename="{adapter.name}.zip"'
    with zipfile.ZipFile(io.BytesIO(b"".join(answer.streaming_content))) as archive:
        assert archive.testzip() is None
        names = {f"{adapter.name}/{file.name}" for file in adapter.path.iterdir()}
        assert set(archive.namelist()) == names
        weights = archive.read(f"{adapter.name}/adapter_model.safetensors")
    assert weights == (adapter.path / "adapter_model.safetensors").read_bytes()


def test_the_download_holds_no_more_than_a_few_chunks_in_memory(adapter: Adapter) -> None:
    (adapter.path / "large.safetensors").write_bytes(os.urandom(1 << 20) * 20)
    chunks = list(adapter_services.iter_adapter_zip(adapter.path))
    assert sum(map(len, chunks)) > 20 << 20
    assert max(map(len, chunks)) <= adapter_services.CHUNK_BYTES


# Delete


def test_a_deleted_adapter_is_gone_from_list_and_disk(api: Api, adapter: Adapter) -> None:
    answer = api.delete(f"{URL}/{adapter.name}")
    assert (answer.status_code, answer.json()) == (200, {"status": "deleted", "id": adapter.pk})
    assert api.get(URL).json() == {"adapters": []}
    assert list(adapters_dir().iterdir()) == []
    assert api.delete(f"{URL}/{adapter.name}").status_code == 404


def test_an_adapter_that_an_evaluation_refers_to_stays(api: Api, adapter: Adapter) -> None:
    evaluation = evaluate_with(adapter)
    answer = api.delete(f"{URL}/{adapter.name}")
    assert (answer.status_code, answer.json()["code"]) == (409, "adapter_in_use")
    assert f"evaluation {evaluation.pk}" in answer.json()["detail"]
    assert adapter.path.is_dir()
    assert Adapter.objects.exists()


def test_an_adapter_whose_folder_is_lost_can_still_be_deleted(api: Api, adapter: Adapter, tmp_path: Path) -> None:
    adapter.path.rename(tmp_path / "lost")
    assert api.get(f"{URL}/{adapter.name}").status_code == 404
    assert api.delete(f"{URL}/{adapter.name}").status_code == 200


def test_deleting_a_link_leaves_what_it_points_to(api: Api, adapter: Adapter, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    adapter.path.rename(outside)
    adapter.path.symlink_to(outside, target_is_directory=True)
    assert api.delete(f"{URL}/{adapter.name}").status_code == 200
    assert (outside / "adapter_config.json").is_file()
