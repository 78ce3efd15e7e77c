"""The preflight routes over the real URL conf: the report, its reuse, waiting, stopping, and every refusal."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from rest_framework.test import APIClient

from datasets_app.image_cache import remember_image, store_image
from datasets_app.models import PreflightRun
from datasets_app.preflight_runner import execute_preflight
from ftproject.core.jobs import Job, active_jobs, claim_job, queued_jobs
from ftproject.core.light_lane import run_light_jobs
from ftproject.core.models import Event
from ftproject.core.tasks import drain_flag
from tests.datasets_app.conftest import Upload
from tests.datasets_app.test_preflight_rows import data_uri, picture
from tests.training_app.world import SameProcessExecutor

URL = "/api/datasets/preflight"
ROWS = b"prompt,answer,image\nWhat is 1+1?,2,\nWhat is 2+2?,4,\nWhat is 2+2?,5,\n"
Ready = Callable[..., int]


@pytest.fixture
def ready(client: APIClient, upload: Upload) -> Ready:
    """Uploads and maps a table."""

    def load(content: bytes = ROWS, **mapping: Any) -> int:
        dataset_id = int(upload(content).json()["dataset_id"])
        body = {"prompt_column": "prompt", "response_column": "answer", "image_url_columns": ["image"], **mapping}
        assert client.post("/api/datasets/mapping", body, format="json").status_code == 200
        return dataset_id

    return load


def work() -> int:
    return run_light_jobs(SameProcessExecutor(execute_preflight))


def post(client: APIClient, **body: Any) -> Any:
    return client.post(URL, {"wait_seconds": 0, **body}, format="json")


def finished(client: APIClient, **body: Any) -> dict[str, Any]:
    """The report of a preflight that the lane has done."""
    assert post(client, **body).status_code == 202
    assert work() == 1
    answer = post(client, **body)
    assert answer.status_code == 200
    report: dict[str, Any] = answer.json()["report"]
    return report


def test_the_report_tells_rows_tokens_answers_split_and_costs(client: APIClient, ready: Ready) -> None:
    dataset_id = ready()
    report = finished(client, holdout_fraction=0.4, sft_config={"max_steps": 3})
    assert report["can_train"] is True
    assert report["dataset_id"] == dataset_id
    assert report["rows"] == {"total": 3, "usable": 3, "skipped": 0, "reasons": []}
    assert report["tokens"]["counted"] == 3
    assert report["conflicts"]["examples"] == [
        {"count": 2, "rows": [1, 2], "distinct_answers": 2, "answers": ["4", "5"]}
    ]
    assert report["labels"]["distinct"] == 3
    assert report["split"]["train_rows"] + report["split"]["heldout_rows"] == 3
    assert report["time"]["steps"] == 3
    assert report["memory"]["total_mb"] > 0
    assert any("answered differently" in warning for warning in report["warnings"])


def test_a_preflight_that_is_not_done_in_time_is_202_with_its_place(client: APIClient, ready: Ready) -> None:
    ready()
    answer = post(client)
    assert answer.status_code == 202
    body = answer.json()
    assert body == {
        "status": "queued",
        "run_id": body["run_id"],
        "reused": False,
        "current_row": 0,
        "total_rows": 3,
        "queue_position": 1,
    }
    assert post(client).json() == {**body, "reused": True}
    assert PreflightRun.objects.count() == 1
    shown = client.get(f"{URL}/{body['run_id']}").json()
    assert (shown["status"], shown["report"], shown["total_rows"]) == ("queued", None, 3)


@pytest.mark.django_db(transaction=True)
def test_a_request_waits_for_its_report(client: APIClient, ready: Ready) -> None:
    ready()
    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(client.post(URL, {}, format="json"))
        finally:
            connection.close()

    asking = threading.Thread(target=ask)
    asking.start()
    while asking.is_alive() and not work():  # a run process handles signals, so it stays in the main thread
        time.sleep(0.05)
    asking.join(timeout=20)
    [answer] = answers
    assert answer.status_code == 200
    assert answer.json()["reused"] is False
    assert client.get(f"{URL}/{answer.json()['run_id']}").json()["report"] == answer.json()["report"]


def test_the_same_again_is_reused_and_anything_else_is_not(client: APIClient, ready: Ready) -> None:
    ready()
    finished(client)
    assert post(client).json()["reused"] is True
    assert post(client, sft_config={"max_seq_length": 64}).status_code == 202
    assert post(client, holdout_seed=1).status_code == 202
    ready(mandatory_columns=["answer"])
    assert post(client).status_code == 202


def test_a_report_with_images_to_come_is_not_reused(client: APIClient, ready: Ready) -> None:
    url = "https://example.com/a.png"
    ready(f"prompt,answer,image\nWhat?,2,{url}\n".encode())
    assert post(client).status_code == 202
    work()
    report = PreflightRun.objects.get().report
    assert report is not None
    assert report["images"]["not_fetched"]["rows"] == 1
    assert report["tokens"]["not_counted"] == 1
    assert "/api/datasets/images/prefetch" in report["images"]["not_fetched"]["hint"]
    remember_image(url, store_image(picture(64, 64)))
    assert post(client).status_code == 202
    work()
    second = PreflightRun.objects.order_by("-id")[0].report
    assert second is not None
    assert second["tokens"]["vision"] == 4
    assert post(client).status_code == 200


def test_images_that_fail_are_named_by_row_column_and_code(client: APIClient, ready: Ready) -> None:
    broken = data_uri(b"nothing")
    ready(f'prompt,answer,image\nWhat?,2,"{broken}"\nWhat?,3,nonsense\n'.encode(), mandatory_columns=["image"])
    post(client)
    work()
    report = PreflightRun.objects.get().report
    assert report is not None
    assert [(item["row"], item["code"]) for item in report["images"]["failures"]] == [
        (0, "image_not_an_image"),
        (1, "image_path_unknown"),
    ]
    assert report["can_train"] is False
    assert [item["code"] for item in report["blockers"]] == ["no_usable_rows"]


def test_rows_over_the_limit_come_with_three_remedies(client: APIClient, ready: Ready) -> None:
    big = data_uri(picture(640, 640))
    ready(f'prompt,answer,image\nWhat?,2,"{big}"\nshort,3,\n'.encode())
    sizes = {"max_seq_length": 64, "min_pixels": 1024, "max_pixels": 1_000_000}
    report = finished(client, model_config_data=sizes)
    assert report["too_long"]["rows"] == [0]
    remedies = report["too_long"]["remedies"]
    assert remedies["drop_rows"] == {"rows": 1, "rows_left": 1}
    lower, raised = remedies["lower_max_pixels"]["max_pixels"], remedies["raise_max_seq_length"]["max_seq_length"]
    assert finished(client, model_config_data={**sizes, "max_pixels": lower})["too_long"]["count"] == 0
    assert finished(client, model_config_data={**sizes, "max_pixels": lower + 1})["too_long"]["count"] == 1
    assert finished(client, model_config_data={**sizes, "max_seq_length": raised})["too_long"]["count"] == 0
    assert finished(client, model_config_data={**sizes, "max_seq_length": raised - 1})["too_long"]["count"] == 1


def test_a_model_that_is_not_here_leaves_the_counts_out_and_the_rest_stands(client: APIClient, ready: Ready) -> None:
    ready()
    report = finished(client, model_config_data={"model_name": "unsloth/Qwen3-VL-8B-Instruct"})
    assert report["tokens"] == {
        "counted": 0,
        "reason": "tokenizer.json of unsloth/Qwen3-VL-8B-Instruct is not on this disk",
    }
    assert report["memory"]["total_mb"] is None
    assert report["rows"]["usable"] == 3
    assert [item["code"] for item in report["blockers"]] == ["model_needs_gpu"]
    assert report["can_train"] is False


def test_progress_and_end_are_events(client: APIClient, ready: Ready) -> None:
    ready()
    finished(client)
    events = {event.type: event.data for event in Event.objects.filter(run_kind="preflight")}
    run_id = PreflightRun.objects.get().pk
    assert events["preflight_progress"] == {"run_id": run_id, "current": 3, "total": 3}
    assert events["preflight_complete"] == {"run_id": run_id, "can_train": True, "usable": 3, "skipped": 0}


def test_a_waiting_preflight_is_taken_out_of_the_queue(client: APIClient, ready: Ready) -> None:
    ready()
    run_id = post(client).json()["run_id"]
    answer = client.post(f"{URL}/{run_id}/stop")
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    assert Event.objects.get(type="preflight_error").data["run_id"] == run_id
    assert work() == 0
    again = client.post(f"{URL}/{run_id}/stop")
    assert (again.status_code, again.json()["code"]) == (409, "no_active_run")
    assert post(client).json()["run_id"] != run_id


def test_a_stop_leaves_no_report_and_says_how_far_it_was(client: APIClient, ready: Ready) -> None:
    ready()
    run = PreflightRun.objects.get(pk=post(client).json()["run_id"])
    assert claim_job(run)
    from ftproject.core.run_context import execute

    assert execute(lambda job, _: execute_preflight(job, lambda: True), "preflight", run.pk, run.claim) == 1
    run.refresh_from_db()
    assert (run.status, run.report) == (Job.Status.ERROR, None)
    assert run.error == "Stopped after 1 of 3 rows: no report was made."


def test_a_shutdown_puts_a_preflight_back_into_the_queue(client: APIClient, ready: Ready) -> None:
    ready()
    run = PreflightRun.objects.get(pk=post(client).json()["run_id"])
    assert claim_job(run)
    drain_flag().touch()
    execute_preflight(run, lambda: True)
    drain_flag().unlink()
    assert [job.pk for job in queued_jobs(needs_gpu=False)] == [run.pk]
    assert active_jobs(needs_gpu=False) == []


def test_a_preflight_whose_table_is_gone_ends_with_the_reason(
    client: APIClient, ready: Ready, own_data_dir: Path
) -> None:
    ready()
    run_id = post(client).json()["run_id"]
    for path in (own_data_dir / "datasets").glob("*.parquet"):
        path.unlink()
    work()
    shown = client.get(f"{URL}/{run_id}").json()
    assert shown["status"] == "error"
    assert "gone from the data directory" in shown["error"]
    run = PreflightRun.objects.get(pk=run_id)
    from datasets_app.preflight_services import wait_for_preflight
    from ftproject.core.errors import UnavailableError

    with pytest.raises(UnavailableError) as caught:
        wait_for_preflight(run=run, seconds=0)
    assert caught.value.code == "preflight_failed"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"wait_seconds": 301}, 400, "invalid_input"),
        ({"wait_seconds": "5"}, 400, "invalid_input"),
        ({"wait_second": 5}, 400, "invalid_input"),
        ({"dataset_id": 99}, 404, "dataset_not_found"),
        ({"sft_config": {"max_step": 5}}, 400, "unknown_field"),
        ({"sft_config": "fast"}, 400, "invalid_type"),
        ({"holdout_fraction": "0.2"}, 400, "invalid_type"),
        ({"holdout_fraction": 1.5}, 400, "out_of_range"),
        ({"model_config_data": {"model_name": "gpt2"}}, 400, "model_not_allowed"),
        ({"model_config_data": {"max_seq_length": 64}, "sft_config": {"max_seq_length": 65}}, 400, None),
        ({"dry_run": True}, 400, "invalid_input"),
    ],
)
def test_a_body_that_no_training_would_take_is_refused(
    client: APIClient, ready: Ready, body: dict[str, Any], status: int, code: str | None
) -> None:
    ready()
    answer = post(client, **body)
    assert answer.status_code == status, answer.json()
    assert code is None or code in (answer.json()["code"], *(item["code"] for item in answer.json()["errors"]))
    assert PreflightRun.objects.count() == 0


def test_before_any_upload_or_mapping_it_is_a_conflict(client: APIClient, upload: Upload) -> None:
    first = post(client)
    assert (first.status_code, first.json()["code"]) == (409, "dataset_not_loaded")
    upload(ROWS)
    second = post(client)
    assert (second.status_code, second.json()["code"]) == (409, "mapping_not_set")
    assert "suggestion" in second.json()


@pytest.mark.parametrize("number", ["7", "9" * 40])
@pytest.mark.django_db
def test_an_unknown_preflight_is_404(client: APIClient, number: str) -> None:
    for answer in (client.get(f"{URL}/{number}"), client.post(f"{URL}/{number}/stop")):
        assert (answer.status_code, answer.json()["code"]) == (404, "run_not_found")


def test_a_dataset_with_preflights_can_be_deleted(client: APIClient, ready: Ready) -> None:
    dataset_id = ready()
    finished(client)
    assert client.delete(f"/api/datasets/{dataset_id}").status_code == 200
    assert PreflightRun.objects.count() == 0


def test_the_admin_shows_preflights_and_changes_none(client: APIClient, ready: Ready) -> None:
    ready()
    finished(client)
    post(client, holdout_seed=3)
    admin = Client(SERVER_NAME="localhost")
    admin.force_login(User.objects.create_superuser("root"))
    page = admin.get("/admin/datasets_app/preflightrun/?q=small")
    assert page.status_code == 200
    assert b"small.csv (3 rows)" in page.content
    run_id = PreflightRun.objects.earliest("id").pk
    assert admin.get(f"/admin/datasets_app/preflightrun/{run_id}/change/").status_code == 200
    assert admin.post(f"/admin/datasets_app/preflightrun/{run_id}/change/", {"status": "error"}).status_code == 403
    assert admin.get("/admin/datasets_app/preflightrun/add/").status_code == 403
    assert admin.post(f"/admin/datasets_app/preflightrun/{run_id}/delete/").status_code == 403
