"""Prefetch: every image once into the cache, the bad ones by row; stopped, started again, and told to the sockets."""

import csv
import io
import threading
import time
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from rest_framework.test import APIClient

from datasets_app import prefetch_runner
from datasets_app.models import BadImage, Dataset, ImagePrefetch
from datasets_app.prefetch_runner import ClaimLostError, execute_prefetch
from datasets_app.prefetch_services import prefetch_start
from datasets_app.services import mapping_set
from ftproject.core.formula_escape import unescape_formula
from ftproject.core.jobs import claim_job, stop_job
from ftproject.core.models import Event
from ftproject.core.run_context import execute
from ftproject.core.tasks import drain_flag
from ftproject.worker import RUNNERS
from tests.core.image_server import ImageServer, response
from tests.datasets_app.conftest import Upload
from tests.datasets_app.test_archives import zipped
from tests.datasets_app.test_images import data_uri, png
from tests.postgres.databases import own_database

ROUTE = "/api/datasets/images/prefetch"
Load = Callable[..., Dataset]


@pytest.fixture
def server(settings: Any) -> Iterator[ImageServer]:
    with ImageServer() as running:
        settings.IMAGE_ALLOWED_HOSTS = [f"127.0.0.1:{running.port}"]
        yield running


@pytest.fixture
def load(upload: Upload) -> Load:
    """A mapped dataset with these image cells, one a row."""

    def make(cells: list[str], **mapping: Any) -> Dataset:
        lines = "".join(f'p{number},r,"{cell}"\n' for number, cell in enumerate(cells))
        upload(f"prompt,response,image\n{lines}".encode())
        dataset = Dataset.objects.get(is_current=True)
        columns = {"prompt_column": "prompt", "response_column": "response", "image_url_columns": ["image"]}
        mapping_set(dataset=dataset, **{**columns, **mapping})
        return dataset

    return make


def started(**options: Any) -> ImagePrefetch:
    run, _ = prefetch_start(**options)
    assert claim_job(run)
    return run


def executed(should_stop: Callable[[], bool] = lambda: False, **options: Any) -> ImagePrefetch:
    run = started(**options)
    execute_prefetch(run, should_stop)
    run.refresh_from_db()
    return run


def events(run: ImagePrefetch) -> list[tuple[str, Any]]:
    return list(Event.objects.filter(run_kind="prefetch", run_id=run.pk).order_by("id").values_list("type", "data"))


def test_the_start_answers_202_and_the_run_waits_in_the_light_lane(client: APIClient, load: Load) -> None:
    dataset = load([data_uri(png())])
    answer = client.post(ROUTE, {}, format="json")
    assert answer.status_code == 202
    run = ImagePrefetch.objects.get()
    assert answer.json() == {"status": "started", "run_id": run.pk, "dataset_id": dataset.pk}
    assert (run.status, run.NEEDS_GPU) == ("queued", False)
    second = client.post(f"{ROUTE}/", {"dataset_id": dataset.pk}, format="json").json()
    assert (second["status"], second["queue_position"]) == ("queued", 2)
    shown = client.get(f"{ROUTE}/{second['run_id']}").json()
    assert (shown["status"], shown["queue_position"], shown["total"]) == ("queued", 2, 1)


def test_a_start_without_a_body_takes_the_current_dataset(client: APIClient, load: Load) -> None:
    dataset = load([data_uri(png())])
    assert client.post(ROUTE).json()["dataset_id"] == dataset.pk


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"dataset_id": 999}, 404, "dataset_not_found"),
        ({"dataset_id": "1"}, 400, "invalid_input"),
        ({"dataset": 1}, 400, "invalid_input"),
        ({"retry_failed": "yes"}, 400, "invalid_input"),
        ({}, 409, "dataset_not_loaded"),
    ],
)
def test_a_start_that_cannot_work_is_refused(
    client: APIClient, db: None, body: dict[str, Any], status: int, code: str
) -> None:
    answer = client.post(ROUTE, body, format="json")
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert not ImagePrefetch.objects.exists()


def test_without_a_mapping_or_an_image_column_there_is_nothing_to_fetch(
    client: APIClient, upload: Upload, load: Load
) -> None:
    upload(b"a,b\n1,2\n")
    assert client.post(ROUTE, {}, format="json").json()["code"] == "mapping_not_set"
    load([""], image_url_columns=[])
    answer = client.post(ROUTE, {}, format="json")
    assert (answer.status_code, answer.json()["code"]) == (409, "no_image_columns")


def test_every_image_is_fetched_once_and_a_second_run_fetches_nothing(load: Load, server: ImageServer) -> None:
    server.answers |= {f"/{number}.png": response(png(size=(8, 8 + number))) for number in range(5)}
    load([server.url(f"/{number % 5}.png") for number in range(20)] + [data_uri(png()), ""])
    run = executed()
    assert (run.status, run.current, run.num_images, run.num_failed) == ("completed", 22, 21, 0)
    assert len(server.requests) == 5
    assert executed().num_images == 21
    assert len(server.requests) == 5


def test_each_bad_image_is_listed_with_row_column_url_code_and_message(
    client: APIClient, load: Load, server: ImageServer
) -> None:
    server.answers["/ok.png"] = response(png())
    load([server.url("/ok.png"), server.url("/gone.png"), "http://10.0.0.1/x.png", "=cmd.png", server.url("/gone.png")])
    run = executed()
    assert (run.num_images, run.num_failed) == (5, 4)
    page = client.get(f"{ROUTE}/{run.pk}/bad_rows", {"page_size": 3}).json()
    assert (page["total"], page["total_pages"]) == (4, 2)
    found = [(bad["index"], bad["column"], bad["url"], bad["code"]) for bad in page["bad_rows"]]
    assert found == [
        (1, "image", server.url("/gone.png"), "image_fetch_failed"),
        (2, "image", "http://10.0.0.1/x.png", "image_url_refused"),
        (3, "image", "=cmd.png", "image_path_unknown"),
    ]
    assert "404" in page["bad_rows"][0]["message"]
    rest = client.get(f"{ROUTE}/{run.pk}/bad_rows", {"page": 2, "page_size": 3}).json()["bad_rows"]
    assert [bad["index"] for bad in rest] == [4]
    answer = client.get(f"{ROUTE}/{run.pk}/bad_rows.csv")
    assert answer["Content-Disposition"] == f'attachment; filename="bad_rows_{run.pk}.csv"'
    lines = list(csv.reader(io.StringIO(b"".join(answer).decode())))
    assert lines[0] == ["index", "column", "url", "code", "message"]
    assert [line[2] for line in lines[1:]][2] == "'=cmd.png"
    assert [(int(line[0]), line[1], unescape_formula(line[2]), line[3]) for line in lines[1:]][:3] == found


def test_cells_of_an_archive_and_several_images_of_a_cell_are_looked_up(client: APIClient, load: Load) -> None:
    dataset = load(["p/1.png|p/2.png", "1.png|nothing.png", ""], image_separator="|")
    from django.core.files.uploadedfile import SimpleUploadedFile

    archive = SimpleUploadedFile("a.zip", zipped(("p/1.png", png()), ("p/2.png", png("blue"))))
    assert client.post(f"/api/datasets/{dataset.pk}/images", {"file": archive}, format="multipart").status_code == 200
    run = executed()
    assert (run.num_images, run.num_failed) == (4, 1)
    assert run.bad_images.get().url == "nothing.png"


def test_rows_that_are_skipped_anyway_cost_no_request(load: Load, server: ImageServer) -> None:
    load([server.url("/a.png")], mandatory_columns=["prompt"])
    Dataset.objects.get().table_path.exists()
    dataset = load(["", server.url("/b.png")], mandatory_columns=["image"])
    server.answers["/b.png"] = response(png())
    executed(dataset_id=dataset.pk)
    assert server.paths() == ["/b.png"]


def test_a_failed_url_is_asked_again_only_when_wished(load: Load, server: ImageServer) -> None:
    load([server.url("/late.png")])
    assert executed().num_failed == 1
    server.answers["/late.png"] = response(png())
    assert executed().num_failed == 1
    assert len(server.requests) == 1
    assert executed(retry_failed=True).num_failed == 0


def test_progress_and_end_are_told_as_events(load: Load) -> None:
    dataset = load([data_uri(png()), "nothing.png"])
    run = executed()
    told = events(run)
    assert ("prefetch_progress", {"run_id": run.pk, "current": 2, "total": 2, "ready": 1, "failed": 1}) in told
    end = {"run_id": run.pk, "dataset_id": dataset.pk, "num_images": 2, "num_failed": 1, "stopped_early": False}
    assert told[-1] == ("prefetch_complete", end)


def test_a_stop_keeps_what_was_fetched_and_the_next_start_goes_on(load: Load, server: ImageServer) -> None:
    leave = threading.Event()

    def stuck(_: ImageServer) -> Iterator[bytes]:
        leave.wait(20)
        yield response(png("blue"))

    server.answers |= {"/1.png": response(png()), "/2.png": stuck}
    load([server.url("/1.png"), server.url("/2.png")])
    began = time.monotonic()
    run = executed(should_stop=lambda: time.monotonic() - began > 1)
    assert time.monotonic() - began < 5
    assert (run.status, run.stopped_early, run.current) == ("completed", True, 1)
    assert events(run)[-1][1]["stopped_early"] is True
    leave.set()
    run = executed()
    assert (run.status, run.stopped_early, run.num_failed, run.num_images) == ("completed", False, 0, 2)
    assert server.paths().count("/1.png") == 1


def test_the_stop_route_stops_a_running_run_and_cancels_a_waiting_one(client: APIClient, load: Load) -> None:
    load([data_uri(png())])
    running, (waiting, _) = started(), prefetch_start()
    assert client.post(f"{ROUTE}/{running.pk}/stop").json()["status"] == "stopping"
    assert client.post(f"{ROUTE}/{running.pk}/stop").json()["status"] == "stopping"
    assert client.post(f"{ROUTE}/{waiting.pk}/stop").json()["status"] == "cancelled"
    assert events(waiting) == [("prefetch_error", {"run_id": waiting.pk, "error": "Cancelled before it started."})]
    answer = client.post(f"{ROUTE}/{waiting.pk}/stop")
    assert (answer.status_code, answer.json()["code"]) == (409, "no_active_run")


def test_a_run_that_is_stopped_before_its_first_row_ends(load: Load) -> None:
    load([data_uri(png())])
    run = started()
    stop_job(run)
    execute_prefetch(run, lambda: True)
    run.refresh_from_db()
    assert (run.status, run.stopped_early, run.current) == ("completed", True, 0)


def test_a_shutdown_puts_the_run_back_into_the_queue_and_its_list_starts_anew(load: Load) -> None:
    load(["nothing.png"] * 3)
    drain_flag().touch()
    looks = iter([False, False, True])
    run = executed(should_stop=lambda: next(looks, True))
    assert (run.status, run.claim) == ("queued", "")
    assert run.bad_images.count() == 2
    drain_flag().unlink()
    assert claim_job(run)
    execute_prefetch(run, lambda: False)
    run.refresh_from_db()
    assert (run.status, [bad.index for bad in run.bad_images.all()]) == ("completed", [0, 1, 2])


def test_the_list_is_capped_and_the_count_is_not(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch_runner, "MAX_LISTED", 2)
    load(["nothing.png"] * 5)
    run = executed()
    assert (run.num_failed, run.bad_images.count()) == (5, 2)


def test_a_host_that_is_gone_is_given_up_for_this_run_only(load: Load, settings: Any) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings.IMAGE_ALLOWED_HOSTS = [f"127.0.0.1:{port}"]
    settings.IMAGE_HOST_CONCURRENCY = 2
    load([f"http://127.0.0.1:{port}/{number}.png" for number in range(200)])
    began = time.monotonic()
    run = executed()
    assert time.monotonic() - began < 20  # 200 x three attempts with pauses would take 90 s
    codes = list(run.bad_images.values_list("code", flat=True))
    assert len(codes) == 200
    assert 5 <= codes.count("image_fetch_failed") <= 8
    assert set(codes) == {"image_fetch_failed", "image_host_given_up"}
    with ImageServer() as back:
        settings.IMAGE_ALLOWED_HOSTS = [f"127.0.0.1:{back.port}"]
        back.answers["/1.png"] = response(png())
        load([back.url("/1.png")])
        assert executed().num_failed == 0


def test_a_failing_run_ends_in_error_with_the_reason(load: Load, own_data_dir: Path) -> None:
    dataset = load([data_uri(png())])
    run = started()
    dataset.table_path.unlink()
    assert execute(execute_prefetch, "prefetch", run.pk, run.claim) == 1
    run.refresh_from_db()
    assert run.status == "error"
    assert "gone from the data directory" in str(run.error)
    assert events(run)[-1][0] == "prefetch_error"


def test_a_run_that_was_taken_over_writes_no_more(load: Load) -> None:
    load(["nothing.png"])
    run = started()
    job = ImagePrefetch.objects.get()
    job.advance("working")
    ImagePrefetch.objects.update(claim="another's")
    with pytest.raises(ClaimLostError):
        prefetch_runner.PrefetchProgress(run).report()
    assert not BadImage.objects.exists()


def test_a_dataset_stays_while_a_prefetch_reads_it_and_takes_finished_ones_along(client: APIClient, load: Load) -> None:
    dataset = load(["nothing.png"])
    run = started()
    answer = client.delete(f"/api/datasets/{dataset.pk}")
    assert (answer.status_code, answer.json()["code"]) == (409, "dataset_in_use")
    execute_prefetch(run, lambda: False)
    assert client.delete(f"/api/datasets/{dataset.pk}").status_code == 200
    assert not ImagePrefetch.objects.exists()


def test_the_list_shows_runs_newest_first_and_filters_by_dataset(client: APIClient, load: Load) -> None:
    first = load(["nothing.png"])
    executed()
    load([data_uri(png())])
    executed()
    runs = client.get(ROUTE).json()["runs"]
    assert [run["num_failed"] for run in runs] == [0, 1]
    assert [run["run_id"] for run in client.get(ROUTE, {"dataset_id": first.pk}).json()["runs"]] == [runs[1]["run_id"]]
    assert client.get(ROUTE, {"page_size": 501}).status_code == 400


@pytest.mark.parametrize("path", ["999", "999/bad_rows", "999/bad_rows.csv", "9" * 40])
def test_an_unknown_run_is_404(client: APIClient, db: None, path: str) -> None:
    answer = client.get(f"{ROUTE}/{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, "run_not_found")
    if "bad" not in path:
        assert client.post(f"{ROUTE}/{path}/stop").status_code == 404


def test_the_worker_knows_the_runner() -> None:
    assert RUNNERS["prefetch"] == f"{execute_prefetch.__module__}:{execute_prefetch.__name__}"


@pytest.mark.django_db
def test_the_command_refuses_what_cannot_work(load: Load, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="No dataset"):
        call_command("prefetch_images")
    with pytest.raises(CommandError, match="There is no dataset 999"):
        call_command("prefetch_images", "--dataset", "999")
    load(["nothing.png"])
    with pytest.raises(CommandError, match="cannot be written"):
        call_command("prefetch_images", "--output", "/nowhere/at/all.csv")
    assert not ImagePrefetch.objects.exists()


@pytest.mark.slow
def test_the_command_fetches_and_writes_the_bad_rows(tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    root = Path(__file__).resolve().parents[2]
    table, bad = tmp_path / "a.csv", tmp_path / "bad.csv"
    table.write_text(f'prompt,response,image\na,b,"{data_uri(png())}"\nc,d,nothing.png\n')
    data_dir = tmp_path / "data"
    environment = {**os.environ, **own_database(data_dir), "QWEN3VL_DATA_DIR": str(data_dir)}

    def manage(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(root / "manage.py"), *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    assert manage("migrate").returncode == 0
    assert manage("import_dataset", str(table), "--map-automatically", "--image-column", "image").returncode == 0
    result = manage("prefetch_images", "--output", str(bad))
    assert result.returncode == 0, result.stderr
    assert "1 images ready, 1 failed, 2 rows" in result.stdout
    assert "image_path_unknown" in result.stdout
    assert bad.read_text().splitlines()[1].startswith("1,image,nothing.png,image_path_unknown")


def test_the_admin_shows_runs_bad_images_and_paths_read_only(admin_client: Any, load: Load) -> None:
    load(["nothing.png"])
    run = executed()
    page = admin_client.get("/admin/datasets_app/imageprefetch/", SERVER_NAME="localhost").content.decode()
    assert f"/admin/datasets_app/badimage/?run__id__exact={run.pk}" in page
    bad = admin_client.get("/admin/datasets_app/badimage/", {"run__id__exact": run.pk}, SERVER_NAME="localhost")
    assert "nothing.png" in bad.content.decode()
    assert admin_client.get("/admin/datasets_app/imagearchiveentry/", SERVER_NAME="localhost").status_code == 200
    for model in ("imageprefetch", "badimage", "imagearchiveentry"):
        assert admin_client.get(f"/admin/datasets_app/{model}/add/", SERVER_NAME="localhost").status_code == 403


def test_the_command_output_names_the_first_bad_rows(load: Load) -> None:
    from datasets_app.management.commands.prefetch_images import Command

    load(["nothing.png"] * 7)
    out = StringIO()
    Command(stdout=out).show(executed())
    assert "0 images ready, 7 failed, 7 rows" in out.getvalue()
    assert "row 4, image:" in out.getvalue()
    assert "and 2 more" in out.getvalue()
