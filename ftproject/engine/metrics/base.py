"""What every metric that a run may name has in common: a name, a direction, one sample's score, a run's figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ftproject.engine.fields import ConfigProblem, read_section, section_schema


@dataclass(frozen=True)
class Score:
    """One sample's value, None where the metric is undefined, and what a run's figure is summed from (plain JSON)."""

    value: float | None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TextPair:
    """A prediction and its ground truth as one metric sees them.

    `comparable` is `Normalization.comparable`: metrics that read structure (`reads_structure`) get the texts before it
    and apply it to the pieces that they find.
    """

    prediction: str
    ground_truth: str
    comparable: Callable[[str], str] = str


@dataclass(frozen=True)
class Metric:
    """A metric with its parameters as fields; subclasses are listed in `ftproject.engine.metrics.options`."""

    name: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    # Punctuation is part of a number and of JSON: such metrics get the text as it stands.
    reads_structure: ClassVar[bool] = False

    def score(self, pair: TextPair) -> Score:
        """The score of one evaluated sample."""
        raise NotImplementedError

    def parts(self, value: float | None, details: Mapping[str, Any]) -> tuple[float, float]:
        """Numerator and denominator that this sample adds to the figure of a run; (0, 0) adds nothing.

        The figure over any set of rows is the sum of numerators over the sum of denominators, None when that is zero.
        """
        return (0.0, 0.0) if value is None else (value, 1.0)

    def totals(self) -> Totals:
        """An empty running sum over samples."""
        return Totals(self)

    @classmethod
    def read(cls, data: Mapping[str, Any], path: str) -> tuple[dict[str, Any], list[ConfigProblem]]:
        """The checked parameters of a request."""
        return read_section(cls, data, path)

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """The JSON Schema of the parameters."""
        return section_schema(cls, str(cls.__doc__))


class Totals:
    """The figure of a run, summed up sample by sample: memory does not grow with the rows."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.numerator = self.denominator = 0.0
        self.rows = self.undefined = 0

    def add(self, value: float | None, details: Mapping[str, Any]) -> None:
        """Counts one evaluated sample."""
        numerator, denominator = self.metric.parts(value, details)
        self.numerator += numerator
        self.denominator += denominator
        self.rows += 1
        self.undefined += value is None

    def value(self) -> float | None:
        """The figure; None when nothing defined it."""
        return self.numerator / self.denominator if self.denominator else None

    def details(self) -> dict[str, Any]:
        """What else the run reports of this metric: the rows where it is undefined."""
        return {"undefined": self.undefined}
