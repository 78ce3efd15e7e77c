"""The routes under /v1: OpenAI's shapes in and out, our fetcher and our adapters in between."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from ftproject.core.jobs import Job
from ftproject.core.lease import acquire_lease
from ftproject.core.storage import models_dir
from inference_app.model_server import ModelServer, model_server
from tests.core.jobs import make_training
from tests.inference_app.conftest import Stub
from tests.inference_app.test_routes import make_adapter, picture

CHAT = "/v1/chat/completions"


@pytest.fixture
def server(
    stub: Stub, data_dir: Path, transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModelServer]:
    """The process's own model server, over the stub."""
    monkeypatch.setattr(model_server, "command", stub.command)
    yield model_server
    model_server.close()
    model_server.yielded_at = 0.0


def post(body: Any, path: str = CHAT) -> Any:
    return Client(HTTP_HOST="localhost").post(path, body, content_type="application/json")


def get(path: str) -> Any:
    return Client(HTTP_HOST="localhost").get(path)


def chat(content: Any = "hello", model: str = "tiny-qwen3-vl", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": content}], **fields}


def sent(answer: Any) -> dict[str, Any]:
    """What the stub was asked: it answers with it."""
    assert answer.status_code == 200, answer.content
    told: dict[str, Any] = json.loads(answer.json()["choices"][0]["message"]["content"])
    return told


def error(answer: Any) -> tuple[int, str, str]:
    assert answer["Content-Type"] == "application/json"
    body = answer.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    return answer.status_code, body["type"], body["code"]


def events(answer: Any) -> list[str]:
    text = b"".join(answer.streaming_content).decode()
    return [line.removeprefix("data: ") for line in text.split("\n\n") if line]


@pytest.mark.parametrize("path", [CHAT, CHAT + "/"])
def test_an_answer_has_openais_shape(server: ModelServer, path: str) -> None:
    body = post(chat(), path).json()
    assert body["model"] == "tiny-qwen3-vl"
    assert body["choices"][0]["message"]["role"] == "assistant"
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def test_an_adapter_answers_by_its_name(server: ModelServer) -> None:
    adapter = make_adapter()
    assert sent(post(chat(model=adapter.name)))["model"] == adapter.name


def test_turns_texts_and_pictures_go_to_the_model_in_order(server: ModelServer, data_dir: Path) -> None:
    look = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": picture()}}]
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": look},
        {"role": "assistant", "content": "a square"},
        {"role": "user", "content": "which colour?"},
    ]
    told = sent(post(chat() | {"messages": messages}))["messages"]
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
    assert told[1]["content"][0] == {"type": "text", "text": "look"}
    assert told[1]["content"][1]["image_url"]["url"].startswith((data_dir / "images").as_uri())
    assert told[3]["content"] == [{"type": "text", "text": "which colour?"}]


def test_settings_arrive_and_sampling_has_a_seed(server: ModelServer) -> None:
    told = sent(post(chat(max_completion_tokens=9, temperature=0.5, top_p=0.8, stop=["x"])))
    assert (told["max_tokens"], told["temperature"], told["top_p"], told["stop"]) == (9, 0.5, 0.8, ["x"])
    assert isinstance(told["seed"], int)
    assert "seed" not in sent(post(chat(temperature=0)))


def test_a_stream_is_sent_as_it_comes_and_ends_with_done(server: ModelServer) -> None:
    answer = post(chat("stream", stream=True))
    assert answer["Content-Type"] == "text/event-stream"
    *chunks, last = events(answer)
    assert last == "[DONE]"
    pieces = [json.loads(chunk)["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(pieces) == "one two"
    assert not server.turnstile.held


def test_a_stream_that_breaks_off_ends_with_an_error_and_no_done(server: ModelServer) -> None:
    *_, last = events(post(chat("stream break", stream=True)))
    assert json.loads(last)["error"]["code"] == "model_server_failed"
    assert post(chat()).status_code == 200


def test_a_stream_that_nobody_reads_lets_the_next_request_in(server: ModelServer) -> None:
    post(chat("stream", stream=True)).close()
    assert not server.turnstile.held


def test_what_fails_before_a_streams_first_piece_is_an_answer_with_a_status(server: ModelServer) -> None:
    refused = post(chat("fail 400 prompt_too_long", stream=True))
    assert error(refused) == (400, "invalid_request_error", "prompt_too_long")
    assert not server.turnstile.held


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ([], 400, "malformed_json"),
        ("{", 400, "malformed_json"),
        ({}, 400, "invalid_model"),
        (chat(model="nobody"), 404, "model_not_found"),
        (chat(model="../../etc"), 404, "model_not_found"),
        (chat(model="unsloth/Qwen3-VL-8B-Instruct"), 400, "model_needs_gpu"),
        (chat(n=2), 400, "unsupported_parameter"),
        (chat(tools=[]), 400, "unsupported_parameter"),
        (chat(max_tokens=9000), 400, "invalid_parameter"),
        (chat([{"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}]), 400, "image_url_refused"),
        (chat([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]), 400, "image_url_refused"),
        (chat([{"type": "image_url", "image_url": {"url": picture()}}] * 17), 400, "too_many_images"),
        (chat([{"type": "video_url", "video_url": {"url": "http://a/b"}}]), 400, "unsupported_messages"),
    ],
)
def test_every_refusal_has_openais_shape_and_starts_nothing(
    server: ModelServer, stub: Stub, body: Any, status: int, code: str
) -> None:
    assert error(post(body)) == (status, "invalid_request_error", code)
    assert stub.pids == []


def test_an_adapter_without_effect_is_refused_and_not_listed(server: ModelServer) -> None:
    adapter = make_adapter(effective=False)
    assert error(post(chat(model=adapter.name)))[::2] == (409, "adapter_not_effective")
    assert adapter.name not in [model["id"] for model in get("/v1/models").json()["data"]]


def test_while_a_run_has_the_gpu_it_is_409_with_retry_after(server: ModelServer) -> None:
    run = make_training(status=Job.Status.TRAINING, eta_seconds=12.3)
    assert acquire_lease(run.name)
    answer = post(chat())
    assert error(answer)[::2] == (409, "gpu_busy")
    assert answer.headers["Retry-After"] == "13"


def test_a_server_that_dies_is_a_503(server: ModelServer) -> None:
    assert error(post(chat("die"))) == (503, "server_error", "model_server_failed")


def test_the_models_are_the_default_the_local_ones_and_the_adapters(server: ModelServer) -> None:
    adapter = make_adapter()
    (models_dir() / "mine").mkdir()
    (models_dir() / "mine" / "config.json").write_text("{}")
    (models_dir() / ".partial-mine").mkdir()
    listed = get("/v1/models").json()
    assert listed["object"] == "list"
    assert [(model["id"], model["parent"]) for model in listed["data"]] == [
        ("tiny-qwen3-vl", None),
        ("mine", None),
        (adapter.name, "tiny-qwen3-vl"),
    ]
    assert get(f"/v1/models/{adapter.name}").json() == listed["data"][-1]
    assert get("/v1/models/tiny-qwen3-vl/").json()["id"] == "tiny-qwen3-vl"


def test_an_unknown_model_is_404_in_openais_shape(server: ModelServer) -> None:
    assert error(get("/v1/models/no/body"))[::2] == (404, "model_not_found")


def test_another_method_is_405_in_openais_shape(server: ModelServer) -> None:
    assert error(get(CHAT))[::2] == (405, "method_not_allowed")


def test_the_hint_stands_behind_the_whole_sentence() -> None:
    message = str(post(chat(tools=[])).json()["error"]["message"])
    assert message.startswith("tools is not supported. ")
