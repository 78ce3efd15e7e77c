"""Entry of an ingestion child: `python -m datasets_app.ingestion.child <order> <parent>` prints what became of it."""

import json
import os
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets_app.ingestion.ingest import ingest_file
from datasets_app.ingestion.refusals import too_large
from datasets_app.ingestion.survey import survey_of
from ftproject.core.errors import ProductError
from ftproject.engine.parent import die_with_parent

# A million ordinary rows take 80 MB beside the libraries; what asks for this much was made to.
MAX_MEMORY = 3 * 1024**3
# The server that waits for it answers others meanwhile.
NICENESS = 5


def main(order: str, parent: str) -> None:
    die_with_parent(int(parent))
    # Before the limit: memory that runs out within an import is an ImportError.
    import pyarrow.csv
    import pyarrow.parquet  # noqa: F401

    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY, MAX_MEMORY))
    os.nice(NICENESS)
    sys.stdout.write(json.dumps(answer(json.loads(order))))


def answer(order: dict[str, Any]) -> dict[str, Any]:
    """`{"facts": ...}`, `{"refusal": ...}` for what is wrong with the file, or `{"errno": n}` of a failing disk."""
    source = Path(order["source"])
    try:
        survey = survey_of(source, order["survey"])
        return {"facts": asdict(ingest_file(source, survey, order["filename"], Path(order["target"])))}
    except ProductError as exc:
        return {"refusal": refusal(exc)}
    except MemoryError:
        return {
            "refusal": refusal(too_large(f"Reading the file takes more than {MAX_MEMORY // 1024**3} GB of memory."))
        }
    except OSError as exc:
        if exc.errno is None:
            raise
        return {"errno": exc.errno}


def refusal(error: ProductError) -> dict[str, Any]:
    return {
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "hint": error.hint,
        "errors": [asdict(problem) for problem in error.errors],
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
