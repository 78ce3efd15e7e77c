"""An interrupted run is taken up where it stopped: the same row, its samples kept, every row exactly once."""

import shutil
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from django.db import IntegrityError
from rest_framework.test import APIClient

from datasets_app import preparation
from datasets_app.models import Dataset
from evaluation_app.models import EvaluationRun, Sample
from evaluation_app.resume import judge_resume, resume_evaluation
from evaluation_app.runner import execute_evaluation
from ftproject.core.errors import ConflictError
from ftproject.core.jobs import claim_job, queued_jobs, reopen_job
from ftproject.core.run_context import execute_one
from ftproject.engine import fingerprints
from ftproject.engine.conversations import build_conversation
from tests.core.jobs import make_training
from tests.evaluation_app.conftest import rows_of
from tests.evaluation_app.test_runner import PowerCutError, Work, events, fail_after, start
from training_app.models import Adapter

pytestmark = pytest.mark.django_db


@pytest.fixture
def interrupted(api: APIClient, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> EvaluationRun:
    """A base run that died after its first batch of four; row 3 is skipped."""
    run = start(api)
    with monkeypatch.context() as patch:
        fail_after(1, PowerCutError("the power failed"), patch)
        end_in_error(run)
    assert run.samples.count() == 5
    return run


def end_in_error(run: EvaluationRun) -> None:
    assert claim_job(run)
    assert execute_one(execute_evaluation, run, threading.Event()) == 1
    run.refresh_from_db()
    assert run.status == "error"


def resume(api: APIClient, run: EvaluationRun, **headers: str) -> Any:
    return api.post(f"/api/evaluation/runs/{run.pk}/resume", {}, format="json", headers=headers or None)


def test_a_resume_computes_exactly_the_missing_rows_in_the_same_run(
    api: APIClient, interrupted: EvaluationRun, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(rows_of(interrupted))
    response = resume(api, interrupted)
    assert response.status_code == 202
    assert response.json() == {
        "status": "started",
        "model_type": "base",
        "run_id": interrupted.pk,
        "model_name": "tiny-qwen3-vl",
        "current": 5,
        "total": 10,
    }
    asked = fail_after(99, PowerCutError(), monkeypatch)
    (run,) = work()
    assert (run.status, run.error, run.num_samples, run.num_skipped) == ("completed", None, 10, 1)
    assert sorted(asked) == sorted(set(range(10)) - before)
    assert rows_of(run) == list(range(10))
    assert events("eval_complete")[-1]["run_id"] == run.pk


def test_the_run_says_from_where_it_would_go_on(api: APIClient, interrupted: EvaluationRun) -> None:
    facts = api.get(f"/api/evaluation/runs/{interrupted.pk}").json()
    assert (facts["can_resume"], facts["resume_reason"]) == (True, "It goes on after 5 of 10 rows.")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run: EvaluationRun.objects.update(status="completed"), "completed"),
        (lambda run: EvaluationRun.objects.update(status="evaluating"), "not ended"),
        (lambda run: EvaluationRun.objects.update(status="queued"), "not ended"),
        (lambda run: run.dataset.table_path.unlink(), "are gone from the data directory"),
    ],
)
def test_a_run_that_cannot_be_resumed_says_why(
    api: APIClient, interrupted: EvaluationRun, change: Callable[[EvaluationRun], object], words: str
) -> None:
    change(interrupted)
    response = resume(api, interrupted)
    assert response.status_code == 409
    assert (response.json()["code"], words in response.json()["detail"]) == ("not_resumable", True)
    facts = api.get(f"/api/evaluation/runs/{interrupted.pk}").json()
    assert facts["can_resume"] is False
    assert words in facts["resume_reason"]


def test_a_run_whose_adapter_folder_is_gone_is_refused_before_it_waits(
    api: APIClient, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(api, adapter_path=adapter.name)
    with monkeypatch.context() as patch:
        fail_after(0, PowerCutError(), patch)
        end_in_error(run)
    shutil.rmtree(adapter.path)
    assert "folder of adapter" in resume(api, run).json()["detail"]


def test_there_is_no_run_to_resume(api: APIClient) -> None:
    response = api.post("/api/evaluation/runs/99/resume", {}, format="json")
    assert (response.status_code, response.json()["code"]) == (404, "run_not_found")


def test_a_body_is_refused(api: APIClient, interrupted: EvaluationRun) -> None:
    response = api.post(f"/api/evaluation/runs/{interrupted.pk}/resume", {"rows": "all"}, format="json")
    assert response.status_code == 400
    interrupted.refresh_from_db()
    assert interrupted.status == "error"


def test_two_resumes_at_once_make_one(interrupted: EvaluationRun) -> None:
    same = EvaluationRun.objects.get(pk=interrupted.pk)
    resume_evaluation(run=interrupted)
    with pytest.raises(ConflictError) as caught:
        resume_evaluation(run=same)
    assert caught.value.code == "not_resumable"
    assert len(queued_jobs()) == 1


def test_the_same_key_once_more_changes_nothing(api: APIClient, interrupted: EvaluationRun) -> None:
    key = {"Idempotency-Key": "resume-1"}
    first, second = resume(api, interrupted, **key), resume(api, interrupted, **key)
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json() == second.json()
    assert len(events("eval_status")) == len([e for e in events("eval_status") if e["status"] != "queued"]) + 2


def test_a_new_key_while_it_waits_is_refused(api: APIClient, interrupted: EvaluationRun) -> None:
    resume(api, interrupted, **{"Idempotency-Key": "one"})
    assert resume(api, interrupted, **{"Idempotency-Key": "two"}).status_code == 409


def test_a_resumed_run_waits_at_the_end_of_the_queue(api: APIClient, interrupted: EvaluationRun) -> None:
    other = make_training()
    response = resume(api, interrupted)
    assert (response.json()["status"], response.json()["queue_position"]) == ("queued", 2)
    assert [job.pk for job in queued_jobs()] == [other.pk, interrupted.pk]


def test_a_resumed_run_can_be_cancelled_and_resumed_again(
    api: APIClient, interrupted: EvaluationRun, work: Work
) -> None:
    resume(api, interrupted)
    assert api.post(f"/api/evaluation/runs/{interrupted.pk}/stop").json()["status"] == "cancelled"
    assert interrupted.samples.count() == 5
    resume(api, interrupted)
    (run,) = work()
    assert (run.status, run.num_samples) == ("completed", 10)


def test_a_run_that_the_user_stopped_goes_on(api: APIClient, dataset: Dataset, work: Work) -> None:
    run = start(api)
    work(should_stop=lambda: run.samples.count() > 4)
    run.refresh_from_db()
    assert (run.status, run.stopped_early) == ("error", True)
    resume(api, run)
    work()
    run.refresh_from_db()
    assert (run.status, run.num_samples, run.stopped_early) == ("completed", 10, False)
    assert run.stop_requested_at is None


def test_the_answers_of_two_models_are_not_mixed(
    api: APIClient, interrupted: EvaluationRun, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "_file_digest", lambda *_: "other weights")
    resume(api, interrupted)
    interrupted.refresh_from_db()
    end_in_error(interrupted)
    assert "not those that the run's 5 answers came from" in (interrupted.error or "")
    assert interrupted.samples.count() == 5


def test_other_package_versions_are_a_warning(
    api: APIClient, interrupted: EvaluationRun, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluation_app.loading.package_versions", lambda: {"torch": "9.0"})
    resume(api, interrupted)
    (run,) = work()
    assert run.status == "completed"
    assert any("other package versions" in warning for warning in run.warnings)
    assert run.engine_facts["versions"] == {"torch": "9.0"}


def test_no_row_can_be_stored_twice(interrupted: EvaluationRun) -> None:
    with pytest.raises(IntegrityError):
        Sample.objects.create(run=interrupted, index=rows_of(interrupted)[0], prompt="p", ground_truth="t")


def test_a_row_that_was_skipped_is_not_prepared_again(
    api: APIClient, interrupted: EvaluationRun, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    build = build_conversation

    def counting(index: int, *args: Any) -> Any:
        seen.append(index)
        return build(index, *args)

    monkeypatch.setattr(preparation, "build_conversation", counting)
    done = set(rows_of(interrupted))
    resume(api, interrupted)
    work()
    assert set(seen) == set(range(10)) - done


def test_only_what_ended_in_error_is_reopened(interrupted: EvaluationRun) -> None:
    EvaluationRun.objects.update(status="completed")
    assert not reopen_job(interrupted, message="again")
    interrupted.refresh_from_db()
    assert interrupted.status == "completed"


@pytest.mark.parametrize("cut", range(1, 9))
def test_wherever_the_power_fails_every_row_is_there_once_in_the_end(
    api: APIClient, dataset: Dataset, work: Work, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    """The write before, at and after each batch; what a transaction did not finish is computed again."""
    run = start(api)
    bulk_create = Sample.objects.bulk_create
    writes = 0

    def failing(samples: Sequence[Sample], *args: Any, **kwargs: Any) -> Any:
        nonlocal writes
        writes += 1
        if writes * 2 == cut:
            raise PowerCutError
        made = bulk_create(samples, *args, **kwargs)
        if writes * 2 + 1 == cut:
            raise PowerCutError
        return made

    with monkeypatch.context() as patch:
        patch.setattr(Sample.objects, "bulk_create", failing)
        assert claim_job(run)
        code = execute_one(execute_evaluation, run, threading.Event())
    run.refresh_from_db()
    assert run.current == run.samples.count()
    if code:
        assert judge_resume(run).can_resume
        resume_evaluation(run=run)
        work()
        run.refresh_from_db()
    assert (run.status, rows_of(run)) == ("completed", list(range(10)))
