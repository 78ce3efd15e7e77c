"""`manage.py adapters`: each of its verbs, and what each refuses."""

import json
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from ftproject.core.storage import adapters_dir
from tests.training_app.lora_folders import folder_members, registered_adapter, write_adapter_folder, zip_of
from tests.training_app.world import Api
from training_app.models import Adapter, AdapterMerge


@pytest.fixture
def adapter(api: Api) -> Adapter:
    return registered_adapter("digits", effective=True)


def test_the_list_shows_every_adapter(adapter: Adapter, capsys: pytest.CaptureFixture[str]) -> None:
    registered_adapter("idle", effective=False)
    call_command("adapters", "list")
    text = capsys.readouterr().out
    assert text.index("digits") < text.index("idle")
    call_command("adapters", "list", "--json")
    listed = json.loads(capsys.readouterr().out)
    assert [(item["name"], item["effective"]) for item in listed] == [("digits", True), ("idle", False)]


def test_what_is_downloaded_can_be_imported(
    adapter: Adapter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.zip"
    call_command("adapters", "download", "digits", str(file))
    assert capsys.readouterr().out.strip() == str(file)
    call_command("adapters", "import", str(file), "--name", "again")
    again = Adapter.objects.get(name="again")
    assert capsys.readouterr().out.strip() == str(again.path)
    assert again.sha256 == adapter.sha256


def test_a_download_goes_beside_and_takes_its_place_whole(
    adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call_command("adapters", "download", str(adapter.pk))
    assert (tmp_path / "digits.zip").stat().st_size > 1000
    before = (tmp_path / "digits.zip").read_bytes()
    call = ("adapters", "download", str(adapter.path))
    monkeypatch.setattr("training_app.management.commands.adapters.iter_adapter_zip", broken_off)
    with pytest.raises(CommandError, match="broke off"):
        call_command(*call)
    assert (tmp_path / "digits.zip").read_bytes() == before
    assert [path.name for path in tmp_path.glob("*.zip*")] == ["digits.zip"]


def broken_off(folder: Path) -> object:
    yield b"half"
    raise OSError("broke off")


def test_a_deleted_adapter_is_gone(adapter: Adapter, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("adapters", "delete", str(adapter.path))
    assert not Adapter.objects.exists()
    assert list(adapters_dir().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("delete", "nobody"), "There is no adapter 'nobody'"),
        (("download", "../digits"), "There is no adapter"),
        (("download", "digits", "/no/such/folder/x.zip"), "No such file"),
        (("import", "/no/such/file.zip"), "No such file"),
        (("import", "."), "Is a directory"),
        (("remove", "digits"), "invalid choice"),
        ((), "required"),
    ],
)
def test_each_verb_refuses_with_a_reason(adapter: Adapter, arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(CommandError, match=words):
        call_command("adapters", *arguments)
    assert Adapter.objects.count() == 1


def test_an_import_is_refused_as_the_route_refuses_it(adapter: Adapter, tmp_path: Path) -> None:
    folder = write_adapter_folder(tmp_path / "mine")
    good, bad = tmp_path / "mine.zip", tmp_path / "bad.zip"
    good.write_bytes(zip_of(folder_members(folder)))
    bad.write_bytes(zip_of(folder_members(folder) | {"weights.bin": b"pickle"}))
    with pytest.raises(CommandError, match="There is an adapter 'digits' already"):
        call_command("adapters", "import", str(good), "--name", "digits")
    with pytest.raises(CommandError, match="may hold a pickle"):
        call_command("adapters", "import", str(bad))
    with pytest.raises(CommandError, match="not an allowed model"):
        call_command("adapters", "import", str(good), "--base-model-name", "evil/model")
    assert [path.name for path in adapters_dir().iterdir()] == ["digits"]


def test_an_adapter_that_is_being_merged_is_not_deleted(adapter: Adapter) -> None:
    AdapterMerge.objects.create(
        adapter=adapter, adapter_name="digits", base_model_name="tiny-qwen3-vl", model_name="merged"
    )
    with pytest.raises(CommandError, match="is used by merge"):
        call_command("adapters", "delete", "digits")
