"""`python -m benchmarks [name ...]`: runs the benchmarks and prints a table each."""

import os
import sys
import tempfile

BENCHMARKS = [
    "serving",
    "load",
    "events",
    "shutdown",
    "datasets",
    "images",
    "preflight",
    "adapters",
    "merging",
    "adapter_switching",
    "training",
    "kills",
    "full_disk",
    "contention",
    "evaluation",
    "evaluation_memory",
    "evaluation_kills",
    "evaluation_export",
    "scoring",
    "verdicts",
    "comparison",
    "inference",
    "gate_matrix",
    "fuzz",
]


def main() -> None:
    # Before Django reads its settings: a benchmark has a data directory of its own.
    os.environ["QWEN3VL_DATA_DIR"] = tempfile.mkdtemp(prefix="qwen3vl-bench-")
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ftproject.settings")
    import django

    django.setup()
    from importlib import import_module

    for name in sys.argv[1:] or BENCHMARKS:
        if name not in BENCHMARKS:
            sys.exit(f"unknown benchmark {name!r}: choose among {', '.join(BENCHMARKS)}")
        import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
