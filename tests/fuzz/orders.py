"""A model of everything that users and the queue can do in any order, with what must hold after each step."""

import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

from django.conf import settings
from django.core.management import call_command
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from datasets_app.models import Dataset
from evaluation_app.models import EvaluationRun
from ftproject.core.errors import ProductError
from ftproject.core.jobs import Job, active_jobs, claim_job, end_dead_job, job_models, queued_jobs
from ftproject.core.lease import acquire_lease, beat_lease, lease_holder, release_lease, want_lease
from ftproject.core.run_context import describe_failure
from ftproject.worker import load
from inference_app.model_server import model_server
from tests.fuzz.world import IN_THIS_PROCESS, closed_world, stub_model_server
from tests.training_app.world import After, Api, load_dataset, numbered_rows
from training_app.models import Adapter, TrainingRun

# Small, since ids begin at 1 in each history; the last is more than any history reaches.
numbers = st.sampled_from([1, 1, 1, 2, 2, 3, 4, 99])
optional_numbers = st.sampled_from([None, None, None, 1, 1, 2, 99])
STEPS: dict[str, Any] = {"sft_config": {"max_steps": 4, "save_steps": 2}}
ACTIVE, TERMINAL = set(map(str, Job.ACTIVE)), set(map(str, Job.TERMINAL))


def reachable(kind: str, before: str) -> set[str]:
    """The statuses that a job of this kind may have some steps after `before`, by the diagram of Job."""
    if before == "completed":
        return {"completed"}
    if before == "error":
        return {"error", "queued"} if kind == "evaluation" else {"error"}
    if before == "stopping":
        return {"stopping", *TERMINAL}
    return {"queued", *ACTIVE, *TERMINAL} if before == "queued" else {*ACTIVE, *TERMINAL}


class Orders(RuleBasedStateMachine):
    """One server, one queue worker that takes its time, and users who know no order."""

    done: ClassVar[Counter[str]] = Counter()
    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.held = ExitStack()
        folder = Path(self.held.enter_context(tempfile.TemporaryDirectory(prefix="qwen3vl-orders-")))
        self.held.enter_context(mock.patch.object(settings, "DATA_DIR", folder))
        self.held.enter_context(mock.patch.object(settings, "BACKEND", "fake"))
        self.held.enter_context(stub_model_server(folder))
        self.held.enter_context(closed_world())
        self.folder, self.api = folder, Api()
        self.token: str | None = None
        self.seen: dict[str, str] = {}
        self.made: dict[str, int] = {"training": 0, "evaluation": 0}
        self.deleted: dict[str, int] = {"training": 0, "evaluation": 0}

    def teardown(self) -> None:
        model_server.close()
        call_command("flush", verbosity=0, interactive=False, inhibit_post_migrate=True)
        self.held.close()

    def call(self, method: str, path: str, *arguments: Any) -> Any:
        """An answer that is never a server error, and whose error is a problem."""
        answer = getattr(self.api, method)(path, *arguments)
        self.done[f"{method} {path.split('/')[2]} {answer.status_code}"] += 1
        body = answer.json()
        assert answer.status_code < 500, (method, path, arguments, body)
        assert answer.status_code < 400 or {"code", "hint", "detail"} <= set(body), body
        return answer

    def start(self, kind: str, path: str, body: dict[str, Any] | None = None) -> None:
        answer = self.call("post", path, body)
        if answer.status_code in (200, 202):
            self.made[kind] += 1
            assert answer.json()["status"] in {"started", "queued"}

    @initialize()
    def upload(self) -> None:
        load_dataset(self.folder, numbered_rows(6))
        self.train(None)
        self.evaluate(None, None)

    # Users

    @rule(name=st.sampled_from(["rows.csv", "more.csv"]))
    def upload_another(self, name: str) -> None:
        if Dataset.objects.count() < 4:
            load_dataset(self.folder, numbered_rows(4), name=name)

    @rule(dataset=optional_numbers)
    def train(self, dataset: int | None) -> None:
        self.start("training", "/api/training/start", {**STEPS, "dataset_id": dataset})

    @rule(adapter=optional_numbers, dataset=optional_numbers)
    def evaluate(self, adapter: int | None, dataset: int | None) -> None:
        body = {"adapter_path": adapter and str(adapter), "dataset_id": dataset, "sample_limit": 3}
        self.start("evaluation", "/api/evaluation/run", body)

    @rule(kind=st.sampled_from(["training", "evaluation"]), run=numbers)
    def resume(self, kind: str, run: int) -> None:
        answer = self.call("post", f"/api/{kind}/runs/{run}/resume")
        # A training goes on as a new run, an evaluation as itself.
        self.made[kind] += kind == "training" and answer.status_code in (200, 202)

    @rule(kind=st.sampled_from(["training", "evaluation"]), run=optional_numbers)
    def stop(self, kind: str, run: int | None) -> None:
        self.call("post", f"/api/{kind}/stop" if run is None else f"/api/{kind}/runs/{run}/stop")

    @rule(kind=st.sampled_from(["training", "evaluation"]), run=numbers)
    def delete_run(self, kind: str, run: int) -> None:
        self.deleted[kind] += self.call("delete", f"/api/{kind}/runs/{run}").status_code == 200

    @rule(dataset=numbers)
    def delete_dataset(self, dataset: int) -> None:
        self.call("delete", f"/api/datasets/{dataset}")

    @rule(adapter=numbers)
    def delete_adapter(self, adapter: int) -> None:
        self.call("delete", f"/api/training/adapters/{adapter}")

    @rule(baseline=numbers, candidate=numbers)
    def compare(self, baseline: int, candidate: int) -> None:
        self.call("post", "/api/evaluation/compare", {"baseline_run_id": baseline, "candidate_run_id": candidate})

    @rule(adapter=optional_numbers)
    def infer(self, adapter: int | None) -> None:
        answer = self.call("post", "/api/inference/generate", {"prompt": "a", "adapter_path": adapter})
        assert answer.status_code != 200 or not active_jobs()

    @rule()
    def unload(self) -> None:
        assert self.call("post", "/api/system/unload-model").json()["status"] == "unloaded"

    @rule(kind=st.sampled_from(["training", "evaluation"]), run=numbers)
    def look(self, kind: str, run: int) -> None:
        tails = {
            "training": ("", "/metrics", "/events", "/log", "/diff?against=1"),
            "evaluation": ("", "/samples"),
        }
        for tail in tails[kind]:
            self.call("get", f"/api/{kind}/runs/{run}{tail}")

    # The queue

    @rule(looks=st.integers(1, 2))
    def take(self, looks: int) -> None:
        """A worker looks for work, and another that was told of the same."""
        for _ in range(looks):
            self.claim_next()

    @rule()
    def run_next(self) -> None:
        self.claim_next()
        if active_jobs():
            self.work(10**6)

    def claim_next(self) -> None:
        """The device first, then the row."""
        waiting = queued_jobs()
        token = acquire_lease(waiting[0].name) if waiting else None
        if token is None:
            want_lease(waiting[0].name if waiting else "")
        elif claim_job(waiting[0]):
            self.token = token
        else:
            release_lease(token)

    @rule()
    def tend(self) -> None:
        """The housekeeper's turn: the model server makes way for who waits."""
        model_server.tend()

    @precondition(lambda self: bool(active_jobs()))
    @rule(questions=st.integers(0, 12) | st.just(10**6))
    def work(self, questions: int) -> None:
        """The run process does its run to the end, or until it is asked to stop."""
        job, patience = active_jobs()[0], After(questions)

        def should_stop() -> bool:
            job.refresh_from_db(fields=["status"])
            return job.status == Job.Status.STOPPING or patience()

        try:
            load(IN_THIS_PROCESS[job.KIND])(job, should_stop)
        except ProductError as exc:
            job.finish(Job.Status.ERROR, error=describe_failure(exc))
        self.leave_device()
        self.done[f"{job.KIND} worked"] += 1

    @precondition(lambda self: bool(active_jobs()))
    @rule()
    def die(self) -> None:
        """The run process is killed, and the reaper comes by."""
        job = active_jobs()[0]
        assert end_dead_job(job, "killed")
        self.token = None
        self.done[f"{job.KIND} killed"] += 1

    def leave_device(self) -> None:
        if self.token:
            release_lease(self.token)
        self.token = None

    def show_signs_of_life(self, active: list[Job]) -> None:
        """What the supervisor and the housekeeper do every two seconds: a step may take longer on a busy machine."""
        if self.token and active:
            beat_lease(self.token)
            active[0].beat()
        if model_server.token:
            model_server.beat(model_server.token)

    # What always holds

    @invariant()
    def one_job_has_the_device(self) -> None:
        Orders.steps += 1
        active = active_jobs()
        self.show_signs_of_life(active)
        assert len(active) <= 1
        if active:
            assert lease_holder() == active[0].name
            assert model_server.child is None

    @invariant()
    def statuses_move_as_documented(self) -> None:
        now = {job.name: str(job.status) for model in job_models() for job in model._default_manager.all()}
        for name, status in now.items():
            before = self.seen.get(name)
            assert before is None or status in reachable(name.split(":")[0], before), (name, before, status)
        self.seen = now

    @invariant()
    def every_listed_adapter_is_on_disk(self) -> None:
        listed = self.call("get", "/api/training/adapters").json()["adapters"]
        assert len(listed) == Adapter.objects.count()
        for adapter in listed:
            assert (Path(adapter["path"]) / "adapter_model.safetensors").is_file(), adapter

    @invariant()
    def counts_agree(self) -> None:
        for kind, model in (("training", TrainingRun), ("evaluation", EvaluationRun)):
            query = {} if kind == "training" else {"status": "all"}
            listed = self.api.get(f"/api/{kind}/runs", page_size=100, **query).json()["runs"]
            assert len(listed) == model._default_manager.count() == self.made[kind] - self.deleted[kind], kind
        for run in EvaluationRun.objects.filter(status="completed"):
            assert run.samples.count() == run.num_samples

    @invariant()
    def the_queue_is_numbered_from_one(self) -> None:
        waiting = [job for job in queued_jobs() if isinstance(job, TrainingRun | EvaluationRun)]
        places = [
            self.api.get(f"/api/{job.KIND}/runs/{job.pk}").json()["queue_position"]
            for job in waiting
            if isinstance(job, TrainingRun)
        ]
        assert places == [index + 1 for index, job in enumerate(waiting) if isinstance(job, TrainingRun)]

    @invariant()
    def the_status_route_knows_a_run_if_there_is_one(self) -> None:
        status = self.call("get", "/api/training/status").json()["status"]
        assert (status == "idle") == (not TrainingRun.objects.exists())
