"""POST /api/inference/generate and /api/inference/compare, as the user's document calls them."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from PIL import Image

from ftproject.core.jobs import Job
from ftproject.core.lease import acquire_lease
from ftproject.core.storage import adapters_dir
from inference_app.model_server import ModelServer, model_server
from tests.core.jobs import make_training
from tests.inference_app.conftest import Stub
from training_app.models import Adapter

GENERATE, COMPARE = "/api/inference/generate", "/api/inference/compare"
DOCUMENTS_PARAMS = {"max_new_tokens": 256, "temperature": 0.7, "top_p": 0.9, "min_p": 0.0, "do_sample": True}


@pytest.fixture
def server(
    stub: Stub, data_dir: Path, transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModelServer]:
    """The process's own model server, over the stub."""
    monkeypatch.setattr(model_server, "command", stub.command)
    yield model_server
    model_server.close()
    model_server.yielded_at = 0.0


def post(path: str, body: dict[str, Any]) -> Any:
    return Client(HTTP_HOST="localhost").post(path, body, content_type="application/json")


def sent(output: str) -> dict[str, Any]:
    """What the stub was asked: it answers with it."""
    told: dict[str, Any] = json.loads(output)
    return told


def make_adapter(name: str = "adapter_1", *, base: str = "tiny-qwen3-vl", effective: bool | None = True) -> Adapter:
    folder = adapters_dir() / name
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
    (folder / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return Adapter.objects.create(
        name=name, base_model_name=base, r=16, size_bytes=1, sha256="0" * 64, effective=effective
    )


def picture(shade: int = 0) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def codes(answer: Any) -> list[tuple[str, str]]:
    return [(problem["field"], problem["code"]) for problem in answer.json()["errors"]]


@pytest.mark.parametrize("slash", ["", "/"])
def test_an_answer_has_the_documents_fields_and_ours(server: ModelServer, slash: str) -> None:
    answer = post(GENERATE + slash, {"prompt": "Say seven"})
    assert answer.status_code == 200, answer.content
    body = answer.json()
    assert (body["model_type"], body["generation_time_ms"], body["prefill_time_ms"]) == ("base", 1.2, 0.8)
    assert body["load_time_ms"] > 0
    assert (body["prompt_tokens"], body["completion_tokens"], body["finish_reason"]) == (3, 2, "stop")
    assert (body["model_name"], body["adapter"]) == ("tiny-qwen3-vl", None)


def test_without_generation_params_the_documents_example_is_the_default(server: ModelServer) -> None:
    bare = sent(post(GENERATE, {"prompt": "a"}).json()["output"])
    full = sent(post(GENERATE, {"prompt": "a", "generation_params": DOCUMENTS_PARAMS}).json()["output"])
    assert bare.pop("seed") != full.pop("seed")
    assert bare == full
    assert (bare["max_tokens"], bare["temperature"], bare["top_p"]) == (256, 0.7, 0.9)


def test_only_the_first_request_waits_for_loading(server: ModelServer) -> None:
    assert post(GENERATE, {"prompt": "a"}).json()["load_time_ms"] > 0
    assert post(GENERATE, {"prompt": "b"}).json()["load_time_ms"] == 0


def test_images_are_sent_as_files_of_the_cache_before_the_text(server: ModelServer, data_dir: Path) -> None:
    body = {"prompt": "Which is red?", "image_urls": [picture(1), picture(2)]}
    parts = sent(post(GENERATE, body).json()["output"])["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url", "image_url", "text"]
    urls = [part["image_url"]["url"] for part in parts[:2]]
    assert all(url.startswith((data_dir / "images").as_uri()) for url in urls)
    assert len(set(urls)) == 2


def test_nulls_mean_what_leaving_out_means(server: ModelServer) -> None:
    nulls = dict.fromkeys(["image_urls", "adapter_path", "generation_params", "model_name"])
    assert post(GENERATE, {"prompt": "a", **nulls}).json()["model_type"] == "base"


@pytest.mark.parametrize("by", ["name", "path", "id", "number as text"])
def test_an_adapter_answers_by_name_path_or_id(server: ModelServer, by: str) -> None:
    adapter = make_adapter()
    reference = {"name": adapter.name, "path": str(adapter.path), "id": adapter.pk, "number as text": str(adapter.pk)}
    body = post(GENERATE, {"prompt": "a", "adapter_path": reference[by]}).json()
    assert (body["model_type"], body["adapter"]) == ("finetuned", adapter.name)
    assert sent(body["output"])["model"] == adapter.name


def test_compare_asks_base_and_adapter_the_same_with_the_same_seed(server: ModelServer) -> None:
    adapter = make_adapter()
    answer = post(COMPARE, {"prompt": "a", "adapter_path": str(adapter.path), "image_urls": [picture()]})
    assert answer.status_code == 200, answer.content
    body = answer.json()
    base, finetuned = sent(body["base_output"]), sent(body["finetuned_output"])
    assert (base.pop("model"), finetuned.pop("model")) == ("tiny-qwen3-vl", adapter.name)
    assert base == finetuned
    assert base["seed"] == body["seed"]
    assert (body["base_time_ms"], body["finetuned_time_ms"]) == (1.2, 1.2)
    for side in ("base", "finetuned"):
        assert (body[f"{side}_prompt_tokens"], body[f"{side}_completion_tokens"]) == (3, 2)
        assert body[f"{side}_finish_reason"] == "stop"


def test_compare_of_several_adapters_asks_each_once_and_marks_the_words_that_differ(server: ModelServer) -> None:
    first, second = make_adapter("first"), make_adapter("second")
    answer = post(COMPARE, {"prompt": "a", "adapter_paths": [str(first.path), second.pk]})
    assert answer.status_code == 200, answer.content
    body = answer.json()
    assert [item["adapter"] for item in body["answers"]] == ["first", "second"]
    assert body["adapter"] == "first"
    assert body["finetuned_output"] == body["answers"][0]["output"]
    assert {sent(item["output"])["seed"] for item in body["answers"]} == {body["seed"]}
    for item in body["answers"]:
        assert "".join(part["base"] for part in item["diff"]) == body["base_output"]
        assert "".join(part["finetuned"] for part in item["diff"]) == item["output"]
        assert item["adapter"] in [part["finetuned"] for part in item["diff"] if part["op"] == "replace"]
    assert body["diff"] == body["answers"][0]["diff"]


def test_adapters_of_two_bases_are_not_compared_in_one_call(server: ModelServer, stub: Stub) -> None:
    first, second = make_adapter("first"), make_adapter("second", base="other")
    answer = post(COMPARE, {"prompt": "a", "adapter_paths": [first.name, second.name]})
    assert (answer.status_code, answer.json()["code"]) == (400, "adapter_base_mismatch")
    assert stub.pids == []


def test_an_answer_names_the_seed_that_draws_it_again(server: ModelServer) -> None:
    body = post(GENERATE, {"prompt": "a"}).json()
    assert sent(body["output"])["seed"] == body["seed"]
    greedy = post(GENERATE, {"prompt": "a", "generation_params": {"do_sample": False}}).json()
    assert greedy["seed"] is None


def test_a_greedy_comparison_has_no_seed(server: ModelServer) -> None:
    adapter = make_adapter()
    body = {"prompt": "a", "adapter_path": adapter.name, "generation_params": {"do_sample": False}}
    assert post(COMPARE, body).json()["seed"] is None


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({}, "prompt", "required"),
        ({"prompt": ""}, "prompt", "blank"),
        ({"prompt": " \n"}, "prompt", "blank"),
        ({"prompt": None}, "prompt", "null"),
        ({"prompt": 3}, "prompt", "invalid"),
        ({"prompt": "x" * 100_001}, "prompt", "max_length"),
        ({"prompt": "a", "image_urls": "http://a/b.png"}, "image_urls", "not_a_list"),
        ({"prompt": "a", "image_urls": ["data:,"] * 17}, "image_urls", "max_length"),
        ({"prompt": "a", "image_urls": [""]}, "image_urls.0", "blank"),
        ({"prompt": "a", "image_urls": [3]}, "image_urls.0", "invalid"),
        ({"prompt": "a", "adapter_path": True}, "adapter_path", "invalid"),
        ({"prompt": "a", "adapter_path": "x" * 5000}, "adapter_path", "too_long"),
        ({"prompt": "a", "wait_seconds": 601}, "wait_seconds", "max_value"),
        ({"prompt": "a", "wait_seconds": -1}, "wait_seconds", "min_value"),
        ({"prompt": "a", "wait_seconds": "5s"}, "wait_seconds", "invalid"),
        ({"prompt": "a", "promt": "b"}, "promt", "unknown_field"),
        ({"prompt": "a", "generation_params": []}, "generation_params", "invalid_type"),
        (
            {"prompt": "a", "generation_params": {"max_new_tokens": 8193}},
            "generation_params.max_new_tokens",
            "out_of_range",
        ),
        ({"prompt": "a", "generation_params": {"temperature": -0.1}}, "generation_params.temperature", "out_of_range"),
        ({"prompt": "a", "generation_params": {"temprature": 1}}, "generation_params.temprature", "unknown_field"),
        ({"prompt": "a", "model_name": "gpt2"}, "model_name", "model_not_allowed"),
        ({"prompt": "a", "model_name": "unsloth/Qwen3-VL-8B-Instruct"}, "model_name", "model_needs_gpu"),
    ],
)
def test_a_wrong_field_is_400_and_named_and_nothing_is_started(
    server: ModelServer, stub: Stub, body: dict[str, Any], field: str, code: str
) -> None:
    answer = post(GENERATE, body)
    assert answer.status_code == 400, answer.content
    assert codes(answer) == [(field, code)]
    assert stub.pids == []


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("ftp://example.com/a.png", "image_url_refused"),
        ("http://127.0.0.1/a.png", "image_url_refused"),
        ("http://169.254.169.254/latest/meta-data", "image_url_refused"),
        ("file:///etc/passwd", "image_url_refused"),
        ("/etc/passwd", "image_cell_invalid"),
        ("data:image/png;base64,AAAA", "image_not_an_image"),
        ("data:text/plain,hello", "data_uri_not_image"),
    ],
)
def test_an_image_that_cannot_be_used_is_400_with_its_place_and_code(
    server: ModelServer, stub: Stub, url: str, code: str
) -> None:
    answer = post(GENERATE, {"prompt": "a", "image_urls": [picture(), url]})
    assert answer.status_code == 400, answer.content
    assert answer.json()["code"] == code
    assert codes(answer) == [("image_urls[1]", code)]
    assert stub.pids == []


def test_a_host_that_does_not_answer_is_a_clear_400(
    server: ModelServer, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_such_host(*_: Any, **__: Any) -> Any:
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", no_such_host)
    answer = post(GENERATE, {"prompt": "a", "image_urls": ["https://example.com/photo.jpg"]})
    assert (answer.status_code, answer.json()["code"]) == (400, "image_fetch_failed")
    assert "example.com" in answer.json()["detail"]
    assert stub.pids == []


@pytest.mark.parametrize("path", [GENERATE, COMPARE])
@pytest.mark.parametrize("reference", ["/path/to/adapter_20260215_143022", "../../etc", "nobody", 999])
def test_an_unknown_adapter_is_404_and_nothing_is_opened(
    server: ModelServer, stub: Stub, path: str, reference: str | int
) -> None:
    answer = post(path, {"prompt": "a", "adapter_path": reference})
    assert (answer.status_code, answer.json()["code"]) == (404, "adapter_not_found")
    assert stub.pids == []


@pytest.mark.parametrize("path", [GENERATE, COMPARE])
def test_an_adapter_without_effect_is_409(server: ModelServer, path: str) -> None:
    answer = post(path, {"prompt": "a", "adapter_path": make_adapter(effective=False).name})
    assert (answer.status_code, answer.json()["code"]) == (409, "adapter_not_effective")


def test_an_adapter_whose_effect_was_not_measured_answers(server: ModelServer) -> None:
    assert post(GENERATE, {"prompt": "a", "adapter_path": make_adapter(effective=None).name}).status_code == 200


def test_an_adapter_of_another_base_than_asked_for_is_400(server: ModelServer) -> None:
    body = {"prompt": "a", "adapter_path": make_adapter(base="other").name, "model_name": "tiny-qwen3-vl"}
    answer = post(GENERATE, body)
    assert (answer.status_code, answer.json()["code"]) == (400, "adapter_base_mismatch")


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "a"},
        {"prompt": "a", "adapter_path": None},
        {"prompt": "a", "adapter_path": "x", "adapter_paths": ["y"]},
    ],
)
def test_compare_needs_an_adapter(server: ModelServer, body: dict[str, Any]) -> None:
    answer = post(COMPARE, body)
    assert answer.status_code == 400
    assert codes(answer)[0][0] == "adapter_path"


def test_while_a_run_has_the_gpu_it_is_409_with_run_eta_and_retry_after(server: ModelServer, stub: Stub) -> None:
    run = make_training(status=Job.Status.TRAINING, eta_seconds=41.2)
    assert acquire_lease(run.name)
    answer = post(GENERATE, {"prompt": "a"})
    assert answer.status_code == 409
    body = answer.json()
    assert (body["code"], body["run_kind"], body["run_id"], body["eta_seconds"]) == (
        "gpu_busy",
        "training",
        run.pk,
        41.2,
    )
    assert answer.headers["Retry-After"] == "42"
    assert "wait_seconds" in body["hint"]
    assert stub.pids == []


def test_a_server_that_dies_is_503_without_its_log_and_the_next_request_works(server: ModelServer) -> None:
    answer = post(GENERATE, {"prompt": "die"})
    assert (answer.status_code, answer.json()["code"]) == (503, "model_server_failed")
    assert "last words" not in answer.content.decode()
    assert post(GENERATE, {"prompt": "a"}).status_code == 200


def test_a_prompt_that_the_model_cannot_read_is_400_with_its_code(server: ModelServer) -> None:
    answer = post(GENERATE, {"prompt": "fail 400 prompt_too_long"})
    assert (answer.status_code, answer.json()["code"]) == (400, "prompt_too_long")


@pytest.mark.parametrize("path", [GENERATE, COMPARE])
def test_other_methods_are_405(db: None, path: str) -> None:
    answer = Client(HTTP_HOST="localhost").get(path)
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")


@pytest.mark.slow
def test_the_real_tiny_model_answers_about_a_real_image(data_dir: Path, transactional_db: None) -> None:
    try:
        body = {"prompt": "Describe the image.", "image_urls": [picture(200)]}
        answer = post(GENERATE, body | {"generation_params": {"do_sample": False, "max_new_tokens": 16}})
        assert answer.status_code == 200, answer.content
        told = answer.json()
        assert told["output"]
        assert (told["model_name"], told["model_type"]) == ("tiny-qwen3-vl", "base")
        assert told["prompt_tokens"] > 5
        assert told["generation_time_ms"] < told["load_time_ms"]
        status = Client(HTTP_HOST="localhost").get("/api/system/model-status").json()
        assert (status["loaded"], status["mode"], status["device"]) == (True, "base", "cpu")
    finally:
        model_server.close()


def test_a_server_outlives_the_request_thread_that_started_it(
    data_dir: Path, transactional_db: None, settings: Any
) -> None:
    """PDEATHSIG follows the thread that forked: started from a request's own thread, the server would die with it."""
    import threading
    import time

    from django.db import connection

    settings.BACKEND = "fake"
    answers: list[Any] = []

    def ask() -> None:
        answers.append(post(GENERATE, {"prompt": "a"}))
        connection.close()

    try:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        assert answers[0].status_code == 200, answers[0].content
        time.sleep(0.3)
        assert model_server.status()["loaded"]
    finally:
        model_server.close()
