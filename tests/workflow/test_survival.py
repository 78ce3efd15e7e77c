"""A run that is killed, stopped and shut down again and again ends with the adapter of the run that was left alone."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from benchmarks.kills import RECIPE, Tally, Trial, adapters_that_load, trial, weights_digest
from benchmarks.mortal import SETTLE_SECONDS, Sightings, database_is_sound, watching

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    with trial(tmp_path_factory.mktemp("survival") / "data") as made:
        yield made


@pytest.fixture(scope="module")
def seen(made: Trial) -> Iterator[Sightings]:
    with watching(made.mortal) as seen:
        yield seen


def wait_for_step(made: Trial, run_id: int, step: int) -> None:
    run = made.mortal.wait_until_ended(run_id, step=step, seconds=180)
    assert run["status"] not in {"completed", "error"}, run


def killed(made: Trial, run_id: int, kind: str, step: int) -> int:
    """Kills at that step and resumes; the run that goes on."""
    wait_for_step(made, run_id, step)
    assert made.mortal.kill(kind, made.chance)
    if kind == "all":
        made.mortal.start()
    run, seconds = made.mortal.settled(run_id, [])
    assert run["status"] == "error"
    assert seconds < SETTLE_SECONDS
    assert run["can_resume"] is True, run["resume_reason"]
    return int(made.mortal.api.post(f"/api/training/runs/{run_id}/resume")["run_id"])


def test_through_every_kind_of_death_to_the_very_same_adapter(made: Trial, seen: Sightings) -> None:
    run_id = made.start()
    for kind, step in (("run", 12), ("supervisor", 27), ("all", 41)):
        run_id = killed(made, run_id, kind, step)
        run = made.mortal.look(run_id)
        assert 0 < run["resumed_step"] <= run["current_step"]
    tally = Tally()
    made.conclude(run_id, tally)
    assert (tally.completed, tally.equal) == (1, 1)


def test_shut_down_and_resumed_after_the_next_start_it_is_the_same_too(made: Trial, seen: Sightings) -> None:
    run_id = made.start()
    wait_for_step(made, run_id, 10)
    assert made.mortal.process is not None
    made.mortal.process.send_signal(signal.SIGINT)
    assert made.mortal.process.wait(timeout=60) == 0
    made.mortal.start()
    run = made.mortal.look(run_id)
    assert (run["status"], run["stopped_early"], run["can_resume"]) == ("completed", True, True)
    assert weights_digest(run) != made.straight
    # Ten clients with one key at once: one continuation.
    url = f"{made.mortal.url}/api/training/runs/{run_id}/resume"
    answers = at_once(10, lambda _: httpx.post(url, headers={"Idempotency-Key": "one"}, timeout=60, trust_env=False))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["run_id"] for answer in answers}) == 1
    # Ten without a key: all of them are told which run continues it.
    refusals = at_once(10, lambda _: httpx.post(url, timeout=60, trust_env=False))
    assert {(answer.status_code, answer.json()["code"]) for answer in refusals} == {(409, "already_resumed")}
    tally = Tally()
    made.conclude(answers[0].json()["run_id"], tally)
    assert (tally.completed, tally.equal) == (1, 1)


def test_ten_starts_with_one_key_at_once_make_one_run(made: Trial, seen: Sightings) -> None:
    url = f"{made.mortal.url}/api/training/start"
    key = {"Idempotency-Key": "ten"}
    answers = at_once(10, lambda _: httpx.post(url, json=RECIPE, headers=key, timeout=60, trust_env=False))
    assert {answer.status_code for answer in answers} == {200}
    (run_id,) = {answer.json()["run_id"] for answer in answers}
    made.mortal.api.post(f"/api/training/runs/{run_id}/stop")
    assert made.mortal.wait_until_ended(run_id)["adapter"] is None


def test_after_a_power_cut_nothing_is_damaged(made: Trial, seen: Sightings) -> None:
    run_id = killed(made, made.start(), "all", 31)
    made.conclude(run_id, Tally())
    assert (seen.run_processes, seen.active_rows) == (1, 1)
    listed, loaded = adapters_that_load(made.mortal)
    assert listed == loaded >= 2
    assert database_is_sound(made.mortal.data_dir)
    assert [path for path in (made.mortal.data_dir / "adapters").iterdir() if path.name.startswith(".")] == []


def at_once(count: int, ask: Any) -> list[httpx.Response]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(ask, range(count)))
