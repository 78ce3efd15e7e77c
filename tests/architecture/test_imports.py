"""The web side never imports torch, the engine never imports Django, and one module alone reaches the network."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ["ftproject", "datasets_app", "training_app", "evaluation_app", "inference_app", "sessions_app"]
HEAVY = ["torch", "transformers", "peft", "trl", "unsloth", "datasets", "accelerate", "bitsandbytes", "sklearn"]
# Who may open outbound connections: the image fetcher; the client of our own model server and that of the server which
# QWEN3VL_INFERENCE_URL names; the demo's client and the server's own health probe, which talk to our own address only.
OUTBOUND = {
    "ftproject/core/fetch.py",
    "ftproject/engine/remote.py",
    "ftproject/system/client.py",
    "ftproject/system/serving.py",
    "inference_app/model_client.py",
}
HTTP_LIBRARIES = {"requests", "httpx", "urllib3", "aiohttp", "http.client", "urllib.request", "requests_hardened"}

WEB_PROCESS = """
import sys
import ftproject.asgi
from django.core.management import get_commands, load_command_class
from django.urls import get_resolver
get_resolver().url_patterns
for name, app in get_commands().items():
    if not str(app).startswith("django."):
        load_command_class(app, name)
heavy = [name for name in {heavy} if name in sys.modules]
print(",".join(heavy) or "none")
"""


def product_files() -> Iterator[Path]:
    for package in PACKAGES:
        yield from (path for path in (ROOT / package).rglob("*.py") if "migrations" not in path.parts)


def test_the_web_process_and_every_command_load_without_the_ml_libraries(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", WEB_PROCESS.format(heavy=HEAVY)],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "QWEN3VL_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stdout.strip().splitlines()[-1] == "none", result.stderr


def imported_names(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_only_the_named_modules_can_reach_out() -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in product_files()
        if any(
            name == library or name.startswith(library + ".")
            for name in imported_names(path)
            for library in HTTP_LIBRARIES
        )
    }
    assert found <= OUTBOUND, f"forgotten sinks: {sorted(found - OUTBOUND)}"


def test_no_pickle_is_ever_loaded() -> None:
    banned = {"pickle", "torch.load", "joblib", "dill", "cloudpickle"}
    found = [str(path) for path in product_files() if banned & imported_names(path)]
    assert found == []
    assert [str(path) for path in product_files() if "torch.load(" in path.read_text()] == []


def test_remote_code_is_never_trusted() -> None:
    assert [str(path) for path in product_files() if "trust_remote_code=True" in path.read_text()] == []


@pytest.mark.parametrize("limit", [400])
def test_files_stay_readable(limit: int) -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in product_files()
        if (count := len(path.read_text().splitlines())) > limit
    }
    assert long == {}


def test_functions_stay_readable() -> None:
    long = []
    for path in product_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno > 50:
                long.append(f"{path.relative_to(ROOT)}:{node.name}")
    assert long == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in product_files()
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_names_say_what_a_thing_is() -> None:
    banned = {"utils", "helpers", "manager", "misc", "common"}
    assert [str(path) for path in product_files() if path.stem in banned] == []
