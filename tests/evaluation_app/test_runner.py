"""A run from claim to figures: skipped rows, resuming, stopping, failing, and what the sockets are told."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rest_framework.test import APIClient

from datasets_app.models import Dataset
from evaluation_app import progress
from evaluation_app.models import EvaluationRun, Sample
from evaluation_app.runner import EvaluationFailedError, execute_evaluation
from ftproject.core.jobs import claim_job, reap_dead_jobs, requeue_job, stop_job
from ftproject.core.models import Event
from ftproject.core.run_context import execute
from ftproject.core.tasks import drain_flag, run_next_job
from ftproject.engine.backends.base import EngineError, RowError
from ftproject.engine.backends.fake import FakeBackend, FakeModel
from tests.evaluation_app.conftest import rows_of
from training_app.models import Adapter

pytestmark = pytest.mark.django_db
RUN = "/api/evaluation/run"
Work = Callable[..., list[EvaluationRun]]


class PowerCutError(Exception):
    pass


def start(api: APIClient, **body: Any) -> EvaluationRun:
    response = api.post(RUN, body, format="json")
    assert response.status_code == 200, response.content
    return EvaluationRun.objects.get(pk=response.json()["run_id"])


def events(kind: str) -> list[dict[str, Any]]:
    return list(Event.objects.filter(type=kind).order_by("id").values_list("data", flat=True))


def fail_after(batches: int, error: Exception, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes the fake model raise after some batches; gives back the list of rows that it was asked for."""
    asked: list[int] = []
    generate = FakeModel.generate

    def failing(self: FakeModel, conversations: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal batches
        batches -= 1
        if batches < 0:
            raise error
        asked.extend(row.conversation.index for row in conversations)
        return generate(self, conversations, *args, **kwargs)

    monkeypatch.setattr(FakeModel, "generate", failing)
    return asked


def test_a_finetuned_run_answers_every_row_and_completes(api: APIClient, adapter: Adapter, work: Work) -> None:
    start(api, adapter_path=adapter.name)
    (run,) = work()
    assert (run.status, run.num_samples, run.num_skipped, run.current) == ("completed", 10, 1, 10)
    assert run.exact_match_accuracy == run.token_f1 == 1.0
    assert rows_of(run) == list(range(10))


def test_a_base_run_of_the_same_rows_gets_nothing_right(api: APIClient, adapter: Adapter, work: Work) -> None:
    start(api)
    (run,) = work()
    assert (run.status, run.exact_match_accuracy) == ("completed", 0.0)
    assert run.metrics["seen"] is run.metrics["unseen"] is None


def test_a_skipped_row_is_stored_with_its_reason_and_without_scores(
    api: APIClient, dataset: Dataset, work: Work
) -> None:
    start(api)
    (run,) = work()
    sample = run.samples.get(index=3)
    assert sample.skipped
    assert "'note'" in (sample.skipped_reason or "")
    assert (sample.prediction, sample.exact_match, sample.token_f1) == ("", None, None)
    assert (sample.prompt, sample.ground_truth) == ("What is 3?", "number 3")


def test_metrics_are_over_evaluated_rows_only(
    api: APIClient, make_dataset: Callable[..., Dataset], make_adapter: Callable[..., Adapter], work: Work
) -> None:
    """The user's document: 100 rows, 5 skipped, 70 right is 0.7368."""
    rows = [(f"row {n}", "two words" if n < 75 else "right", "" if n % 20 == 0 else "x") for n in range(100)]
    dataset = make_dataset(rows, mandatory_columns=["note"])
    adapter = make_adapter(dataset, trained=range(50), heldout=range(50, 100))
    # One new token: of a two-word truth only the first word is answered, so every such row is wrong.
    start(api, adapter_path=adapter.name, generation_params={"max_new_tokens": 1})
    (run,) = work()
    wrong = sum(1 for n in range(75) if n % 20)
    assert (run.num_samples, run.num_skipped) == (100, 5)
    assert run.exact_match_accuracy == pytest.approx((95 - wrong) / 95)
    assert run.token_precision == 1.0
    assert run.token_recall == pytest.approx((95 - wrong / 2) / 95)


def test_the_documents_figure_comes_out(
    api: APIClient, make_dataset: Callable[..., Dataset], make_adapter: Callable[..., Adapter], work: Work
) -> None:
    rows = [(f"row {n}", "right" if n < 70 else "two words", "x" if n < 95 else "") for n in range(100)]
    adapter = make_adapter(make_dataset(rows, mandatory_columns=["note"]), trained=[0], heldout=[1])
    start(api, adapter_path=adapter.name, sample_limit=100, generation_params={"max_new_tokens": 1})
    (run,) = work()
    assert run.exact_match_accuracy is not None
    assert round(run.exact_match_accuracy, 4) == 0.7368
    assert (run.num_samples, run.num_skipped) == (100, 5)


def test_seen_and_unseen_rows_have_their_own_figures(api: APIClient, adapter: Adapter, work: Work) -> None:
    start(api, adapter_path=adapter.name)
    (run,) = work()
    assert run.metrics["all"]["num_samples"] == 10
    assert run.metrics["seen"]["num_samples"] == 6
    assert run.metrics["unseen"] | {"num_samples": 4, "num_skipped": 1} == run.metrics["unseen"]
    assert list(run.samples.filter(seen_in_training=True).values_list("index", flat=True)) == [0, 1, 2, 4, 5, 6]


def test_nobody_knows_what_an_adapter_of_another_dataset_has_seen(
    api: APIClient, adapter: Adapter, make_dataset: Callable[..., Dataset], work: Work
) -> None:
    make_dataset([("p", "a", "n")], name="other.csv")
    start(api, adapter_path=adapter.name)
    (run,) = work()
    assert run.samples.get().seen_in_training is None
    assert run.metrics["seen"] is run.metrics["unseen"] is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"rows": "heldout"}, [7, 8, 9]),
        ({"rows": "heldout", "sample_limit": 2}, [7, 8]),
        ({"rows": "trained"}, [0, 1, 2, 4, 5, 6]),
        ({"rows": "all", "sample_limit": 4}, [0, 1, 2, 3]),
        ({"sample_limit": 10_000}, list(range(10))),
    ],
)
def test_rows_and_limit_choose_the_scope(
    api: APIClient, adapter: Adapter, work: Work, body: dict[str, Any], expected: list[int]
) -> None:
    start(api, split_adapter=adapter.name, **body)
    (run,) = work()
    assert rows_of(run) == expected
    assert (run.total, run.num_samples) == (len(expected), len(expected))


def test_every_figure_of_a_run_without_evaluated_rows_is_null(
    api: APIClient, make_dataset: Callable[..., Dataset], work: Work
) -> None:
    make_dataset([("p", "a", ""), ("q", "b", "")], mandatory_columns=["note"])
    start(api, classification_mode=True)
    (run,) = work()
    assert (run.status, run.num_samples, run.num_skipped) == ("completed", 2, 2)
    assert run.exact_match_accuracy is run.token_f1 is None
    assert run.metrics["classification"]["accuracy"] is None


def test_classification_counts_answers_that_are_no_label_as_wrong(
    api: APIClient, make_dataset: Callable[..., Dataset], work: Work
) -> None:
    make_dataset([(f"p{n}", "Yes" if n % 2 else "no", "x") for n in range(6)])
    start(api, classification_mode=True, positive_label="yes")
    (run,) = work()
    figures = run.metrics["classification"]
    assert (figures["labels"], figures["positive_label"]) == (["no", "yes"], "yes")
    assert (figures["accuracy"], figures["unparsed"]) == (0.0, 6)
    assert set(run.samples.values_list("label", flat=True)) == {None}
    assert run.eval_mode == "classification"


def test_classification_reads_the_label_of_each_answer(
    api: APIClient, make_dataset: Callable[..., Dataset], make_adapter: Callable[..., Adapter], work: Work
) -> None:
    dataset = make_dataset([(f"p{n}", "Yes" if n % 2 else "no", "x") for n in range(6)])
    start(api, adapter_path=make_adapter(dataset).name, classification_mode=True)
    (run,) = work()
    assert run.metrics["classification"]["accuracy"] == 1.0
    assert run.metrics["classification"]["confusion_matrix"] == [[3, 0], [0, 3]]
    assert list(run.samples.order_by("index").values_list("label", flat=True)) == ["no", "yes"] * 3


def test_a_positive_label_that_no_evaluated_row_has_is_a_warning_at_the_end(
    api: APIClient, make_dataset: Callable[..., Dataset], work: Work
) -> None:
    make_dataset([("p", "red", "x"), ("q", "blue", "x"), ("r", "green", "x")])
    start(api, classification_mode=True, positive_label="green", sample_limit=2)
    (run,) = work()
    assert run.status == "completed"
    assert "green" in run.warnings[0]
    assert run.metrics["classification"]["labels"] == ["blue", "red"]


def test_a_row_that_the_model_cannot_take_is_skipped_with_the_reason(
    api: APIClient, dataset: Dataset, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = FakeModel.generate

    def picky(self: FakeModel, conversations: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        if any(row.conversation.index == 5 for row in conversations):
            raise RowError("image_unreadable", "image 1 is broken")
        return generate(self, conversations, *args, **kwargs)

    monkeypatch.setattr(FakeModel, "generate", picky)
    start(api)
    (run,) = work()
    assert (run.status, run.num_samples, run.num_skipped) == ("completed", 10, 2)
    assert run.samples.get(index=5).skipped_reason == "image 1 is broken"


def test_an_answer_with_a_nul_can_be_stored(
    api: APIClient, make_dataset: Callable[..., Dataset], work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = FakeModel._answer

    def with_nul(self: FakeModel, *args: Any) -> Any:
        from dataclasses import replace

        return replace(answer(self, *args), text="a\0b")

    monkeypatch.setattr(FakeModel, "_answer", with_nul)
    make_dataset([("p", "a", "n")])
    start(api)
    (run,) = work()
    assert run.samples.get().prediction == "a\N{REPLACEMENT CHARACTER}b"


def test_an_interrupted_run_computes_exactly_the_missing_rows(
    api: APIClient, adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(api, adapter_path=adapter.name)
    with monkeypatch.context() as patch:
        first = fail_after(1, PowerCutError(), patch)
        assert claim_job(run)
        with pytest.raises(PowerCutError):
            execute_evaluation(run, lambda: False)
    assert set(rows_of(run)) == {*first, 3}
    assert len(first) == 4
    assert requeue_job(run, message="again")
    with monkeypatch.context() as patch:
        second = fail_after(99, PowerCutError(), patch)
        work()
    run.refresh_from_db()
    assert sorted(first + second) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert (run.status, run.num_samples, run.num_skipped, run.exact_match_accuracy) == ("completed", 10, 1, 1.0)


def test_what_a_transaction_did_not_finish_is_neither_stored_nor_counted(
    api: APIClient, dataset: Dataset, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(api)
    assert claim_job(run)

    def power_cut(self: Any, reached: int) -> None:
        raise PowerCutError

    monkeypatch.setattr(progress.ProgressReporter, "eta", power_cut)
    with pytest.raises(PowerCutError):
        execute_evaluation(run, lambda: False)
    run.refresh_from_db()
    assert (run.current, rows_of(run)) == (0, [])


def test_a_shutdown_puts_the_run_back_and_the_next_start_goes_on(
    api: APIClient, dataset: Dataset, work: Work, data_dir: Path
) -> None:
    run = start(api)
    drain_flag().touch()
    work(should_stop=lambda: run.samples.count() > 4)
    run.refresh_from_db()
    assert run.status == "queued"
    assert "5 of 10" in run.message
    assert events("eval_status")[-1]["status"] == "queued"
    drain_flag().unlink()
    work()
    run.refresh_from_db()
    assert (run.status, run.num_samples) == ("completed", 10)


def test_a_run_that_the_user_had_stopped_before_the_shutdown_does_not_come_back(
    api: APIClient, dataset: Dataset, work: Work
) -> None:
    run = start(api)

    def user_then_server() -> bool:
        if run.samples.count() <= 4:
            return False
        stop_job(run)
        time.sleep(0.01)  # a file's time is as coarse as the kernel's tick
        drain_flag().touch()
        return True

    work(should_stop=user_then_server)
    run.refresh_from_db()
    assert (run.status, run.error) == ("error", "Stopped after 5 of 10 rows.")


def test_a_run_that_the_server_stops_by_flag_comes_back(api: APIClient, dataset: Dataset, work: Work) -> None:
    run = start(api)

    def server_by_flag() -> bool:
        if run.samples.count() <= 4:
            return False
        drain_flag().touch()
        stop_job(run, reason="The server is shutting down")
        return True

    work(should_stop=server_by_flag)
    run.refresh_from_db()
    assert (run.status, run.stop_requested_at) == ("queued", None)


def test_a_run_that_the_server_put_back_before_its_rows_stays_in_the_queue(
    api: APIClient, dataset: Dataset, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(api)
    load = FakeBackend.load

    def put_back_meanwhile(self: FakeBackend, *args: Any, **kwargs: Any) -> Any:
        drain_flag().touch()
        assert requeue_job(EvaluationRun.objects.get(pk=run.pk), message="Waiting for the next start")
        return load(self, *args, **kwargs)

    monkeypatch.setattr(FakeBackend, "load", put_back_meanwhile)
    work()
    run.refresh_from_db()
    assert (run.status, run.message, rows_of(run)) == ("queued", "Waiting for the next start", [3])


def test_a_run_that_the_user_stops_keeps_its_samples_and_says_how_far_it_came(
    api: APIClient, dataset: Dataset, work: Work
) -> None:
    run = start(api)
    work(should_stop=lambda: run.samples.count() > 4)
    run.refresh_from_db()
    assert (run.status, run.error, run.stopped_early) == ("error", "Stopped after 5 of 10 rows.", True)
    assert run.samples.count() == 5
    assert events("eval_error") == [{"run_id": run.pk, "error": "Stopped after 5 of 10 rows."}]


def test_a_run_that_is_stopped_before_its_first_row_loads_nothing(
    api: APIClient, dataset: Dataset, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = fail_after(0, PowerCutError(), monkeypatch)
    start(api)
    (run,) = work(should_stop=lambda: True)
    assert (run.status, run.error, asked) == ("error", "Stopped after 0 of 10 rows.", [])


def test_a_stop_that_comes_after_the_last_row_does_not_spoil_the_run(
    api: APIClient, dataset: Dataset, work: Work
) -> None:
    run = start(api)
    (run,) = work(should_stop=lambda: run.samples.count() == 10)
    assert run.status == "completed"


def test_what_the_engine_refuses_is_the_runs_error_in_words(
    api: APIClient, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_after(0, EngineError("out_of_memory", "row 7 alone does not fit into memory"), monkeypatch)
    run = start(api)
    assert claim_job(run)
    with pytest.raises(EvaluationFailedError, match="Row 7 alone does not fit"):
        execute_evaluation(run, lambda: False)


def test_a_redelivered_bell_runs_nothing_twice(
    api: APIClient, dataset: Dataset, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = fail_after(99, PowerCutError(), monkeypatch)
    run = start(api)
    work()
    assert run_next_job() == "nothing to do"
    assert not claim_job(run)
    assert sorted(asked) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert run.samples.count() == 10


def test_a_process_whose_claim_is_not_the_rows_does_nothing(api: APIClient, dataset: Dataset) -> None:
    run = start(api)
    assert claim_job(run)
    assert execute(execute_evaluation, "evaluation", run.pk, "another claim") == 4
    assert run.samples.count() == 0


def test_a_run_that_was_ended_elsewhere_stores_nothing_more(
    api: APIClient, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(api)
    assert claim_job(run)
    generate = FakeModel.generate

    def reaped_meanwhile(self: FakeModel, *args: Any, **kwargs: Any) -> Any:
        EvaluationRun.objects.filter(pk=run.pk).update(status="error", error="reaped")
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(FakeModel, "generate", reaped_meanwhile)
    with pytest.raises(progress.ClaimLostError):
        execute_evaluation(run, lambda: False)
    run.refresh_from_db()
    assert (run.status, run.error, rows_of(run)) == ("error", "reaped", [3])


def test_a_dead_run_is_ended_and_keeps_its_samples(api: APIClient, dataset: Dataset) -> None:
    run = start(api)
    assert claim_job(run)
    Sample.objects.create(run=run, index=0, prompt="p", ground_truth="a")
    host = run.supervisor.rsplit(":", 2)[0]
    EvaluationRun.objects.filter(pk=run.pk).update(supervisor=f"{host}:{2**22 + 1}:1.00")
    assert [job.pk for job in reap_dead_jobs()] == [run.pk]
    run.refresh_from_db()
    assert (run.status, run.samples.count()) == ("error", 1)


def test_the_sockets_hear_each_phase_progress_and_the_end(api: APIClient, adapter: Adapter, work: Work) -> None:
    run = start(api, adapter_path=adapter.name)
    work()
    phases = [event["status"] for event in events("eval_status")]
    # The libraries are imported while the first rows are read; the weights are loaded when there is a row for them.
    assert phases == ["queued", "loading_model", "preparing_data", "loading_model", "evaluating"]
    last = {"run_id": run.pk, "current": 10, "total": 10, "model_type": "finetuned"}
    assert events("eval_progress")[-1] == last
    (end,) = events("eval_complete")
    assert (end["run_id"], end["model_type"]) == (run.pk, "finetuned")
    assert end["metrics"]["exact_match_accuracy"] == 1.0
