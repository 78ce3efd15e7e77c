"""vLLM by URL: answers, pictures, adapters and refusals through a server that is not ours."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from ftproject.core.departure import ClientGoneError, Departure
from ftproject.engine import canary
from ftproject.engine.remote import RemoteError, RemoteServer, RemoteSettings
from inference_app.model_server import model_server
from inference_app.remote_server import remote_server_at
from inference_app.services import generate_answer
from tests.inference_app.stub_openai import BASE, StubOpenAI
from tests.inference_app.test_routes import make_adapter, picture

GENERATE, COMPARE, CHAT = "/api/inference/generate", "/api/inference/compare", "/v1/chat/completions"


@pytest.fixture
def stub(data_dir: Path, transactional_db: None, settings: Any) -> Iterator[StubOpenAI]:
    made = StubOpenAI()
    settings.INFERENCE_URL = made.start()
    settings.INFERENCE_TIMEOUT_SECONDS = 20
    yield made
    made.stop()
    remote_server_at.cache_clear()


def post(path: str, body: Any) -> Any:
    return Client(HTTP_HOST="localhost").post(path, body, content_type="application/json")


def refusal(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def adapter_of_base(name: str = "adapter_1") -> Any:
    return make_adapter(name, base=BASE)


def test_the_base_answers_with_its_counts_and_times_of_ours(stub: StubOpenAI) -> None:
    body = post(GENERATE, {"prompt": "hello there"}).json()
    assert (body["output"], body["model_type"], body["model_name"]) == ("base hello there", "base", BASE)
    assert (body["prompt_tokens"], body["completion_tokens"], body["finish_reason"]) == (7, 3, "stop")
    assert 0 < body["prefill_time_ms"] <= body["generation_time_ms"]
    assert model_server.child is None, "no model server of ours is started"


def test_pictures_travel_as_data_uris_and_never_as_urls(stub: StubOpenAI) -> None:
    assert post(GENERATE, {"prompt": "look", "image_urls": [picture()]}).status_code == 200
    [sent] = stub.chats
    url = sent["messages"][0]["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/png;base64,")
    assert "file:" not in json.dumps(sent)


@pytest.mark.parametrize("url", ["http://127.0.0.1/a.png", "file:///etc/passwd", "http://169.254.169.254/"])
def test_pictures_are_fetched_by_our_fetcher_and_its_rules(stub: StubOpenAI, url: str) -> None:
    assert refusal(post(GENERATE, {"prompt": "look", "image_urls": [url]})) == (400, "image_url_refused")
    assert stub.requests == []


def test_an_adapter_that_is_served_answers_once_its_effect_was_shown(stub: StubOpenAI) -> None:
    adapter = adapter_of_base()
    stub.adapters[adapter.name] = "/somewhere"
    for _ in range(2):
        body = post(GENERATE, {"prompt": "hello", "adapter_path": adapter.name}).json()
        assert (body["output"], body["model_type"]) == ("tuned hello", "finetuned")
    canaries = [item for item in stub.requests if "logprobs" in item]
    assert [item["model"] for item in canaries] == [BASE, adapter.name, BASE], "shown once, not at every request"


@pytest.mark.parametrize("behaviour", ["ignores adapters", "vision lost"])
@pytest.mark.parametrize("path", [GENERATE, COMPARE])
def test_a_server_that_ignores_the_adapter_is_never_called_fine_tuned(
    stub: StubOpenAI, path: str, behaviour: str
) -> None:
    adapter = adapter_of_base()
    stub.adapters[adapter.name], stub.behaviour = "/somewhere", behaviour
    answer = post(path, {"prompt": "hello", "adapter_path": adapter.name})
    assert refusal(answer) == (502, "adapter_ignored")
    assert "--enable-tower-connector-lora" in answer.json()["detail"]
    assert stub.chats == []


def test_an_effect_that_shows_in_the_probabilities_only_is_an_effect(stub: StubOpenAI) -> None:
    adapter = adapter_of_base()
    stub.adapters[adapter.name], stub.behaviour = "/somewhere", "slightly tuned"
    assert post(GENERATE, {"prompt": "hello", "adapter_path": adapter.name}).json()["model_type"] == "finetuned"


def test_without_probabilities_equal_texts_are_no_proof(stub: StubOpenAI) -> None:
    adapter = adapter_of_base()
    stub.adapters[adapter.name], stub.behaviour = "/somewhere", "no logprobs"
    assert post(GENERATE, {"prompt": "hello", "adapter_path": adapter.name}).status_code == 200
    stub.behaviour = "ignores adapters"
    other = adapter_of_base("adapter_2")
    stub.adapters[other.name] = "/somewhere"
    assert refusal(post(GENERATE, {"prompt": "hello", "adapter_path": other.name})) == (502, "adapter_ignored")


def test_an_effect_is_shown_again_after_ten_minutes(stub: StubOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = adapter_of_base()
    stub.adapters[adapter.name] = "/somewhere"
    assert post(GENERATE, {"prompt": "hello", "adapter_path": adapter.name}).status_code == 200
    monkeypatch.setattr(canary, "KEPT_SECONDS", -1.0)
    stub.behaviour = "ignores adapters"
    assert post(GENERATE, {"prompt": "hello", "adapter_path": adapter.name}).status_code == 502


def test_probabilities_that_differ_by_themselves_are_no_effect(stub: StubOpenAI) -> None:
    adapter = adapter_of_base()
    stub.adapters[adapter.name], stub.behaviour, stub.noise = "/somewhere", "ignores adapters", 0.01
    assert refusal(post(GENERATE, {"prompt": "hello", "adapter_path": adapter.name})) == (502, "adapter_ignored")
    stub.behaviour = ""
    assert post(GENERATE, {"prompt": "hello", "adapter_path": adapter.name}).status_code == 200


def test_who_waits_for_a_canary_waits_no_longer_than_a_request_may_take(stub: StubOpenAI, settings: Any) -> None:
    remote = RemoteServer(RemoteSettings(url=settings.INFERENCE_URL, seconds=0.1))
    tried = canary.AdapterCanary(remote)
    with tried._lock, pytest.raises(RemoteError, match="could not be tried out"):
        tried.require_effect(BASE, "adapter_1")
    assert stub.requests == []
    remote.close()


def test_a_server_that_was_started_again_is_asked_for_all_anew(stub: StubOpenAI, settings: Any) -> None:
    settings.INFERENCE_ADAPTERS_DIR, stub.behaviour = "/shared/adapters", "knows its models"
    body = {"prompt": "hello", "adapter_path": adapter_of_base().name}
    assert post(GENERATE, body).status_code == 200
    stub.adapters.clear()
    answer = post(GENERATE, body)
    assert (*refusal(answer), answer["Retry-After"]) == (429, "inference_server_busy", "5")
    canaries = len([item for item in stub.requests if "logprobs" in item])
    assert post(GENERATE, body).json()["output"] == "tuned hello"
    assert len([item for item in stub.requests if "logprobs" in item]) > canaries, "it may have other flags now"


def test_two_first_requests_at_once_register_the_adapter_once(stub: StubOpenAI, settings: Any) -> None:
    remote = RemoteServer(RemoteSettings(url=settings.INFERENCE_URL, adapters_dir="/shared/adapters"))
    assert remote.base_models() == [BASE]
    stub.adapters["adapter_1-abc"] = "registered by another thread after this one had looked"
    assert remote.serve_adapter("adapter_1", "abc") == "adapter_1-abc"
    assert remote.is_listed("adapter_1-abc")
    remote.close()


def test_an_adapter_that_is_not_served_is_refused_with_the_line_to_serve_it(stub: StubOpenAI) -> None:
    adapter = adapter_of_base()
    answer = post(GENERATE, {"prompt": "hello", "adapter_path": adapter.name})
    assert refusal(answer) == (409, "adapter_not_served")
    assert f"--lora-modules {adapter.name}=" in answer.json()["detail"]


def test_an_adapter_is_registered_by_its_content_where_that_is_allowed(stub: StubOpenAI, settings: Any) -> None:
    settings.INFERENCE_ADAPTERS_DIR = "/shared/adapters/"
    adapter = adapter_of_base()
    stub.adapters[adapter.name] = "an older one of that name"
    for _ in range(2):
        assert post(GENERATE, {"prompt": "hello", "adapter_path": adapter.name}).status_code == 200
    registered = f"{adapter.name}-{adapter.sha256[:12]}"
    assert stub.adapters[registered] == f"/shared/adapters/{adapter.name}"
    assert {item["model"] for item in stub.chats} == {registered}
    assert len([item for item in stub.requests if "lora_name" in item]) == 1


def test_a_server_that_may_not_load_adapters_says_so(stub: StubOpenAI, settings: Any) -> None:
    settings.INFERENCE_ADAPTERS_DIR, stub.behaviour = "/shared/adapters", "no loading"
    answer = post(GENERATE, {"prompt": "hello", "adapter_path": adapter_of_base().name})
    assert refusal(answer) == (409, "adapter_not_served")


def test_another_base_than_the_adapters_is_refused(stub: StubOpenAI) -> None:
    answer = post(GENERATE, {"prompt": "hello", "adapter_path": make_adapter(base="tiny-qwen3-vl").name})
    assert refusal(answer) == (409, "inference_server_other_model")
    assert BASE in answer.json()["detail"]


def test_compare_asks_base_and_adapter_there(stub: StubOpenAI) -> None:
    adapter = adapter_of_base()
    stub.adapters[adapter.name] = "/somewhere"
    body = post(COMPARE, {"prompt": "hello", "adapter_path": adapter.name}).json()
    assert (body["base_output"], body["finetuned_output"]) == ("base hello", "tuned hello")
    assert stub.chats[0]["seed"] == stub.chats[1]["seed"] == body["seed"]


@pytest.mark.parametrize(
    ("behaviour", "status", "code"),
    [
        ("redirect", 502, "inference_server_failed"),
        ("html", 502, "inference_server_failed"),
        ("no models", 502, "inference_server_failed"),
        ("odd models", 502, "inference_server_failed"),
        ("500", 502, "inference_server_failed"),
        ("403", 502, "inference_server_denied"),
        ("429", 429, "inference_server_busy"),
        ("503", 429, "inference_server_busy"),
        ("400", 400, "inference_server_refused"),
        ("breaks off", 502, "inference_server_failed"),
        ("fails later", 502, "inference_server_failed"),
        ("no usage", 502, "inference_server_failed"),
    ],
)
def test_what_the_server_does_wrong_is_told_and_never_an_answer(
    stub: StubOpenAI, behaviour: str, status: int, code: str
) -> None:
    stub.behaviour = behaviour
    answer = post(GENERATE, {"prompt": "hello"})
    assert refusal(answer) == (status, code), answer.content


def test_a_wrong_key_is_told_without_showing_it(stub: StubOpenAI, settings: Any) -> None:
    stub.key, settings.INFERENCE_KEY = "right", "wrong-secret"
    answer = post(GENERATE, {"prompt": "hello"})
    assert refusal(answer) == (502, "inference_server_denied")
    assert "QWEN3VL_INFERENCE_KEY" in answer.content.decode()
    assert "wrong-secret" not in answer.content.decode()


def test_the_key_is_sent_as_a_bearer(stub: StubOpenAI, settings: Any) -> None:
    stub.key = settings.INFERENCE_KEY = "right"
    assert post(GENERATE, {"prompt": "hello"}).status_code == 200
    assert stub.headers[0]["Authorization"] == "Bearer right"


def test_a_server_that_is_not_there_is_503(stub: StubOpenAI, settings: Any) -> None:
    settings.INFERENCE_URL = "http://127.0.0.1:9"
    answer = post(GENERATE, {"prompt": "hello"})
    assert (*refusal(answer), answer["Retry-After"]) == (503, "inference_server_unreachable", "30")


@pytest.mark.parametrize("behaviour", ["endless", "comments only"])
def test_an_answer_without_end_is_ended_by_its_time(stub: StubOpenAI, settings: Any, behaviour: str) -> None:
    settings.INFERENCE_TIMEOUT_SECONDS, stub.behaviour = 1, behaviour
    assert refusal(post(GENERATE, {"prompt": "hello"})) == (503, "generation_timeout")
    assert stub.cut_off.wait(5)


@pytest.mark.parametrize("behaviour", ["endless", "comments only", "silent"])
def test_a_client_that_leaves_ends_the_answer_over_there(stub: StubOpenAI, behaviour: str) -> None:
    stub.behaviour, departure = behaviour, Departure()
    threading.Timer(0.5, departure.happen).start()
    began = time.monotonic()
    with pytest.raises(ClientGoneError):
        generate_answer(prompt="hello", departure=departure)
    assert time.monotonic() - began < 5
    assert stub.cut_off.wait(5)


def test_a_client_that_leaves_after_its_answer_cuts_nobody_elses_connection(stub: StubOpenAI) -> None:
    departure = Departure()
    assert generate_answer(prompt="hello", departure=departure).answer.text == "base hello"
    departure.happen()
    assert generate_answer(prompt="hello").answer.text == "base hello"


def test_special_tokens_stay_text_in_openais_format_too(stub: StubOpenAI) -> None:
    parts = [{"type": "text", "text": "a<|im_end|>b"}]
    messages = [{"role": "user", "content": "<|image_pad|>"}, {"role": "user", "content": parts}]
    assert post(CHAT, {"model": BASE, "messages": messages}).status_code == 200
    sent = [message["content"][0]["text"] for message in stub.chats[0]["messages"]]
    assert sent == ["< |image_pad|>", "a< |im_end|>b"]


def test_openais_format_goes_through_too(stub: StubOpenAI) -> None:
    adapter = adapter_of_base()
    stub.adapters[adapter.name] = "/somewhere"
    messages = [{"role": "user", "content": "hello"}]
    whole = post(CHAT, {"model": adapter.name, "messages": messages}).json()
    assert (whole["model"], whole["choices"][0]["message"]["content"]) == (adapter.name, "tuned hello")
    streamed = post(CHAT, {"model": BASE, "messages": messages, "stream": True})
    lines = [line for line in b"".join(streamed.streaming_content).decode().split("\n\n") if line]
    assert lines.pop() == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "base hello"
    assert all("usage" not in chunk for chunk in chunks), "nobody asked for it"
    ids = [model["id"] for model in Client(HTTP_HOST="localhost").get("/v1/models").json()["data"]]
    assert ids == [BASE, adapter.name]


@pytest.mark.parametrize("text", ["a\u2028b", "a\x85b", "a\x1cb", "émile 漢字"])
def test_characters_at_which_python_ends_a_line_are_part_of_the_answer(stub: StubOpenAI, text: str) -> None:
    assert post(GENERATE, {"prompt": text}).json()["output"] == f"base {text}"
    messages = [{"role": "user", "content": text}]
    streamed = b"".join(post(CHAT, {"model": BASE, "messages": messages, "stream": True}).streaming_content)
    assert len(streamed.decode().splitlines()) == 2 * streamed.count(b"data:"), "a client may split as Python does"


def test_the_status_shows_the_other_server(stub: StubOpenAI, settings: Any) -> None:
    get = Client(HTTP_HOST="localhost").get
    body = get("/api/system/model-status").json()
    assert (body["loaded"], body["model_name"], body["remote"]["reachable"]) == (True, BASE, True)
    settings.INFERENCE_URL = "http://127.0.0.1:9/v1"
    body = get("/api/system/model-status").json()
    assert (body["loaded"], body["remote"]["host"], body["remote"]["reachable"]) == (False, "127.0.0.1:9", False)


def test_the_list_of_models_is_kept_for_a_while(stub: StubOpenAI, settings: Any) -> None:
    server = RemoteServer(RemoteSettings(url=settings.INFERENCE_URL))
    assert server.base_models() == [BASE]
    stub.behaviour = "no models"
    assert server.base_models() == [BASE]
    server.close()


def test_the_canarys_picture_is_a_picture() -> None:
    import base64
    import io

    from PIL import Image

    data = base64.b64decode(canary.PICTURE.partition(",")[2])
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (64, 64)
        assert len(image.convert("RGB").getcolors(10_000) or []) > 100
