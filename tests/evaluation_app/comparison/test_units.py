"""Which rows count as one: those that share an image, directly or through others; a reference picture does not."""

from collections.abc import Sequence

import numpy as np
import pytest

from evaluation_app.comparison.units import RowLinks


def links(*images: Sequence[int]) -> RowLinks:
    """One sequence of images a row."""
    pairs = [(row, image) for row, shown in enumerate(images) for image in shown]
    rows, things = zip(*pairs, strict=True) if pairs else ((), ())
    return RowLinks(np.array(rows, dtype=np.int64), np.array(things, dtype=np.int64))


def units(found: RowLinks, *rows: int) -> list[int]:
    return [int(unit) for unit in found.units_of(np.array(rows, dtype=np.int64))]


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ([[1], [2], [3]], [0, 1, 2]),
        ([[7], [7], [3]], [0, 0, 1]),
        ([[1], [1], [1]], [0, 0, 0]),
        ([[1, 2], [3], [2, 3], [4]], [0, 0, 0, 1]),
        ([[9, 1], [9, 2], [9, 3], [9, 3]], [0, 1, 2, 2]),
        ([[9, 1], [9], [9, 3]], [0, 0, 0]),
        ([[9], [9, 2], [1], [2]], [0, 0, 1, 0]),
        ([[8, 9], [8, 9], [8, 9]], [0, 0, 0]),
    ],
    ids=["alone", "pair", "one image", "through others", "reference", "shown alone", "half", "two references only"],
)
def test_rows_that_share_an_image_are_one_unit(images: list[list[int]], expected: list[int]) -> None:
    assert units(links(*images), *range(len(images))) == expected


def test_only_the_compared_rows_link_each_other() -> None:
    found = links([1], [1, 2], [2])
    assert units(found, 0, 1, 2) == [0, 0, 0]
    assert units(found, 0, 2) == [0, 1]


def test_units_are_numbered_by_their_first_row_whatever_the_hashes_are() -> None:
    """Python hashes texts in another way in each process; the intervals must not notice."""
    images = [[5], [3], [5], [1, 3], [2]]
    again = [[10 - image for image in shown] for shown in images]
    assert units(links(*images), *range(5)) == units(links(*again), *range(5)) == [0, 1, 0, 1, 2]


def test_no_rows_are_no_units() -> None:
    assert units(links(), *[]) == []
    assert units(links([1], [2]), *[]) == []


def test_rows_that_share_an_image_with_given_ones_are_found_but_not_by_a_reference_picture() -> None:
    found = links([9, 1], [9, 2], [9, 1], [9, 4])
    index = np.array([1, 2, 3])
    assert found.sharing(index, found.things_of([0])).tolist() == [False, True, False]
    assert found.sharing(index, np.array([], dtype=np.int64)).tolist() == [False, False, False]
