"""`manage.py build_tiny_model`: builds the bundled tiny Qwen3-VL again from nothing."""

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.console import Console

from ftproject.system.demo import progress_bars


class Command(BaseCommand):
    help = "Builds the tiny Qwen3-VL (tokenizer, config, pre-training on drawn pictures) into a folder."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("output", type=Path, help="folder to write; must not exist")
        parser.add_argument("--steps", type=int, default=1500)
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")

    def handle(self, *args: Any, **options: Any) -> None:
        from ftproject.engine.tiny.builder import build_tiny_model

        if options["output"].exists():
            raise CommandError(f"{options['output']} exists already: choose a new folder.")
        if options["steps"] < 1:
            raise CommandError("--steps must be at least 1.")
        console = Console()
        with progress_bars(console) as bars:
            bar = bars.add_task("pre-training", total=options["steps"])

            def show(step: int, total: int, loss: float) -> None:
                bars.update(bar, completed=step, total=total, description=f"pre-training, loss {loss:.3f}")

            report = build_tiny_model(
                options["output"],
                steps=options["steps"],
                seed=options["seed"],
                threads=options["threads"],
                on_progress=show,
            )
        console.print(report)
