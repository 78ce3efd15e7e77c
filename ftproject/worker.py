"""Entry of a run process: `python -m ftproject.worker <kind> <run id> <claim>` does one run and exits."""

import argparse
import ctypes
import logging
import os
import signal
import sys
import threading
from importlib import import_module

RUNNERS = {
    "training": "training_app.runner:execute_training",
    "evaluation": "evaluation_app.runner:execute_evaluation",
}
PR_SET_PDEATHSIG = 1


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


def die_with_parent(parent: int | None) -> None:
    """Two ways: PDEATHSIG is Linux only, the end of stdin needs a thread that gets its turn."""
    if parent is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before prctl
        os._exit(3)
    threading.Thread(target=exit_at_end_of_stdin, name="parent-watch", daemon=True).start()


def exit_at_end_of_stdin() -> None:
    while os.read(0, 4096):
        pass
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main())
