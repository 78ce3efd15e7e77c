"""Which rows are no independent witnesses: those that show the same image, or ask the same without one."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datasets_app.models import ColumnMapping, Dataset
from datasets_app.selectors import iter_rows, row_mapping
from ftproject.engine.conversations import RowMapping, split_image_cell

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Labels = NDArray[np.int64]
    Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class RowLinks:
    """Pairs of a row number and a 64-bit hash of something that it shares with others; ascending by row.

    Two different images have the same hash with a probability of 3e-8 among a million.
    """

    rows: Labels
    things: Labels

    def units_of(self, index: Labels) -> Labels:
        """A label 0 .. k-1 for each of these rows; rows that are linked, also through other rows, have the same."""
        import numpy as np

        chosen = np.isin(self.rows, index)
        rows = np.searchsorted(index, self.rows[chosen])
        _, things = np.unique(self.things[chosen], return_inverse=True)
        kept = _telling(rows, things)
        return _in_order(_connected(index.size, rows[kept], things[kept]))

    def things_of(self, rows: Sequence[int]) -> Labels:
        """What these rows show or ask."""
        import numpy as np

        found: Labels = self.things[np.isin(self.rows, np.array(rows, dtype=np.int64))]
        return found

    def sharing(self, index: Labels, things: Labels) -> Mask:
        """Which of these rows have one of the things; a reference picture of most rows does not count."""
        import numpy as np

        _, numbers = np.unique(self.things, return_inverse=True)
        kept = _telling(self.rows, numbers)
        touched = self.rows[kept & np.isin(self.things, things)]
        shared: Mask = np.isin(index, touched)
        return shared


def _telling(rows: Labels, things: Labels) -> Mask:
    """Drops an image that most rows show beside another one: a reference picture makes no rows belong together."""
    import numpy as np

    if not rows.size:
        return np.ones(0, dtype=bool)
    per_row = np.bincount(rows)
    frequent = np.bincount(things) > per_row.size / 2
    alone = np.zeros(frequent.size, dtype=bool)
    alone[things[per_row[rows] == 1]] = True
    dropped = frequent & ~alone
    kept: Mask = ~dropped[things]
    # A row must keep something: several reference pictures and nothing else are then its own.
    kept |= np.bincount(rows, weights=kept, minlength=per_row.size)[rows] == 0
    return kept


def _connected(count: int, rows: Labels, things: Labels) -> Labels:
    import numpy as np

    if rows.size == count and (rows == np.arange(count)).all():
        return things
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = count + int(things.max(initial=-1)) + 1
    links = coo_array((np.ones(rows.size, dtype=np.int8), (rows, count + things)), shape=(size, size))
    _, labels = connected_components(links, directed=False)
    found: Labels = labels[:count]
    return found


def _in_order(labels: Labels) -> Labels:
    """0 for the first row's unit, 1 for the next other one: hashes of texts are others in each process, and the draws
    of the bootstrap go by these numbers.
    """
    import numpy as np

    _, first, places = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty_like(first)
    rank[np.argsort(first)] = np.arange(first.size)
    units: Labels = rank[places]
    return units


def read_links(*, dataset: Dataset, mapping: ColumnMapping) -> RowLinks:
    """The links of all rows of the dataset, read in bounded memory: 16 bytes an image are kept."""
    import numpy as np

    rules = row_mapping(mapping)
    columns = list(dict.fromkeys([*rules.image_url_columns, rules.prompt_column]))
    rows, things = array("q"), array("q")
    for index, row in iter_rows(dataset=dataset, columns=columns):
        shared = _shared_things(row, rules)
        rows.extend([index] * len(shared))
        things.extend(shared)
    return RowLinks(np.frombuffer(rows, dtype=np.int64), np.frombuffer(things, dtype=np.int64))


def _shared_things(row: dict[str, str], rules: RowMapping) -> list[int]:
    """What the split of training keeps together too: the images, or without any the prompt."""
    images = {
        image for column in rules.image_url_columns for image in split_image_cell(row[column], rules.image_separator)
    }
    return [hash(image) for image in images] or [hash(("prompt", row[rules.prompt_column]))]
