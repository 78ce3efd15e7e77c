"""How long the rows are in tokens, which are too long, and what could be done about those."""

from array import array
from typing import Any

from datasets_app.preflight.rows import JudgedRow
from ftproject.engine.backends.base import RowError
from ftproject.engine.token_counts import Size, VisionRule

ROWS_SHOWN = 100
BINS = 20
# The remedies look at so many too-long rows with images; the figure says when there are more.
ROWS_JUDGED = 10_000
SMALLEST_MAX_PIXELS = 1024
LARGEST_LENGTH = 262_144


class LengthTally:
    """Keeps four bytes for each counted row, and the image sizes of the too-long ones."""

    def __init__(self) -> None:
        self.totals = array("I")
        self.text = 0
        self.vision = 0
        self.not_counted = 0
        self.too_long: list[int] = []
        self.num_too_long = 0
        self.longest_trained = (0, 0)
        self.trained_tokens = 0
        self.trained_rows = 0
        self.shrinkable: list[tuple[int, tuple[Size, ...]]] = []

    def add(self, row: JudgedRow) -> None:
        """Takes a row that is trained on, or is too long for it."""
        if row.tokens is None:
            self.not_counted += 1
            return
        vision = sum(row.tokens.images)
        self.totals.append(row.tokens.total)
        self.text += row.tokens.text
        self.vision += vision
        if row.too_long:
            self._add_too_long(row)
            return
        self.trained_rows += 1
        self.trained_tokens += row.tokens.total
        self.longest_trained = (
            max(self.longest_trained[0], row.tokens.total),
            max(self.longest_trained[1], vision),
        )

    def _add_too_long(self, row: JudgedRow) -> None:
        self.num_too_long += 1
        if len(self.too_long) < ROWS_SHOWN:
            self.too_long.append(row.index)
        if row.sizes and row.tokens and len(self.shrinkable) < ROWS_JUDGED:
            self.shrinkable.append((row.tokens.text, row.sizes))

    @property
    def mean(self) -> float | None:
        """Tokens of an average row that is trained on."""
        return self.trained_tokens / self.trained_rows if self.trained_rows else None

    def distribution(self) -> dict[str, Any]:
        import numpy as np

        facts: dict[str, Any] = {"counted": len(self.totals), "not_counted": self.not_counted}
        if not self.totals:
            return {**facts, **dict.fromkeys(("min", "median", "mean", "p90", "p99", "max")), "histogram": []}
        totals = np.frombuffer(self.totals, dtype=np.uint32)
        low, median, p90, p99, high = np.percentile(totals, [0, 50, 90, 99, 100], method="inverted_cdf").tolist()
        counts, edges = np.histogram(totals, bins=min(BINS, int(high - low) + 1), range=(low, high + 1))
        spans = zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True)
        return {
            **facts,
            "min": int(low),
            "median": int(median),
            "mean": round(float(totals.mean()), 1),
            "p90": int(p90),
            "p99": int(p99),
            "max": int(high),
            "total": self.text + self.vision,
            "text": self.text,
            "vision": self.vision,
            "histogram": [{"from": round(a, 1), "to": round(b, 1), "rows": n} for a, b, n in spans],
        }

    def too_long_report(
        self, max_seq_length: int, vision: VisionRule | None, model_limit: int | None
    ) -> dict[str, Any]:
        facts = {"max_seq_length": max_seq_length, "count": self.num_too_long, "rows": self.too_long}
        if not self.num_too_long:
            return {**facts, "remedies": None}
        longest = max(self.totals)
        raised = {
            "max_seq_length": longest,
            "rescues": self.num_too_long,
            "possible": longest <= min(LARGEST_LENGTH, model_limit or LARGEST_LENGTH),
            "model_limit": model_limit,
        }
        remedies = {
            "raise_max_seq_length": raised,
            "lower_max_pixels": self._fewer_pixels(max_seq_length, vision) if vision else None,
            "drop_rows": {"rows": self.num_too_long, "rows_left": self.trained_rows + self.not_counted},
        }
        return {**facts, "remedies": remedies}

    def _fewer_pixels(self, limit: int, vision: VisionRule) -> dict[str, Any] | None:
        """The largest max_pixels at which every row fits that can fit at all, and what halvings would rescue."""
        high = vision.pixels.max_pixels
        fits = [row for row in self.shrinkable if _fits(row, limit, vision, SMALLEST_MAX_PIXELS)]
        if not fits or high <= SMALLEST_MAX_PIXELS:
            return None
        best = min(_largest_fitting(row, limit, vision, high) for row in fits)
        halvings = [high >> power for power in range(1, 12) if high >> power > best][:4]
        options = [{"max_pixels": n, "rescues": self._rescued(limit, vision, n)} for n in [*halvings, best]]
        return {**options[-1], "judged_rows": len(self.shrinkable), "options": options}

    def _rescued(self, limit: int, vision: VisionRule, max_pixels: int) -> int:
        return sum(_fits(row, limit, vision, max_pixels) for row in self.shrinkable)


def _fits(row: tuple[int, tuple[Size, ...]], limit: int, vision: VisionRule, max_pixels: int) -> bool:
    text, sizes = row
    limited = vision.limited(max_pixels)
    try:
        return text + sum(limited.tokens(*size) for size in sizes) <= limit
    except RowError:
        return False


def _largest_fitting(row: tuple[int, tuple[Size, ...]], limit: int, vision: VisionRule, high: int) -> int:
    low = SMALLEST_MAX_PIXELS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _fits(row, limit, vision, middle) else (low, middle)
    return low
