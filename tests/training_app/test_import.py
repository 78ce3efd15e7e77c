"""Import of adapters: the round trip, what is found out, and every trap that a zip or a folder can hold."""

import io
import json
import os
import pickle
import shutil
import struct
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from datasets_app.models import Dataset
from ftproject.core.errors import ProductError
from ftproject.core.storage import adapters_dir, data_path
from ftproject.engine.adapters import read_adapter_info
from tests.training_app.lora_folders import (
    MODULES,
    folder_members,
    lora_config,
    lora_tensors,
    registered_adapter,
    write_adapter_folder,
    zip_of,
)
from tests.training_app.world import Api
from training_app import import_archive, import_services
from training_app.models import Adapter
from training_app.selectors import find_adapter, trained_row_numbers

URL = "/api/training/adapters/import"
pytestmark = pytest.mark.django_db


@pytest.fixture
def folder(api: Api, tmp_path: Path) -> Path:
    """An adapter that lies somewhere else."""
    return write_adapter_folder(tmp_path / "elsewhere" / "digits")


def upload(api: Api, data: bytes, filename: str = "digits.zip", **form: Any) -> Any:
    return api.client.post(URL, {"file": SimpleUploadedFile(filename, data), **form})


def taken(api: Api, data: bytes, **form: Any) -> Any:
    answer = upload(api, data, **form)
    assert answer.status_code == 201, answer.json()
    return answer.json()


def refusal(api: Api, data: bytes, **form: Any) -> tuple[int, str]:
    """Status and code; whatever is refused leaves neither row nor file."""
    before = (Adapter.objects.count(), sorted(path.name for path in adapters_dir().iterdir()))
    answer = upload(api, data, **form)
    assert answer["Content-Type"] == "application/problem+json", answer.content[:300]
    assert (Adapter.objects.count(), sorted(path.name for path in adapters_dir().iterdir())) == before
    assert list(data_path("tmp", "x").parent.iterdir()) == []
    return answer.status_code, answer.json()["code"]


# What is taken


def test_an_imported_adapter_is_listed_and_can_be_named(api: Api, folder: Path) -> None:
    body = taken(api, zip_of(folder_members(folder)))
    assert (body["name"], body["run_id"], body["base_model_name"], body["r"]) == ("digits", None, "tiny-qwen3-vl", 4)
    assert body["effective"] is None
    assert body["checked_against_base"] is True
    assert sorted(body["modules"]) == sorted(MODULES)
    listed = api.get("/api/training/adapters").json()["adapters"]
    assert [adapter["name"] for adapter in listed] == ["digits"]
    adapter = find_adapter(reference=body["path"])
    assert trained_row_numbers(adapter=adapter) is None
    assert {path.name for path in adapter.path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "provenance.json",
    }


def test_the_round_trip_keeps_every_byte_of_the_weights_and_every_setting(api: Api) -> None:
    ours = registered_adapter("ours", lora_alpha=7, use_rslora=True)
    archive = b"".join(api.get(f"/api/training/adapters/{ours.name}/download").streaming_content)
    body = taken(api, archive, name="again")
    again = Adapter.objects.get(name="again")
    weights = "adapter_model.safetensors"
    assert (again.path / weights).read_bytes() == (ours.path / weights).read_bytes()
    assert (body["sha256"], body["base_model_name"]) == (ours.sha256, ours.base_model_name)
    info = read_adapter_info(again.path)
    assert (info.r, info.lora_alpha, info.base_model_name) == (4, 7, "tiny-qwen3-vl")
    assert json.loads((again.path / "adapter_config.json").read_text())["use_rslora"] is True


@pytest.mark.parametrize("under", ["", "digits/", "a/b/c/digits/", "./digits//", "__MACOSX/../digits/"])
def test_the_folder_may_stand_anywhere_in_the_zip(api: Api, folder: Path, under: str) -> None:
    answer = upload(api, zip_of(folder_members(folder, under)))
    if ".." in under:
        assert answer.json()["code"] == "member_path_refused"
    else:
        assert answer.json()["name"] == "digits", answer.json()


def test_litter_and_a_readme_do_no_harm(api: Api, folder: Path) -> None:
    more: dict[str, bytes | str] = {"__MACOSX/._x": b"\0", "digits/.DS_Store": b"\0", "digits/README.md": "# hello"}
    taken(api, zip_of(folder_members(folder, "digits/") | more))
    assert not (adapters_dir() / "digits" / "README.md").exists()


def test_the_pixel_rule_of_a_downloaded_adapter_comes_along(api: Api, folder: Path) -> None:
    rule = {"min_pixels": 1024, "max_pixels": 65536}
    (folder / "provenance.json").write_text(json.dumps({"pixel_rule": rule, "run_id": 1, "dataset": {"sha256": "x"}}))
    taken(api, zip_of(folder_members(folder)))
    info = read_adapter_info(adapters_dir() / "digits")
    assert info.pixel_rule is not None
    assert info.pixel_rule.max_pixels == 65536
    assert "run_id" not in info.provenance, "another machine's run is none of ours"


def test_an_adapter_that_does_nothing_is_taken_and_never_called_fine_tuned(
    api: Api, dataset: Dataset, tmp_path: Path
) -> None:
    idle = write_adapter_folder(tmp_path / "idle", tensors=lora_tensors(effect=0.0))
    body = taken(api, zip_of(folder_members(idle)), name="idle")
    assert body["effective"] is False
    assert any("does nothing" in warning for warning in body["warnings"])
    answer = api.post("/api/evaluation/run", {"adapter_path": "idle"})
    assert (answer.status_code, answer.json()["code"]) == (409, "adapter_not_effective")


def test_a_base_of_another_machine_is_named_in_the_form(api: Api, tmp_path: Path) -> None:
    moved = write_adapter_folder(tmp_path / "moved", base_model_name_or_path="/home/them/models/base")
    data = zip_of(folder_members(moved))
    assert refusal(api, data, name="moved") == (400, "adapter_base_not_allowed")
    body = taken(api, data, name="moved", base_model_name="tiny-qwen3-vl")
    assert body["base_model_name"] == "tiny-qwen3-vl"
    assert any("/home/them" in warning for warning in body["warnings"])


def test_an_adapter_of_a_hub_model_is_taken_without_a_gpu_and_without_fetching(api: Api, tmp_path: Path) -> None:
    tensors = lora_tensors({"model.language_model.layers.0.self_attn.q_proj": (4096, 4096)})
    config = {"base_model_name_or_path": "unsloth/Qwen3-VL-8B-Instruct-unsloth-bnb-4bit"}
    large = write_adapter_folder(tmp_path / "large", tensors=tensors, **config)
    body = taken(api, zip_of(folder_members(large)), name="large")
    assert body["checked_against_base"] is False


# Names


@pytest.mark.parametrize("name", [".", "..", "a/b", "../x", "/etc", "import", "5", "007", "-x", ".x", "a b", "x" * 129])
def test_a_name_that_is_no_plain_folder_or_means_something_else_is_refused(api: Api, folder: Path, name: str) -> None:
    assert refusal(api, zip_of(folder_members(folder)), name=name) == (400, "invalid_name")


def test_a_blank_name_is_refused(api: Api, folder: Path) -> None:
    assert refusal(api, zip_of(folder_members(folder)), name="") == (400, "invalid_input")


def test_a_name_that_is_taken_by_a_row_or_a_folder_is_a_conflict(api: Api, folder: Path) -> None:
    data = zip_of(folder_members(folder))
    registered_adapter("mine")
    (adapters_dir() / "orphan").mkdir()
    (adapters_dir() / "dangling").symlink_to("/nowhere")
    for name in ("mine", "orphan", "dangling"):
        assert refusal(api, data, name=name) == (409, "adapter_exists")


def test_without_a_name_the_file_names_it_and_a_bad_one_asks_for_a_name(api: Api, folder: Path) -> None:
    data = zip_of(folder_members(folder))
    assert upload(api, data, "my-adapter.v2.zip").json()["name"] == "my-adapter.v2"
    assert upload(api, data, "my adapter (1).zip").json()["code"] == "invalid_name"


@pytest.mark.django_db(transaction=True)
def test_two_imports_of_one_name_at_once_make_one_adapter(api: Api, folder: Path) -> None:
    file = folder.parent / "digits.zip"
    file.write_bytes(zip_of(folder_members(folder)))
    outcomes: list[str] = []

    def work() -> None:
        from django.db import connection

        try:
            import_services.adapter_import(file=file, name="digits")
            outcomes.append("taken")
        except ProductError as exc:
            outcomes.append(exc.code)
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["adapter_exists"] * 3 + ["taken"]
    assert find_adapter(reference="digits").path.is_dir()
    assert [path.name for path in adapters_dir().iterdir()] == ["digits"]


# Traps of the zip


@pytest.mark.parametrize(
    "name",
    ["../evil", "a/../../evil", "/etc/evil", "C:/evil", "..\\evil", "\\evil", "digits/..", "x" * 501],
)
def test_a_path_that_leads_out_is_refused(api: Api, folder: Path, tmp_path: Path, name: str) -> None:
    status, code = refusal(api, zip_of(folder_members(folder) | {name: b"x"}))
    assert status == 400
    assert code in {"member_path_refused", "member_name_too_long"}
    assert not list(tmp_path.rglob("evil"))


def linked(target: str, kind: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("digits/adapter_config.json")
        info.external_attr = (kind | 0o777) << 16
        archive.writestr(info, target)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", [0o120000, 0o060000, 0o010000, 0o140000])
def test_links_and_devices_are_refused(api: Api, kind: int) -> None:
    assert refusal(api, linked("/etc/passwd", kind)) == (400, "member_not_a_file")


def test_a_bomb_is_refused_before_it_is_unpacked(api: Api, folder: Path) -> None:
    zeros: dict[str, bytes | str] = {"zeros": b"\0" * (20 << 20)}
    assert refusal(api, zip_of(folder_members(folder) | zeros)) == (400, "member_bomb")


def test_more_than_the_limit_in_all_is_413(api: Api, folder: Path, settings: Any) -> None:
    settings.MAX_UPLOAD_MB = 1
    chunks: dict[str, bytes | str] = {f"part{number}": os.urandom(1000) * 150 for number in range(20)}
    status, code = refusal(api, zip_of(folder_members(folder) | chunks))
    assert (status, code) == (413, "archive_too_large")


def test_a_thousand_members_are_no_adapter(api: Api, folder: Path) -> None:
    many: dict[str, bytes | str] = {f"file{number}": b"" for number in range(1001)}
    assert refusal(api, zip_of(folder_members(folder) | many)) == (413, "archive_too_large")


def lying_about_its_size(data: bytes, name: bytes, size: int) -> bytes:
    """The zip with another uncompressed size of a member in both of its headers."""
    changed = bytearray(data)
    for mark, at_size, at_name in ((b"PK\x03\x04", 22, 30), (b"PK\x01\x02", 24, 46)):
        place = changed.find(mark)
        while place >= 0:
            if changed[place + at_name : place + at_name + len(name)] == name:
                changed[place + at_size : place + at_size + 4] = struct.pack("<I", size)
            place = changed.find(mark, place + 4)
    return bytes(changed)


@pytest.mark.parametrize("more", [-100, 100])
def test_a_member_that_lies_about_its_size_is_refused(api: Api, folder: Path, more: int) -> None:
    data = zip_of(folder_members(folder))
    size = (folder / "adapter_model.safetensors").stat().st_size + more
    status, code = refusal(api, lying_about_its_size(data, b"adapter_model.safetensors", size))
    assert (status, code) == (400, "member_damaged")


def test_a_damaged_member_is_refused(api: Api, folder: Path) -> None:
    data = bytearray(zip_of(folder_members(folder)))
    place = data.find(b"adapter_model.safetensors") + 200
    data[place : place + 50] = b"\xff" * 50
    assert refusal(api, bytes(data)) == (400, "member_damaged")


def test_one_path_twice_is_refused(api: Api, folder: Path) -> None:
    members = folder_members(folder)
    twice = members | {"ADAPTER_CONFIG.json": json.dumps(lora_config(r=9))}
    assert refusal(api, zip_of(twice)) == (400, "member_duplicate")


def test_a_file_where_a_folder_must_be_is_refused(api: Api, folder: Path) -> None:
    members: dict[str, bytes | str] = {"a": b"file", **folder_members(folder, "a/")}
    assert refusal(api, zip_of(members)) == (400, "member_path_refused")
    assert refusal(api, zip_of({"x" * 300: b"", **folder_members(folder)})) == (400, "member_path_refused")


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 400, "invalid_input"),
        (b"\x1f\x8b\x08\0gzip", 415, "unsupported_file_type"),
        (b"PK\x03\x04 cut off", 400, "archive_damaged"),
        (b"adapter_config", 415, "unsupported_file_type"),
    ],
)
def test_what_is_no_zip_is_refused(api: Api, data: bytes, status: int, code: str) -> None:
    found = refusal(api, data)
    assert found == (status, code) or (data == b"" and found[0] in {400, 415})


# Traps of the folder


@pytest.mark.parametrize(
    "name", ["adapter_model.bin", "weights.pt", "state.pkl", "deep/optimizer.pth", "X.CKPT", "model.py", "x.so"]
)
def test_a_pickle_or_code_beside_the_weights_refuses_the_whole(api: Api, folder: Path, name: str) -> None:
    harm = pickle.dumps(os.getcwd)
    status, code = refusal(api, zip_of(folder_members(folder) | {name: harm}))
    assert status == 400
    assert code in {"adapter_not_safetensors", "adapter_holds_code"}


def test_a_pickle_in_place_of_the_weights_is_refused(api: Api, folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert refusal(api, zip_of(folder_members(folder)))[1] == "adapter_not_safetensors"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"peft_type": "LOHA"}, None),
        ({"base_model_name_or_path": "meta-llama/Llama-3-8B"}, "adapter_base_not_allowed"),
        ({"base_model_name_or_path": None}, "adapter_base_not_allowed"),
        ({"base_model_name_or_path": "../../etc"}, "adapter_base_not_allowed"),
        ({"r": 0}, None),
        ({"r": 5}, None),
        ({"r": "four"}, None),
        ({"lora_alpha": float("1e400")}, None),
        ({"modules_to_save": ["lm_head"]}, None),
        ({"use_dora": True}, None),
        ({"auto_mapping": {"base_model_class": "Evil", "parent_library": "os"}}, None),
    ],
)
def test_a_config_that_cannot_be_used_is_refused(
    api: Api, tmp_path: Path, change: dict[str, Any], code: str | None
) -> None:
    odd = write_adapter_folder(tmp_path / "odd", **change)
    answer = upload(api, zip_of(folder_members(odd)), name="odd")
    if answer.status_code == 201:  # what is not taken over does no harm
        assert "auto_mapping" not in json.loads((adapters_dir() / "odd" / "adapter_config.json").read_text())
        assert "auto_mapping" in change
        return
    assert answer.status_code == 400, answer.json()
    assert code is None or answer.json()["code"] == code
    assert list(adapters_dir().iterdir()) == []


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        lora_tensors({"model.language_model.layers.0.self_attn.q_proj": (128, 64)}),
        lora_tensors({"model.language_model.layers.99.self_attn.q_proj": (128, 128)}),
        lora_tensors({"somewhere.else": (128, 128)}),
        {"base_model.model.lm_head.weight": np.zeros((4, 4), "float32")},
        {name: tensor for name, tensor in lora_tensors().items() if "lora_A" in name},
        {name: tensor * np.float32("nan") for name, tensor in lora_tensors().items()},
        {name: tensor * np.float32("inf") for name, tensor in lora_tensors(seed=3).items()},
    ],
    ids=["none", "shape", "layer", "module", "whole", "half", "nan", "inf"],
)
def test_weights_that_do_not_fit_the_base_are_refused(api: Api, tmp_path: Path, tensors: dict[str, Any]) -> None:
    odd = write_adapter_folder(tmp_path / "odd", tensors=tensors)
    assert refusal(api, zip_of(folder_members(odd)))[0] == 400


@pytest.mark.parametrize("text", ["{", "[]", "5", '"text"', "\xff", '{"peft_type": "LORA", "r": ' + "9" * 5000 + "}"])
def test_a_config_that_is_no_object_is_refused(api: Api, folder: Path, text: str) -> None:
    (folder / "adapter_config.json").write_text(text, encoding="latin-1")
    assert refusal(api, zip_of(folder_members(folder)))[0] == 400


@pytest.mark.parametrize("size", [0, 7, 8, 20, 2000])
def test_weights_that_are_cut_off_are_refused(api: Api, folder: Path, size: int) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    assert refusal(api, zip_of(folder_members(folder)))[0] == 400


def test_no_adapter_and_two_adapters_are_refused(api: Api, folder: Path) -> None:
    assert refusal(api, zip_of({"a.txt": b"hello"})) == (400, "adapter_incomplete")
    two = folder_members(folder, "one/") | folder_members(folder, "two/")
    assert refusal(api, zip_of(two)) == (400, "adapter_ambiguous")


# The form, the disk, half ways


@pytest.mark.parametrize(
    ("form", "code"), [({"nmae": "x"}, "unknown_field"), ({"name": "a", "adapter": "b"}, "unknown_field")]
)
def test_a_form_with_anything_else_is_refused(api: Api, folder: Path, form: dict[str, str], code: str) -> None:
    assert refusal(api, zip_of(folder_members(folder)), **form) == (400, code)


def test_without_a_file_or_with_a_file_as_name_it_is_refused(api: Api, folder: Path) -> None:
    assert api.client.post(URL, {"name": "x"}).json()["code"] == "missing_file"
    answer = upload(api, zip_of(folder_members(folder)), name=SimpleUploadedFile("n", b"x"))
    assert answer.json()["code"] == "unknown_field"


def test_json_is_415_and_get_is_another_route(api: Api) -> None:
    assert api.post(URL, {}).status_code == 415
    assert api.get(URL).status_code in {404, 405}


def test_a_disk_without_room_is_503(api: Api, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(adapters_dir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    assert refusal(api, zip_of(folder_members(folder))) == (503, "disk_full")


def test_a_disk_that_fills_up_meanwhile_is_503_and_leaves_nothing(
    api: Api, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    data = zip_of(folder_members(folder))
    with monkeypatch.context() as patch:
        patch.setattr(import_archive, "write_member", full)
        assert refusal(api, data) == (503, "disk_full")
    with monkeypatch.context() as patch:
        patch.setattr(import_services, "import_adapter", full)
        assert refusal(api, data) == (503, "disk_full")


def test_a_database_that_fails_at_the_row_leaves_no_folder(
    api: Api, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("the database went away")

    monkeypatch.setattr(Adapter.objects, "create", fail)
    api.client.raise_request_exception = False
    assert upload(api, zip_of(folder_members(folder))).status_code == 500
    assert list(adapters_dir().iterdir()) == []
