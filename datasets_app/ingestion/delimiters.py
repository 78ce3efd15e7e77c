"""Finds the delimiter of a CSV: the one under which the records agree with their header."""

import csv
import io
from itertools import islice

CANDIDATES = (",", ";", "\t", "|")
SAMPLE_RECORDS = 200


def detect_delimiter(sample: str, *, prefer: str | None = None) -> str:
    """`sample` is the start of the file, cut after a whole line; `prefer` (from the file's name) decides a tie."""
    scores = {candidate: _score(sample, candidate) for candidate in CANDIDATES}
    usable = [candidate for candidate in CANDIDATES if scores[candidate][0] > 1]
    if not usable:
        return prefer or ","
    return max(usable, key=lambda candidate: (scores[candidate][1], candidate == prefer, scores[candidate][0]))


def _score(sample: str, delimiter: str) -> tuple[int, float]:
    """Cells in the header, and the share of records that have as many."""
    records: list[list[str]] = []
    try:
        reader = csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter, strict=True)
        for record in islice(reader, SAMPLE_RECORDS):
            records.append(record)
    except csv.Error:
        # A quote that the sample's end leaves open, or one that only looks wrong under a wrong delimiter.
        records.append([])
    filled = [record for record in records if record]
    if not filled:
        return 0, 0.0
    width = len(filled[0])
    return width, sum(len(record) == width for record in filled) / len(filled)
