"""What the trainer's loader yields: row positions as a dataset, batches made of them, and batches of like lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ftproject.engine.encoding import PIXEL_CACHE_BYTES, EncodedRow, PixelCache, build_batch

ROWS_KEY = "row_indices"
Collate = Callable[[Sequence[dict[str, int]]], dict[str, Any]]


class RowCollator:
    """Builds right-padded training batches from row positions, and says which dataset rows are in each.

    A loader process has a copy of its own; `workers` of them share the memory for prepared pixels. It touches the
    CPU only: a forked process must not use CUDA.
    """

    def __init__(self, rows: Sequence[EncodedRow], processor: Any, *, workers: int = 0) -> None:
        self._rows = rows
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
        return batch | {ROWS_KEY: [row.index for row in rows]}


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
