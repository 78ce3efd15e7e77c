"""The pieces of `manage.py serve` and of the demo that need no process of their own."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django_q.models import OrmQ

from ftproject.core.jobs import claim_job
from ftproject.system import housekeeping, serving
from ftproject.system.client import ApiClient, ApiError
from ftproject.system.demo import DemoReport, percent, print_report
from ftproject.system.management.commands.demo import running_url, with_steps
from tests.core.clocks import Ticks
from tests.core.jobs import make_evaluation, make_training


@pytest.mark.django_db
def test_a_shutdown_asks_training_to_save_and_puts_back_what_had_not_begun() -> None:
    loading, training, waiting = make_training(), make_training(), make_evaluation()
    for job in (loading, training):
        claim_job(job)
    training.advance("training")
    assert serving.stop_active_jobs() == [training.name]
    for row in (loading, training, waiting):
        row.refresh_from_db()
    assert [loading.status, training.status, waiting.status] == ["queued", "stopping", "queued"]


@pytest.mark.django_db(transaction=True)
def test_every_waiting_run_has_one_bell_after_a_start() -> None:
    make_training()
    make_evaluation()
    OrmQ.objects.create(key="gpu", payload="of a cluster that was killed")
    serving.ring_bells()
    assert OrmQ.objects.filter(key="gpu").count() == 2
    assert not OrmQ.objects.filter(payload__startswith="of a").exists()


@pytest.mark.django_db(transaction=True)
def test_a_forgotten_run_gets_one_new_bell_and_not_a_pile_of_them(ticks: Ticks) -> None:
    make_training()
    housekeeping.ring_forgotten_bell()
    ticks.pass_by(housekeeping.BELL_LOOK_SECONDS)
    housekeeping.ring_forgotten_bell()
    assert OrmQ.objects.count() == 0
    for _ in range(11):
        ticks.pass_by(housekeeping.BELL_LOOK_SECONDS)
        housekeeping.ring_forgotten_bell()
    assert OrmQ.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_a_duty_that_fails_does_not_end_the_housekeeper() -> None:
    def fail() -> None:
        raise OSError("the database restarts")

    housekeeping.run_duty("reaper", fail)


def test_a_taken_port_is_named_with_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(CommandError, match="--port"):
            serving.check_port("127.0.0.1", taken.getsockname()[1])


def test_the_lock_of_a_data_directory_names_its_holder(data_dir: Path) -> None:
    with (
        serving.sole_server("http://127.0.0.1:1234"),
        pytest.raises(CommandError, match=r"127[.]0[.]0[.]1:1234"),
        serving.sole_server("http://127.0.0.1:5678"),
    ):
        pass
    with serving.sole_server("http://127.0.0.1:5678"):
        assert running_url() is None  # nothing answers there


def test_no_lock_means_no_running_server(data_dir: Path) -> None:
    assert running_url() is None


def test_the_demo_can_be_shortened_without_changing_its_recipe() -> None:
    assert with_steps(3)["sft_config"]["max_steps"] == 3
    assert with_steps(None)["sft_config"]["max_steps"] == 300


def test_a_missing_figure_is_a_dash_and_never_a_zero() -> None:
    assert (percent(None), percent(0.0), percent(0.7368)) == ("-", "0.0 %", "73.7 %")


def test_the_table_counts_evaluated_rows_only(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    scores = dict.fromkeys(("exact_match_accuracy", "token_precision", "token_recall", "token_f1"), 0.5)
    run = {**scores, "num_samples": 100, "num_skipped": 5}
    answers = {"base_output": "a white diamond", "finetuned_output": "7"}
    question = {"row": "3", "prompt": "Which?", "answer": "7"}
    verdict = {"sentence": "Cannot tell: 3 rows were fixed and 2 broken."}
    report = DemoReport(run, run, verdict=verdict, comparison=answers, question=question, adapter_path="/a")
    print_report(report, Console(width=200))
    printed = capsys.readouterr().out
    assert "95 held-out rows" in printed
    assert "50.0 %" in printed
    assert "Cannot tell" in printed


@pytest.fixture
def failing_server() -> Iterator[str]:
    problem = {"code": "dataset_not_loaded", "detail": "No dataset.", "hint": "Upload one."}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(problem).encode() if self.path == "/problem" else b"<html>"
            self.send_response(404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def test_the_client_says_what_the_server_said(failing_server: str, tmp_path: Path) -> None:
    api = ApiClient(failing_server)
    with pytest.raises(ApiError, match=r"404 dataset_not_loaded: No dataset[.] Upload one[.]"):
        api.get("/problem")
    with pytest.raises(ApiError, match="404: <html>"):
        api.get("/page")
    with pytest.raises(ApiError, match="404 dataset_not_loaded"):
        api.download("/problem", tmp_path / "x.csv")
    assert not (tmp_path / "x.csv").exists()


def test_building_the_tiny_model_refuses_to_overwrite(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="exists already"):
        call_command("build_tiny_model", str(tmp_path))
    with pytest.raises(CommandError, match="at least 1"):
        call_command("build_tiny_model", str(tmp_path / "new"), "--steps", "0")


@pytest.mark.slow
def test_building_the_tiny_model_makes_a_model_folder(tmp_path: Path) -> None:
    call_command("build_tiny_model", str(tmp_path / "new"), "--steps", "2")
    assert (tmp_path / "new" / "model.safetensors").stat().st_size > 1_000_000
