"""The libraries of a training come without those that nothing uses, and nothing stays changed."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from ftproject.engine.lean_imports import lean_imports


def test_a_training_imports_neither_scikit_learn_nor_scipy() -> None:
    code = """
import sys
from ftproject.engine.lean_imports import import_training_libraries
import_training_libraries()
from transformers.utils import is_scipy_available, is_sklearn_available
print(sorted({"sklearn", "scipy"} & set(sys.modules)), is_sklearn_available(), is_scipy_available())
import sklearn.metrics
print(sklearn.metrics.accuracy_score([1, 2], [1, 2]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["[] True True", "1.0"]


def test_the_collector_and_the_questions_are_as_before_even_after_a_failure() -> None:
    from transformers import utils

    question = utils.is_sklearn_available

    def fail() -> None:
        with lean_imports():
            assert not gc.isenabled()
            assert not utils.is_sklearn_available()
            raise ImportError

    with pytest.raises(ImportError):
        fail()
    assert gc.isenabled()
    assert utils.is_sklearn_available is question


def test_within_another_one_it_ends_with_the_outer() -> None:
    from transformers import utils

    with lean_imports():
        with lean_imports():
            pass
        assert not gc.isenabled()
        assert not utils.is_sklearn_available()
    assert utils.is_sklearn_available()
