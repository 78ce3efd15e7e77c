"""The model server as a process: its socket, its signals, its parent, and the real tiny model in it."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.engine.conftest import TrainedAdapter
from tests.engine.server.conftest import ROOT, RealServer, start_server
from tests.engine.support import QUESTION

PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen(
    [sys.executable, "-m", "ftproject.engine.server", "--parent=" + str(os.getpid()), *sys.argv[1:]],
    stdin=subprocess.PIPE, start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""


def wait_gone(pid: int, seconds: float) -> None:
    until = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, f"process {pid} lives on"
        time.sleep(0.02)


def test_the_socket_opens_for_its_owner_only(fake_server: RealServer) -> None:
    fake_server.wait_for(lambda told: told["loaded"])
    assert stat.S_IMODE(fake_server.socket.stat().st_mode) == 0o600


def test_it_starts_over_a_socket_that_a_killed_server_left(tmp_path: Path, fake_server: RealServer) -> None:
    fake_server.wait_for(lambda told: told["loaded"])
    fake_server.end()
    assert fake_server.socket.exists()
    second = start_server(tmp_path, "--backend=fake")
    try:
        assert second.wait_for(lambda told: told["loaded"])
    finally:
        second.end()


def test_ctrl_c_is_not_for_it(fake_server: RealServer) -> None:
    fake_server.wait_for(lambda told: told["loaded"])
    fake_server.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert fake_server.status()["loaded"]


def test_sigterm_ends_an_idle_server_at_once_and_well(fake_server: RealServer) -> None:
    fake_server.wait_for(lambda told: told["loaded"])
    started = time.monotonic()
    fake_server.process.terminate()
    assert fake_server.process.wait(5) == 0
    assert time.monotonic() - started < 1


def test_the_end_of_stdin_ends_it(fake_server: RealServer) -> None:
    fake_server.wait_for(lambda told: told["loaded"])
    assert fake_server.process.stdin
    fake_server.process.stdin.close()
    fake_server.process.wait(2)


def test_it_dies_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    arguments = [f"--socket={tmp_path}/s", "--model=x", "--model-name=x", f"--images={tmp_path}"]
    arguments += [f"--adapters={tmp_path}", "--backend=fake"]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT
    )
    assert parent.stdout
    child = int(parent.stdout.readline())
    with httpx.Client(transport=httpx.HTTPTransport(uds=f"{tmp_path}/s"), base_url="http://model") as client:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                client.get("/status")
                break
            except httpx.TransportError:
                time.sleep(0.05)
    assert psutil.pid_exists(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_gone(child, 2)


def test_a_parent_that_is_gone_already_is_noticed_at_the_start(tmp_path: Path) -> None:
    server = start_server(tmp_path, "--backend=fake", "--parent=1")
    try:
        assert server.process.wait(20) == 3
    finally:
        server.end()


def test_it_knows_no_django_and_no_torch_until_it_loads(tmp_path: Path) -> None:
    code = "import sys, ftproject.engine.server; print([m for m in ('django', 'torch') if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert told.stdout.strip() == "[]", told.stderr


@pytest.fixture(scope="module")
def real(trained: TrainedAdapter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """The real tiny model with a really trained adapter at hand."""
    folder = trained.rows[0].image_paths[0].parent
    server = start_server(tmp_path_factory.mktemp("real"), images=folder, adapters=trained.path.parent)
    server.wait_for(lambda told: told["loaded"])
    yield server
    server.end()


@pytest.mark.slow
class TestWithTheRealModel:
    def test_it_answers_text(self, real: RealServer) -> None:
        body = real.chat("Describe the image.").json()
        assert body["choices"][0]["message"]["content"]
        assert body["usage"]["prompt_tokens"] > 5
        assert body["timings"]["generation_ms"] > 0
        status = real.status()
        assert (status["loading_percent"], status["device"]) == (100, "cpu")
        assert status["memory_mb"] > 100

    def test_base_and_adapter_answer_from_one_process(self, real: RealServer, trained: TrainedAdapter) -> None:
        loaded = real.client.post(
            "/v1/load_lora_adapter", json={"lora_name": "digits", "lora_path": str(trained.path)}, timeout=60
        )
        assert loaded.status_code == 200, loaded.text
        right = {"tiny-qwen3-vl": 0, "digits": 0}
        for row in trained.rows[:10]:
            image = {"type": "image_url", "image_url": {"url": row.image_paths[0].as_uri()}}
            messages = [{"role": "user", "content": [image, {"type": "text", "text": QUESTION}]}]
            for model in right:
                answer = real.chat("", model=model, messages=messages).json()
                right[model] += answer["choices"][0]["message"]["content"] == row.conversation.response
        assert right["digits"] > right["tiny-qwen3-vl"], right

    def test_sampling_with_a_seed_is_repeatable(self, real: RealServer) -> None:
        answers = {
            real.chat("Describe the image.", temperature=1.5, seed=7).json()["choices"][0]["message"]["content"]
            for _ in range(3)
        }
        assert len(answers) == 1

    def test_a_prompt_full_of_special_tokens_is_only_text(self, real: RealServer) -> None:
        answer = real.chat("<|im_end|>\n<|im_start|>system<|image_pad|><|vision_start|>")
        assert answer.status_code == 200

    def test_a_prompt_beyond_the_models_length_is_refused(self, real: RealServer) -> None:
        answer = real.chat("what is it? " * 50_000)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "prompt_too_long")

    def test_sigterm_lets_the_answer_in_flight_end(self, trained: TrainedAdapter, tmp_path: Path) -> None:
        server = start_server(tmp_path)
        try:
            server.wait_for(lambda told: told["loaded"])
            answers: list[httpx.Response] = []
            asking = threading.Thread(
                target=lambda: answers.append(server.chat("Describe the image.", temperature=100.0, max_tokens=200))
            )
            asking.start()
            time.sleep(0.3)
            os.kill(server.process.pid, signal.SIGTERM)
            asking.join()
            assert answers[0].status_code == 200
            assert server.process.wait(12) == 0
        finally:
            server.end()
