"""Asks pip-audit about every pinned package: a known vulnerability fails, a service that does not answer only warns.

pip-audit alone would not do. A mirror that serves packages but no advisories answers 404 for each of them, and it calls
that "No known vulnerabilities found" with exit code 0; without a network it ends with 1, as for a vulnerability.
"""

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PINS = ("constraints.txt", "requirements.txt", "requirements-dev.txt", "requirements-gpu.txt")
SERVICES = ("pypi", "osv")
LIMIT_SECONDS = 300
Ask = Callable[[list[str]], subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Finding:
    """One advisory about one pin."""

    package: str
    version: str
    ids: tuple[str, ...]
    fixed_in: tuple[str, ...]

    def __str__(self) -> str:
        remedy = f"fixed in {', '.join(self.fixed_in)}" if self.fixed_in else "no fixed version yet"
        return f"{self.package} {self.version}: {', '.join(self.ids)} ({remedy})"


def ask_pip_audit(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--no-deps", "--progress-spinner", "off"]
    return subprocess.run(
        [*command, *arguments], check=False, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS
    )


def requirement_arguments(pins: Iterable[str] = PINS) -> list[str]:
    return [part for name in pins for part in ("-r", name)]


def answer_of(service: str, ask: Ask) -> list[dict[str, Any]] | None:
    """What one service says about each package, or None when it says nothing."""
    try:
        done = ask([*requirement_arguments(), "-s", service, "-f", "json"])
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return None
    return packages if any("vulns" in package for package in packages) else None


def findings_in(packages: Iterable[dict[str, Any]], exceptions: Iterable[str]) -> list[Finding]:
    """The advisories that no exception names, by any of their ids."""
    excepted = set(exceptions)
    found = [
        Finding(package["name"], package["version"], (vuln["id"], *vuln["aliases"]), tuple(vuln["fix_versions"]))
        for package in packages
        for vuln in package.get("vulns", [])
    ]
    return [finding for finding in found if not excepted & set(finding.ids)]


def read_exceptions() -> dict[str, str]:
    """Advisory -> why it does not concern us, from pyproject.toml."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    reasons: dict[str, str] = table["package-audit"]["exceptions"]
    return reasons


def audit(ask: Ask = ask_pip_audit) -> int:
    """The exit code; says what was looked at, and loudly when nothing could be."""
    # Without a service first: a pin that cannot be read must not pass for a network that does not answer.
    dry = ask([*requirement_arguments(), "--dry-run"])
    if dry.returncode:
        print(f"The pinned packages cannot be read:\n{dry.stderr}", file=sys.stderr)
        return 1
    packages = next((found for service in SERVICES if (found := answer_of(service, ask))), None)
    if packages is None:
        print(
            f"WARNING: NO PACKAGE WAS AUDITED: neither of {', '.join(SERVICES)} gives advisories here.", file=sys.stderr
        )
        return 0
    return report(packages)


def report(packages: list[dict[str, Any]]) -> int:
    silent = [package["name"] for package in packages if "vulns" not in package]
    findings = findings_in(packages, read_exceptions())
    for finding in findings:
        print(finding, file=sys.stderr)
    print(f"{len(packages) - len(silent)} pinned packages audited, {len(findings)} known vulnerabilities.")
    if silent:
        print(f"WARNING: not audited: {', '.join(silent)}", file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(audit())
