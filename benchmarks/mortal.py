"""A served instance that is killed and started again: its processes by name, its runs, and what is seen meanwhile."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx
import psutil
from django.conf import settings

from ftproject.system.client import ApiClient
from ftproject.system.management.commands.demo import free_port
from ftproject.system.serving import answers

START_SECONDS = 60.0
# The contract's time for a run whose process died, or for one that lives to go on.
SETTLE_SECONDS = 30.0
GRACE_SECONDS = 5.0
LOOK_SECONDS = 0.1
ENDED = {"completed", "error"}
WAITING_OR_ENDED = {"queued", *ENDED}


class SurvivalError(AssertionError):
    """Something that must never happen was seen."""


@dataclass
class Mortal:
    """One data directory and the server that is, at the moment, on it."""

    data_dir: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def api(self) -> ApiClient:
        return ApiClient(self.url)

    def start(self) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        with (self.data_dir / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(settings.BASE_DIR) / "manage.py"), "serve", "--port", str(self.port)],
                env={**os.environ, "QWEN3VL_DATA_DIR": str(self.data_dir)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not answers(self.url):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SurvivalError(f"the server did not start, see {self.data_dir / 'serve.log'}")
            time.sleep(0.05)

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=60)

    def family(self) -> list[psutil.Process]:
        """Every living process on this data directory, orphans too."""
        return [process for process in psutil.process_iter() if self.owns(process)]

    def owns(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            ours = "ftproject" in " ".join(process.cmdline()) or "manage.py" in " ".join(process.cmdline())
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                return bool(process.environ().get("QWEN3VL_DATA_DIR") == str(self.data_dir))
        return False

    def run_processes(self) -> list[psutil.Process]:
        return [process for process in self.family() if "ftproject.worker" in words_of(process)]

    def targets(self, kind: str, chance: Random) -> list[psutil.Process]:
        """What is killed: the run process, a process of the queue, the web process, or all.

        A cluster is five processes; every other time it is the one that supervises the run.
        """
        family = self.family()
        if kind == "all":
            return chance.sample(family, len(family))
        if kind == "queue":
            kind = chance.choice(["supervisor", "cluster"])
        if kind == "supervisor":
            return [parent for process in self.run_processes() if (parent := process.parent()) is not None]
        name = {"run": "ftproject.worker", "cluster": "qcluster", "web": "uvicorn"}[kind]
        found = [process for process in family if name in words_of(process)]
        return [chance.choice(found)] if found else []

    def kill(self, kind: str, chance: Random) -> bool:
        targets = self.targets(kind, chance)
        for process in targets:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if kind == "all" and self.process is not None:
            self.process.wait(timeout=30)
            if psutil.wait_procs(targets, timeout=10)[1] and self.family():
                raise SurvivalError(f"alive after SIGKILL of all: {self.family()}")
        return bool(targets)

    def look(self, run_id: int) -> dict[str, Any]:
        """The run, however often the web process has to be asked."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            try:
                return self.api.get(f"/api/training/runs/{run_id}")
            except httpx.HTTPError as error:
                if time.monotonic() > deadline:
                    raise SurvivalError(f"no answer for {SETTLE_SECONDS:.0f} s") from error
                time.sleep(0.1)

    def wait_until_ended(self, run_id: int, *, step: int | None = None, seconds: float = 600) -> dict[str, Any]:
        """The run when it has ended, or reached `step` if one is given."""
        deadline = time.monotonic() + seconds
        while (run := self.look(run_id))["status"] not in ENDED:
            if step is not None and run["status"] not in WAITING_OR_ENDED and run["current_step"] >= step:
                break
            if time.monotonic() > deadline:
                raise SurvivalError(f"run {run_id} is {run['status']} after {seconds:.0f} s")
            time.sleep(0.1)
        return run

    def settled(self, run_id: int, alive: Collection[psutil.Process]) -> tuple[dict[str, Any], float]:
        """The run once it has ended, or is seen to go on, and the seconds until then.

        It goes on when a process of `alive` still is so after GRACE_SECONDS: a queue whose main process died is ended
        by the server a moment later, and its run with it.
        """
        began = time.monotonic()
        while True:
            run, seconds = self.look(run_id), time.monotonic() - began
            lives = seconds > GRACE_SECONDS and any(self.owns(process) for process in alive)
            if run["status"] in ENDED or lives:
                return run, seconds
            if seconds > SETTLE_SECONDS:
                raise SurvivalError(f"run {run_id} still {run['status']} at step {run['current_step']} after 30 s")
            time.sleep(0.1)


def words_of(process: psutil.Process) -> list[str]:
    try:
        command: list[str] = process.cmdline()
    except psutil.Error:
        return []
    return command


@dataclass
class Sightings:
    """The most that was ever seen at once."""

    run_processes: int = 0
    active_rows: int = 0
    looks: int = 0


@contextmanager
def watching(mortal: Mortal) -> Iterator[Sightings]:
    """Counts run processes and active rows ten times a second; more than one of either must never be seen."""
    seen, ended = Sightings(), threading.Event()

    def watch() -> None:
        while not ended.wait(LOOK_SECONDS):
            seen.looks += 1
            seen.run_processes = max(seen.run_processes, len(mortal.run_processes()))
            seen.active_rows = max(seen.active_rows, active_rows(mortal.data_dir))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join(timeout=10)


def active_rows(data_dir: Path) -> int:
    marks = ",".join("?" * len(WAITING_OR_ENDED))
    # Only question marks are put in.
    query = f"SELECT COUNT(*) FROM training_app_trainingrun WHERE status NOT IN ({marks})"  # nosec B608 # noqa: S608
    with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(open_database(data_dir)) as database:
        return int(database.execute(query, sorted(WAITING_OR_ENDED)).fetchone()[0])
    return 0


def database_is_sound(data_dir: Path) -> bool:
    with contextlib.closing(open_database(data_dir)) as database:
        return bool(database.execute("PRAGMA integrity_check").fetchone() == ("ok",))


def open_database(data_dir: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{data_dir / 'database.sqlite3'}?mode=ro", uri=True, timeout=5)
