"""Merges: the queued job from the route to a model that can be named, and everything that refuses one."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.test import Client

from ftproject.core import waiting
from ftproject.core.errors import ConflictError
from ftproject.core.jobs import claim_job
from ftproject.core.models import Event
from ftproject.core.storage import data_path, models_dir, sweep_partials
from tests.training_app.lora_folders import MODULES, lora_tensors, registered_adapter
from tests.training_app.test_train_command import OtherProcess
from tests.training_app.world import After, Api, SameProcessExecutor, load_dataset, trained_run, work_queue
from training_app import merge_services
from training_app.merge_runner import execute_merge
from training_app.models import Adapter, AdapterMerge

MERGES = "/api/training/merges"
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def adapter(api: Api, monkeypatch: pytest.MonkeyPatch) -> Adapter:
    monkeypatch.setattr("ftproject.core.tasks.get_executor", lambda: SameProcessExecutor(execute_merge))
    return registered_adapter()


def merge_url(adapter: Adapter) -> str:
    return f"/api/training/adapters/{adapter.name}/merge"


def start(api: Api, adapter: Adapter, **body: Any) -> Any:
    answer = api.post(merge_url(adapter), body)
    assert answer.status_code == 202, answer.json()
    return answer.json()


def only_merge() -> AdapterMerge:
    return AdapterMerge.objects.get()


def leftovers() -> list[str]:
    return [path.name for path in models_dir().iterdir()]


# One merge, for real


def test_a_merge_becomes_a_model_that_can_be_named_at_once(api: Api, adapter: Adapter, tmp_path: Path) -> None:
    body = start(api, adapter)
    assert body == {
        "status": "started",
        "merge_id": only_merge().pk,
        "adapter": "drawn",
        "model_name": "drawn-merged",
        "warnings": [],
    }
    work_queue()
    merge = api.get(f"{MERGES}/{body['merge_id']}").json()
    assert (merge["status"], merge["error"], merge["message"]) == ("completed", None, "Merged into drawn-merged")
    assert Path(merge["model_path"]) == models_dir() / "drawn-merged"
    assert merge["result"]["modules"] == len(MODULES)
    assert merge["result"]["check"]["effect"] > merge["result"]["check"]["difference"]
    assert merge["current"] == merge["total"] > 0
    folder = Path(merge["model_path"])
    assert {"config.json", "tokenizer.json", "preprocessor_config.json"} <= {path.name for path in folder.iterdir()}
    check_provenance(json.loads((folder / "provenance.json").read_text()), adapter)
    check_events(body["merge_id"])
    load_dataset(tmp_path)
    plan = api.post("/api/training/start", {"dry_run": True, "model_config_data": {"model_name": "drawn-merged"}})
    assert plan.json()["model_name"] == "drawn-merged"
    assert api.delete(f"{MERGES}/{body['merge_id']}").json() == {"status": "deleted", "id": body["merge_id"]}
    assert leftovers() == []
    assert api.get(f"{MERGES}/{body['merge_id']}").json()["code"] == "merge_not_found"


def check_provenance(provenance: dict[str, Any], adapter: Adapter) -> None:
    assert provenance["adapter_sha256"] == adapter.sha256
    assert provenance["base_model_name"] == "tiny-qwen3-vl"
    assert str(data_path("x").parent) not in json.dumps(provenance)


def check_events(merge_id: int) -> None:
    events = Event.objects.filter(run_kind="merge", run_id=merge_id).order_by("id")
    words = [event.data["status"] for event in events]
    assert {event.type for event in events} == {"merge_status"}
    assert (words[0], words[1], words[-1]) == ("queued", "working", "completed")


def test_the_engines_own_refusal_ends_the_merge_and_leaves_nothing(api: Api, adapter: Adapter) -> None:
    changes_nothing = registered_adapter("nothing", effective=False, tensors=lora_tensors(effect=0.0))
    body = start(api, changes_nothing)
    assert "measured to change nothing" in body["warnings"][0]
    work_queue()
    merge = only_merge()
    assert merge.status == "error"
    assert merge.error
    assert leftovers() == []


# Waiting, stopping, ending


def test_a_merge_waits_behind_a_run_that_has_the_gpu(api: Api, adapter: Adapter) -> None:
    start(api, adapter)
    claim_job(only_merge())
    body = start(api, adapter, model_name="second")
    assert (body["status"], body["queue_position"]) == ("queued", 1)
    assert api.get(f"{MERGES}/{body['merge_id']}").json()["queue_position"] == 1


def test_a_waiting_merge_is_taken_out_of_the_queue(api: Api, adapter: Adapter) -> None:
    body = start(api, adapter)
    answer = api.post(f"{MERGES}/{body['merge_id']}/stop")
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    assert work_queue() == []
    assert only_merge().error == "Cancelled before it started."


def test_a_stop_while_merging_leaves_nothing(api: Api, adapter: Adapter) -> None:
    start(api, adapter)
    merge = only_merge()
    claim_job(merge)
    assert api.post(f"{MERGES}/{merge.pk}/stop").json()["status"] == "stopping"
    assert api.post(f"{MERGES}/{merge.pk}/stop").json()["status"] == "stopping"
    with pytest.raises(Exception, match=r"[Ss]topped"):
        execute_merge(merge, After(1))
    assert leftovers() == []


def test_a_merge_that_a_shutdown_interrupts_goes_back_to_the_queue(api: Api, adapter: Adapter) -> None:
    start(api, adapter)
    merge = only_merge()
    claim_job(merge)
    data_path("run", "draining").touch()
    execute_merge(merge, After(1))
    assert only_merge().status == "queued"
    assert leftovers() == []


def test_a_merge_whose_row_was_ended_elsewhere_takes_its_model_away(
    api: Api, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftproject.engine.merge_check import MergeCheck
    from ftproject.engine.merging import MergeResult

    def quick(folder: Path, base: str, target: Path, **_: Any) -> MergeResult:
        target.mkdir()
        AdapterMerge.objects.update(status="error", error="The process is gone.")
        return MergeResult(target, 1, 1, 1, "", MergeCheck(0.0, 1.0, 1.0, True, 0.0), [], 0.1)

    monkeypatch.setattr("training_app.merge_runner.merge_adapter", quick)
    start(api, adapter)
    work_queue()
    assert only_merge().error == "The process is gone."
    assert leftovers() == []


def test_a_merge_whose_last_commit_was_reported_as_failed_keeps_its_model(
    api: Api, adapter: Adapter, broken_commits: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftproject.engine.merge_check import MergeCheck
    from ftproject.engine.merging import MergeResult

    def quick(folder: Path, base: str, target: Path, **_: Any) -> MergeResult:
        target.mkdir()
        return MergeResult(target, 1, 1, 1, "", MergeCheck(0.0, 1.0, 1.0, True, 0.0), [], 0.1)

    monkeypatch.setattr("training_app.merge_runner.merge_adapter", quick)
    start(api, adapter)
    work_queue()
    assert (only_merge().status, only_merge().error) == ("completed", None)
    assert leftovers() == [only_merge().model_name]


def test_a_disk_that_fills_up_while_merging_is_named(
    api: Api, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training_app.merge_runner.merge_adapter", full)
    start(api, adapter)
    work_queue()
    assert only_merge().error == "The disk is full: nothing of the merge was kept. Free space, then merge again."


def test_what_a_killed_merge_leaves_is_swept_and_in_nobodys_way(api: Api, adapter: Adapter) -> None:
    (models_dir() / ".partial-drawn-merged-0123").mkdir()
    start(api, adapter)
    AdapterMerge.objects.update(status="working", supervisor="gone")
    AdapterMerge.objects.update(status="error", error="The process ended without a word.")
    assert start(api, adapter)["model_name"] == "drawn-merged"
    sweep_partials(older_than=-1)
    assert leftovers() == []


# Refusals


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "a/b", "/etc", "../x", "a b", "-rf", "ü", "x" * 129, "a\0", "unsloth/Qwen3-VL-8B"],
)
def test_a_name_that_is_no_plain_folder_is_refused(api: Api, adapter: Adapter, name: str) -> None:
    answer = api.post(merge_url(adapter), {"model_name": name})
    assert answer.status_code == 400, answer.json()
    assert not AdapterMerge.objects.exists()


@pytest.mark.parametrize("body", [{"model_name": 5}, {"name": "x"}, {"dtype": "float16"}])
def test_a_body_with_anything_else_is_refused(api: Api, adapter: Adapter, body: dict[str, Any]) -> None:
    assert api.post(merge_url(adapter), body).status_code == 400


def test_a_name_that_is_taken_is_a_conflict(api: Api, adapter: Adapter) -> None:
    (models_dir() / "taken").mkdir()
    (models_dir() / "dangling").symlink_to("/nowhere")
    for name in ("taken", "dangling", "tiny-qwen3-vl"):
        answer = api.post(merge_url(adapter), {"model_name": name})
        assert (answer.status_code, answer.json()["code"]) == (409, "model_exists")


def test_a_name_that_another_merge_will_take_is_a_conflict(api: Api, adapter: Adapter) -> None:
    start(api, adapter)
    answer = api.post(merge_url(adapter), {})
    assert (answer.status_code, answer.json()["code"]) == (409, "model_exists")
    assert AdapterMerge.objects.count() == 1


def test_an_unknown_adapter_is_404(api: Api, adapter: Adapter) -> None:
    for name in ("nobody", "..", "%2e%2e%2f"):
        assert api.post(f"/api/training/adapters/{name}/merge", {}).status_code == 404


def test_a_base_that_is_not_allowed_or_needs_a_gpu_is_refused(api: Api, adapter: Adapter) -> None:
    stranger = registered_adapter("stranger", base_model_name_or_path="meta-llama/Llama-3-8B")
    answer = api.post(merge_url(stranger), {})
    assert (answer.status_code, answer.json()["code"]) == (400, "model_not_allowed")


def test_an_adapter_that_does_not_fit_its_base_is_refused_at_once(api: Api, adapter: Adapter) -> None:
    wide = lora_tensors({"model.language_model.layers.0.self_attn.q_proj": (128, 999)})
    wrong = registered_adapter("wrong", tensors=wide)
    answer = api.post(merge_url(wrong), {})
    assert answer.status_code == 409
    assert not AdapterMerge.objects.exists()


def test_a_disk_without_room_is_503_before_anything_starts(
    api: Api, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(models_dir())._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    answer = api.post(merge_url(adapter), {})
    assert (answer.status_code, answer.json()["code"]) == (503, "disk_full")
    assert not AdapterMerge.objects.exists()


def test_the_same_key_answers_the_same_merge_and_with_another_body_it_is_a_conflict(api: Api, adapter: Adapter) -> None:
    first = api.post(merge_url(adapter), {}, **{"Idempotency-Key": "k"}).json()
    again = api.post(merge_url(adapter), {}, **{"Idempotency-Key": "k"}).json()
    assert again["merge_id"] == first["merge_id"]
    other = api.post(merge_url(adapter), {"model_name": "other"}, **{"Idempotency-Key": "k"})
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")


def test_an_adapter_that_is_being_merged_cannot_be_deleted(api: Api, adapter: Adapter) -> None:
    merge_id = start(api, adapter)["merge_id"]
    answer = api.delete(f"/api/training/adapters/{adapter.name}")
    assert (answer.status_code, answer.json()["code"]) == (409, "adapter_in_use")
    assert f"merge {merge_id}" in answer.json()["detail"]
    api.post(f"{MERGES}/{merge_id}/stop")
    assert api.delete(f"/api/training/adapters/{adapter.name}").status_code == 200
    merge = api.get(f"{MERGES}/{merge_id}").json()
    assert (merge["adapter"], merge["adapter_id"]) == ("drawn", None)


def test_an_adapter_that_was_just_deleted_is_not_merged(api: Api, adapter: Adapter) -> None:
    request = merge_services.merge_request(adapter=adapter, model_name=None)
    Adapter.objects.all().delete()
    with pytest.raises(ConflictError, match="just deleted"):
        merge_services.merge_create(request=request, idempotency_key=None, fingerprint="")


def test_a_merge_that_has_not_ended_is_neither_deleted_nor_stopped_twice(api: Api, adapter: Adapter) -> None:
    url = f"{MERGES}/{start(api, adapter)['merge_id']}"
    answer = api.delete(url)
    assert (answer.status_code, answer.json()["code"]) == (409, "run_active")
    api.post(f"{url}/stop")
    assert api.post(f"{url}/stop").json()["code"] == "no_active_run"


def test_a_failed_merge_takes_no_other_model_with_it(api: Api, adapter: Adapter) -> None:
    url = f"{MERGES}/{start(api, adapter)['merge_id']}"
    api.post(f"{url}/stop")
    (models_dir() / "drawn-merged").mkdir()
    assert api.delete(url).status_code == 200
    assert leftovers() == ["drawn-merged"]


def test_a_model_that_an_adapter_was_trained_on_stays(api: Api, adapter: Adapter) -> None:
    merge = AdapterMerge.objects.create(
        adapter=adapter, adapter_name="drawn", base_model_name="tiny-qwen3-vl", model_name="kept", status="completed"
    )
    merge.path.mkdir()
    registered_adapter("on-top", base_model_name_or_path="kept")
    answer = api.delete(f"{MERGES}/{merge.pk}")
    assert (answer.status_code, answer.json()["code"]) == (409, "model_in_use")
    assert "on-top" in answer.json()["detail"]
    assert leftovers() == ["kept"]


@pytest.mark.parametrize("number", ["0", "99", "9" * 30])
def test_an_unknown_merge_is_404(api: Api, number: str) -> None:
    for answer in (
        api.get(f"{MERGES}/{number}"),
        api.post(f"{MERGES}/{number}/stop"),
        api.delete(f"{MERGES}/{number}"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "merge_not_found")


def test_merges_are_listed_newest_first(api: Api, adapter: Adapter) -> None:
    assert api.get(MERGES).json()["merges"] == []
    for name in ("a", "b", "c"):
        start(api, adapter, model_name=name)
    listed = api.get(MERGES, page_size=2).json()
    assert [merge["model_name"] for merge in listed["merges"]] == ["c", "b"]
    assert (listed["total"], listed["total_pages"]) == (3, 2)


# The command and the admin


def test_the_command_waits_and_prints_the_folder(
    api: Api, adapter: Adapter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def worker() -> None:
        folder = models_dir() / "by-hand"
        folder.mkdir(exist_ok=True)
        AdapterMerge.objects.update(status="completed")

    monkeypatch.setattr(waiting, "queue_worker_seen", lambda: True)
    monkeypatch.setattr(waiting, "time", OtherProcess(worker))
    call_command("merge_adapter", adapter.name, "--name", "by-hand")
    assert capsys.readouterr().out.splitlines()[-1] == str(models_dir() / "by-hand")


def test_the_command_ends_with_1_and_the_reason_of_a_failed_merge(
    api: Api, adapter: Adapter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(waiting, "queue_worker_seen", lambda: True)
    fail = partial(AdapterMerge.objects.update, status="error", error="Out of memory.")
    monkeypatch.setattr(waiting, "time", OtherProcess(fail))
    with pytest.raises(SystemExit) as leave:
        call_command("merge_adapter", adapter.name)
    assert leave.value.code == 1
    assert "Out of memory." in capsys.readouterr().err


def test_the_command_refuses_as_the_route_does(api: Api, adapter: Adapter) -> None:
    for arguments, words in ((("nobody",), "There is no adapter"), (("drawn", "--name", "../x"), "no name of a model")):
        with pytest.raises(CommandError, match=words):
            call_command("merge_adapter", *arguments)


def test_the_admin_stops_and_deletes_through_the_services(api: Api, adapter: Adapter, client: Client) -> None:
    client.force_login(User.objects.create_superuser("root"))
    merge_id = start(api, adapter)["merge_id"]
    url = "/admin/training_app/adaptermerge/"
    assert client.get(url).status_code == 200
    assert client.get(f"{url}{merge_id}/change/").status_code == 200
    client.post(url, {"action": "delete_merges", "_selected_action": [merge_id]})
    assert AdapterMerge.objects.exists()
    client.post(url, {"action": "stop_merges", "_selected_action": [merge_id]})
    client.post(url, {"action": "delete_merges", "_selected_action": [merge_id]})
    assert not AdapterMerge.objects.exists()


def test_a_trained_adapter_of_the_fake_backend_cannot_be_merged(api: Api, tmp_path: Path) -> None:
    load_dataset(tmp_path)
    run = trained_run(api)
    assert api.post(merge_url(run.adapter), {}).status_code == 409
