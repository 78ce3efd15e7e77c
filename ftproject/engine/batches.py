"""What the trainer's loader yields: row positions as a dataset, batches made of them, and batches of like lengths."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import groupby
from typing import Any

from ftproject.engine.backends.base import RowError
from ftproject.engine.encoding import EncodedRow, build_batch
from ftproject.engine.pixel_cache import PIXEL_CACHE_BYTES, PixelCache

ROWS_KEY = "row_indices"
FAILURE_KEY = "row_error"
SHAPES_KNOWN = 512
Collate = Callable[[Sequence[dict[str, int]]], dict[str, Any]]


class RowCollator:
    """Builds right-padded training batches from row positions, and says which dataset rows are in each.

    A loader process has a copy of its own; `workers` of them share the memory for prepared pixels. It touches the
    CPU only: a forked process must not use CUDA.
    """

    def __init__(
        self,
        rows: Sequence[EncodedRow],
        processor: Any,
        *,
        workers: int = 0,
        positions: PositionIndex | None = None,
    ) -> None:
        self._rows = rows
        self._positions = positions
        self._pixels = PixelCache(processor, max_bytes=PIXEL_CACHE_BYTES // max(workers, 1))
        self._image_token_id = processor.image_token_id
        self._pad_token_id = processor.tokenizer.pad_token_id

    def __call__(self, features: Sequence[dict[str, int]]) -> dict[str, Any]:
        rows = [self._rows[feature["row"]] for feature in features]
        batch = build_batch(
            rows,
            self._pixels,
            image_token_id=self._image_token_id,
            pad_token_id=self._pad_token_id,
            padding_side="right",
            with_labels=True,
        )
        if self._positions is not None and "image_grid_thw" in batch:
            batch["position_ids"] = self._positions(rows, batch["image_grid_thw"], self._image_token_id)
        return batch | {ROWS_KEY: [row.index for row in rows]}


class FailuresAsBatches:
    """A collator whose RowError is a batch that says so: `require_batch` raises it in the training's own process.

    Raised in a loader process it would arrive as torch's RuntimeError around a traceback.
    """

    def __init__(self, collate: Collate) -> None:
        self._collate = collate

    def __call__(self, features: Sequence[dict[str, int]]) -> dict[str, Any]:
        try:
            return self._collate(features)
        except RowError as error:
            return {FAILURE_KEY: (error.code, error.message)}


def require_batch(batch: Mapping[str, Any]) -> None:
    """Raises the RowError that kept the batch from being made, naming its row."""
    if FAILURE_KEY in batch:
        raise RowError(*batch[FAILURE_KEY])


class PositionIndex:
    """The model's own three-dimensional positions of rows, computed once for rows of one shape.

    `rope_index` is Qwen3-VL's get_rope_index, which walks over every row's tokens in every step. What it gives hangs
    on where the images stand and on their grids alone, not on the words.
    """

    def __init__(self, rope_index: Callable[..., Any]) -> None:
        self._rope_index = rope_index
        self._known: OrderedDict[Hashable, Any] = OrderedDict()

    def __call__(self, rows: Sequence[EncodedRow], grids: Any, image_token_id: int) -> Any:
        """Positions of shape (3, rows, longest), right-padded; the rows' images have `grids` of shape (images, 3)."""
        import torch

        positions = torch.zeros(3, len(rows), max(map(len, rows)), dtype=torch.long)
        first = 0
        for place, row in enumerate(rows):
            own = grids[first : first + len(row.image_paths)]
            first += len(row.image_paths)
            positions[:, place, : len(row)] = self._of_row(row, own, image_token_id)
        return positions

    def _of_row(self, row: EncodedRow, grids: Any, image_token_id: int) -> Any:
        runs = tuple(sum(1 for _ in run) for _, run in groupby(row.input_ids, image_token_id.__eq__))
        key = (runs, row.input_ids[0] == image_token_id, tuple(map(tuple, grids.tolist())))
        if key not in self._known:
            self._known[key] = self._computed(row, grids, image_token_id)
            if len(self._known) > SHAPES_KNOWN:
                self._known.popitem(last=False)
        return self._known[key]

    def _computed(self, row: EncodedRow, grids: Any, image_token_id: int) -> Any:
        import torch

        ids = torch.tensor([row.input_ids])
        types = (ids == image_token_id).int()
        positions, _ = self._rope_index(ids, types, image_grid_thw=grids if len(grids) else None)
        return positions[:, 0]


def row_dataset(count: int, first: int = 0) -> Any:
    """A datasets.Dataset of row positions: SFTTrainer takes no list, and images must be opened lazily."""
    from datasets import Dataset

    return Dataset.from_dict({"row": list(range(first, first + count))})


def length_grouped_sampler(lengths: Sequence[int], batch_size: int, seed: int) -> Any:
    """A sampler of positions whose batches hold rows of like lengths, in an order of its own each epoch.

    transformers' own draws from the global generator: the second epoch of a resumed run would be another one.
    """
    import torch
    from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices

    class EpochSampler(LengthGroupedSampler):  # type: ignore[misc]
        """Draws from the seed and the number of the epoch, which the trainer sets."""

        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Any:
            generator = torch.Generator().manual_seed(seed + self.epoch)
            return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))

    return EpochSampler(batch_size, lengths=list(lengths))
