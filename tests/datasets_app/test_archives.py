"""Image archives: what a hostile or clumsy zip may hold, what is stored of it, and what a cell finds afterwards."""

import errno
import io
import json
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from PIL import Image
from rest_framework.test import APIClient

from datasets_app import archive_members, archives
from datasets_app.archive_paths import normalised_path
from datasets_app.images import ImageRefusedError, resolve_image
from datasets_app.models import Dataset, ImageArchiveEntry
from ftproject.core.storage import sweep_partials
from tests.datasets_app.conftest import Upload
from tests.datasets_app.test_images import png
from tests.postgres.databases import own_database

ROOT = Path(__file__).resolve().parents[2]
Send = Callable[..., Any]
Member = tuple[str | zipfile.ZipInfo, bytes]


def zipped(*members: Member, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return stream.getvalue()


@pytest.fixture
def dataset(upload: Upload) -> Dataset:
    upload()
    return Dataset.objects.get()


@pytest.fixture
def send(client: APIClient, dataset: Dataset) -> Send:
    def post(content: bytes, dataset_id: int | None = None) -> Any:
        file = SimpleUploadedFile("images.zip", content)
        return client.post(f"/api/datasets/{dataset_id or dataset.pk}/images", {"file": file}, format="multipart")

    return post


def resolved(cell: str, dataset: Dataset) -> bytes | str:
    """The image's bytes, or the code of the refusal."""
    try:
        return resolve_image(cell, dataset=dataset).read_bytes()
    except ImageRefusedError as exc:
        return exc.code


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_members_are_found_by_their_exact_path_and_without_the_common_top_folder(send: Send, dataset: Dataset) -> None:
    answer = send(zipped(("photos/a/1.png", png("red")), ("photos/b/1.png", png("blue"))))
    assert answer.status_code == 200
    assert answer.json() == {
        "dataset_id": dataset.pk, "stored": 2, "refused": 0, "ignored": 0, "nested_archives": 0, "errors": [],
    }  # fmt: skip
    assert resolved("photos/a/1.png", dataset) == png("red")
    assert resolved("b/1.png", dataset) == png("blue")
    assert resolved(r" .\photos\b\1.png ", dataset) == png("blue")
    for cell in ["1.png", "photos/A/1.png", "photos/a", "/photos/a/1.png", "../photos/a/1.png", "photos/a/1.png/"[:-2]]:
        assert resolved(cell, dataset) == "image_path_unknown"


def test_without_a_common_folder_there_is_no_short_path(send: Send, dataset: Dataset) -> None:
    send(zipped(("a/1.png", png("red")), ("2.png", png("blue"))))
    assert resolved("2.png", dataset) == png("blue")
    assert resolved("1.png", dataset) == "image_path_unknown"


def test_a_path_of_a_dataset_without_archives_says_how_to_upload_one(dataset: Dataset) -> None:
    with pytest.raises(ImageRefusedError) as caught:
        resolve_image("photos/1.png", dataset=dataset)
    assert caught.value.code == "image_path_unknown"
    assert "POST /api/datasets/{id}/images" in caught.value.hint


def test_an_archive_belongs_to_its_dataset_alone(send: Send, dataset: Dataset, upload: Upload) -> None:
    send(zipped(("1.png", png())))
    other = Dataset.objects.get(pk=upload(b"a,b\n1,2\n").json()["dataset_id"])
    assert resolved("1.png", other) == "image_path_unknown"


def test_the_same_archive_twice_changes_nothing(send: Send, own_data_dir: Path) -> None:
    content = zipped(("photos/1.png", png("red")), ("photos/2.png", png("blue")))
    first, files = send(content).json(), files_below(own_data_dir / "images")
    before = list(ImageArchiveEntry.objects.values())
    assert send(content).json() == first
    assert files_below(own_data_dir / "images") == files
    assert list(ImageArchiveEntry.objects.values()) == before


def test_a_later_archive_adds_paths_and_replaces_those_that_were_there(send: Send, dataset: Dataset) -> None:
    send(zipped(("p/1.png", png("red")), ("p/2.png", png("green"))))
    send(zipped(("p/1.png", png("blue")), ("p/3.png", png("white"))))
    assert [resolved(f"p/{n}.png", dataset) for n in (1, 2, 3)] == [png("blue"), png("green"), png("white")]


def test_a_short_path_of_two_archives_is_ambiguous_unless_both_mean_the_same_image(
    send: Send, dataset: Dataset
) -> None:
    send(zipped(("x/1.png", png("red")), ("x/2.png", png("green"))))
    send(zipped(("y/1.png", png("blue")), ("y/2.png", png("green"))))
    assert resolved("1.png", dataset) == "image_path_ambiguous"
    assert resolved("y/1.png", dataset) == png("blue")
    assert resolved("2.png", dataset) == png("green")


def test_deleting_the_dataset_drops_its_index(send: Send, dataset: Dataset, client: APIClient) -> None:
    send(zipped(("1.png", png())))
    assert client.delete(f"/api/datasets/{dataset.pk}").status_code == 200
    assert not ImageArchiveEntry.objects.exists()


def test_a_cached_image_that_was_lost_is_refused_and_comes_back_with_the_archive(send: Send, dataset: Dataset) -> None:
    content = zipped(("1.png", png()))
    send(content)
    resolve_image("1.png", dataset=dataset).write_bytes(b"damaged")
    assert resolved("1.png", dataset) == "image_missing"
    send(content)
    assert resolved("1.png", dataset) == png()


def special(name: str, kind: int) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.external_attr = (kind | 0o777) << 16
    return member


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("../1.png", "member_path_refused"),
        ("a/../../1.png", "member_path_refused"),
        ("a\\..\\..\\1.png", "member_path_refused"),
        ("/etc/1.png", "member_path_refused"),
        ("\\\\server\\share\\1.png", "member_path_refused"),
        ("C:\\1.png", "member_path_refused"),
        ("c:/1.png", "member_path_refused"),
        ("a/" * 600 + "1.png", "member_name_too_long"),
        ("x" * 65_535, "member_name_too_long"),
        (special("link.png", stat.S_IFLNK), "member_not_a_file"),
        (special("device.png", stat.S_IFBLK), "member_not_a_file"),
        (special("pipe.png", stat.S_IFIFO), "member_not_a_file"),
    ],
)
def test_a_member_with_such_a_name_or_kind_is_refused_and_the_others_are_taken(
    send: Send, name: str | zipfile.ZipInfo, code: str, own_data_dir: Path
) -> None:
    body = send(zipped((name, png()), ("good/2.png", png("blue")))).json()
    assert (body["stored"], body["refused"]) == (1, 1)
    assert [problem["code"] for problem in body["errors"]] == [code]
    assert len(body["errors"][0]["field"]) <= 201
    assert all(path.name.isalnum() for path in (own_data_dir / "images").rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"some text", "image_not_an_image"),
        (b"", "image_empty"),
        (b"<svg xmlns='x'/>", "image_is_svg"),
        (png(kind="TIFF"), "image_not_an_image"),
        (png(size=(200, 200))[:-30], "image_corrupt"),
    ],
)
def test_a_member_that_is_no_image_is_refused_with_its_reason(send: Send, data: bytes, code: str) -> None:
    body = send(zipped(("1.png", data), ("2.png", png()))).json()
    assert (body["stored"], [problem["code"] for problem in body["errors"]]) == (1, [code])
    assert body["errors"][0]["field"] == "1.png"


def test_a_png_of_too_many_pixels_is_refused_undecoded(send: Send) -> None:
    stream = io.BytesIO()
    Image.new("1", (9000, 9000)).save(stream, "PNG")
    body = send(zipped(("bomb.png", stream.getvalue()), ("2.png", png()))).json()
    assert body["errors"][0]["code"] == "image_too_many_pixels"


def test_zeros_packed_a_thousand_to_one_are_a_bomb_and_never_unpacked(send: Send) -> None:
    content = zipped(("bomb.bmp", bytes(15 * 2**20)), ("2.png", png()))
    assert len(content) < 100_000
    tracemalloc.start()
    body = send(content).json()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert body["errors"][0]["code"] == "member_bomb"
    assert peak < 8 * 2**20


def test_a_member_larger_than_an_image_may_be_is_refused(send: Send, settings: Any) -> None:
    settings.IMAGE_MAX_MB = 1
    body = send(zipped(("big.bmp", os.urandom(2 * 2**20)), ("2.png", png()))).json()
    assert body["errors"][0]["code"] == "image_too_large"


def test_an_archive_that_unpacks_to_too_much_is_413_before_a_byte_is_unpacked(
    send: Send, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.MAX_UPLOAD_MB = 1
    content = zipped(*((f"{number}.bmp", bytes(2**20)) for number in range(3)))
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_, **__: pytest.fail("unpacked"))
    answer = send(content)
    assert (answer.status_code, answer.json()["code"]) == (413, "archive_too_large")


def test_too_many_members_are_413(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_members, "MAX_MEMBERS", 2)
    answer = send(zipped(*((f"{number}.png", png()) for number in range(3))))
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_a_directory_of_megabytes_is_413_and_not_read(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_members, "MAX_DIRECTORY_BYTES", 4096)
    answer = send(zipped(*((f"{'x' * 60}{number}.png", b"") for number in range(100))))
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_an_archive_over_the_upload_limit_is_413(send: Send, settings: Any) -> None:
    settings.MAX_UPLOAD_MB = 1
    answer = send(zipped(("1.png", os.urandom(2 * 2**20))))
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_an_encrypted_member_is_refused(send: Send) -> None:
    content = bytearray(zipped(("1.png", png()), ("2.png", png("blue"))))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    body = send(bytes(content)).json()
    assert (body["stored"], body["errors"][0]["code"]) == (1, "member_encrypted")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_packing_without_a_bound_is_refused(send: Send, method: int) -> None:
    answer = send(zipped(("1.png", png()), method=method))
    assert (answer.status_code, answer.json()["code"]) == (400, "archive_without_images")
    assert answer.json()["errors"][0]["code"] == "member_compression"


def test_a_member_with_a_nul_in_its_name_is_refused(send: Send) -> None:
    content = zipped(("1.pngXexe", png()), ("2.png", png())).replace(b"1.pngXexe", b"1.png\0exe")
    body = send(content).json()
    assert (body["stored"], body["errors"][0]["code"]) == (1, "member_path_refused")


def test_a_member_whose_contents_do_not_match_its_checksum_is_refused(send: Send) -> None:
    content = zipped(("1.png", png()), ("2.png", png("blue")), method=zipfile.ZIP_STORED)
    body = send(content.replace(png(), png()[:-5] + b"XXXXX", 1)).json()
    assert (body["stored"], body["errors"][0]["code"]) == (1, "member_damaged")


def test_a_member_that_lies_about_its_size_gives_no_more_than_it_declared(send: Send) -> None:
    content = bytearray(zipped(("1.bmp", bytes(2**20)), ("2.png", png())))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", content, content.index(signature) + offset, 100)
    body = send(bytes(content)).json()
    assert (body["stored"], body["errors"][0]["code"]) == (1, "member_damaged")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_path_that_stands_there_twice_is_refused_unless_it_means_one_image(send: Send, dataset: Dataset) -> None:
    members = [("1.png", png("red")), ("1.png", png("blue")), ("2.png", png()), ("./2.png", png())]
    body = send(zipped(*members)).json()
    assert (body["stored"], body["refused"], body["ignored"]) == (1, 2, 1)
    assert {problem["code"] for problem in body["errors"]} == {"member_duplicate"}
    assert resolved("1.png", dataset) == "image_path_unknown"


def test_archives_within_are_counted_and_not_opened_and_litter_is_ignored(send: Send, dataset: Dataset) -> None:
    inner = zipped(("inner.png", png()))
    body = send(
        zipped(
            ("p/inner.zip", inner), ("p/more.tar.gz", b"x"), ("p/1.png", png()), ("p/.DS_Store", b"x"),
            ("__MACOSX/p/._1.png", b"x"), ("p/Thumbs.db", b"x"), ("p/empty/", b""),
        )
    ).json()  # fmt: skip
    assert body | {"stored": 1, "refused": 0, "ignored": 3, "nested_archives": 2} == body
    assert resolved("1.png", dataset) == png()
    assert resolved("inner.png", dataset) == "image_path_unknown"


def test_names_of_any_script_are_found_composed_or_not(send: Send, dataset: Dataset) -> None:
    send(zipped(("Fotos/Stra\u00dfe \u732b \U0001f408.png", png("red")), ("Fotos/u\u0308ber.png", png("blue"))))
    assert resolved("Fotos/Stra\u00dfe \u732b \U0001f408.png", dataset) == png("red")
    assert resolved("\u00fcber.png", dataset) == png("blue")


def test_utf_8_names_that_are_not_marked_as_such_are_read_as_utf_8(send: Send, dataset: Dataset) -> None:
    content = bytearray(zipped(("\u00fcber.png", png())))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        struct.pack_into("<H", content, content.index(signature) + offset, 0)
    assert send(bytes(content)).json()["stored"] == 1
    assert resolved("\u00fcber.png", dataset) == png()


def test_a_zip64_archive_is_taken(send: Send, dataset: Dataset) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive, archive.open("1.png", "w", force_zip64=True) as member:
        member.write(png())
    assert send(stream.getvalue()).json()["stored"] == 1
    assert resolved("1.png", dataset) == png()


def test_the_list_of_errors_is_capped_and_the_count_is_not(send: Send) -> None:
    body = send(zipped(*((f"{number}.txt", b"text") for number in range(150)), ("1.png", png()))).json()
    assert (body["refused"], len(body["errors"]), body["stored"]) == (150, 100, 1)


@pytest.mark.parametrize("content", [b"no zip", b"\x89PNG\r\n\x1a\n", b"\x1f\x8b\x08\x00", b"prompt,response\na,b\n"])
def test_what_is_no_zip_is_415(send: Send, content: bytes) -> None:
    answer = send(content)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_file_type")


@pytest.mark.parametrize("keep", [4, 60, -10])
def test_a_zip_that_was_cut_off_is_400(send: Send, keep: int) -> None:
    answer = send(zipped(("1.png", png()))[:keep])
    assert (answer.status_code, answer.json()["code"]) == (400, "archive_damaged")


@pytest.mark.parametrize("seed", range(40))
def test_damaged_bytes_anywhere_never_end_in_a_crash(send: Send, seed: int) -> None:
    import random

    chance = random.Random(seed)
    content = bytearray(zipped(*((f"p/{number}.png", png()) for number in range(3))))
    for _ in range(chance.randrange(1, 6)):
        content[chance.randrange(len(content))] = chance.randrange(256)
    assert send(bytes(content)).status_code in {200, 400, 413, 415}


def test_an_archive_without_any_image_is_400_and_keeps_what_was_there(send: Send, dataset: Dataset) -> None:
    send(zipped(("1.png", png())))
    answer = send(zipped(("1.png", b"no image")))
    assert (answer.status_code, answer.json()["code"]) == (400, "archive_without_images")
    assert answer.json()["errors"][0]["field"] == "1.png"
    assert resolved("1.png", dataset) == png()


def test_an_empty_archive_is_400(send: Send) -> None:
    assert send(zipped()).json()["code"] == "archive_without_images"


def test_an_unknown_dataset_is_404(send: Send) -> None:
    assert send(zipped(("1.png", png())), 999).status_code == 404


def test_too_little_space_for_what_is_unpacked_is_503(
    send: Send, monkeypatch: pytest.MonkeyPatch, own_data_dir: Path
) -> None:
    spaces = iter([10**9, 10])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=next(spaces)))
    answer = send(zipped(("1.png", png())))
    assert (answer.status_code, answer.json()["code"]) == (503, "disk_full")
    assert files_below(own_data_dir / "images") == []


def test_a_disk_that_fills_up_changes_nothing(
    send: Send, dataset: Dataset, own_data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(zipped(("1.png", png("red"))))
    before = files_below(own_data_dir / "images")
    write = Path.write_bytes
    written: list[Path] = []

    def full_after_one(self: Path, data: bytes) -> int:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(self)
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full_after_one)
    answer = send(zipped(("1.png", png("blue")), ("2.png", png("green"))))
    assert (answer.status_code, answer.json()["code"]) == (503, "disk_full")
    assert files_below(own_data_dir / "images") == before
    assert resolved("1.png", dataset) == png("red")


def test_a_dataset_that_is_deleted_meanwhile_gets_no_images(
    send: Send, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = archives.publish_images

    def delete_first(folder: Path) -> None:
        Dataset.objects.all().delete()
        publish(folder)

    monkeypatch.setattr(archives, "publish_images", delete_first)
    answer = send(zipped(("1.png", png())))
    assert (answer.status_code, answer.json()["code"]) == (409, "dataset_deleted")
    assert not ImageArchiveEntry.objects.exists()


KILLED = """
import sys, django
django.setup()
from django.core.files.uploadedfile import TemporaryUploadedFile
from django.core.management import call_command
from pathlib import Path
call_command("migrate", verbosity=0)
from datasets_app.archives import images_upload
from datasets_app.models import Dataset, ImageArchiveEntry
dataset, _ = Dataset.objects.get_or_create(
    sha256="0" * 64, defaults=dict(filename="a.csv", size_bytes=1, format="csv", num_rows=1, num_columns=1))
print(ImageArchiveEntry.objects.count(), flush=True)
file = TemporaryUploadedFile("a.zip", "application/zip", 1, None)
file.write(Path(sys.argv[1]).read_bytes()); file.flush()
print(images_upload(dataset=dataset, file=file).stored, flush=True)
"""


def test_a_process_killed_while_it_unpacks_leaves_no_path_behind_and_the_next_try_works(
    tmp_path: Path, own_data_dir: Path
) -> None:
    archive, data_dir = tmp_path / "many.zip", tmp_path / "own"
    count = 400
    archive.write_bytes(
        zipped(*((f"p/{n}.png", png("red", (400 + n, 400))) for n in range(count)), method=zipfile.ZIP_STORED)
    )
    environment = {**os.environ, **own_database(data_dir), "QWEN3VL_DATA_DIR": str(data_dir)}
    command = [sys.executable, "-c", KILLED, str(archive)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"0\n"
        while not list((data_dir / "images").glob(".partial-*/*")):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert again.stdout.split() == ["0", str(count)], again.stderr
    assert list((data_dir / "images").glob(".partial-*"))
    (own_data_dir / "images").mkdir(exist_ok=True)
    shutil.copytree(data_dir / "images", own_data_dir / "images", dirs_exist_ok=True)
    assert sweep_partials(older_than=0) == 1
    assert not list((own_data_dir / "images").glob(".partial-*"))


def test_a_thousand_paths_are_looked_up_in_few_queries(dataset: Dataset, django_assert_max_num_queries: Any) -> None:
    from datasets_app.archive_paths import find_archived

    with django_assert_max_num_queries(3):
        found = find_archived(dataset=dataset, cells={f"{number}.png" for number in range(1000)})
    assert len(found) == 1000


@pytest.mark.parametrize(
    ("text", "path"),
    [("a//b/./c.png", "a/b/c.png"), ("/a", "/a"), ("\\a", "/a"), ("a/", "a"), ("", ""), ("./.", ""), ("A/b", "A/b")],
)
def test_paths_have_one_spelling(text: str, path: str) -> None:
    assert normalised_path(text) == path
    assert normalised_path(path) == path


def test_the_answer_is_plain_json(send: Send) -> None:
    answer = send(zipped(("b\u00fcro/1.txt", b"x"), ("1.png", png())))
    assert json.loads(answer.content)["errors"][0]["field"] == "b\u00fcro/1.txt"
