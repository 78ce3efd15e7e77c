"""The comparison as one page that needs nothing else: no script, no request, users' texts as text, images inside."""

import base64
import hashlib
from collections.abc import Iterator
from functools import cache
from typing import Any

from django.template.loader import get_template, render_to_string

from evaluation_app.comparison.pairing import BOTH_RIGHT, BOTH_WRONG, BROKEN, FIXED, TRANSITIONS
from evaluation_app.comparison.pictures import Pictures, PictureStore
from evaluation_app.comparison.plot import interval_plot
from evaluation_app.comparison.report import Comparison, Report, report_of
from evaluation_app.comparison.rows import read_pairs
from evaluation_app.models import Sample

TEMPLATE, ROWS_TEMPLATE, STYLE = (
    "evaluation/comparison.html",
    "evaluation/comparison_rows.html",
    "evaluation/comparison.css",
)
END_OF_HEAD = "<!-- rows -->"
LONGEST_TEXT = 2000
BATCH = 25
# Rows of these are shown even where fixed and broken ones alone would fill the page.
KEPT_FOR_THE_REST = 0.1
TITLES = {
    FIXED: "Fixed",
    BROKEN: "Broken",
    BOTH_WRONG: "Wrong in both",
    BOTH_RIGHT: "Right in both",
}


def page_headers() -> dict[str, str]:
    """The page's own policy once more as a header, and what a page cannot say of itself."""
    return {"Content-Security-Policy": f"{policy()}; frame-ancestors 'none'; sandbox"}


@cache
def style() -> str:
    return str(get_template(STYLE).template.source)  # type: ignore[attr-defined]


@cache
def policy() -> str:
    """Nothing may be loaded or run; one style sheet by its hash, and images that stand in the page."""
    digest = base64.b64encode(hashlib.sha256(style().encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def page_chunks(comparison: Comparison, *, transition: str | None = None, max_rows: int) -> Iterator[str]:
    """The page in pieces: images are read while the first rows are on their way."""
    report = report_of(comparison)
    chosen = chosen_places(comparison, transition, max_rows)
    head, tail = render_to_string(TEMPLATE, context_of(comparison, report, chosen)).split(END_OF_HEAD)
    yield head
    run = comparison.paired.candidate
    store = PictureStore(run.dataset, run.mapping)
    places = [place for name in (FIXED, BROKEN, BOTH_WRONG, BOTH_RIGHT) for place in chosen[name]]
    for start in range(0, len(places), BATCH):
        rows = list(read_pairs(comparison.paired, comparison.paired.judged, places[start : start + BATCH]))
        pictures = store.of_rows([row["index"] for row in rows])
        yield render_to_string(ROWS_TEMPLATE, {"rows": [shown_row(row, pictures[row["index"]]) for row in rows]})
    yield tail


def chosen_places(comparison: Comparison, transition: str | None, max_rows: int) -> dict[str, list[int]]:
    """Which of the judged rows are shown, by transition."""
    judged = comparison.paired.judged
    wanted = TRANSITIONS if transition is None else (transition,)
    places = {name: judged.where(name).nonzero()[0].tolist() if name in wanted else [] for name in TRANSITIONS}
    shares = shares_of({name: len(found) for name, found in places.items()}, max_rows)
    return {name: found[: shares[name]] for name, found in places.items()}


def shares_of(counts: dict[str, int], limit: int) -> dict[str, int]:
    """How many rows of each transition fit: fixed and broken first and alike, a tenth of the page for each other one.

    >>> shares_of({"fixed": 300, "broken": 10, "both_wrong": 50, "both_right": 2}, 100)
    {'fixed': 78, 'broken': 10, 'both_wrong': 10, 'both_right': 2}
    """
    kept = int(limit * KEPT_FOR_THE_REST)
    shares = {BOTH_WRONG: min(counts[BOTH_WRONG], kept), BOTH_RIGHT: min(counts[BOTH_RIGHT], kept)}
    left = limit - sum(shares.values())
    shares[FIXED] = min(counts[FIXED], max(left - counts[BROKEN], (left + 1) // 2))
    shares[BROKEN] = min(counts[BROKEN], left - shares[FIXED])
    for name in (BOTH_WRONG, BOTH_RIGHT):
        shares[name] = min(counts[name], shares[name] + limit - sum(shares.values()))
    return {name: shares[name] for name in counts}


def context_of(comparison: Comparison, report: Report, chosen: dict[str, list[int]]) -> dict[str, Any]:
    counts = report["transitions"]
    shown = {name: len(found) for name, found in chosen.items()}
    return {
        "report": report,
        "style": style(),
        "policy": policy(),
        "dataset": comparison.paired.baseline.dataset.filename,
        "filters": [
            {"name": name, "title": TITLES[name], "count": counts[name], "shown": shown[name]} for name in TITLES
        ],
        "num_shown": sum(shown.values()),
        "left_out": report["num_rows"] - sum(shown.values()),
        "differences": interval_plot(report["differences"]),
        "level": f"{100 * report['confidence_level']:g}",
        "test": "exact McNemar test" if report["test"] == "mcnemar_exact" else "sign-flip test",
        "p_value": f"{report['p_value']:.2g}",
    }


def shown_row(row: dict[str, Any], pictures: Pictures) -> dict[str, Any]:
    return {
        "index": row["index"],
        "transition": row["transition"],
        "title": TITLES[row["transition"]],
        "seen": row["seen_in_training"],
        "pictures": pictures.uris,
        "reason": pictures.reason,
        "prompt": shortened(row["prompt"]),
        "ground_truth": shortened(row["ground_truth"]),
        "answers": [shown_answer(side, row[side]) for side in ("baseline", "candidate")],
    }


def shown_answer(side: str, sample: Sample) -> dict[str, Any]:
    scores = {"token_f1": sample.token_f1, **sample.scores}
    return {
        "side": side,
        "text": shortened(sample.prediction),
        "label": sample.label,
        "exact_match": sample.exact_match,
        "scores": {name: "-" if value is None else f"{value:.3g}" for name, value in scores.items()},
    }


def shortened(text: str) -> str:
    if len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT]}\N{HORIZONTAL ELLIPSIS} ({len(text) - LONGEST_TEXT:,} more characters)"
