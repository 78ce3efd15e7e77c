"""Adds up judged rows: what is kept of each is a few numbers and hashes, never its cells."""

from collections import Counter
from typing import Any

from datasets_app.preflight.lengths import LengthTally
from datasets_app.preflight.repeats import RepeatFinder
from datasets_app.preflight.rows import NO_ANSWER, JudgedRow
from ftproject.engine.split_sizes import SplitCounter

ROWS_SHOWN = 10
FAILURES_SHOWN = 50
REASONS_KEPT = 100
OTHER_REASONS = "other reasons"


class PreflightTally:
    def __init__(self) -> None:
        self.rows = 0
        self.usable = 0
        self.empty_answers = 0
        self.reasons: dict[str, list[int]] = {}
        self.reason_counts: Counter[str] = Counter()
        self.failures: list[dict[str, Any]] = []
        self.failure_codes: Counter[str] = Counter()
        self.rows_with_failures = 0
        self.images = 0
        self.not_fetched_images = 0
        self.not_fetched_rows: list[int] = []
        self.num_not_fetched_rows = 0
        self.lengths = LengthTally()
        self.repeats = RepeatFinder()
        self.split = SplitCounter()

    def add(self, row: JudgedRow) -> None:
        self.rows += 1
        self._add_images(row)
        if not row.conversation.response.strip():
            self.empty_answers += 1
        if row.reason:
            self._add_skipped(row, row.reason)
        if row.in_split:
            self.split.add(row.conversation, trainable=row.trainable)
        if row.trainable:
            self.usable += 1
            self.repeats.add(row.conversation)
        if row.trainable or row.too_long:
            self.lengths.add(row)

    def _add_images(self, row: JudgedRow) -> None:
        self.images += len(row.sizes)
        self.not_fetched_images += row.not_fetched
        if row.not_fetched:
            self.num_not_fetched_rows += 1
            if len(self.not_fetched_rows) < FAILURES_SHOWN:
                self.not_fetched_rows.append(row.index)
        self.rows_with_failures += bool(row.failures)
        for failure in row.failures:
            self.failure_codes[failure.code] += 1
            if len(self.failures) < FAILURES_SHOWN:
                facts = {"column": failure.column, "code": failure.code, "message": failure.message[:300]}
                self.failures.append({"row": row.index, **facts})

    def _add_skipped(self, row: JudgedRow, reason: str) -> None:
        if reason not in self.reasons and len(self.reasons) >= REASONS_KEPT:
            reason = OTHER_REASONS
        self.reason_counts[reason] += 1
        shown = self.reasons.setdefault(reason, [])
        if len(shown) < ROWS_SHOWN:
            shown.append(row.index)

    def rows_report(self) -> dict[str, Any]:
        reasons = [
            {"reason": reason, "count": count, "rows": self.reasons[reason]}
            for reason, count in self.reason_counts.most_common()
        ]
        skipped = self.reason_counts.total()
        return {"total": self.rows, "usable": self.usable, "skipped": skipped, "reasons": reasons}

    def images_report(self) -> dict[str, Any]:
        hint = "POST /api/datasets/images/prefetch fetches them; look again afterwards."
        not_fetched = {
            "images": self.not_fetched_images,
            "rows": self.num_not_fetched_rows,
            "first_rows": self.not_fetched_rows,
            "hint": hint if self.not_fetched_images else "",
        }
        return {
            "ready": self.images,
            "failed": self.failure_codes.total(),
            "rows_with_failures": self.rows_with_failures,
            "codes": dict(self.failure_codes.most_common()),
            "failures": self.failures,
            "not_fetched": not_fetched,
        }

    def empty_answers_report(self) -> dict[str, Any]:
        return {"count": self.empty_answers, "rows": self.reasons.get(NO_ANSWER, [])}
