"""Imports transformers and its kin in two thirds of the time and 57 MB less; see docs/decisions/013."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

# transformers imports both only because they are installed: for assisted decoding (sklearn.metrics.roc_curve) and
# for object detection (scipy.optimize), which nothing here asks for. A run process has no other use for them.
UNUSED = ("is_sklearn_available", "is_scipy_available")


@contextmanager
def lean_imports() -> Iterator[None]:
    """Inside, transformers' modules are imported without scikit-learn and SciPy, and nothing looks for garbage.

    A million objects are made by the imports, and the collector walked over all of them again and again: 1.4 of 5.9
    cpu seconds. Both libraries can be imported as ever, inside and afterwards.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        from transformers import utils
        from transformers.utils import import_utils

        with answering_no(utils), answering_no(import_utils):
            yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def answering_no(module: ModuleType) -> Iterator[None]:
    """The module's questions for the libraries that are not used are answered with False inside."""
    real = {name: getattr(module, name) for name in UNUSED if hasattr(module, name)}
    try:
        for name in real:
            setattr(module, name, lambda: False)
        yield
    finally:
        for name, question in real.items():
            setattr(module, name, question)


def import_training_libraries() -> None:
    """Everything that a training imports, at once; what then exists is left out of the collector's rounds.

    The first round after the imports would take 0.4 s and find 10 MB.
    """
    with lean_imports():
        import peft
        import transformers.trainer
        import trl

        from ftproject.engine import row_trainer, trainer_callbacks

        _ = peft.PeftModel, transformers.Qwen3VLForConditionalGeneration, trl.SFTTrainer, row_trainer, trainer_callbacks
        gc.freeze()
