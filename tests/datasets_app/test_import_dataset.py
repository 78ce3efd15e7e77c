"""The import_dataset command: the same services, and an exit that tells the truth."""

from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from datasets_app.models import ColumnMapping, Dataset

pytestmark = pytest.mark.django_db


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cats.csv"
    path.write_bytes(b"question,answer,photo\na,b,https://x.test/a.png\n")
    return path


def run(*arguments: str) -> str:
    out = StringIO()
    call_command("import_dataset", *arguments, stdout=out)
    return out.getvalue()


def test_a_file_becomes_the_current_dataset(file: Path) -> None:
    assert "cats.csv, 1 rows" in run(str(file))
    assert Dataset.objects.get(is_current=True).filename == "cats.csv"
    assert not ColumnMapping.objects.exists()
    assert file.exists()


def test_options_set_the_mapping(file: Path) -> None:
    run(
        str(file),
        *("--prompt-column", "question", "--response-column", "answer"),
        *("--image-column", "photo", "--mandatory-column", "photo", "--image-separator", "|"),
    )
    mapping = ColumnMapping.objects.get()
    assert (mapping.image_url_columns, mapping.mandatory_columns) == (["photo"], ["photo"])
    assert mapping.image_separator == "|"


def test_the_mapping_can_be_guessed(file: Path) -> None:
    assert "question -> answer" in run(str(file), "--map-automatically")
    assert ColumnMapping.objects.get().image_url_columns == ["photo"]


def test_an_option_wins_over_the_guess(file: Path) -> None:
    run(str(file), "--map-automatically", "--prompt-column", "photo", "--image-column", "photo")
    assert ColumnMapping.objects.get().prompt_column == "photo"


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no file"):
        run(str(tmp_path / "none.csv"))


def test_a_refused_file_is_an_error_with_the_hint(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(b"a,b\n1\n")
    with pytest.raises(CommandError, match=r"row 1.*double quotes"):
        run(str(path))
    assert not Dataset.objects.exists()


def test_a_wrong_column_is_an_error_with_the_nearest_name(file: Path) -> None:
    with pytest.raises(CommandError, match="'question'"):
        run(str(file), "--prompt-column", "questio", "--response-column", "answer")


def test_half_a_mapping_is_an_error(file: Path) -> None:
    with pytest.raises(CommandError, match="--response-column"):
        run(str(file), "--prompt-column", "question")


def test_a_guess_that_fails_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "one.csv"
    path.write_bytes(b"only\nx\n")
    with pytest.raises(CommandError, match="needs both"):
        run(str(path), "--map-automatically")
