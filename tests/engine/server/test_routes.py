"""The model server's routes in OpenAI's shapes, over a model of no size."""

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from ftproject.engine.answering import ChatAnswer, ChatRequest
from ftproject.engine.backends.base import EngineError
from ftproject.engine.decoding import CancelledGenerationError
from ftproject.engine.server_app import build_app
from ftproject.engine.server_model import ChatModel, ModelSpec, ServedModel
from tests.engine.server.conftest import Instant
from tests.engine.support import TINY, save_image

SPEC = ModelSpec(name="tiny-qwen3-vl", path=TINY, backend="fake")
PIXEL = base64.b64encode(b"GIF89a\x01\x00\x01\x00\x80\x01\x00\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00").decode()


@pytest.fixture
def model() -> Instant:
    made = Instant()
    made.may_answer.set()
    return made


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


def connect(app: Starlette) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://model")


def serve(folder: Path, load: Callable[[ModelSpec], ChatModel], seconds: float = 60) -> Starlette:
    served = ServedModel(SPEC, folder / "adapters", load=load)
    served.start_loading()  # in the real process the application's lifespan does it
    return build_app(served, folder / "images", request_seconds=seconds)


@pytest.fixture
async def client(model: Instant, images: Path, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    (tmp_path / "adapters").mkdir()
    async with connect(serve(tmp_path, lambda spec: model)) as made:
        await until_healthy(made)
        yield made


async def until_healthy(client: httpx.AsyncClient) -> None:
    while (await client.get("/health")).status_code != 200:
        await asyncio.sleep(0.001)


async def ask(client: httpx.AsyncClient, content: Any = "hello", **fields: Any) -> Any:
    body = {"model": "tiny-qwen3-vl", "messages": [{"role": "user", "content": content}]} | fields
    return await client.post("/v1/chat/completions", json=body)


def with_image(url: str, text: str = "look") -> list[dict[str, Any]]:
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]


def refusal(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_an_answer_has_openais_shape_and_the_timings(client: httpx.AsyncClient) -> None:
    body = (await ask(client)).json()
    assert body["object"] == "chat.completion"
    assert body["model"] == "tiny-qwen3-vl"
    message = {"role": "assistant", "content": "hello|"}
    assert body["choices"] == [{"index": 0, "message": message, "finish_reason": "stop"}]
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert (body["timings"]["prefill_ms"], body["timings"]["generation_ms"]) == (0.5, 1.5)
    assert body["timings"]["load_ms"] >= 0


async def test_generation_settings_arrive_by_openais_names(client: httpx.AsyncClient, model: Instant) -> None:
    await ask(client, max_tokens=7, temperature=0.5, top_p=0.4, min_p=0.1, seed=5)
    params = model.seen[0].decoding.params
    assert (params.max_new_tokens, params.temperature, params.top_p, params.min_p, params.seed) == (7, 0.5, 0.4, 0.1, 5)


async def test_temperature_zero_is_greedy(client: httpx.AsyncClient, model: Instant) -> None:
    await ask(client, temperature=0)
    assert model.seen[0].decoding.params.greedy


async def test_sampling_without_a_seed_gets_one_that_is_not_always_the_same(
    client: httpx.AsyncClient, model: Instant
) -> None:
    for _ in range(3):
        await ask(client, temperature=1.0)
    assert len({item.decoding.params.seed for item in model.seen} - {None}) > 1


async def test_an_image_of_the_cache_is_read_from_its_file(client: httpx.AsyncClient, images: Path) -> None:
    path = save_image(images / "a picture.png")
    body = (await ask(client, with_image(path.as_uri()))).json()
    assert body["choices"][0]["message"]["content"] == f"look|{path.stat().st_size}"


async def test_a_data_uri_needs_no_file(client: httpx.AsyncClient) -> None:
    body = (await ask(client, with_image(f"data:image/gif;base64,{PIXEL}"))).json()
    assert body["choices"][0]["message"]["content"] == f"look|{len(base64.b64decode(PIXEL))}"


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://127.0.0.1/a.png", "image_not_local"),
        ("https://example.com/a.png", "image_not_local"),
        ("file:///etc/passwd", "image_not_local"),
        ("file://elsewhere/etc/passwd", "image_not_local"),
        ("a.png", "image_not_local"),
        ("file:///no/such/file", "image_missing"),
        ("file:///a%00b", "image_missing"),
        ("data:text/html;base64,AAAA", "data_uri_not_image"),
    ],
)
async def test_no_other_image_is_opened_or_fetched(client: httpx.AsyncClient, url: str, code: str) -> None:
    assert refusal(await ask(client, with_image(url))) == (400, code)


async def test_a_link_out_of_the_image_folder_is_refused(
    client: httpx.AsyncClient, images: Path, tmp_path: Path
) -> None:
    (images / "link.png").symlink_to(save_image(tmp_path / "outside.png"))
    assert refusal(await ask(client, with_image((images / "link.png").as_uri()))) == (400, "image_not_local")


async def test_more_images_than_sixteen_are_refused(client: httpx.AsyncClient, images: Path) -> None:
    part = with_image(save_image(images / "a.png").as_uri())
    assert refusal(await ask(client, part[:1] * 17 + part[1:])) == (400, "too_many_images")


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "hello",
        [{"role": "user"}],
        ["hello"],
        [{"role": "system", "content": "be kind"}],
        [{"role": "tool", "content": "a"}, {"role": "user", "content": "b"}],
        [{"role": ["user"], "content": "a"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"role": "assistant", "content": with_image("x")}, {"role": "user", "content": "b"}],
        [{"role": "user", "content": "a", "tool_calls": []}],
        [{"role": "user", "content": []}],
        [{"role": "user", "content": [{"type": "text", "text": 3}]}],
        [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "x"}}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}, {"type": "text", "text": "a"}]}],
        [{"role": "user", "content": "a"}] * 257,
    ],
)
async def test_messages_of_another_shape_are_refused(client: httpx.AsyncClient, messages: Any) -> None:
    assert refusal(await ask(client, messages=messages)) == (400, "unsupported_messages")


async def test_a_field_that_is_null_is_as_not_given(client: httpx.AsyncClient) -> None:
    unset = {name: None for name in ("tools", "response_format", "logit_bias", "stop", "seed", "max_tokens")}
    assert (await ask(client, messages=[{"role": "user", "content": "a"}], **unset)).status_code == 200


async def test_turns_texts_and_pictures_arrive_in_their_order(
    client: httpx.AsyncClient, model: Instant, images: Path
) -> None:
    first, second = save_image(images / "a.png"), save_image(images / "b.png")
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "before"}, *with_image(first.as_uri(), "after")]},
        {"role": "assistant", "content": "seven"},
        {"role": "user", "content": with_image(second.as_uri(), "and this?")},
    ]
    assert (await ask(client, messages=messages)).status_code == 200
    assert [(turn.role, turn.parts) for turn in model.seen[0].chat.turns] == [
        ("system", ("be brief",)),
        ("user", ("before", first, "after")),
        ("assistant", ("seven",)),
        ("user", (second, "and this?")),
    ]


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"model": "nobody"}, 404, "model_not_found"),
        ({"model": 3}, 400, "invalid_model"),
        ({"stream": "yes"}, 400, "invalid_parameter"),
        ({"stream_options": {"include_usage": True}}, 400, "invalid_parameter"),
        ({"stream": True, "stream_options": {"every": 1}}, 400, "invalid_parameter"),
        ({"stop": 3}, 400, "invalid_parameter"),
        ({"stop": [""]}, 400, "invalid_parameter"),
        ({"stop": ["a"] * 17}, 400, "invalid_parameter"),
        ({"logprobs": True}, 400, "unsupported_parameter"),
        ({"n": True}, 400, "unsupported_parameter"),
        ({"frequency_penalty": 0.5}, 400, "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, 400, "unsupported_parameter"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, 400, "invalid_parameter"),
        ({"n": 2}, 400, "unsupported_parameter"),
        ({"tools": []}, 400, "unsupported_parameter"),
        ({"max_tokens": 0}, 400, "invalid_parameter"),
        ({"temperature": -1}, 400, "invalid_parameter"),
        ({"temperature": "hot"}, 400, "invalid_parameter"),
    ],
)
async def test_what_cannot_be_done_is_said(
    client: httpx.AsyncClient, fields: dict[str, Any], status: int, code: str
) -> None:
    assert refusal(await ask(client, **fields)) == (status, code)


async def test_what_clients_send_as_a_matter_of_form_is_taken(client: httpx.AsyncClient) -> None:
    form = {"n": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logprobs": False, "user": "me", "stop": None}
    assert (await ask(client, **form, response_format={"type": "text"}, stream=False)).status_code == 200


async def test_a_wrong_field_is_named_by_openais_name(client: httpx.AsyncClient) -> None:
    error = (await ask(client, max_tokens=0)).json()["error"]
    assert error["param"] == "max_tokens"
    assert "max_tokens" in error["message"]


async def test_stop_texts_arrive(client: httpx.AsyncClient, model: Instant) -> None:
    await ask(client, stop="one")
    await ask(client, stop=["one", "two"])
    assert [item.decoding.stop for item in model.seen] == [("one",), ("one", "two")]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
async def test_a_body_that_is_no_json_object_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    assert refusal(await client.post("/v1/chat/completions", content=body)) == (400, "invalid_body")
    assert refusal(await client.post("/v1/load_lora_adapter", content=body)) == (400, "invalid_body")


async def test_an_adapter_is_loaded_once_and_listed_as_a_model(
    client: httpx.AsyncClient, model: Instant, tmp_path: Path
) -> None:
    folder = tmp_path / "adapters" / "mine"
    folder.mkdir()
    body = {"lora_name": "mine", "lora_path": str(folder)}
    assert (await client.post("/v1/load_lora_adapter", json=body)).status_code == 200
    assert refusal(await client.post("/v1/load_lora_adapter", json=body)) == (400, "adapter_loaded")
    assert model.loaded == [folder]
    models = (await client.get("/v1/models")).json()["data"]
    assert [(item["id"], item["parent"]) for item in models] == [("tiny-qwen3-vl", None), ("mine", "tiny-qwen3-vl")]
    assert (await ask(client, model="mine")).status_code == 200
    assert model.seen[0].adapter == folder
    status = (await client.get("/status")).json()
    assert (status["mode"], status["adapter"]) == ("finetuned", "mine")
    assert (await ask(client)).status_code == 200
    assert (await client.get("/status")).json()["mode"] == "base"


@pytest.mark.parametrize("path", ["/etc", "/", "../..", ""])
async def test_an_adapter_outside_the_adapters_folder_is_not_opened(
    client: httpx.AsyncClient, model: Instant, path: str
) -> None:
    body = {"lora_name": "evil", "lora_path": path}
    assert refusal(await client.post("/v1/load_lora_adapter", json=body)) == (404, "adapter_not_found")
    assert model.loaded == []


async def test_an_adapter_that_cannot_be_loaded_is_no_model(client: httpx.AsyncClient, tmp_path: Path) -> None:
    body = {"lora_name": "bad", "lora_path": str(tmp_path / "adapters" / "broken")}
    assert refusal(await client.post("/v1/load_lora_adapter", json=body)) == (400, "adapter_incomplete")
    assert refusal(await ask(client, model="bad")) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (EngineError("prompt_too_long", "9000 tokens"), 400, "prompt_too_long"),
        (MemoryError(), 503, "out_of_memory"),
        (ZeroDivisionError("/secret/path"), 500, "generation_failed"),
    ],
)
async def test_a_failing_model_answers_a_code_and_no_trace(
    client: httpx.AsyncClient, model: Instant, failure: Exception, status: int, code: str
) -> None:
    model.failure = failure
    answer = await ask(client)
    assert refusal(answer) == (status, code)
    assert "/secret/path" not in answer.text


async def test_requests_that_come_while_one_is_answered_are_the_next_batch(
    client: httpx.AsyncClient, model: Instant
) -> None:
    model.may_answer.clear()
    asked = [asyncio.create_task(ask(client, "first"))]
    await asyncio.to_thread(model.answering.wait, 5)
    asked += [asyncio.create_task(ask(client, str(number))) for number in range(20)]
    await asyncio.sleep(0.1)
    assert (await client.get("/status")).json()["loaded"] is True
    model.may_answer.set()
    answers = [(await task).json()["choices"][0]["message"]["content"] for task in asked]
    assert answers == ["first|", *(f"{number}|" for number in range(20))]
    assert model.batches == [1, 16, 4]


async def test_requests_that_come_together_are_one_batch(client: httpx.AsyncClient, model: Instant) -> None:
    answers = await asyncio.gather(*(ask(client, str(number)) for number in range(5)))
    assert [item.json()["choices"][0]["message"]["content"] for item in answers] == [
        f"{number}|" for number in range(5)
    ]
    assert len(model.batches) < 5


async def test_an_answer_that_takes_too_long_is_ended_with_its_reason(model: Instant, tmp_path: Path) -> None:
    model.may_answer.clear()
    async with connect(serve(tmp_path, lambda spec: model, seconds=0.05)) as client:
        await until_healthy(client)
        assert refusal(await ask(client)) == (504, "generation_timeout")


async def test_who_leaves_while_waiting_for_a_batch_waits_no_longer(client: httpx.AsyncClient, model: Instant) -> None:
    model.may_answer.clear()
    running = asyncio.create_task(ask(client, "first"))
    await asyncio.to_thread(model.answering.wait, 5)
    body = {"model": SPEC.name, "messages": [{"role": "user", "content": "second"}]}
    asked = client.post("/v1/chat/completions", json=body, headers={"X-Request-ID": "r2"})
    waiting = asyncio.create_task(asked)
    await asyncio.sleep(0.05)
    await client.post("/cancel", json={"request_id": "r2"})
    assert (await asyncio.wait_for(waiting, 5)).status_code == 499
    assert not running.done()
    model.may_answer.set()
    assert (await running).status_code == 200
    assert model.batches == [1], "nothing was computed for who had left"


async def test_a_cancellation_that_is_faster_than_its_request_counts(client: httpx.AsyncClient, model: Instant) -> None:
    await client.post("/cancel", json={"request_id": "r1"})
    body = {"model": SPEC.name, "messages": [{"role": "user", "content": "hello"}]}
    assert (await client.post("/v1/chat/completions", json=body, headers={"X-Request-ID": "r1"})).status_code == 499
    assert (await client.post("/v1/chat/completions", json=body, headers={"X-Request-ID": "r2"})).status_code == 200


async def test_an_answer_can_be_sent_back_as_a_turn_as_the_openai_package_dumps_it(
    client: httpx.AsyncClient, model: Instant
) -> None:
    given = await ask(client, "one")
    answer = {**given.json()["choices"][0]["message"], "refusal": None, "audio": None, "tool_calls": None}
    messages = [{"role": "user", "content": "one"}, answer, {"role": "user", "content": "two"}]
    assert (await ask(client, messages=messages)).status_code == 200
    assert [turn.role for turn in model.seen[-1].chat.turns] == ["user", "assistant", "user"]
    answer["tool_calls"] = [{"id": "1"}]
    assert refusal(await ask(client, messages=messages)) == (400, "unsupported_messages")


async def test_an_answer_whose_time_is_over_before_its_batch_began_is_told_then(tmp_path: Path) -> None:
    class Stuck(Instant):
        def answer(self, requests: Sequence[ChatRequest]) -> list[ChatAnswer]:
            self.answering.set()
            self.may_answer.wait(20)
            return [ChatAnswer("late", 3, 2, "stop") for _ in requests]

    model = Stuck()
    async with connect(serve(tmp_path, lambda spec: model, seconds=0.3)) as client:
        await until_healthy(client)
        running = asyncio.create_task(ask(client, "first"))
        await asyncio.to_thread(model.answering.wait, 5)
        assert refusal(await asyncio.wait_for(ask(client, "second"), 10)) == (504, "generation_timeout")
        assert not running.done()
        model.may_answer.set()
        await running


async def test_an_answer_that_has_ended_does_not_wait_for_the_longest_of_its_batch(tmp_path: Path) -> None:
    class Uneven(Instant):
        def answer(self, requests: Sequence[ChatRequest]) -> list[ChatAnswer]:
            answers = [ChatAnswer(error=CancelledGenerationError()), ChatAnswer("short", 3, 2, "stop")]
            for request, answer in zip(requests, answers, strict=False):
                assert request.on_answer is not None
                request.on_answer(answer)
            self.may_answer.wait(10)
            return [*answers, ChatAnswer("long", 3, 9, "stop")][: len(requests)]

    model = Uneven()
    async with connect(serve(tmp_path, lambda spec: model)) as client:
        await until_healthy(client)
        gone, short, long = [asyncio.create_task(ask(client, text)) for text in ("gone", "short", "long")]
        assert (await asyncio.wait_for(short, 5)).json()["choices"][0]["message"]["content"] == "short"
        assert (await asyncio.wait_for(gone, 5)).status_code == 499
        assert not long.done()
        model.may_answer.set()
        assert (await long).json()["choices"][0]["message"]["content"] == "long"


async def read_stream(client: httpx.AsyncClient, **fields: Any) -> list[Any]:
    answer = await ask(client, stream=True, **fields)
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


async def test_a_stream_has_openais_chunks(client: httpx.AsyncClient) -> None:
    chunks = await read_stream(client, content="héllo")
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "héllo|"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all("usage" not in chunk for chunk in chunks)


async def test_a_stream_ends_with_the_usage_when_asked(client: httpx.AsyncClient) -> None:
    *_, last = await read_stream(client, stream_options={"include_usage": True})
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


async def test_what_fails_before_the_first_token_of_a_stream_is_an_answer_with_a_status(
    client: httpx.AsyncClient, model: Instant
) -> None:
    model.failure = EngineError("prompt_too_long", "9000 tokens")
    assert refusal(await ask(client, stream=True)) == (400, "prompt_too_long")


async def test_what_fails_in_the_middle_of_a_stream_is_its_last_event(
    client: httpx.AsyncClient, model: Instant
) -> None:
    model.fails_after = "l"
    chunks = await read_stream(client, content="hello")
    said = [chunk for chunk in chunks if "error" in chunk]
    assert [chunk["error"]["code"] for chunk in said] == ["out_of_memory"]
    assert chunks[-1] is said[0]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_left_ends_its_generation(model: Instant, tmp_path: Path, stream: bool) -> None:
    model.may_answer.clear()
    app = serve(tmp_path, lambda spec: model)
    async with connect(app) as client:
        await until_healthy(client)
    messages = [{"role": "user", "content": "long"}]
    body = json.dumps({"model": SPEC.name, "messages": messages, "stream": stream}).encode()
    coming = [{"type": "http.request", "body": body}, {"type": "http.disconnect"}]
    sent: list[Any] = []

    async def receive() -> Any:
        return coming.pop(0) if len(coming) > 1 else coming[0]

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [], "query_string": b""}
    await asyncio.wait_for(app(scope, receive, send), 5)
    assert sent[0]["status"] == 499
    assert model.seen == []


async def test_before_the_model_is_loaded_requests_are_503_and_health_too(tmp_path: Path, model: Instant) -> None:
    may_load = threading.Event()

    def load(_: ModelSpec) -> Instant:
        may_load.wait(10)
        return model

    async with connect(serve(tmp_path, load)) as client:
        assert (await client.get("/health")).status_code == 503
        status = (await client.get("/status")).json()
        assert (status["loaded"], status["mode"], status["device"], status["load_ms"]) == (False, None, None, None)
        assert status["loading_percent"] < 100
        may_load.set()
        await until_healthy(client)
        status = (await client.get("/status")).json()
        assert (status["loading_percent"], status["memory_mb"]) == (100, 12)
        assert status["load_ms"] > 0


@pytest.mark.parametrize(
    ("failure", "code", "said"),
    [
        (EngineError("model_not_found", "there is no such model"), "model_not_found", "no such model"),
        (RuntimeError("/secret/path"), "model_load_failed", "RuntimeError"),
        (MemoryError(), "out_of_memory", "memory"),
    ],
)
async def test_a_model_that_cannot_be_loaded_says_why(tmp_path: Path, failure: Exception, code: str, said: str) -> None:
    def load(_: ModelSpec) -> Instant:
        raise failure

    async with connect(serve(tmp_path, load)) as client:
        while not (error := (await client.get("/status")).json()["error"]):
            await asyncio.sleep(0.001)
        assert error["code"] == code
        assert said in error["message"]
        assert "/secret" not in error["message"]
        assert (await client.get("/health")).status_code == 503
        assert (await ask(client)).json()["error"]["code"] == code


@pytest.mark.parametrize(("path", "status"), [("/nothing", 404), ("/v1/chat/completions", 405)])
async def test_unknown_routes_are_refused(client: httpx.AsyncClient, path: str, status: int) -> None:
    assert (await client.get(path)).status_code == status
