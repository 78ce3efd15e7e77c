"""A PostgreSQL server of the tests' own: in a temporary folder, on a free loopback port, gone when the block ends."""

import ctypes
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_SECONDS = 60
PR_SET_PDEATHSIG = 1
ICU_SINCE = 15
MISSING = (
    "PostgreSQL's server programs were not found on PATH nor below /usr/lib/postgresql. Install them "
    "(Debian and Ubuntu: apt-get install postgresql; macOS: brew install postgresql@17), or put the folder with "
    "`initdb` and `postgres` on PATH."
)
# Nothing here outlives the tests, so nothing waits for a disk.
FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=200")


class NoPostgresError(RuntimeError):
    pass


def programs() -> Path:
    """The folder of `initdb` and `postgres`; the newest version where Debian keeps several."""
    on_path = shutil.which("initdb")
    if on_path and shutil.which("postgres"):
        return Path(on_path).parent
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if not found:
        raise NoPostgresError(MISSING)
    return max(found, key=lambda folder: float(folder.parent.name))


def unprivileged() -> dict[str, Any]:
    """Whose processes they are: PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return {}
    names = {entry.pw_name for entry in pwd.getpwall()}
    user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def make_cluster(folder: Path, password: str, owner: dict[str, Any]) -> None:
    """An empty cluster that sorts as people do: what leans on the order of bytes shows."""
    word = folder / "password"
    word.write_text(password)
    if owner:
        for path in (folder, word):
            os.chown(path, owner["user"], owner["group"])
    command = [str(programs() / "initdb"), "-D", str(folder / "data"), "-U", "qwen3vl", "-E", "UTF8"]
    command += ["-A", "scram-sha-256", f"--pwfile={word}", "--no-sync", *collation()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False, **owner)
    if done.returncode:
        raise NoPostgresError(f"initdb failed:\n{done.stdout}{done.stderr}")


def collation() -> list[str]:
    told = subprocess.run([str(programs() / "initdb"), "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"\d+", told)
    if version is None or int(version.group()) < ICU_SINCE:
        return ["--locale=C.UTF-8"]
    return ["--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)


class Server:
    """One cluster that can be started, stopped and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.password = folder, free_port(), secrets.token_hex(16)
        self.owner = unprivileged()
        self.process: subprocess.Popen[bytes] | None = None
        make_cluster(folder, self.password, self.owner)

    def url(self, database: str = "postgres", port: int | None = None) -> str:
        return f"postgres://qwen3vl:{self.password}@127.0.0.1:{port or self.port}/{database}"

    def start(self) -> None:
        settings = [f"port={self.port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={self.folder}", *FAST]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    str(programs() / "postgres"),
                    "-D",
                    str(self.folder / "data"),
                    *(part for setting in settings for part in ("-c", setting)),
                ],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - before any thread is started
                **self.owner,
            )
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        import psycopg

        assert self.process is not None
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    log = (self.folder / "log").read_text(errors="replace")
                    raise NoPostgresError(f"the server did not start:\n{log}") from None
                time.sleep(0.05)

    def stop(self) -> None:
        """SIGINT: connections are ended, data is written; SIGQUIT when that does not help."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(timeout=20)


@contextmanager
def temporary_server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="qwen3vl-postgres-"))
    try:
        server = Server(folder)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
