"""The server behind `manage.py serve`: starts web and queue, watches them, ends everything on one Ctrl+C."""

import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import IO, Any

import httpx
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connections

from ftproject.core.api_keys import create_first_key
from ftproject.core.audit import os_user, record_write
from ftproject.core.callers import Caller
from ftproject.core.jobs import Job, active_jobs, enqueue_job, queued_jobs, reap_dead_jobs, requeue_job, stop_job
from ftproject.core.models import AuditEntry
from ftproject.core.storage import data_path, sweep_partials
from ftproject.core.tasks import drain_flag
from training_app.adapter_services import undo_deletions
from training_app.checkpoints import sweep_runs

START_SECONDS = 60
# A process that dies more often than this within a minute would die for ever: then everything ends, with the reason.
RESTARTS_A_MINUTE = 3
PR_SET_PDEATHSIG = 1
# Arrow's own pool, an arena per thread and BLAS buffers keep memory that the web process does not use again:
# 186 MB after 600 concurrent previews without these, 173 MB with them.
SMALL_WEB = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"}
SHUTDOWN_REASON = "The server is shutting down"


@contextmanager
def sole_server(url: str) -> Iterator[None]:
    """Holds the data directory: a second server on it would sweep the first one's half-written files."""
    path = data_path("run", "serve.lock")
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(
                f"Another server uses {settings.DATA_DIR}: {running_server(lock) or 'starting up'}. "
                "Use that one, stop it, or set QWEN3VL_DATA_DIR to another folder."
            ) from None
        lock.truncate(0)
        lock.write(json.dumps({"url": url, "pid": os.getpid()}))
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)


def running_server(lock: IO[str]) -> str | None:
    """Address and process that the holder of the lock wrote into it."""
    lock.seek(0)
    try:
        written = json.loads(lock.read())
        return f"{written['url']} (process {written['pid']})"
    except (ValueError, KeyError):
        return None


def holder_of_data() -> str | None:
    """Who holds this data directory; None when the lock is free, whatever a killed server has left in it."""
    try:
        with data_path("run", "serve.lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return running_server(lock) or "starting up"
    except FileNotFoundError:
        pass
    return None


def server_runs() -> bool:
    return holder_of_data() is not None


def check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            raise CommandError(
                f"Cannot listen on {host}:{port}: {exc.strerror}. Choose another with --port or QWEN3VL_PORT."
            ) from None


def prepare_data_dir(say: Callable[[str], object]) -> None:
    """What must be true before anything serves: the schema is current, leftovers are gone, waiting runs have a bell."""
    call_command("migrate", verbosity=0, interactive=False)
    for name in undo_deletions():
        say(f"  the deletion of {name} had been cut off: it is listed as before")
    sweep_partials()
    drain_flag().unlink(missing_ok=True)
    for job in reap_dead_jobs():
        say(f"  {job.name} had been cut off: it is `error` now, with the reason")
    sweep_runs()
    ring_bells()


def ring_bells() -> None:
    """A killed cluster leaves its prefetched messages locked for `retry` seconds, so the waiting runs get new ones."""
    from django_q.models import OrmQ

    OrmQ.objects.filter(key=settings.GPU_CLUSTER).delete()
    for job in queued_jobs():
        enqueue_job(job)


class Child:
    """One process of ours in its own session, told to end when this process dies."""

    def __init__(self, name: str, argv: list[str], environment: dict[str, str]) -> None:
        self.name, self.argv, self.environment = name, argv, environment
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        self.process = subprocess.Popen(
            self.argv,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - single-threaded here
        )
        return self.process

    def signal(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)

    def kill_group(self) -> None:
        """Also what a killed cluster's main process leaves behind: sentinel, worker, pusher and monitor live on."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait()


def end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def web_child(host: str, port: int) -> Child:
    argv = [sys.executable, "-m", "uvicorn", "ftproject.asgi:application", "--host", host, "--port", str(port)]
    # Forwarded headers are the gate's to judge; uvicorn would believe them from loopback.
    argv += ["--no-proxy-headers", "--no-access-log", "--log-level", "warning", "--timeout-graceful-shutdown", "5"]
    # uvicorn ends an idle connection after 5 s, at which httpx still uses it again: 4 of 15,000 requests were lost.
    argv += ["--timeout-keep-alive", "75"]
    return Child("web", argv, {"PYTHONPATH": import_path(), **SMALL_WEB})


def queue_child() -> Child:
    argv = [sys.executable, "-W", "ignore:Retry and timeout", str(Path(settings.BASE_DIR) / "manage.py"), "qcluster"]
    # The environment variable is the only way: `qcluster -n` does nothing on Linux.
    return Child("queue", argv, {"Q_CLUSTER_NAME": settings.GPU_CLUSTER, "PYTHONPATH": import_path()})


def is_loopback_host(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def first_key_lines(host: str) -> list[str]:
    """What to say at the first start that others can reach: their key, made now and shown this once."""
    key = None if is_loopback_host(host) else create_first_key()
    if key is None:
        return []
    caller = Caller(AuditEntry.CallerKind.COMMAND, os_user())
    record_write(caller=caller, method="COMMAND", route="serve", ids={"made": "the first API key"}, status=0)
    made = f"This address is public, so an API key with the scope admin was made: {key}"
    use = "It is not shown again. Others send it as 'Authorization: Bearer KEY'; this machine needs none."
    return [made, f"  {use} More: manage.py api_key"]


def import_path() -> str:
    return os.pathsep.join([str(settings.BASE_DIR), *filter(None, [os.environ.get("PYTHONPATH")])])


class Server:
    """Starts the children, starts one that died again (a run goes on without the web process), ends them on Ctrl+C."""

    def __init__(self, host: str, port: int, say: Callable[[str], object]) -> None:
        self.host, self.port, self.say = host, port, say
        self.children: list[Child] = []
        self.signals = 0
        self.deaths: list[float] = []

    @property
    def url(self) -> str:
        host = self.host if self.host not in {"0.0.0.0", "::"} else "127.0.0.1"  # nosec B104 # noqa: S104 - compared with, not bound to
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def run(self) -> int:
        check_port(self.host, self.port)
        with sole_server(self.url):
            prepare_data_dir(self.say)
            for line in first_key_lines(self.host):
                self.say(line)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self.count_signal)
            self.children = [web_child(self.host, self.port), queue_child()]
            try:
                failed = self.start() or self.watch()
            finally:
                self.end()
        return 1 if failed else 0

    def count_signal(self, *_: Any) -> None:
        self.signals += 1
        if self.signals > 1:
            for child in self.children:
                child.kill_group()

    def start(self) -> bool:
        """True when a child died or the web process did not answer in time."""
        deadline = time.monotonic() + START_SECONDS
        while not self.signals and time.monotonic() < deadline:
            if self.dead_child():
                return True  # it never served: its reason stands in its own words above
            if is_up(self.url):
                self.greet()
                return False
            time.sleep(0.1)
        return not self.signals

    def greet(self) -> None:
        self.say(f"Qwen3-VL fine-tuning {settings.VERSION} serves at {self.url}  (data in {settings.DATA_DIR})")
        self.say(f"  API pages {self.url}/api/docs   admin {self.url}/admin/   events {self.url}/ws   end with Ctrl+C")

    def watch(self) -> bool:
        """True when a child dies again and again."""
        while not self.signals:
            dead = self.dead_child()
            if dead and not self.revive(dead):
                return True
            time.sleep(0.2)
        return False

    def dead_child(self) -> Child | None:
        for child in self.children:
            if child.process.poll() is not None:
                self.say(f"The {child.name} process ended with code {child.process.returncode}.")
                return child
        return None

    def revive(self, child: Child) -> bool:
        now = time.monotonic()
        self.deaths = [*(moment for moment in self.deaths if now - moment < 60), now]
        if len(self.deaths) > RESTARTS_A_MINUTE:
            self.say("It dies again and again: ending everything.")
            return False
        child.kill_group()
        self.say(f"Starting the {child.name} process again.")
        child.start()
        if child.name == "queue":
            ring_bells()
        return True

    def end(self) -> None:
        """Flag first, SIGTERM second, SIGKILL of the groups last; then the rows of what was killed are settled."""
        drain_flag().touch()
        stopped = stop_active_jobs()
        if stopped:
            self.say(f"Stopping: {', '.join(stopped)} saves its work (Ctrl+C again ends it at once) ...")
        for child in self.children:
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + settings.STOP_GRACE_SECONDS
        while time.monotonic() < deadline and any(child.process.poll() is None for child in self.children):
            time.sleep(0.1)
        for child in self.children:
            child.kill_group()
        connections.close_all()
        reap_dead_jobs()
        drain_flag().unlink(missing_ok=True)
        self.say("Ended.")


def answers(url: str) -> bool:
    """Whether the server takes requests of this process."""
    return health_status(url) == 200


def is_up(url: str) -> bool:
    """Whether it serves: on the address of a network card even this machine is a stranger without a key."""
    return health_status(url) in {200, 401}


def health_status(url: str) -> int | None:
    try:
        return httpx.get(f"{url}/api/system/health", timeout=5, trust_env=False).status_code
    except httpx.HTTPError:
        return None


def stop_active_jobs() -> list[str]:
    """A run that has not begun its work goes back to the queue, the others are asked to save."""
    stopping = []
    for job in [*active_jobs(), *active_jobs(needs_gpu=False)]:
        if job.status in {Job.Status.LOADING_MODEL, Job.Status.PREPARING_DATA}:
            requeue_job(job, message="Waiting for the next start of the server")
        elif job.status != Job.Status.STOPPING:
            stop_job(job, reason=SHUTDOWN_REASON)
            stopping.append(job.name)
    return stopping
