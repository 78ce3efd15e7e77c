"""Rows that say the same twice, rows that contradict each other, and how the answers are spread: from hashes only."""

from array import array
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

from ftproject.engine.conversations import Conversation
from ftproject.engine.metrics import normalised_text

GROUPS_SHOWN = 20
ROWS_SHOWN = 10
LABELS_SHOWN = 50
COMMON_SHOWN = 10
TEXT_SHOWN = 200
AnswerOf = Callable[[int], str]


class RepeatFinder:
    """Keeps 32 bytes for each row: three hashes of 64 bits and its number.

    Two different texts share 64 bits with a probability of 3e-8 among a million.
    """

    def __init__(self) -> None:
        self.rows = array("Q")
        self.questions = array("Q")
        self.wholes = array("Q")
        self.labels = array("Q")

    def add(self, conversation: Conversation) -> None:
        question = (conversation.prompt, *conversation.images)
        self.rows.append(conversation.index)
        self.questions.append(text_hash(question))
        self.wholes.append(text_hash((*question, conversation.response)))
        self.labels.append(text_hash((normalised_text(conversation.ground_truth),)))

    def duplicates(self) -> dict[str, Any]:
        """Groups of rows whose prompt, images and answer are all equal."""
        groups = Groups(self.wholes)
        repeated = groups.larger_than_one()
        return {
            "groups": len(repeated),
            "extra_rows": groups.rows_in(repeated) - len(repeated),
            "examples": [self._shown(groups.members(group)) for group in repeated[:GROUPS_SHOWN]],
        }

    def conflicts(self, answer_of: AnswerOf) -> dict[str, Any]:
        """Groups of rows with equal prompt and images whose answers differ."""
        groups = Groups(self.questions)
        torn = [g for g in groups.larger_than_one() if len({self.wholes[m] for m in groups.members(g)}) > 1]
        return {
            "groups": len(torn),
            "rows": groups.rows_in(torn),
            "examples": [self._torn(groups.members(group), answer_of) for group in torn[:GROUPS_SHOWN]],
        }

    def label_balance(self, answer_of: AnswerOf) -> dict[str, Any]:
        """The distinct answers (compared as exact match compares them), and what the commonest alone would score."""
        groups = Groups(self.labels)
        by_size = groups.by_size()
        shown = by_size if len(by_size) <= LABELS_SHOWN else by_size[:COMMON_SHOWN]
        labels = [self._label(groups.members(group), answer_of) for group in shown]
        return {
            "distinct": len(by_size),
            "complete": len(shown) == len(by_size),
            "labels": labels,
            "majority_share": labels[0]["share"] if labels else None,
        }

    def _label(self, members: Sequence[int], answer_of: AnswerOf) -> dict[str, Any]:
        label = normalised_text(answer_of(self.rows[members[0]]))[:TEXT_SHOWN]
        return {"label": label, "count": len(members), "share": round(len(members) / len(self.rows), 4)}

    def _shown(self, members: Sequence[int]) -> dict[str, Any]:
        return {"count": len(members), "rows": [self.rows[member] for member in members[:ROWS_SHOWN]]}

    def _torn(self, members: Sequence[int], answer_of: AnswerOf) -> dict[str, Any]:
        firsts = list({self.wholes[member]: member for member in reversed(members)}.values())[::-1]
        answers = [answer_of(self.rows[member])[:TEXT_SHOWN] for member in sorted(firsts)[:3]]
        return {**self._shown(members), "distinct_answers": len(firsts), "answers": answers}


class Groups:
    """Positions with equal keys, found by sorting: a dictionary of a million keys would take ten times the memory."""

    def __init__(self, keys: "array[int]") -> None:
        import numpy as np

        values = np.frombuffer(keys, dtype=np.uint64) if keys else np.empty(0, dtype=np.uint64)
        self.order = np.argsort(values, kind="stable").astype(np.uint32 if len(keys) < 2**32 else np.uint64)
        ordered = values[self.order]
        starts = (
            np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1]))) if len(keys) else np.empty(0, int)
        )
        self.starts = starts
        self.sizes = np.diff(np.append(starts, len(keys)))

    def members(self, group: int) -> list[int]:
        start = int(self.starts[group])
        found: list[int] = self.order[start : start + int(self.sizes[group])].tolist()
        return found

    def larger_than_one(self) -> list[int]:
        """The repeated groups in the order of their first rows."""
        import numpy as np

        found = np.flatnonzero(self.sizes > 1)
        ordered: list[int] = found[np.argsort(self.order[self.starts[found]], kind="stable")].tolist()
        return ordered

    def by_size(self) -> list[int]:
        """All groups, the largest first, equal ones in the order of their first rows."""
        import numpy as np

        if not len(self.starts):
            return []
        found: list[int] = np.lexsort((self.order[self.starts], -self.sizes)).tolist()
        return found

    def rows_in(self, groups: Sequence[int]) -> int:
        return int(self.sizes[list(groups)].sum()) if groups else 0


def text_hash(parts: Sequence[str]) -> int:
    """64 bits of the texts; their lengths are part of it, so that moving a border changes it."""
    digest = blake2b(digest_size=8)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return int.from_bytes(digest.digest(), "little")
