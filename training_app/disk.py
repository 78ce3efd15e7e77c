"""How much free disk a training run wants, and the refusal of one that would not find it."""

import contextlib
import errno
import math
import os
import shutil
from pathlib import Path

from ftproject.core.errors import ProductError, UnavailableError
from ftproject.core.storage import adapters_dir
from ftproject.engine.backends.base import EngineError
from ftproject.engine.configs import TINY_MODEL_NAME, EffectiveConfig
from ftproject.engine.memory_estimate import adapter_disk_mb
from ftproject.engine.token_counts import TokenCountError

# At least so much: events, logs and the database grow beside. The larger one also stands for a model whose shape is
# not known here: an adapter of rank 16 of the 8B model has about 200 MB, a checkpoint with optimizer state more.
FREE_MB_TINY = 64
FREE_MB = 2048
# A few writes to the database; a full disk would otherwise take the reason of the run's end with it (seen on a tmpfs).
RESERVE_BYTES = 2 * 2**20
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# safetensors, torch and SQLite pass the system's words on, or say it in their own.
NO_ROOM_WORDS = (
    "no space left",
    "disk quota exceeded",
    "file too large",
    "disk is full",
    "file write failed",
    "unexpected pos",
)


class Reserve:
    """A file that holds space while a run works, and gives it back for what must be written when the disk is full."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with contextlib.suppress(OSError):
            path.write_bytes(os.urandom(RESERVE_BYTES))  # nothing that a file system could compress

    def free(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()


def free_mb_wanted(model_name: str) -> int:
    """The least, whatever the configuration says."""
    return FREE_MB_TINY if model_name == TINY_MODEL_NAME else FREE_MB


def disk_mb_needed(effective: EffectiveConfig) -> int:
    """What the adapter and the checkpoints of a run take, by the shapes of its model where those are on this disk."""
    least = free_mb_wanted(effective.model_name)
    try:
        return max(least, math.ceil(adapter_disk_mb(effective.model_path, effective.config)))
    except TokenCountError:
        return least


def require_free_disk(effective: EffectiveConfig) -> None:
    needed, free = disk_mb_needed(effective), free_disk_mb()
    if free < needed:
        raise UnavailableError(
            f"Only {free} MB are free in the data directory; training {effective.model_name} needs {needed} MB "
            "for its adapter and checkpoints.",
            code="disk_full",
            hint="Delete old adapters, datasets or checkpoints (DELETE /api/training/runs/{id}/checkpoints), "
            "lower r or save_total_limit, or move QWEN3VL_DATA_DIR.",
            extra={"needed_mb": needed, "free_mb": free},
        )


def free_disk_mb() -> int:
    return shutil.disk_usage(adapters_dir()).free // 2**20


def says_disk_full(error: BaseException) -> bool:
    """Whether this error, or one that it came from, means that the disk took no more."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        if isinstance(cause, OSError) and cause.errno in NO_ROOM:
            return True
        ours = isinstance(cause, ProductError | EngineError)  # they quote user data: an image, too, can be too large
        if not ours and any(words in str(cause).lower() for words in NO_ROOM_WORDS):
            return True
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    return False
