"""The engine on a real CUDA device; skipped where there is none."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from ftproject.engine.backends import get_backend
from ftproject.engine.configs import parse_training_config, resolve_training_config
from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.gpu import device_facts
from ftproject.engine.training import train
from tests.engine.support import SHORT, TINY, Recorder, training_job

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not device_facts().cuda, reason="no CUDA device")]


def test_the_tiny_model_trains_in_bfloat16_and_answers(tmp_path: Path, digit_rows: list[ResolvedConversation]) -> None:
    device = device_facts()
    body = {"model_config_data": {"model_name": "tiny-qwen3-vl"}, "sft_config": {"learning_rate": 4e-3}}
    job = training_job(tmp_path, digit_rows[:64], digit_rows[64:80])
    effective = resolve_training_config(parse_training_config(body), device, models_dir=tmp_path)
    recorder = Recorder()
    result = train(replace(job, effective=effective), recorder, device=device)
    assert result.adapter_effective is True
    assert all(math.isfinite(loss) for loss in recorder.losses)
    assert recorder.losses[-1] < recorder.losses[0]
    model = get_backend("transformers", device).load("tiny-qwen3-vl", TINY)
    rows = digit_rows[:8]
    before = [answer.text for answer in model.generate(rows, SHORT, adapter=None)]
    model.generate(rows, SHORT, adapter=result.adapter_path)
    assert [answer.text for answer in model.generate(rows, SHORT, adapter=None)] == before


def test_a_four_bit_base_trains(tmp_path: Path, digit_rows: list[ResolvedConversation]) -> None:
    device = device_facts()
    body = {"model_config_data": {"model_name": "tiny-qwen3-vl", "load_in_4bit": True}}
    effective = resolve_training_config(parse_training_config(body), device, models_dir=tmp_path)
    job = replace(training_job(tmp_path, digit_rows[:32]), effective=effective)
    result = train(job, Recorder(), device=device)
    assert result.adapter_effective is True
