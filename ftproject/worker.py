"""Entry of a run process: `python -m ftproject.worker <kind> <run id> <claim>` does that run, and what may follow."""

import argparse
import logging
import os
import signal
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ftproject.engine.parent import die_with_parent

if TYPE_CHECKING:
    from ftproject.core.jobs import Job

RUNNERS = {
    "training": "training_app.runner:execute_in_own_process",
    "merge": "training_app.merge_runner:execute_merge",
    "evaluation": "evaluation_app.runner:execute_evaluation",
    "preflight": "datasets_app.preflight_runner:execute_preflight",
    "prefetch": "datasets_app.prefetch_runner:execute_prefetch",
}

# Kinds whose process goes on with the next waiting job when that can use what is loaded.
GOES_ON = {
    "evaluation": "evaluation_app.runner:shares_base",
}


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    die_with_parent(arguments.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is the server's to handle: it sets the stop flag
    import django

    django.setup()
    from ftproject.core.run_context import Succession, execute

    logging.getLogger(__name__).info("%s run %s starts", arguments.kind, arguments.run_id)
    fits = GOES_ON.get(arguments.kind)
    succession = Succession(load(fits), enter_run, arguments.last) if fits else None
    return execute(load(RUNNERS[arguments.kind]), arguments.kind, arguments.run_id, arguments.claim, succession)


def load(place: str) -> Any:
    module, _, function = place.partition(":")
    return getattr(import_module(module), function)


def enter_run(job: "Job") -> None:
    """Makes this process the next run's: what it prints goes to that run's log, what it writes to that run's folder."""
    from ftproject.core.storage import log_path, run_dir

    sys.stdout.flush()
    sys.stderr.flush()
    with log_path(job.KIND, job.pk).open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.chdir(run_dir(job.KIND, job.pk))
    logging.getLogger(__name__).info("%s run %s starts in the process of an earlier run", job.KIND, job.pk)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ftproject.worker")
    parser.add_argument("kind", choices=sorted(RUNNERS))
    parser.add_argument("run_id", type=int)
    parser.add_argument("claim")
    parser.add_argument("--parent", type=int, help="pid whose death ends this process")
    parser.add_argument("--last", default="", help="kind:id of a run after whose end no other is taken up")
    return parser.parse_args(argv)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    # Taking torch apart politely took 2 s in which the device stayed leased; the row is written, nothing is left to do.
    os._exit(code)
