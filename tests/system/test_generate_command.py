"""`manage.py generate`: through a running server or without one, with local files as images."""

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from PIL import Image

from ftproject.system.management.commands import generate
from inference_app.model_server import model_server
from tests.inference_app.test_routes import make_adapter


@pytest.fixture
def alone(data_dir: Path, transactional_db: None, settings: Any) -> Iterator[None]:
    """No server runs; the instant model answers in a model server of the command's own."""
    settings.BACKEND = "fake"
    yield
    model_server.close()
    model_server.yielded_at = 0.0


def run(*arguments: str) -> str:
    out = io.StringIO()
    call_command("generate", *arguments, stdout=out)
    return out.getvalue()


def test_the_base_answers_and_nothing_is_left_running(alone: None) -> None:
    assert run("--prompt", "Say seven").startswith("base ")
    assert model_server.status()["loaded"] is False


def test_the_lease_is_kept_while_it_answers_without_a_server(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "TEND_SECONDS", 0.01)
    model_server.beat_at = 0.0
    run("--prompt", "Say seven")
    assert model_server.beat_at > 0.0
    assert "lease-keeper" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://[", "nowhere"])
def test_a_server_that_does_not_answer_is_no_trace(db: None, url: str) -> None:
    with pytest.raises(CommandError, match="does not answer"):
        run("--prompt", "a", "--url", url)


def test_an_adapter_answers_as_json(alone: None) -> None:
    adapter = make_adapter()
    told = json.loads(run("--prompt", "Say seven", "--adapter", adapter.name, "--output", "json"))
    assert (told["output"], told["model_type"], told["adapter"]) == ("Say seven", "finetuned", adapter.name)


def test_base_and_adapters_stand_side_by_side(alone: None) -> None:
    first, second = make_adapter("first"), make_adapter("second")
    shown = run("--prompt", "Say [red]seven[/red]", "--compare", "--adapter", first.name, "--adapter", str(second.pk))
    assert all(word in shown for word in ("base", "first", "second", "ms"))
    assert shown.count("Say [red]seven[/red]") == 2, "an answer is text and no markup"


def test_a_local_file_becomes_an_image(alone: None, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with_image, without = run("--prompt", "a", "--image", str(tmp_path / "a.png")), run("--prompt", "a")
    assert with_image != without


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prompt", "a", "--compare"], "--compare needs"),
        (["--prompt", "a", "--adapter", "x", "--adapter", "y"], "need --compare"),
        (["--prompt", "a", "--image", "/no/such/file.png"], "No such file"),
        (["--prompt", " "], "prompt"),
        (["--prompt", "a", "--adapter", "nobody"], "adapter_not_found"),
        (["--prompt", "a", "--image", "http://127.0.0.1/a.png"], "image_url_refused"),
        (["--prompt", "a", "--max-new-tokens", "0"], "max_new_tokens"),
        (["--prompt", "a", "--model-name", "gpt2"], "model_not_allowed"),
    ],
)
def test_what_cannot_be_answered_ends_with_its_reason(alone: None, arguments: list[str], said: str) -> None:
    with pytest.raises(CommandError, match=said):
        run(*arguments)


def test_a_server_is_asked_over_http_and_its_refusal_told(db: None) -> None:
    seen: list[tuple[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            problem = {"code": "gpu_busy", "detail": "Training run 3 has the GPU.", "hint": "Wait."}
            answer = (200, {"output": "seven"}) if len(seen) == 1 else (409, problem)
            body = json.dumps(answer[1]).encode()
            self.send_response(answer[0])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        assert run("--prompt", "a", "--url", url, "--temperature", "0", "--wait-seconds", "5") == "seven\n"
        path, body = seen[0]
        assert path == "/api/inference/generate"
        assert (body["generation_params"], body["wait_seconds"]) == ({"temperature": 0.0}, 5)
        with pytest.raises(CommandError, match="gpu_busy"):
            run("--prompt", "a", "--url", url)
    finally:
        server.shutdown()
