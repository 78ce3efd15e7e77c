"""Starts the ingestion of a long or binary file in a child process, so that its memory and its crashes end there."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from datasets_app.ingestion.ingest import TableFacts, ingest_file
from datasets_app.ingestion.refusals import refuse
from datasets_app.ingestion.survey import Survey
from ftproject.core.errors import InvalidInputError, Problem, ProductError, TooLargeError, UnsupportedFormatError
from ftproject.core.executor import run_environment

# A child costs 0.3 s; what a text of this size takes in memory is less than a request may.
IN_PROCESS_BYTES = 2 * 1024 * 1024
# Each child may take child.MAX_MEMORY; more at once would not be faster either.
_TURNS = threading.BoundedSemaphore(2)
_REFUSALS = {kind.status: kind for kind in (InvalidInputError, TooLargeError, UnsupportedFormatError)}


def ingest_apart(path: Path, survey: Survey, filename: str, target: Path) -> TableFacts:
    """ingest_file, for a long file or a Parquet file (any size may hide in one) in a process of its own.

    In the web process a million rows left 200 MB behind and other requests waited 120 ms (measured).
    """
    if not survey.is_parquet and survey.size_bytes <= IN_PROCESS_BYTES:
        return ingest_file(path, survey, filename, target)
    order = {"source": str(path.resolve()), "filename": filename, "target": str(target), "survey": survey.facts()}
    with _TURNS:
        answer = _answer_of_child(order)
    if "errno" in answer:
        raise OSError(answer["errno"], os.strerror(answer["errno"]))
    if "refusal" in answer:
        raise _refusal(**answer["refusal"])
    return TableFacts(**answer["facts"])


def _answer_of_child(order: dict[str, Any]) -> dict[str, Any]:
    with subprocess.Popen(
        [sys.executable, "-m", "datasets_app.ingestion.child", json.dumps(order), str(os.getpid())],
        stdin=subprocess.PIPE,  # held open: its end tells the child that we are gone
        stdout=subprocess.PIPE,
        env=run_environment(os.environ),
        start_new_session=True,  # Ctrl+C is the server's, which lets requests end
    ) as process:
        printed = process.stdout.read() if process.stdout else b""
        code = process.wait()
    if code < 0:
        hint = "Write it again with another program, or as CSV."
        raise refuse("unreadable_file", f"The file made its reader crash (signal {-code}).", hint=hint)
    if code:
        raise RuntimeError(f"the ingestion child ended with {code}; its traceback stands above in the log")
    answer: dict[str, Any] = json.loads(printed)
    return answer


def _refusal(*, status: int, errors: list[dict[str, Any]], **fields: Any) -> ProductError:
    return _REFUSALS[status](**fields, errors=[Problem(**problem) for problem in errors])
