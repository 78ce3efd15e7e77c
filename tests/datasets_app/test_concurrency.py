"""Uploads at the same time, by real processes on a real database file: one current dataset, nothing lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.postgres.databases import own_database

ROOT = Path(__file__).resolve().parent.parent.parent
REPORT = (
    "import django; django.setup(); from datasets_app.models import Dataset; "
    "print(Dataset.objects.count(), Dataset.objects.filter(is_current=True).count())"
)


def start(data_dir: Path, *arguments: str) -> "subprocess.Popen[str]":
    environment = {
        **os.environ,
        **own_database(data_dir),
        "QWEN3VL_DATA_DIR": str(data_dir),
        "DJANGO_SETTINGS_MODULE": "ftproject.settings",
    }
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def run(data_dir: Path, *arguments: str) -> str:
    process = start(data_dir, *arguments)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


@pytest.mark.slow
def test_imports_at_the_same_time_leave_one_current_dataset(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    run(data_dir, "manage.py", "migrate", "--verbosity", "0")
    files = [tmp_path / f"{number}.csv" for number in range(4)]
    for number, file in enumerate(files):
        file.write_text(f"a,b\n1,{number}\n")
    # The first file twice: one row for both.
    imports = [start(data_dir, "manage.py", "import_dataset", str(file)) for file in [*files, files[0]]]
    ends = [process.communicate(timeout=120)[0] for process in imports]
    assert [process.returncode for process in imports] == [0] * 5, ends
    assert run(data_dir, "-c", REPORT).split() == ["4", "1"]
    assert len(list((data_dir / "datasets").iterdir())) == 4
