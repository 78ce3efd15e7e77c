"""The options of a command line that say how a run is scored, for the commands that start evaluations."""

import json
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Mapping
from typing import Any

from ftproject.engine.metrics import METRICS


def add_scoring_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--metric",
        action="append",
        type=metric_entry,
        default=[],
        metavar="NAME",
        help=f"a further metric ({', '.join(METRICS)}), or JSON with its parameters: "
        '\'{"name": "numeric", "tolerance": 0.01}\'; repeatable',
    )
    parser.add_argument("--casefold", action="store_true", help="compare without regard to case")
    parser.add_argument("--strip-punctuation", action="store_true", help="compare without punctuation around words")
    parser.add_argument("--extract", metavar="PATTERN", help="RE2 pattern of the answer inside the text")
    parser.add_argument(
        "--confidence", action="store_true", help="with --classification: the probability of every label"
    )


def metric_entry(text: str) -> Any:
    """A name, or what a JSON object says; names and ranges are checked where the API checks them."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ArgumentTypeError(f"is no JSON: {error}") from error


def scoring_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an EvaluationRequest that these options give."""
    return {
        "metrics": options["metric"],
        "normalization": {name: options[name] for name in ("casefold", "strip_punctuation", "extract")},
        "confidence": options["confidence"],
    }
