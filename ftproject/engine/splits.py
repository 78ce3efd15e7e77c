"""Decides by hash which rows are kept out of training, and writes row sets compactly."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

from ftproject.engine.conversations import Conversation
from ftproject.engine.hyperparameters import TrainingOptions
from ftproject.engine.metrics import normalised_text

SMALLEST_STRATUM = 0.5  # rows to hold out


def row_group_key(conversation: Conversation) -> str:
    """What a row must not share across the split: its images, or its prompt when it has none (hex sha256).

    Rows that share only some of their images need `row_group_keys`, which looks at all rows together.
    """
    parts = sorted(conversation.images) if conversation.images else ["", conversation.prompt]
    return text_digest("\0".join(parts))


def row_group_keys(conversations: Sequence[Conversation]) -> list[str]:
    """One key per row; rows that share an image, directly or through other rows, get the same key."""
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        parents.setdefault(key, key)
        while parents[key] != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    for conversation in conversations:
        digests = [text_digest(image) for image in conversation.images]
        for other in digests[1:]:
            low, high = sorted((root(digests[0]), root(other)))
            parents[high] = low
    return [
        text_digest(root(text_digest(row.images[0]))) if row.images else row_group_key(row) for row in conversations
    ]


def text_digest(text: str) -> str:
    """The hex sha256 of a text, lone surrogates included."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def holdout_split(
    groups: Sequence[str], fraction: float, seed: int, answers: Sequence[int] | None = None
) -> list[bool]:
    """True for each row that is held out, decided by the hash of its group key and the seed.

    A group's side depends on nothing but its key, the fraction and the seed, so appended rows move none of
    the old ones and every machine agrees; `fraction` is therefore met on average, not exactly. With `answers`
    (`answer_digest` of each row) it is met for each answer, see `stratified_split`. With two groups or
    more and a fraction above 0 both sides get at least one. Raises ValueError outside 0 <= fraction < 1.
    """
    check_fraction(fraction)
    if fraction == 0 or not groups:
        return [False] * len(groups)
    places = {key: group_place(key, seed) for key in set(groups)}
    if answers is not None:
        return stratified_split([places[key] for key in groups], answers, fraction)
    held = {key for key, place in places.items() if place < fraction}
    if len(places) > 1 and not held:
        held = {min(places, key=lambda key: (places[key], key))}
    if len(held) == len(places):
        held.discard(max(places, key=lambda key: (places[key], key)))
    return [key in held for key in groups]


def split_conversations(conversations: Sequence[Conversation], options: TrainingOptions) -> list[bool]:
    """True for each row that the options hold out."""
    answers = [answer_digest(row) for row in conversations] if options.holdout_stratify else None
    return holdout_split(row_group_keys(conversations), options.holdout_fraction, options.holdout_seed, answers)


def check_fraction(fraction: float) -> None:
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must be at least 0 and less than 1, not {fraction}")


def answer_digest(conversation: Conversation) -> int:
    """What stratification counts as one answer: 64 bits of the ground truth, case and whitespace put aside."""
    answer = normalised_text(conversation.ground_truth).casefold()
    return int.from_bytes(bytes.fromhex(text_digest(answer))[:8], "big")


def stratified_split(places: Sequence[float], answers: Sequence[int], fraction: float) -> list[bool]:
    """True for each row that is held out: of every answer the groups of the lowest places, up to the fraction.

    Rows of equal place are one group and stay together; a group counts under the answer that most of its rows have.
    Answers too rare for half a row to be held out share one stratum (free text would lose every row to one side
    otherwise). What is held out of an answer depends on its other rows, so appended rows may move old ones.
    Within a stratum it is less than one group away from the fraction.
    """
    strata = _strata(places, answers, fraction)
    held: set[float] = set()
    for sizes in strata.values():
        wanted, taken = fraction * sum(sizes.values()), 0.0
        for place in sorted(sizes):
            if taken + sizes[place] / 2 > wanted:
                break
            held.add(place)
            taken += sizes[place]
    known = set(places)
    if len(known) > 1 and not held:
        held = {min(known)}
    if known and held == known:
        held.discard(max(known))
    return [place in held for place in places]


def _strata(places: Sequence[float], answers: Sequence[int], fraction: float) -> dict[int | None, dict[float, int]]:
    """The groups of each answer with their numbers of rows; rare answers under None."""
    votes: dict[float, Counter[int]] = {}
    for place, answer in zip(places, answers, strict=True):
        votes.setdefault(place, Counter())[answer] += 1
    strata: dict[int | None, dict[float, int]] = {}
    for place, counts in votes.items():
        answer = min(counts, key=lambda item: (-counts[item], item))
        strata.setdefault(answer, {})[place] = counts.total()
    rare = [key for key, sizes in strata.items() if fraction * sum(sizes.values()) < SMALLEST_STRATUM]
    for key in rare:
        strata.setdefault(None, {}).update(strata.pop(key))
    return strata


def group_place(key: str, seed: int) -> float:
    """A number in [0, 1) drawn from the key: the first 53 bits of a hash, which a float holds exactly."""
    digest = hashlib.sha256(f"{seed}\0{key}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def encode_ranges(numbers: Iterable[int]) -> str:
    """A set of non-negative numbers as ascending ranges: [0, 1, 2, 5] -> "0-2,5"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if number < 0:
            raise ValueError(f"cannot encode the negative number {number}")
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def decode_ranges(text: str) -> list[int]:
    """The numbers that encode_ranges wrote, ascending; raises ValueError for anything else."""
    numbers: list[int] = []
    for part in text.split(",") if text else []:
        low, dash, high = part.partition("-")
        if not (low.isascii() and low.isdigit()) or (dash and not (high.isascii() and high.isdigit())):
            raise ValueError(f"not a range of row numbers: {part!r}")
        first, last = int(low), int(high) if dash else int(low)
        if last < first or (numbers and first <= numbers[-1]):
            raise ValueError(f"row ranges must ascend: {text!r}")
        numbers.extend(range(first, last + 1))
    return numbers
