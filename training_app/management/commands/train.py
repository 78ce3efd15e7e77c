"""`manage.py train`: one training run through the API's own services, with a progress bar and a truthful exit code."""

import json
import sys
from argparse import ArgumentParser, BooleanOptionalAction
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, NoReturn

from django.core.management.base import CommandError
from django.core.serializers.json import DjangoJSONEncoder
from rich.console import Console

from datasets_app.preflight.report import summary_of
from datasets_app.preflight.wait import PreflightWait
from datasets_app.preflight_services import preflight_start
from ftproject.core.commands import AuditedCommand
from ftproject.core.config_files import read_config_file
from ftproject.core.errors import ProductError
from ftproject.core.jobs import Job
from ftproject.core.waiting import JobKindView, JobsWait
from ftproject.engine.configs import LoraSettings, ModelConfig, SftSettings, TrainingOptions
from ftproject.engine.fields import field_type
from training_app.checkpoints import resumability
from training_app.configuration import OPTION_NAMES
from training_app.continuation import origin_of
from training_app.models import TrainingRun
from training_app.resume import resume_training
from training_app.selectors import adapter_of, get_run, run_facts, run_progress
from training_app.serializers import describe_plan
from training_app.services import StartedRun, plan_training, start_training, stop_training

SECTIONS: tuple[tuple[str | None, type], ...] = (
    ("model_config_data", ModelConfig),
    ("sft_config", SftSettings),
    ("lora_config", LoraSettings),
    (None, TrainingOptions),
)
FAILED = 1


class Command(AuditedCommand):
    help = "Trains one adapter and waits for it; the exit code is 0 only when the adapter is there."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dataset", type=int, metavar="ID", help="dataset to train on (default: the current one)")
        parser.add_argument("--resume", type=int, metavar="RUN", help="go on with a run that was stopped or died")
        parser.add_argument(
            "--config",
            type=Path,
            metavar="FILE",
            help="JSON or YAML like the body of POST /api/training/start; - reads it",
        )
        parser.add_argument("--dry-run", action="store_true", help="show what would be trained; start nothing")
        parser.add_argument("--output", choices=["text", "json"], default="text", help="what is written to stdout")
        parser.add_argument("--idempotency-key", metavar="KEY", help="the same key with the same body is the same run")
        seen: set[str] = set()
        for section, cls in SECTIONS:
            group = parser.add_argument_group(section or "rows")
            for item in fields(cls):
                if item.name not in seen:
                    seen.add(item.name)
                    add_setting(group, cls, item)

    def handle(self, *args: Any, **options: Any) -> None:
        self.as_json: bool = options["output"] == "json"
        try:
            body = body_of(options)
            if options["dry_run"] or body.get("dry_run") is True:
                return self.report(dry_run(body, resumed=options["resume"]))
            started = begin(body, resumed=options["resume"], key=options["idempotency_key"])
        except ProductError as error:
            self.refuse(error)
        self.follow(started.run)
        return self.conclude(started.run)

    def report(self, facts: dict[str, Any]) -> None:
        """A dry run's findings; exit code 1 when the training could not start, as preflight's own command has it."""
        if not self.as_json:
            self.stdout.write(f"Would train {facts['model_name']} on {facts['device']}; nothing was started.")
        self.write_json(facts)
        if not facts["preflight"]["can_train"]:
            sys.exit(FAILED)

    def refuse(self, error: ProductError) -> NoReturn:
        if not self.as_json:
            raise CommandError(describe(error)) from error
        problems = [problem.as_dict() for problem in error.errors]
        self.write_json(
            {"status": "refused", "code": error.code, "detail": error.detail, "hint": error.hint, "errors": problems}
        )
        sys.exit(FAILED)

    def write_json(self, facts: dict[str, Any]) -> None:
        self.stdout.write(json.dumps(facts, indent=2, ensure_ascii=False, cls=DjangoJSONEncoder))

    def follow(self, run: TrainingRun) -> None:
        for warning in run.warnings:
            self.stderr.write(f"Note: {warning}")
        out = self.stderr if self.as_json else self.stdout
        out.write(f"Run {run.pk}: {run.model_name} on {run.device}")
        if origin := origin_of(run):
            out.write(origin)
        JobsWait({"train": run}, TRAINING_VIEW, Console(stderr=True)).until_ended()

    def conclude(self, run: TrainingRun) -> None:
        if resumability(run).checkpoint is not None:
            self.stderr.write(f"Go on with it: manage.py train --resume {run.pk}")
        adapter = adapter_of(run)
        if self.as_json:
            self.write_json(run_facts(run))
        if run.status != Job.Status.COMPLETED or adapter is None:
            self.stderr.write(self.style.ERROR(f"Run {run.pk} failed: {run.error or 'it left no adapter'}"))
            sys.exit(FAILED)
        if self.as_json:
            return
        early = " (stopped early)" if run.stopped_early else ""
        loss = "" if run.loss is None else f", loss {run.loss:.4g}"
        self.stdout.write(f"{run.current_step} of {run.total_steps} steps{early}{loss}")
        self.stdout.write(str(adapter.path))


def dry_run(body: dict[str, Any], *, resumed: int | None) -> dict[str, Any]:
    """What the start route answers to dry_run, with the whole preflight, however long that takes."""
    if resumed is not None:
        raise CommandError("--resume takes everything from its run: there is nothing to try out.")
    plan = plan_training(body=body)
    asked = {name: value for name, value in body.items() if name not in OPTION_NAMES}
    started = preflight_start(dataset_id=plan.dataset.pk, body=asked)
    PreflightWait(started.run, Console(stderr=True)).until_ended()
    run = started.run
    if run.report is None:
        raise CommandError(f"Preflight {run.pk} made no report: {run.error}")
    return describe_plan(plan) | {"preflight": {"complete": True, "run_id": run.pk, **summary_of(run.report)}}


def begin(body: dict[str, Any], *, resumed: int | None, key: str | None) -> StartedRun:
    if resumed is None:
        return start_training(body=body, idempotency_key=key)
    if body:
        raise CommandError(f"--resume takes everything from run {resumed}; leave out {', '.join(sorted(body))}.")
    return resume_training(run=get_run(run_id=resumed), idempotency_key=key)


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
        elif given:
            beside = {} if body.get(section) is None else body[section]  # `sft_config:` with nothing below is null
            # Anything but an object the service refuses by name.
            body[section] = beside | given if isinstance(beside, dict) else beside
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
