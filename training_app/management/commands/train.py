"""`manage.py train`: one training run through the API's own services, with a progress bar and a truthful exit code."""

import json
import sys
from argparse import ArgumentParser, BooleanOptionalAction
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from rich.console import Console

from ftproject.core.errors import ProductError
from ftproject.core.jobs import Job
from ftproject.core.waiting import JobKindView, JobsWait
from ftproject.engine.configs import LoraSettings, ModelConfig, SftSettings, TrainingOptions
from ftproject.engine.fields import field_type
from training_app.checkpoints import resumability
from training_app.continuation import origin_of
from training_app.models import TrainingRun
from training_app.resume import resume_training
from training_app.selectors import adapter_of, get_run, run_progress
from training_app.services import StartedRun, start_training, stop_training

SECTIONS: tuple[tuple[str | None, type], ...] = (
    ("model_config_data", ModelConfig),
    ("sft_config", SftSettings),
    ("lora_config", LoraSettings),
    (None, TrainingOptions),
)
FAILED = 1


class Command(BaseCommand):
    help = "Trains one adapter and waits for it; the exit code is 0 only when the adapter is there."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dataset", type=int, metavar="ID", help="dataset to train on (default: the current one)")
        parser.add_argument("--resume", type=int, metavar="RUN", help="go on with a run that was stopped or died")
        parser.add_argument("--config", type=Path, metavar="FILE.json", help="the body of POST /api/training/start")
        seen: set[str] = set()
        for section, cls in SECTIONS:
            group = parser.add_argument_group(section or "rows")
            for item in fields(cls):
                if item.name not in seen:
                    seen.add(item.name)
                    add_setting(group, cls, item)

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            started = begin(body_of(options), resumed=options["resume"])
        except ProductError as error:
            raise CommandError(describe(error)) from error
        for warning in started.run.warnings:
            self.stderr.write(f"Note: {warning}")
        self.stdout.write(f"Run {started.run.pk}: {started.run.model_name} on {started.run.device}")
        if origin := origin_of(started.run):
            self.stdout.write(origin)
        JobsWait({"train": started.run}, TRAINING_VIEW, Console(stderr=True)).until_ended()
        self.conclude(started.run)

    def conclude(self, run: TrainingRun) -> None:
        if resumability(run).checkpoint is not None:
            self.stderr.write(f"Go on with it: manage.py train --resume {run.pk}")
        adapter = adapter_of(run)
        if run.status != Job.Status.COMPLETED or adapter is None:
            self.stderr.write(self.style.ERROR(f"Run {run.pk} failed: {run.error or 'it left no adapter'}"))
            sys.exit(FAILED)
        early = " (stopped early)" if run.stopped_early else ""
        loss = "" if run.loss is None else f", loss {run.loss:.4g}"
        self.stdout.write(f"{run.current_step} of {run.total_steps} steps{early}{loss}")
        self.stdout.write(str(adapter.path))


def begin(body: dict[str, Any], *, resumed: int | None) -> StartedRun:
    if resumed is None:
        return start_training(body=body)
    if body:
        raise CommandError(f"--resume takes everything from run {resumed}; leave out {', '.join(sorted(body))}.")
    return resume_training(run=get_run(run_id=resumed))


def add_setting(group: Any, cls: type, item: Field[Any]) -> None:
    """One flag per setting of the engine; names, ranges and help stay there."""
    plain, _ = field_type(cls, item.name)
    flag = f"--{item.name.replace('_', '-')}"
    text = item.metadata["help"].replace("%", "%%")
    if plain is bool:
        group.add_argument(flag, dest=item.name, action=BooleanOptionalAction, default=None, help=text)
    else:
        choices = item.metadata["choices"]
        group.add_argument(flag, dest=item.name, type=plain, choices=choices, default=None, help=text)


def body_of(options: dict[str, Any]) -> dict[str, Any]:
    """The start body: the file's, with the flags over it."""
    body = read_config_file(options["config"]) if options["config"] else {}
    if options["dataset"] is not None:
        body["dataset_id"] = options["dataset"]
    seen: set[str] = set()
    for section, cls in SECTIONS:
        names = [item.name for item in fields(cls) if item.name not in seen]
        seen.update(names)
        given = {name: options[name] for name in names if options.get(name) is not None}
        if section is None:
            body |= given
        elif given and isinstance(body.setdefault(section, {}), dict):  # anything else the service refuses by name
            body[section] = body[section] | given
    return body


def read_config_file(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise CommandError(f"{path} cannot be read: {error}") from error
    if not isinstance(body, dict):
        raise CommandError(f"{path} must hold a JSON object, like the body of POST /api/training/start.")
    return body


def describe(error: ProductError) -> str:
    lines = [error.detail, *(f"  {item.field or item.row}: {item.message}" for item in error.errors), error.hint]
    return "\n".join(line for line in lines if line)


def bar_state(run: TrainingRun) -> dict[str, Any]:
    facts = run_progress(run)
    loss = "" if run.loss is None else f"  loss {run.loss:.4g}"
    place = f" (place {facts['queue_position']})" if facts["queue_position"] else ""
    return {"description": f"{run.status}{place}{loss}", "completed": run.current_step, "total": run.total_steps}


TRAINING_VIEW = JobKindView(
    bar=bar_state,
    stop=lambda run: stop_training(run=run),
    stop_notice="Stopping after this step; Ctrl+C again leaves without the adapter.",
)
