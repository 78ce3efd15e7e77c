"""A disk that is full in the middle of each kind of write: a clear error, nothing lost, and it works with room again.

Everything lies on a small tmpfs in a mount namespace of its own (`unshare -rm`). `LEVELS` says at how many amounts of
free space each operation is tried, `FULL_DISK_SEED` which, `OPERATIONS` (comma-separated) which operations. Runs are
of the `fake` backend, which writes rows, checkpoints and adapters by the product's own code; merges are real ones.
"""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.filler import Filler

LEVELS = int(os.environ.get("LEVELS", "12"))
ONLY = [name for name in os.environ.get("OPERATIONS", "").split(",") if name]
SEED = int(os.environ.get("FULL_DISK_SEED", "20261122"))
TMPFS_MB = 192
MOST_FREE = 1_500_000
INSIDE = "QWEN3VL_BENCH_INSIDE"


def main() -> None:
    """Runs the trials in a namespace where the tmpfs can be mounted."""
    folder = tempfile.mkdtemp(prefix="qwen3vl-full-")
    script = f"mount -t tmpfs -o size={TMPFS_MB}m none {folder} && exec {sys.executable} -m benchmarks.full_disk"
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "ftproject.settings",
        "QWEN3VL_DATA_DIR": f"{folder}/data",
        "QWEN3VL_BACKEND": "fake",
        "QWEN3VL_LOG_LEVEL": "CRITICAL",
        INSIDE: folder,
    }
    try:
        # unshare lies where each system puts it.
        ended = subprocess.run(["unshare", "-rm", "sh", "-c", script], env=environment, check=False)  # nosec B607
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if ended.returncode:
        sys.exit(f"the trials failed (exit code {ended.returncode}); without user namespaces they cannot run at all")


class DiskTrialError(AssertionError):
    """Something that must never happen was seen."""


@dataclass
class Tally:
    """What the faults of one operation led to."""

    tried: int = 0
    refused: int = 0
    went_well: int = 0
    words: set[str] = field(default_factory=set)


def inside() -> None:
    import django

    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    without_guards()
    trial = Trial(Filler(Path(os.environ[INSIDE])), Random(SEED))
    trial.prepare()
    for name, operation in OPERATIONS.items():
        if ONLY and name not in ONLY:
            continue
        trial.tally[name] = trial.try_operation(name, operation)
    report(trial.tally)


def without_guards() -> None:
    """What refuses in advance is set to nothing: the faults are to come in the middle."""
    from benchmarks import quiet_guards

    quiet_guards.lift()


class Trial:
    """Each operation at many amounts of free space, with a look at everything after each."""

    def __init__(self, filler: Filler, chance: Random) -> None:
        from django.test import Client

        self.filler, self.chance = filler, chance
        self.client = Client(HTTP_HOST="localhost", raise_request_exception=False)
        self.tally: dict[str, Tally] = {}
        self.number = 0
        self.adapter = ""
        self.dataset_id = 0
        self.pictures = 0
        self.left: int | None = None

    def prepare(self) -> None:
        self.dataset_id = self.expect(upload(self))["dataset_id"]
        self.expect(self.post("/api/datasets/mapping", {"prompt_column": "prompt", "response_column": "answer"}))
        self.adapter = self.expect(import_adapter(self))["name"]

    def expect(self, answer: Any) -> dict[str, Any]:
        if answer.status_code >= 300:
            raise DiskTrialError(f"{answer.status_code}: {answer.content!r}")
        body: dict[str, Any] = answer.json()
        return body

    def post(self, path: str, body: Any = None) -> Any:
        return self.client.post(path, data=body or {}, content_type="application/json")

    def try_operation(self, name: str, operation: "Operation") -> Tally:
        tally = Tally()
        for level in range(LEVELS):
            left = self.level(name, level)
            before, self.left = self.inventory(), left
            if name not in JOBS:
                self.fill()
            try:
                said = operation(self)
            finally:
                self.filler.empty()
                self.left = None
            tally.tried += 1
            self.judge(name, left, said, tally)
            self.look(name, left, before)
        self.judge_success(name, operation(self))
        return tally

    def level(self, name: str, number: int) -> int:
        """Nothing at first; then by turns next to nothing, and anywhere in what the operation writes."""
        most = LARGEST.get(name, MOST_FREE)
        if number == 0:
            return 0
        return int(most ** self.chance.random() if number % 2 else most * self.chance.random())

    def fill(self) -> None:
        """Runs call it when they have been started: their work is to meet the full disk, not their start."""
        if self.left is not None:
            self.filler.fill(self.left)

    def judge(self, name: str, left: int, said: "Outcome", tally: Tally) -> None:
        code, good = outcome_of(said)
        tally.words.add(code)
        if good:
            tally.went_well += 1
        elif code == "disk_full":
            tally.refused += 1
        else:
            raise DiskTrialError(f"{name} with {left:,} bytes left: {said!r}, {getattr(said, 'content', '')!r}")

    def judge_success(self, name: str, said: "Outcome") -> None:
        code, good = outcome_of(said)
        if not good:
            raise DiskTrialError(f"{name} with room again: {code}")

    def look(self, name: str, left: int, before: set[str]) -> None:
        from ftproject.system.doctor.examination import examine

        # The disk is small on purpose.
        wrong = [finding.message for finding in examine() if finding.level == "error" and finding.code != "little_disk"]
        lost = before - self.inventory()
        if wrong or lost:
            raise DiskTrialError(f"after {name} with {left:,} bytes left: {wrong}, lost {sorted(lost)[:5]}")

    def inventory(self) -> set[str]:
        """Every row that was saved, by name."""
        from django.apps import apps

        kinds = ("datasets_app", "training_app", "evaluation_app", "sessions_app")
        models = [model for model in apps.get_models() if model._meta.app_label in kinds]
        return {
            f"{model._meta.label} {pk}"
            for model in models
            for pk in model._default_manager.values_list("pk", flat=True)
        }


Outcome = Any
Operation = Callable[[Trial], Outcome]


def outcome_of(said: Outcome) -> tuple[str, bool]:
    """A code, and whether it went well: of a response, or of a job that has ended."""
    if hasattr(said, "status_code"):
        return ("ok", True) if said.status_code < 300 else (said.json().get("code", "?"), False)
    if said is None:
        return "ok", True
    if said.status == "completed":
        return "ok", True
    full = "disk is full" in (said.error or "").lower() or "no space" in (said.error or "").lower()
    return ("disk_full" if full else f"{said.status}: {said.error}"), False


def table_of(number: int, rows: int = 4000) -> bytes:
    lines = ["prompt,answer", *(f"Question {number} of row {row}?,{row * number}" for row in range(rows))]
    return "\n".join(lines).encode()


def send(trial: Trial, path: str, name: str, data: bytes) -> Any:
    from django.core.files.uploadedfile import SimpleUploadedFile

    return trial.client.post(path, {"file": SimpleUploadedFile(name, data)})


def upload(trial: Trial) -> Any:
    trial.number += 1
    return send(trial, "/api/datasets/upload", f"rows{trial.number}.csv", table_of(trial.number))


def import_adapter(trial: Trial) -> Any:
    from tests.training_app.lora_folders import folder_members, lora_tensors, write_adapter_folder, zip_of

    trial.number += 1
    with tempfile.TemporaryDirectory() as folder:
        tensors = lora_tensors(seed=trial.number)
        made = write_adapter_folder(Path(folder) / f"lora{trial.number}", tensors=tensors)
        return send(trial, "/api/training/adapters/import", f"lora{trial.number}.zip", zip_of(folder_members(made)))


def images_archive(trial: Trial) -> Any:
    from PIL import Image

    trial.number += 1
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for index in range(20):
            picture = io.BytesIO()
            noise = Random(trial.number * 100 + index).randbytes(64 * 64 * 3)
            Image.frombytes("RGB", (64, 64), noise).save(picture, "PNG")
            archive.writestr(f"{trial.number}-{index}.png", picture.getvalue())
    return send(trial, f"/api/datasets/{trial.dataset_id}/images", "images.zip", buffer.getvalue())


def create_session(trial: Trial) -> Any:
    trial.number += 1
    return trial.post("/api/sessions/", {"name": f"s{trial.number}", "description": "x" * 20_000})


def download(trial: Trial) -> Any:
    """To a file, as the command does; the error is the system's own words."""
    from django.conf import settings
    from django.core.management import CommandError, call_command

    target = Path(settings.DATA_DIR) / "exports" / "adapter.zip"
    target.parent.mkdir(exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        call_command("adapters", "download", trial.adapter, str(target), stdout=io.StringIO())
    except CommandError as error:
        if target.exists():
            raise DiskTrialError("half an export under its name") from error
        return Ended("error", str(error))
    return None


@dataclass
class Ended:
    status: str
    error: str | None = None


def run_job(trial: Trial, answer: Any, kind: str) -> Any:
    """The job of a start, run to its end in this process on the full disk."""
    from datasets_app.prefetch_runner import execute_prefetch
    from evaluation_app.runner import execute_evaluation
    from ftproject.core.database_faults import is_busy
    from ftproject.core.jobs import job_model
    from ftproject.core.light_lane import run_light_jobs
    from ftproject.core.problem import is_disk_full
    from ftproject.core.tasks import run_next_job
    from tests.training_app.world import SameProcessExecutor
    from training_app.merge_runner import execute_merge
    from training_app.runner import execute_training

    trial.expect(answer)
    trial.fill()
    runners: dict[str, Any] = {"training": execute_training, "evaluation": execute_evaluation, "merge": execute_merge}
    runners["prefetch"] = execute_prefetch
    lane = run_next_job if job_model(kind).NEEDS_GPU else run_light_jobs
    work = partial(lane, SameProcessExecutor(runners[kind]))
    try:
        work()
    except Exception as error:  # its process would end now
        if not (is_disk_full(error) or is_busy(error)):
            raise DiskTrialError(f"the supervisor failed: {error!r}") from error
    job = job_model(kind)._default_manager.order_by("-pk").first()
    return job if job is None or job.is_terminal else settle_later(job, work)


def settle_later(job: Any, work: Callable[[], Any]) -> Any:
    """With room again: what could not be claimed is worked on, a row that could not be ended is ended by the reaper."""
    from ftproject.core import silence
    from ftproject.core.jobs import reap_dead_jobs

    Filler(Path(os.environ[INSIDE])).empty()
    real = silence.clock
    try:
        for look in range(20):
            silence.clock = partial(later, real, 3.0 * look)
            reap_dead_jobs()
            job.refresh_from_db()
            if job.is_terminal:
                return Ended(job.status, f"disk is full: {job.error}")
            if job.status == "queued":
                work()
    finally:
        silence.clock = real
    raise DiskTrialError(f"{job.name} stays {job.status}")


def later(clock: Callable[[], float], seconds: float) -> float:
    return clock() + seconds


def prefetch(trial: Trial) -> Any:
    """Of a dataset whose pictures are not cached yet."""
    from datasets_app.image_cache import image_path
    from ftproject.engine.images import decode_data_uri
    from tests.training_app.world import picture

    for shade in range(120):
        image_path(hashlib.sha256(decode_data_uri(picture(shade))).hexdigest()).unlink(missing_ok=True)
    if not trial.pictures:
        lines = ["prompt,image,answer", *(f'?,"{picture(shade)}",x' for shade in range(120))]
        trial.pictures = trial.expect(send(trial, "/api/datasets/upload", "p.csv", "\n".join(lines).encode()))[
            "dataset_id"
        ]
        body = {"prompt_column": "prompt", "response_column": "answer", "image_url_columns": ["image"]}
        trial.expect(trial.post("/api/datasets/mapping", body | {"dataset_id": trial.pictures}))
    answer = trial.post("/api/datasets/images/prefetch", {"dataset_id": trial.pictures})
    return run_job(trial, answer, "prefetch")


def evaluate(trial: Trial) -> Any:
    body = {"adapter_path": None, "dataset_id": trial.dataset_id, "sample_limit": 600, "reuse_base_predictions": False}
    return run_job(trial, trial.post("/api/evaluation/run", body), "evaluation")


def train(trial: Trial) -> Any:
    body = {"dataset_id": trial.dataset_id, "sft_config": {"max_steps": 40, "save_steps": 2}}
    return run_job(trial, trial.post("/api/training/start", body), "training")


def merge(trial: Trial) -> Any:
    trial.number += 1
    body = {"model_name": f"merged{trial.number}"}
    said = run_job(trial, trial.post(f"/api/training/adapters/{trial.adapter}/merge", body), "merge")
    from ftproject.core.storage import models_dir

    shutil.rmtree(models_dir() / body["model_name"], ignore_errors=True)
    from training_app.models import AdapterMerge

    AdapterMerge.objects.filter(model_name=body["model_name"]).delete()
    return said


OPERATIONS: dict[str, Operation] = {
    "upload": upload,
    "archive of images": images_archive,
    "import of an adapter": import_adapter,
    "session": create_session,
    "export to a file": download,
    "prefetch": prefetch,
    "training": train,
    "evaluation": evaluate,
    "merge": merge,
}
# The largest writes about so much; more room than it wants is no fault.
LARGEST = {"merge": 12_000_000, "training": 6_000_000}
JOBS = {"prefetch", "training", "evaluation", "merge"}


def report(tallies: dict[str, Tally]) -> None:
    from benchmarks.instance import print_table

    rows = [
        (
            name,
            f"{tally.tried} faults: {tally.refused} refused with disk_full, {tally.went_well} had room",
            "nothing else",
        )
        for name, tally in tallies.items()
    ]
    total = sum(tally.tried for tally in tallies.values())
    rows.append(("all", f"{total} faults; rows lost 0, errors of doctor 0", "0 / 0"))
    print_table(f"a disk that is full in the middle (seed {SEED})", rows)


if __name__ == "__main__":
    inside()
