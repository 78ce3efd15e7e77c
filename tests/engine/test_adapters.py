"""Adapter folders: whole or not at all, and never trusted."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ftproject.engine.adapters import (
    AdapterError,
    finite,
    read_adapter_info,
    sweep_partial_folders,
    versions,
    write_adapter,
)
from ftproject.engine.processors import PixelRule

CONFIG = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "base_model_name_or_path": "tiny-qwen3-vl"}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter_1"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    (folder / "adapter_model.safetensors").write_bytes(b"x" * 10)
    return folder


def code_of(path: Path) -> str:
    with pytest.raises(AdapterError) as caught:
        _ = read_adapter_info(path).pixel_rule
    return caught.value.code


def test_the_facts_of_an_adapter_are_read_without_its_weights(adapter: Path) -> None:
    (adapter / "provenance.json").write_text('{"pixel_rule": {"min_pixels": 1, "max_pixels": 2}}')
    info = read_adapter_info(adapter)
    assert (info.name, info.base_model_name, info.r, info.lora_alpha) == ("adapter_1", "tiny-qwen3-vl", 8, 16)
    assert info.pixel_rule == PixelRule(1, 2)
    assert info.size_bytes > 10


def test_an_adapter_of_other_origin_has_no_provenance_and_no_rule(adapter: Path) -> None:
    assert read_adapter_info(adapter).provenance == {}
    assert read_adapter_info(adapter).pixel_rule is None


@pytest.mark.parametrize("name", ["adapter_model.bin", "training_args.bin", "x.pt", "x.pkl"])
def test_a_folder_with_a_pickle_is_never_read(adapter: Path, name: str) -> None:
    (adapter / name).write_bytes(b"\x80")
    assert code_of(adapter) == "adapter_not_safetensors"


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_half_an_adapter_is_no_adapter(adapter: Path, name: str) -> None:
    (adapter / name).unlink()
    assert code_of(adapter) == "adapter_incomplete"


@pytest.mark.parametrize("config", ["{", "[]", '{"peft_type": "IA3"}', "\ud800"])
def test_a_config_that_is_no_lora_is_refused(adapter: Path, config: str) -> None:
    (adapter / "adapter_config.json").write_bytes(config.encode("utf-8", "surrogatepass"))
    assert code_of(adapter) == "adapter_config_invalid"


@pytest.mark.parametrize("rule", [{"min_pixels": 1}, {"min_pixels": "x", "max_pixels": 1}, [1], "5"])
def test_a_damaged_pixel_rule_is_refused(adapter: Path, rule: Any) -> None:
    (adapter / "provenance.json").write_text(json.dumps({"pixel_rule": rule}))
    assert code_of(adapter) == "adapter_config_invalid"


def test_a_missing_folder_and_a_file_are_not_found(adapter: Path) -> None:
    assert code_of(adapter.parent / "gone") == "adapter_not_found"
    assert code_of(adapter / "adapter_config.json") == "adapter_not_found"


def test_a_failing_write_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_adapter(tmp_path / "new", fail)
    assert list(tmp_path.iterdir()) == []


def test_nobody_sees_the_folder_before_it_is_complete(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def fill(folder: Path) -> None:
        (folder / "a").write_text("x")
        seen.append([entry.name for entry in tmp_path.iterdir() if not entry.name.startswith(".partial-")])

    write_adapter(tmp_path / "new", fill)
    assert seen == [[]]
    assert [entry.name for entry in tmp_path.iterdir()] == ["new"]
    with pytest.raises(AdapterError, match="exists already"):
        write_adapter(tmp_path / "new", fill)


def test_leftovers_of_a_killed_process_are_swept_and_adapters_are_not(adapter: Path) -> None:
    root = adapter.parent
    (root / ".partial-adapter_2-ab").mkdir()
    (root / ".partial-adapter_2-ab" / "half").write_text("x")
    assert sweep_partial_folders(root) == [".partial-adapter_2-ab"]
    assert [entry.name for entry in root.iterdir()] == ["adapter_1"]
    assert sweep_partial_folders(root / "not-there") == []


def test_provenance_never_holds_nan() -> None:
    assert finite({"a": [math.nan, 1.5, (math.inf,)], "b": "NaN"}) == {"a": [None, 1.5, [None]], "b": "NaN"}


def test_the_versions_that_decide_a_result_are_known() -> None:
    assert {"torch", "transformers", "peft", "trl"} <= versions().keys()
