"""Several evaluations as one piece of work: all or none queued, and taken up again where they ended."""

from collections.abc import Callable
from pathlib import Path

import pytest

from datasets_app.models import Dataset
from datasets_app.services import mapping_set
from evaluation_app.batch import start_batch
from evaluation_app.batch_files import named
from evaluation_app.models import EvaluationRun
from evaluation_app.plans import EvaluationRequest
from ftproject.core.errors import ProductError
from tests.evaluation_app.conftest import rows_of
from training_app.models import Adapter

pytestmark = pytest.mark.django_db
Work = Callable[..., list[EvaluationRun]]


def requests_for(adapter: Adapter, **fields: object) -> list[EvaluationRequest]:
    return [EvaluationRequest(**fields), EvaluationRequest(adapter_path=adapter.name, **fields)]  # type: ignore[arg-type]


def test_without_resume_every_call_starts_runs_of_its_own(adapter: Adapter, work: Work) -> None:
    first = start_batch(requests=requests_for(adapter))
    work()
    again = start_batch(requests=requests_for(adapter))
    assert {run.pk for run in first} & {run.pk for run in again} == set()


def test_finished_runs_of_the_same_request_are_taken_as_they_are(adapter: Adapter, work: Work) -> None:
    first = start_batch(requests=requests_for(adapter))
    work()
    again = start_batch(requests=requests_for(adapter), resume=True)
    assert [run.pk for run in again] == [run.pk for run in first]
    assert EvaluationRun.objects.count() == 2


def test_runs_that_wait_are_waited_for(adapter: Adapter) -> None:
    first = start_batch(requests=requests_for(adapter))
    again = start_batch(requests=requests_for(adapter), resume=True)
    assert [(run.pk, run.status) for run in again] == [(run.pk, "queued") for run in first]


def test_an_interrupted_run_goes_on_with_its_missing_rows(adapter: Adapter, work: Work) -> None:
    first = start_batch(requests=requests_for(adapter))
    work()
    EvaluationRun.objects.filter(pk=first[0].pk).update(status="error", error="Stopped after 4 of 10 rows.", current=4)
    first[0].samples.filter(index__gte=4).delete()
    kept = dict(first[0].samples.values_list("index", "pk"))
    again = start_batch(requests=requests_for(adapter), resume=True)
    assert [(run.pk, run.status) for run in again] == [(first[0].pk, "queued"), (first[1].pk, "completed")]
    (done,) = work()
    assert (done.status, rows_of(done)) == ("completed", list(range(10)))
    assert kept.items() <= dict(done.samples.values_list("index", "pk")).items()


@pytest.mark.parametrize(
    "other",
    [
        {"sample_limit": 5},
        {"classification_mode": True},
        {"metrics": ["cer"]},
        {"normalization": {"casefold": True}},
        {"generation_params": {"max_new_tokens": 3}},
    ],
)
def test_another_request_is_another_run(adapter: Adapter, work: Work, other: dict[str, object]) -> None:
    start_batch(requests=requests_for(adapter))
    work()
    again = start_batch(requests=requests_for(adapter, **other), resume=True)
    assert [run.status for run in again] == ["queued", "queued"]


def test_a_new_mapping_makes_new_runs(dataset: Dataset, adapter: Adapter, work: Work) -> None:
    start_batch(requests=requests_for(adapter))
    work()
    mapping_set(dataset=dataset, prompt_column="note", response_column="answer", mandatory_columns=[])
    again = start_batch(requests=[EvaluationRequest()], resume=True)
    assert again[0].status == "queued"


def test_a_run_that_can_not_go_on_is_started_anew(adapter: Adapter, work: Work, dataset: Dataset) -> None:
    start_batch(requests=[EvaluationRequest(adapter_path=adapter.name)])
    work()
    EvaluationRun.objects.update(status="error")
    usable = start_batch(requests=[EvaluationRequest(adapter_path=adapter.name)], resume=True)
    assert EvaluationRun.objects.count() == 1
    assert usable[0].status == "queued"


def test_one_refused_request_queues_none(adapter: Adapter) -> None:
    requests = [*requests_for(adapter), EvaluationRequest(adapter_path="nothing")]
    for resume in (False, True):
        with pytest.raises(ProductError, match="nothing"):
            start_batch(requests=requests, resume=resume)
    assert EvaluationRun.objects.count() == 0


def test_one_file_keeps_its_name_and_several_say_what_they_are_about() -> None:
    path = Path("out/page.html")
    assert named(path, ("dataset1", "adapter_1"), several=False) == path
    assert named(path, ("dataset1", "adapter_1"), several=True) == Path("out/page_dataset1_adapter_1.html")
