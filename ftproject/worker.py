"""Entry of a run process: `python -m ftproject.worker <kind> <run id> <claim>` does one run and exits."""

import argparse
import logging
import os
import signal
import sys
from importlib import import_module

from ftproject.engine.parent import die_with_parent

RUNNERS = {
    "training": "training_app.runner:execute_training",
    "evaluation": "evaluation_app.runner:execute_evaluation",
    "preflight": "datasets_app.preflight_runner:execute_preflight",
    "prefetch": "datasets_app.prefetch_runner:execute_prefetch",
}


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    die_with_parent(arguments.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is the server's to handle: it sets the stop flag
    import django

    django.setup()
    from ftproject.core.run_context import execute

    module, function = RUNNERS[arguments.kind].split(":")
    logging.getLogger(__name__).info("%s run %s starts", arguments.kind, arguments.run_id)
    return execute(getattr(import_module(module), function), arguments.kind, arguments.run_id, arguments.claim)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ftproject.worker")
    parser.add_argument("kind", choices=sorted(RUNNERS))
    parser.add_argument("run_id", type=int)
    parser.add_argument("claim")
    parser.add_argument("--parent", type=int, help="pid whose death ends this process")
    return parser.parse_args(argv)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    # Taking torch apart politely took 2 s in which the device stayed leased; the row is written, nothing is left to do.
    os._exit(code)
