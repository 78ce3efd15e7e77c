"""Row numbers as ascending ranges: a sequence that takes memory by range, not by row."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import overload


class RowRanges(Sequence[int]):
    """The numbers of a text like "0-4,7", as `ftproject.engine.splits.encode_ranges` writes it; at most `limit`."""

    def __init__(self, text: str, limit: int | None = None) -> None:
        self.ranges: list[range] = []
        # How many numbers stand before each range.
        self.before: list[int] = []
        self.length = 0
        for part in text.split(",") if text else []:
            low, _, high = part.partition("-")
            numbers = range(int(low), int(high or low) + 1)
            if limit is not None:
                numbers = numbers[: max(0, limit - self.length)]
            if not numbers:
                break
            self.ranges.append(numbers)
            self.before.append(self.length)
            self.length += len(numbers)
        self.starts = [numbers.start for numbers in self.ranges]

    def __len__(self) -> int:
        return self.length

    def __contains__(self, number: object) -> bool:
        if not isinstance(number, int):
            return False
        place = bisect_right(self.starts, number) - 1
        return place >= 0 and number in self.ranges[place]

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self.ranges)

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[int]: ...
    def __getitem__(self, place: int | slice) -> int | Sequence[int]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(self.length))]
        place = place + self.length if place < 0 else place
        if not 0 <= place < self.length:
            raise IndexError(place)
        which = bisect_right(self.before, place) - 1
        return self.ranges[which][place - self.before[which]]
