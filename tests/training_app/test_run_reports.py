"""Reports about runs: CSV of the logged steps, the log as it grows, the difference of two runs, the recipe of one."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from datasets_app.models import Dataset
from datasets_app.services import mapping_set
from ftproject.core.storage import log_path
from tests.training_app.test_train_command import ROOT, Workplace
from tests.training_app.world import Api, load_dataset, trained_run, work_queue
from training_app.models import TrainingMetric, TrainingRun
from training_app.run_reports import metrics_csv

URL = "/api/training/runs"


def csv_rows(answer: Any) -> list[dict[str, str]]:
    text = b"".join(answer.streaming_content).decode()
    return list(csv.DictReader(io.StringIO(text)))


# Logged steps as CSV


def test_the_csv_has_every_logged_step_with_the_values_of_the_json(api: Api, dataset: Dataset) -> None:
    run = trained_run(api, sft_config={"max_steps": 7})
    answer = api.get(f"{URL}/{run.pk}/metrics", format="csv")
    assert answer["Content-Type"].startswith("text/csv")
    assert answer["Content-Disposition"] == f'attachment; filename="metrics_{run.pk}.csv"'
    rows = csv_rows(answer)
    logged = api.get(f"{URL}/{run.pk}/metrics").json()["metrics"]
    assert [int(row["step"]) for row in rows] == [metric["step"] for metric in logged] == list(range(1, 8))
    assert [float(row["loss"]) for row in rows] == [metric["loss"] for metric in logged]
    assert {row["eval_loss"] for row in rows} == {""}
    assert set(rows[0]) == set(logged[0])


def test_the_csv_begins_after_a_step(api: Api, dataset: Dataset) -> None:
    run = trained_run(api, sft_config={"max_steps": 5})
    assert [row["step"] for row in csv_rows(api.get(f"{URL}/{run.pk}/metrics", format="csv", since_step=3))] == [
        "4",
        "5",
    ]


def test_a_run_without_steps_has_a_header_only(api: Api, dataset: Dataset) -> None:
    run_id = api.post("/api/training/start", {}).json()["run_id"]
    assert csv_rows(api.get(f"{URL}/{run_id}/metrics", format="csv")) == []


def test_a_long_csv_comes_in_pieces(api: Api, dataset: Dataset) -> None:
    run = trained_run(api, sft_config={"max_steps": 1})
    TrainingMetric.objects.bulk_create(TrainingMetric(run=run, step=step, loss=-0.5) for step in range(2, 2501))
    pieces = list(metrics_csv(run=run))
    assert len(pieces) == 3
    assert "".join(pieces).count("\n") == 2501
    assert "\n2500,,-0.5," in "".join(pieces)


@pytest.mark.parametrize("query", [{"format": "xml"}, {"format": "CSV"}, {"fromat": "csv"}])
def test_a_format_that_is_not_known_is_refused(api: Api, dataset: Dataset, query: dict[str, str]) -> None:
    run_id = api.post("/api/training/start", {}).json()["run_id"]
    assert api.get(f"{URL}/{run_id}/metrics", **query).status_code == 400


# The log


@pytest.fixture
def logged(api: Api, dataset: Dataset) -> Path:
    api.post("/api/training/start", {})
    return log_path("training", TrainingRun.objects.get().pk)


def read(api: Api, **query: Any) -> Any:
    return api.get(f"{URL}/{TrainingRun.objects.get().pk}/log", **query).json()


def test_a_poller_sees_each_line_once(api: Api, logged: Path) -> None:
    logged.write_text("one\ntwo\n")
    first = read(api, tail=1)
    assert (first["log"], first["ended"]) == ("two", False)
    assert read(api, offset=first["offset"])["log"] == ""
    with logged.open("a") as stream:
        stream.write("three\nfo")
    second = read(api, offset=first["offset"])
    assert second["log"] == "three\nfo"
    with logged.open("a") as stream:
        stream.write("ur\n")
    assert read(api, offset=second["offset"])["log"] == "ur\n"


def test_half_a_character_waits_for_its_other_half(api: Api, logged: Path) -> None:
    whole = "Größe 数\n".encode()
    for cut in range(len(whole)):
        logged.write_bytes(whole[:cut])
        first = read(api, offset=0)
        logged.write_bytes(whole)
        rest = read(api, offset=first["offset"])
        assert first["log"] + rest["log"] == "Größe 数\n"


def test_a_long_log_comes_in_pieces(api: Api, logged: Path) -> None:
    logged.write_text("".join(f"line {number}\n" for number in range(20_000)))
    text, offset = "", 0
    while part := read(api, offset=offset)["log"]:
        text += part
        offset = read(api, offset=offset)["offset"]
        assert len(part) <= 64_000
    assert text == logged.read_text()


def test_bytes_that_are_no_text_do_not_stop_the_log(api: Api, logged: Path) -> None:
    logged.write_bytes(b"one\xff\xfetwo\n")
    assert read(api, offset=0)["log"] == "one\ufffd\ufffdtwo\n"


def test_an_offset_beyond_the_end_gives_nothing_and_the_end(api: Api, logged: Path) -> None:
    logged.write_text("words")
    assert read(api, offset=10_000) == {
        "run_id": TrainingRun.objects.get().pk,
        "log": "",
        "offset": 5,
        "ended": False,
    }


def test_a_log_that_is_not_there_yet_is_empty(api: Api, logged: Path) -> None:
    assert (read(api)["log"], read(api, offset=7)["offset"]) == ("", 0)


def test_a_poller_learns_that_the_run_has_ended(api: Api, logged: Path) -> None:
    work_queue()
    assert read(api, offset=0)["ended"] is True


@pytest.mark.parametrize("query", [{"offset": -1}, {"offset": "x"}, {"offset": 2**70}, {"tail": 5, "offset": 5}])
def test_a_wrong_offset_is_refused(api: Api, logged: Path, query: dict[str, Any]) -> None:
    answer = api.get(f"{URL}/{TrainingRun.objects.get().pk}/log", **query)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"] in {"offset", "tail"}


# The difference of two runs


def diff(api: Api, run: TrainingRun, other: TrainingRun) -> Any:
    return api.get(f"{URL}/{run.pk}/diff", other=other.pk).json()


def test_only_what_differs_is_shown(api: Api, dataset: Dataset) -> None:
    run = trained_run(api, sft_config={"max_steps": 2})
    other = trained_run(api, sft_config={"max_steps": 3, "learning_rate": 0.001}, holdout_fraction=0.5)
    body = diff(api, run, other)
    assert body["requested"] == {
        "sft_config.max_steps": {"run": 2, "other": 3},
        "sft_config.learning_rate": {"other": 0.001},
        "holdout_fraction": {"other": 0.5},
    }
    assert set(body["effective"]) == {"sft_config.max_steps", "sft_config.learning_rate", "holdout_fraction"}
    assert body["effective"]["holdout_fraction"] == {"run": 0.0, "other": 0.5}
    assert "trained_rows" in body["rows"]
    assert body["versions"] == {}
    assert body["results"]["current_step"] == {"run": 2, "other": 3}
    assert body["same_training"] is False


def test_two_runs_of_one_body_are_the_same_training(api: Api, dataset: Dataset) -> None:
    run, other = trained_run(api), trained_run(api)
    body = diff(api, run, other)
    assert body["same_training"] is True
    assert (body["requested"], body["effective"], body["rows"], body["versions"]) == ({}, {}, {}, {})


def test_another_dataset_or_mapping_or_version_is_another_training(api: Api, dataset: Dataset, tmp_path: Path) -> None:
    run, again = trained_run(api), trained_run(api)
    TrainingRun.objects.filter(pk=again.pk).update(versions={**run.versions, "torch": "9.9"})
    assert diff(api, run, again)["versions"]["torch"]["other"] == "9.9"
    assert diff(api, run, again)["same_training"] is False
    load_dataset(tmp_path, [("Which?", "", "5")] * 3, name="other.csv", mapped=False)
    mapping_set(
        dataset=Dataset.objects.get(is_current=True),
        prompt_column="prompt",
        response_column="answer",
        ground_truth_column=None,
        image_url_columns=[],
        image_separator=None,
        mandatory_columns=[],
    )
    body = diff(api, run, trained_run(api))
    assert {"dataset.sha256", "mapping.image_url_columns", "trained_rows"} <= set(body["rows"])
    assert body["same_training"] is False


def test_the_versions_of_a_run_are_those_of_its_process(api: Api, dataset: Dataset) -> None:
    from ftproject.engine.adapters import versions

    run = trained_run(api)
    assert api.get(f"{URL}/{run.pk}").json()["versions"] == versions()


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ({}, 400, "invalid_input"),
        ({"other": "x"}, 400, "invalid_input"),
        ({"other": 0}, 400, "invalid_input"),
        ({"other": 99}, 404, "run_not_found"),
        ({"other": "self"}, 400, "same_run"),
        ({"with": 1}, 400, "invalid_input"),
    ],
)
def test_a_diff_without_another_run_is_refused(
    api: Api, dataset: Dataset, query: dict[str, Any], status: int, code: str
) -> None:
    run = trained_run(api)
    given = {name: run.pk if value == "self" else value for name, value in query.items()}
    answer = api.get(f"{URL}/{run.pk}/diff", **given)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert api.get(f"{URL}/999/diff", other=run.pk).status_code == 404


# The recipe

BODY = {
    "sft_config": {"max_steps": 3, "learning_rate": 0.003, "seed": 7, "optim": "adamw_8bit"},
    "lora_config": {"r": 8, "finetune_vision_layers": False},
    "model_config_data": {"max_pixels": 4096},
    "holdout_fraction": 0.25,
    "holdout_seed": 3,
}


def recipe(api: Api, run: TrainingRun) -> Any:
    return api.get(f"{URL}/{run.pk}").json()["reproduce"]


def test_the_body_of_the_recipe_trains_the_same(api: Api, dataset: Dataset, tmp_path: Path) -> None:
    run = trained_run(api, **BODY)
    load_dataset(tmp_path, name="newer.csv")
    found = recipe(api, run)
    again = trained_run(api, **found["body"])
    assert again.config == run.config
    assert diff(api, run, again)["same_training"] is True
    assert recipe(api, again)["body"] == found["body"]


def test_the_recipe_names_everything_that_must_be_the_same(api: Api, dataset: Dataset) -> None:
    run = trained_run(api, **BODY)
    found = recipe(api, run)
    assert found["dataset"] == {"id": dataset.pk, "filename": "rows.csv", "sha256": dataset.sha256, "num_rows": 12}
    assert found["mapping"]["image_url_columns"] == ["image"]
    assert found["split"]["holdout_seed"] == 3
    assert (found["split"]["trained_rows"], found["seed"]) == (run.trained_rows, 7)
    assert (found["base_model"], found["backend"], found["versions"]) == ("tiny-qwen3-vl", "fake", run.versions)
    assert found["versions"]["torch"]
    assert found["notes"] == []


def test_the_recipe_says_that_the_mapping_was_changed(api: Api, dataset: Dataset) -> None:
    run = trained_run(api)
    mapping_set(
        dataset=dataset,
        prompt_column="prompt",
        response_column="answer",
        ground_truth_column=None,
        image_url_columns=[],
        image_separator=None,
        mandatory_columns=[],
    )
    assert "newer column mapping" in recipe(api, run)["notes"][0]


def test_the_curl_lines_send_the_mapping_and_the_body(api: Api, tmp_path: Path) -> None:
    load_dataset(tmp_path)
    run = trained_run(api, **BODY)
    Dataset.objects.update(filename='it\'s "quoted" $HOME.csv')
    mapping, start = recipe(api, run)["curl"]
    sent = [sent_by(line) for line in (mapping, start)]
    assert [url for url, _ in sent] == ["http://localhost/api/datasets/mapping", "http://localhost/api/training/start"]
    assert sent[0][1]["dataset_id"] == run.dataset_id
    assert sent[1][1] == recipe(api, run)["body"]


def sent_by(line: str) -> tuple[str, Any]:
    """What a shell makes of a curl line."""
    words = subprocess.run(
        ["bash", "-c", f'curl() {{ printf "%s\\0" "$@"; }}; {line}'], capture_output=True, text=True, check=True
    ).stdout.split("\0")
    return words[2], json.loads(words[words.index("-d") + 1])


@pytest.mark.slow
def test_the_command_of_the_recipe_trains_the_same_in_a_shell(tmp_path: Path) -> None:
    workplace = Workplace(tmp_path, "fake")
    first = subprocess.run(
        ["bash", "-c", f"{sys.executable} manage.py train --max-steps 3 --holdout-fraction 0.25 --seed 9"],
        **shell(workplace),
    )
    assert first.returncode == 0, first.stderr
    found = in_workplace(workplace, "1")
    again = subprocess.run(
        ["bash", "-c", found["command"].replace("python manage.py", f"{sys.executable} manage.py")], **shell(workplace)
    )
    assert again.returncode == 0, again.stderr
    assert in_workplace(workplace, "2")["body"] == found["body"]


def shell(workplace: Workplace) -> dict[str, Any]:
    return {"cwd": ROOT, "env": workplace.environment, "capture_output": True, "text": True, "timeout": 120}


def in_workplace(workplace: Workplace, run: str) -> Any:
    program = (
        "import django, json; django.setup();"
        "from training_app.reproduction import reproduction; from training_app.selectors import get_run;"
        f"print(json.dumps(reproduction(get_run(run_id={run}), base_url='http://localhost:8000')))"
    )
    return json.loads(subprocess.run([sys.executable, "-c", program], check=True, **shell(workplace)).stdout)
