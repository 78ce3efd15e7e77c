"""A model's fingerprint is that of its files: every byte counts, a README does not, and nothing is read twice."""

import json
import os
from pathlib import Path

import pytest

from ftproject.engine import fingerprints
from ftproject.engine.fingerprints import fingerprint_model, package_versions
from ftproject.engine.models import ModelError

FILES = {"config.json": "{}", "model.safetensors": "weights", "tokenizer.json": "[]", "chat_template.jinja": "{{ x }}"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    for name, text in FILES.items():
        (model / name).write_text(text)
    return model


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "fingerprints.json"


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_file_that_a_loader_reads_counts(folder: Path, cache: Path, name: str) -> None:
    before = fingerprint_model(str(folder), cache)
    assert before.startswith("sha256:")
    (folder / name).write_text("changed")
    assert fingerprint_model(str(folder), cache) != before


def test_a_file_that_is_added_or_renamed_counts(folder: Path, cache: Path) -> None:
    before = fingerprint_model(str(folder), cache)
    (folder / "model-2.safetensors").write_text("more")
    added = fingerprint_model(str(folder), cache)
    (folder / "model-2.safetensors").rename(folder / "model-3.safetensors")
    assert len({before, added, fingerprint_model(str(folder), cache)}) == 3


def test_what_no_loader_reads_and_where_the_folder_stands_do_not(folder: Path, cache: Path) -> None:
    before = fingerprint_model(str(folder), cache)
    (folder / "README.md").write_text("read me")
    assert fingerprint_model(str(folder), cache) == before
    assert fingerprint_model(str(folder.rename(folder.with_name("moved"))), cache) == before


def test_unchanged_files_are_not_read_again(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint_model(str(folder), cache)
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("a file was read again"))
    assert fingerprint_model(str(folder), cache) == before


def test_bytes_of_the_same_length_are_told_apart_by_the_time_of_change(folder: Path, cache: Path) -> None:
    before = fingerprint_model(str(folder), cache)
    file = folder / "model.safetensors"
    file.write_text("weighty")
    os.utime(file, ns=(1, 1))
    assert fingerprint_model(str(folder), cache) != before


@pytest.mark.parametrize("content", ["", "no json", "[]", '{"x": 1}'])
def test_a_spoiled_cache_is_made_anew(folder: Path, cache: Path, content: str) -> None:
    before = fingerprint_model(str(folder), cache)
    cache.write_text(content)
    assert fingerprint_model(str(folder), cache) == before
    assert len(json.loads(cache.read_text())) == len(FILES)


def test_files_that_are_gone_leave_the_cache(folder: Path, cache: Path) -> None:
    fingerprint_model(str(folder), cache)
    (folder / "tokenizer.json").unlink()
    fingerprint_model(str(folder), cache)
    assert len(json.loads(cache.read_text())) == len(FILES) - 1


def test_a_hub_model_is_named_by_its_commit(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "89644892e4d85e24eaac8bacfd4f463576704203"
    file = tmp_path / "snapshots" / commit / "config.json"
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, wanted: str(file))
    assert fingerprint_model("Qwen/Qwen3-VL-2B-Instruct", cache) == f"revision:{commit}"


def test_a_hub_model_that_is_nowhere_is_refused_with_the_reason(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, wanted: str) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(ModelError, match="no route to host") as caught:
        fingerprint_model("Qwen/Qwen3-VL-2B-Instruct", cache)
    assert caught.value.code == "model_not_reachable"


def test_versions_are_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "COMPUTING_PACKAGES", ("torch", "no-such-package"))
    assert list(package_versions()) == ["torch"]
