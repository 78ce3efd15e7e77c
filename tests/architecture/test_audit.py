"""The audit of the pinned packages: a vulnerability fails, silence of the service warns, an unreadable pin fails."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ADVISORY = {"id": "GHSA-test-0001", "aliases": ["CVE-2026-0001"], "fix_versions": ["5.2.20"], "description": "bad"}
SOUND: dict[str, Any] = {"name": "peft", "version": "0.21.2", "vulns": []}
VULNERABLE: dict[str, Any] = {"name": "django", "version": "5.2.19", "vulns": [ADVISORY]}
UNKNOWN: dict[str, Any] = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited"}


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("package_audit", ROOT / ".ci" / "audit.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def answering(*packages: dict[str, Any], dry: int = 0, service: str = "pypi") -> Callable[[list[str]], Any]:
    """pip-audit as its process answers: a list of packages from one service, nothing from the other."""

    def ask(arguments: list[str]) -> subprocess.CompletedProcess[str]:
        if "--dry-run" in arguments:
            return subprocess.CompletedProcess(arguments, dry, "", "ERROR: no such requirement")
        if service not in arguments:
            return subprocess.CompletedProcess(arguments, 1, "", "Could not connect to the vulnerability feed")
        return subprocess.CompletedProcess(arguments, 1, json.dumps({"dependencies": packages}), "")

    return ask


@pytest.mark.parametrize("service", ["pypi", "osv"])
def test_a_known_vulnerability_fails_and_is_named_whichever_service_knows_it(
    audit: ModuleType, capsys: pytest.CaptureFixture[str], service: str
) -> None:
    assert audit.audit(answering(SOUND, VULNERABLE, service=service)) == 1
    said = capsys.readouterr()
    assert "django 5.2.19: GHSA-test-0001, CVE-2026-0001 (fixed in 5.2.20)" in said.err
    assert "2 pinned packages audited, 1 known vulnerabilities" in said.out


def test_sound_packages_pass_and_those_that_nobody_knows_are_named(
    audit: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.audit(answering(SOUND, UNKNOWN)) == 0
    said = capsys.readouterr()
    assert "1 pinned packages audited" in said.out
    assert "not audited: torch" in said.err


@pytest.mark.parametrize("packages", [(), (UNKNOWN,)])
def test_a_service_without_advisories_fails_nothing_but_is_never_called_an_audit(
    audit: ModuleType, capsys: pytest.CaptureFixture[str], packages: tuple[dict[str, Any], ...]
) -> None:
    assert audit.audit(answering(*packages)) == 0
    said = capsys.readouterr()
    assert "NO PACKAGE WAS AUDITED" in said.err
    assert "audited" not in said.out


def test_a_service_that_hangs_fails_nothing(audit: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def ask(arguments: list[str]) -> subprocess.CompletedProcess[str]:
        if "--dry-run" in arguments:
            return subprocess.CompletedProcess(arguments, 0, "", "")
        raise subprocess.TimeoutExpired(arguments, 300)

    assert audit.audit(ask) == 0
    assert "NO PACKAGE WAS AUDITED" in capsys.readouterr().err


def test_pins_that_cannot_be_read_do_not_pass_for_a_silent_network(
    audit: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.audit(answering(SOUND, dry=1)) == 1
    assert "no such requirement" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["GHSA-test-0001", "CVE-2026-0001"])
def test_an_exception_names_an_advisory_by_any_of_its_ids(audit: ModuleType, name: str) -> None:
    assert audit.findings_in([VULNERABLE], [name]) == []
    assert len(audit.findings_in([VULNERABLE], ["CVE-2026-9999"])) == 1


def test_every_exception_has_its_reason(audit: ModuleType) -> None:
    assert [name for name, reason in audit.read_exceptions().items() if len(reason) < 20] == []


class Advisories(BaseHTTPRequestHandler):
    """OSV's protocol with one advisory, about Django."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        vuln = {"id": "GHSA-test-0002", "aliases": [], "summary": "bad", "details": "bad", "affected": []}
        known = {"vulns": [vuln]} if asked["package"]["name"] == "django" else {}
        body = json.dumps(known).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def osv_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Advisories)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/query"
    server.shutdown()


def test_pip_audit_itself_is_understood_and_reads_every_pin(
    audit: ModuleType, osv_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(arguments: list[str]) -> Any:
        return audit.ask_pip_audit([*arguments, "--osv-url", osv_url, "-s", "osv"])

    assert audit.audit(ask) == 1
    said = capsys.readouterr()
    pins = sum("==" in line for line in (ROOT / "constraints.txt").read_text().splitlines())
    assert "django 5.2.19: GHSA-test-0002 (no fixed version yet)" in said.err
    assert int(said.out.split()[0]) >= pins
