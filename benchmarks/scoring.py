"""What scoring costs: each metric by itself, and the figures of a run of 500,000 samples in bounded memory."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from django.conf import settings
from django.core.management import call_command

from benchmarks.instance import print_table
from ftproject.engine.metrics import METRICS, Normalization, ScoringOptions, parse_scoring_options
from ftproject.engine.metrics.base import Metric, TextPair
from ftproject.engine.metrics.overlap import score_sample

SEED = 20261122
PAIRS = 5_000
SAMPLES = 500_000
WORDS = ("the cat sat on a red mat while", "seven grey birds watched Straße 図書館 quietly")
VOCABULARY = " ".join(WORDS).split()

# Those that kept RE2 longest for a text that they do not match, of all that it takes at this size of program.
PATTERNS = ("((a?){30}){30}b", "(?:a?){900}a{900}b", "((.?)){200}x", "[ab]*a[ab]{900}c", "(a+)+$")
LONG_ANSWER = "a" * 40_000 + "!"
Row = tuple[str, str, str]


def main() -> None:
    random.seed(SEED)
    print_table("Rows scored a second: 5 / 200 words; one number; six JSON fields", list(metric_rows()))
    print_table(f"Figures of a run of {SAMPLES:,} samples", list(summary_rows()))


def pattern_row() -> Row:
    normalizations = [parse_scoring_options(None, {"extract": pattern}).normalization for pattern in PATTERNS]
    seconds = [timed(partial(normalization.answer_in, LONG_ANSWER)) for normalization in normalizations]
    return "slowest pattern over an answer of 40,000 characters", f"{max(seconds):.2f} s", ""


def sentence(words: int) -> str:
    return " ".join(random.choices(VOCABULARY, k=words))


def pairs_of(words: int) -> list[TextPair]:
    return [TextPair(sentence(words), sentence(words)) for _ in range(PAIRS)]


def numbers() -> list[TextPair]:
    return [TextPair(f"about ${n:,}.50", f"{n}.5") for n in range(1000, 1000 + PAIRS)]


def documents() -> list[TextPair]:
    def document(seed: int) -> str:
        return json.dumps({"total": seed % 7, "shop": {"name": sentence(2)}, "items": [{"id": n} for n in range(4)]})

    return [TextPair(document(n), document(n + 1), Normalization().comparable) for n in range(PAIRS)]


def metric_rows() -> Iterator[Row]:
    short, long = pairs_of(5), pairs_of(200)
    yield row(
        "exact match and token scores", lambda pair: score_sample(pair.prediction, pair.ground_truth), short, long
    )
    for name, metric in METRICS.items():
        if name == "numeric":
            yield row(name, scorer(metric()), numbers(), None)
        elif name == "json_fields":
            yield row(name, scorer(metric()), documents(), None)
        else:
            yield row(name, scorer(metric()), short, long)
    yield pattern_row()


def always(pair: TextPair) -> object:
    return score_sample(pair.prediction, pair.ground_truth)


def scorer(metric: Metric) -> Callable[[TextPair], object]:
    return metric.score


def row(name: str, score: Callable[[TextPair], object], short: list[TextPair], long: list[TextPair] | None) -> Row:
    def speed(pairs: list[TextPair]) -> str:
        score(pairs[0])  # imports
        best = min(timed(lambda: [score(pair) for pair in pairs]) for _ in range(3))
        return f"{len(pairs) / best:,.0f}"

    return name, " / ".join(speed(pairs) for pairs in (short, long) if pairs), ""


def timed(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


@contextmanager
def watch_memory() -> Iterator[list[int]]:
    """The resident memory of this process at the start and at the peak, in bytes."""
    process, stop = psutil.Process(), threading.Event()
    seen = [process.memory_info().rss] * 2

    def watch() -> None:
        while not stop.wait(0.02):
            seen[1] = max(seen[1], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        stop.set()
        watcher.join()


def summary_rows() -> Iterator[Row]:
    from sklearn.metrics import precision_recall_fscore_support

    from evaluation_app.scoring import summarise

    assert callable(precision_recall_fscore_support)  # imported before the memory is looked at
    call_command("migrate", verbosity=0)
    run = store_run(parse_scoring_options(["cer", "numeric", "json_fields"]))
    for mode in ("token", "classification"):
        run.eval_mode = mode
        with watch_memory() as memory:
            started = time.process_time(), time.perf_counter()
            figures, _ = summarise(run)
            spent = time.process_time() - started[0], time.perf_counter() - started[1]
        assert figures["num_samples"] == SAMPLES
        grown = (memory[1] - memory[0]) / 2**20
        yield f"{mode} mode", f"{spent[1]:.1f} s ({spent[0]:.1f} cpu s), process grows by {grown:.0f} MB", "50 MB"


def store_run(options: ScoringOptions) -> Any:
    """A run of yes-or-no rows, stored as the runner stores them."""
    from datasets_app.services import dataset_import, mapping_set
    from evaluation_app.models import EvaluationRun, Sample
    from evaluation_app.scoring import SampleWriter
    from ftproject.engine.backends.base import Generation
    from ftproject.engine.conversations import Conversation

    path = Path(settings.DATA_DIR) / "labels.csv"
    path.write_text("prompt,answer\n" + "".join(f"p{n},{'yes' if n % 3 else 'no'}\n" for n in range(SAMPLES)))
    dataset = dataset_import(path=path)
    mapping = mapping_set(dataset=dataset, prompt_column="prompt", response_column="answer", mandatory_columns=[])
    run = EvaluationRun.objects.create(
        dataset=dataset,
        mapping=mapping,
        model_type="base",
        model_name="tiny-qwen3-vl",
        metric_options=options.to_dict(),
        eval_mode="classification",
    )
    writer = SampleWriter(run, ["no", "yes"], set(range(0, SAMPLES, 2)))
    answers = [Generation(text, 90, 3, "stop", 1.0) for text in ("yes", "No.", "I think yes, it is", "perhaps 7")]
    for start in range(0, SAMPLES, 5_000):
        truths = ("yes" if n % 3 else "no" for n in range(start, start + 5_000))
        conversations = (Conversation(start + n, "p", truth, truth) for n, truth in enumerate(truths))
        Sample.objects.bulk_create([writer.answered(item, answers[item.index % 4]) for item in conversations])
    return run
