"""A table of several models says when they were asked about different rows."""

import io
from collections.abc import Callable

import pytest
from django.core.management import call_command

from datasets_app.models import Dataset
from evaluation_app.models import EvaluationRun
from evaluation_app.plans import EvaluationRequest
from evaluation_app.services import start_evaluation
from evaluation_app.splits import scope_warning
from training_app.models import Adapter

pytestmark = pytest.mark.django_db
MakeAdapter = Callable[..., Adapter]
Work = Callable[..., list[EvaluationRun]]


def start(**request: object) -> EvaluationRun:
    return start_evaluation(request=EvaluationRequest(**request))[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(("heldout", "words"), [((7, 8, 9), None), ((7, 8), "2 in common"), ((0, 1), "0 in common")])
def test_adapters_with_splits_of_their_own_do_not_stand_side_by_side(
    adapter: Adapter, dataset: Dataset, make_adapter: MakeAdapter, heldout: tuple[int, ...], words: str | None
) -> None:
    make_adapter(dataset, name="adapter_2", trained=[3], heldout=heldout)
    runs = {name: start(adapter_path=name, rows="heldout") for name in ("adapter_1", "adapter_2")}
    warning = scope_warning(runs)
    if words is None:
        assert warning is None
    else:
        assert words in str(warning)
        assert f"adapter_1 3, adapter_2 {len(heldout)}" in str(warning)


def test_a_base_run_on_the_adapters_split_and_any_single_run_are_fine(adapter: Adapter) -> None:
    base = start(split_adapter=adapter.name, rows="heldout")
    tuned = start(adapter_path=adapter.name, rows="heldout")
    assert scope_warning({"base": base, "tuned": tuned}) is None
    assert scope_warning({"base": base}) is None
    assert "base 10, tuned 3" in str(scope_warning({"base": start(), "tuned": tuned}))


def test_the_command_says_so_beside_its_table(
    adapter: Adapter, dataset: Dataset, make_adapter: MakeAdapter, work: Work
) -> None:
    make_adapter(dataset, name="adapter_2", trained=[3], heldout=[8, 9])
    asked = ["--adapter", "adapter_1", "--adapter", "adapter_2", "--rows", "heldout"]
    for name in ("adapter_1", "adapter_2"):
        start(adapter_path=name, rows="heldout", dataset_id=dataset.pk)
    work()
    table, told = io.StringIO(), io.StringIO()
    call_command("evaluate", *asked, "--dataset", str(dataset.pk), "--resume", stdout=table, stderr=told)
    assert "adapter_2" in table.getvalue()
    assert "asked about different rows (adapter_1 3, adapter_2 2; 2 in common)" in told.getvalue()
