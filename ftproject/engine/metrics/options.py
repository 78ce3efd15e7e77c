"""What a run is asked to score: the metrics by name with their parameters, and how texts are normalised before."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ftproject.engine.fields import ConfigError, ConfigProblem, section_schema, type_name
from ftproject.engine.metrics.anls import Anls
from ftproject.engine.metrics.base import Metric, TextPair
from ftproject.engine.metrics.chrf import ChrF
from ftproject.engine.metrics.error_rates import CharacterErrorRate, WordErrorRate
from ftproject.engine.metrics.json_fields import JsonFields
from ftproject.engine.metrics.normalization import Normalization, read_normalization
from ftproject.engine.metrics.numeric import NumericMatch
from ftproject.engine.metrics.overlap import SampleScore, score_sample
from ftproject.engine.metrics.rouge import RougeL

METRICS: dict[str, type[Metric]] = {
    metric.name: metric for metric in (CharacterErrorRate, WordErrorRate, ChrF, RougeL, Anls, NumericMatch, JsonFields)
}
# Every run has these; a request may name them, which changes nothing.
ALWAYS_SCORED = ("exact_match", "token_precision", "token_recall", "token_f1")


@dataclass(frozen=True)
class RowScores:
    """All scores of one evaluated row; `extract` is kept in `details` beside the metrics' own."""

    overlap: SampleScore
    values: dict[str, float | None]
    details: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class ScoringOptions:
    """How the rows of one run are scored; the default is what a run without any option does."""

    metrics: tuple[Metric, ...] = ()
    normalization: Normalization = field(default_factory=Normalization)
    confidence: bool = False

    def score(self, prediction: str, ground_truth: str) -> RowScores:
        """Every score of one evaluated row, both texts normalised in the same way.

        >>> options = parse_scoring_options(["cer"], {"casefold": True})
        >>> options.score("A CAT", "a cart").values
        {'cer': 0.16666666666666666}
        >>> options.score("A CAT", "a cat").overlap.exact_match
        True
        """
        comparable = self.normalization.comparable
        predicted, predicted_found = self.normalization.answer_in(prediction)
        true, true_found = self.normalization.answer_in(ground_truth)
        plain = TextPair(comparable(predicted), comparable(true))
        structured = TextPair(predicted, true, comparable)
        scores = {metric.name: metric.score(structured if metric.reads_structure else plain) for metric in self.metrics}
        details = {name: score.details for name, score in scores.items() if score.details}
        if self.normalization.extract is not None:
            details["extract"] = {"prediction": predicted_found, "ground_truth": true_found}
        return RowScores(
            score_sample(plain.prediction, plain.ground_truth), {name: s.value for name, s in scores.items()}, details
        )

    def label_text(self, text: str) -> str:
        """The part of a text that classification reads a label from."""
        return self.normalization.answer_in(text)[0]

    def to_dict(self) -> dict[str, Any]:
        """The options as plain JSON, every parameter named."""
        return {
            "metrics": [{"name": metric.name, **asdict(metric)} for metric in self.metrics],
            "normalization": asdict(self.normalization),
            "confidence": self.confidence,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ScoringOptions:
        """The options that to_dict wrote; `{}`, of a run before there were any, is the default."""
        return parse_scoring_options(
            data.get("metrics"), data.get("normalization"), confidence=bool(data.get("confidence", False))
        )


def parse_scoring_options(
    metrics: Sequence[Any] | None = None, normalization: Mapping[str, Any] | None = None, *, confidence: bool = False
) -> ScoringOptions:
    """The checked options of a request: `["cer", {"name": "numeric", "tolerance": 0.01}]`.

    Raises ConfigError with every problem at once: unknown_metric and unknown_field name the nearest known name.
    """
    options, problems = read_normalization(normalization, "normalization.")
    chosen: dict[str, Metric] = {}
    for number, entry in enumerate(_entries(metrics, problems)):
        metric, found = _read_metric(entry, f"metrics.{number}")
        if metric is not None and metric.name in chosen:
            found = [ConfigProblem(f"metrics.{number}", "duplicate_metric", f"{metric.name} is named twice")]
        problems += found
        if metric is not None:
            chosen[metric.name] = metric
    if problems:
        raise ConfigError(problems, f"Metrics: {', '.join(METRICS)}; docs/api.md has their parameters.")
    return ScoringOptions(tuple(chosen.values()), options, confidence)


def _entries(metrics: Any, problems: list[ConfigProblem]) -> Sequence[Any]:
    if metrics is None:
        return []
    if not isinstance(metrics, list | tuple):
        problems.append(ConfigProblem("metrics", "invalid_type", f"must be a list, not {type_name(metrics)}"))
        return []
    most = len(METRICS) + len(ALWAYS_SCORED)
    if len(metrics) > most:
        problems.append(ConfigProblem("metrics", "too_many", f"must name at most {most} metrics, not {len(metrics)}"))
        return []
    return metrics


def _read_metric(entry: Any, path: str) -> tuple[Metric | None, list[ConfigProblem]]:
    name, parameters = _split_entry(entry)
    if not isinstance(name, str):
        message = f'must be a name or {{"name": ..., parameters}}, not {type_name(entry)}'
        return None, [ConfigProblem(path, "invalid_type", message)]
    if name in ALWAYS_SCORED:
        if parameters:
            return None, [ConfigProblem(path, "invalid_metric", f"{name} takes no parameters")]
        return None, []
    if name not in METRICS:
        return None, [_unknown_metric(name, path)]
    values, problems = METRICS[name].read(parameters, f"{path}.")
    return (None if problems else METRICS[name](**values)), problems


def _split_entry(entry: Any) -> tuple[Any, dict[str, Any]]:
    if isinstance(entry, Mapping):
        return entry.get("name"), {key: value for key, value in entry.items() if key != "name"}
    return entry, {}


def _unknown_metric(name: str, path: str) -> ConfigProblem:
    near = difflib.get_close_matches(name, [*METRICS, *ALWAYS_SCORED], n=1, cutoff=0.4)
    message = f"{name[:100]!r} is not a known metric" + (f"; did you mean {near[0]!r}?" if near else "")
    return ConfigProblem(path, "unknown_metric", message)


def metric_schema() -> dict[str, Any]:
    """The JSON Schema of one entry of `metrics`: a name, or an object with that metric's parameters."""
    objects = []
    for name, metric in METRICS.items():
        schema = metric.schema()
        schema["properties"] = {"name": {"const": name}, **schema["properties"]}
        objects.append({**schema, "title": name, "required": ["name"]})
    return {"oneOf": [{"type": "string", "enum": [*METRICS, *ALWAYS_SCORED]}, *objects]}


def normalization_schema() -> dict[str, Any]:
    """The JSON Schema of `normalization`."""
    return section_schema(Normalization, str(Normalization.__doc__))
