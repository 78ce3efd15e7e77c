"""Evaluation through another server: the same rows and figures, its faults told, no base passed off as fine-tuned."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rest_framework.test import APIClient

from datasets_app.models import Dataset
from evaluation_app.loading import let_go
from evaluation_app.models import EvaluationRun
from evaluation_app.runner import EvaluationFailedError
from ftproject.engine.backends.base import RowError
from ftproject.engine.configs import GenerationParams
from ftproject.engine.remote import RemoteError, RemoteServer, RemoteSettings
from ftproject.engine.remote_model import RemoteModel
from tests.engine.support import row
from tests.inference_app.stub_openai import BASE, StubOpenAI
from training_app.models import Adapter

pytestmark = pytest.mark.django_db
RUN = "/api/evaluation/run"
GREEDY = GenerationParams(do_sample=False, max_new_tokens=8)
Work = Callable[..., list[EvaluationRun]]


@pytest.fixture
def stub(settings: Any) -> Iterator[StubOpenAI]:
    made = StubOpenAI()
    settings.INFERENCE_URL = made.start()
    yield made
    made.stop()
    let_go()


@pytest.fixture
def remote_adapter(stub: StubOpenAI, dataset: Dataset, make_adapter: Callable[..., Adapter]) -> Adapter:
    made = make_adapter(dataset, base_model_name=BASE)
    stub.adapters[made.name] = "/somewhere"
    return made


def start(api: APIClient, **body: Any) -> EvaluationRun:
    response = api.post(RUN, {"use_inference_url": True, **body}, format="json")
    assert response.status_code == 200, response.content
    return EvaluationRun.objects.get(pk=response.json()["run_id"])


def test_the_base_answers_there_and_the_run_says_where(
    api: APIClient, stub: StubOpenAI, dataset: Dataset, work: Work
) -> None:
    run = start(api)
    assert (run.model_name, run.backend, run.reuse_base_predictions) == (BASE, "openai", False)
    assert run.device.startswith("127.0.0.1:")
    [done] = work()
    assert done.status == "completed"
    answers = dict(done.samples.filter(skipped=False).values_list("index", "prediction"))
    assert answers == {n: f"base What is {n}?" for n in range(10) if n != 3}
    assert all(body["temperature"] == 0.0 for body in stub.requests)
    assert [sample.prompt_tokens for sample in done.samples.filter(skipped=False)] == [7] * 9


def test_an_adapter_is_evaluated_once_its_effect_was_shown(api: APIClient, remote_adapter: Adapter, work: Work) -> None:
    start(api, adapter_path=remote_adapter.name)
    [done] = work()
    assert (done.status, done.model_type) == ("completed", "finetuned")
    assert done.samples.get(index=0).prediction == "tuned What is 0?"


def test_a_server_that_ignores_the_adapter_ends_the_run_without_one_answer(
    api: APIClient, stub: StubOpenAI, remote_adapter: Adapter, work: Work
) -> None:
    stub.behaviour = "ignores adapters"
    run = start(api, adapter_path=remote_adapter.name)
    with pytest.raises(EvaluationFailedError, match="--enable-tower-connector-lora"):
        work()
    assert not run.samples.filter(skipped=False).exists()


@pytest.mark.parametrize(
    ("behaviour", "body", "status", "code"),
    [
        ("", {"confidence": True, "classification_mode": True}, 400, "confidence_needs_local"),
        ("500", {"confidence": "yes"}, 400, "invalid_input"),
        ("no models", {}, 503, "inference_server_failed"),
        ("html", {}, 503, "inference_server_failed"),
    ],
)
def test_what_cannot_work_there_is_refused_before_it_is_queued(
    api: APIClient, stub: StubOpenAI, dataset: Dataset, behaviour: str, body: dict[str, Any], status: int, code: str
) -> None:
    stub.behaviour = behaviour
    response = api.post(RUN, {"use_inference_url": True, **body}, format="json")
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert not EvaluationRun.objects.exists()


def test_without_a_server_it_is_refused_with_what_to_set(api: APIClient, dataset: Dataset) -> None:
    response = api.post(RUN, {"use_inference_url": True}, format="json")
    assert (response.status_code, response.json()["code"]) == (400, "inference_url_not_set")
    assert "QWEN3VL_INFERENCE_URL" in response.json()["hint"]


class TestRemoteModel:
    def model(self, stub: StubOpenAI, slept: list[float] | None = None) -> RemoteModel:
        server = RemoteServer(RemoteSettings(url=stub.start(), seconds=5))
        waits: list[float] = [] if slept is None else slept
        return RemoteModel(server, BASE, {}, sleep=waits.append)

    def test_answers_come_in_the_order_of_the_rows(self) -> None:
        stub = StubOpenAI()
        rows = [row(n, prompt=f"row {n}") for n in range(40)]
        answers = self.model(stub).generate(rows, GREEDY, adapter=None)
        assert [item.text for item in answers] == [f"base row {n}" for n in range(40)]
        stub.stop()

    def test_a_busy_server_is_asked_again_and_given_up_in_the_end(self) -> None:
        stub, slept = StubOpenAI(), list[float]()
        model = self.model(stub, slept)
        stub.behaviour = "429"
        with pytest.raises(RemoteError, match="busy"):
            model.generate([row(0)], GREEDY, adapter=None)
        assert slept == sorted(slept)
        assert len(slept) > 3
        stub.stop()

    def test_a_server_that_was_started_again_gets_the_adapter_again_and_fails_no_row(self, tmp_path: Path) -> None:
        stub = StubOpenAI(behaviour="knows its models")
        server = RemoteServer(RemoteSettings(url=stub.start(), adapters_dir="/shared", seconds=5))
        model = RemoteModel(server, BASE, {tmp_path: ("adapter_1", "abc")}, sleep=lambda seconds: None)
        [first] = model.generate([row(0, prompt="one")], GREEDY, adapter=tmp_path)
        stub.adapters.clear()
        answers = model.generate([row(n, prompt=f"row {n}") for n in range(4)], GREEDY, adapter=tmp_path)
        assert [first.text, *(item.text for item in answers)] == ["tuned one", *(f"tuned row {n}" for n in range(4))]
        stub.stop()

    def test_a_row_that_is_refused_is_named_and_the_others_are_not_asked_twice(self) -> None:
        stub = StubOpenAI()
        model = self.model(stub)
        good = [row(n, prompt=f"row {n}") for n in range(3)]
        model.generate(good, GREEDY, adapter=None)
        asked = len(stub.requests)
        stub.behaviour = "400"
        with pytest.raises(RowError, match=r"row 9: .*stub says 400"):
            model.generate([*good, row(9, prompt="too long")], GREEDY, adapter=None)
        assert len(stub.requests) == asked + 1
        stub.stop()
