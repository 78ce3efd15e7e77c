"""The GPU benchmark's parts that run anywhere: models of real shapes, and what is said when something is missing."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import Session, attempt, missing, verdict, write_work
from benchmarks.gpu_contender import Stopwatch
from benchmarks.random_model import config_of, write_random_model
from ftproject.engine.gpu import device_facts
from ftproject.engine.models import check_model_folder


@pytest.fixture
def session(tmp_path: Path) -> Session:
    import time

    return Session(tmp_path / "out", tmp_path / "work", time.monotonic() + 100, dry=True)


@pytest.mark.parametrize(("shape", "billions"), [("2b", 2.128), ("8b", 8.767)])
def test_the_shapes_have_the_real_number_of_parameters(shape: str, billions: float) -> None:
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config_of(shape)))
    assert sum(value.numel() for value in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.001)


def test_a_random_model_loads_as_any_other_and_stays_finite(tmp_path: Path) -> None:
    import torch

    from ftproject.engine.models import load_base_model

    parameters = write_random_model("tiny", tmp_path / "random")
    assert check_model_folder(tmp_path / "random").quantised is False
    model = load_base_model(str(tmp_path / "random"), device="cpu")
    assert sum(value.numel() for value in model.parameters()) == parameters
    assert torch.isfinite(model(input_ids=torch.arange(20)[None]).logits).all()


@pytest.mark.skipif(device_facts().cuda, reason="there is a CUDA device")
def test_without_cuda_nothing_is_measured_and_the_reason_is_given() -> None:
    assert missing() == "torch sees no CUDA device"


def test_a_part_that_fails_or_finds_no_time_says_so_and_stops_nothing(session: Session) -> None:
    def fail(_: Session) -> Any:
        raise subprocess.TimeoutExpired("python", 5)

    assert "TimeoutExpired" in attempt(session, 10, fail)["failed"]
    assert "are needed" in attempt(session, 1000, fail)["skipped"]
    assert attempt(session, 10, lambda _: {"a": 1}) == {"a": 1}


def test_the_verdict_holds_step_time_and_loader_against_their_bars() -> None:
    def case(ratio: float, wait: float) -> dict[str, Any]:
        side = {"step_seconds": 1.0, "peak_memory_mb": 5, "loader_wait_share": wait}
        return {"ours": side, "plain": side, "ratio": ratio}

    assert verdict(case(1.03, 0.04)).endswith(": good")
    assert verdict(case(1.04, 0.04)).endswith("NOT GOOD")
    assert verdict(case(1.0, 0.06)).endswith("NOT GOOD")
    assert verdict({"skipped": "no time"}) == "no time"


def test_the_first_steps_are_not_counted() -> None:
    watch = Stopwatch(started=0.0, ends=[10.0, 15.0, 16.0, 17.0, 18.5, 19.5], waits=[9.0, 9.0, 9.0, 0.1, 0.2, 0.0])
    figures = watch.figures()
    assert figures["step_seconds"] == 1.0
    assert figures["first_step_seconds"] == 10.0
    assert figures["loader_wait_share"] == pytest.approx(0.3 / 3.5, abs=1e-4)


def test_the_same_rows_are_written_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_work(tmp_path / name, tmp_path / "model", four_bit=False, dry=True)
    one, two = ((tmp_path / name / "work.json").read_text().replace(f"/{name}/", "/") for name in ("a", "b"))
    assert one == two
    assert (tmp_path / "a" / "3.jpg").read_bytes() == (tmp_path / "b" / "3.jpg").read_bytes()
