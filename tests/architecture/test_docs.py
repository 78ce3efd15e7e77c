"""The documentation is true: settings, commands, routes, codes, packages and links are compared with the tree."""

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import get_commands, load_command_class
from django.urls import Resolver404, URLPattern, URLResolver, get_resolver, resolve

from ftproject.core.events import EVENT_TYPES
from tests.workflow.document import bash_blocks

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
API_PAGE = ROOT / "docs" / "api.md"
SEED = ROOT / "tests" / "assets" / "backend-api-skill.md"
DECISIONS = ROOT / "docs" / "decisions"
PACKAGES = ["ftproject", "datasets_app", "training_app", "evaluation_app", "inference_app", "sessions_app"]
PAGES = [README, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
VARIABLE = re.compile(r"QWEN3VL_[A-Z0-9_]*[A-Z0-9]")
READERS = {"env_text", "env_bool", "env_int", "env_list"}
EMPTY = "(empty)"


@cache
def source(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def product_files() -> Iterator[Path]:
    yield ROOT / "manage.py"
    for package in PACKAGES:
        yield from (path for path in (ROOT / package).rglob("*.py") if "migrations" not in path.parts)


def section(page: Path, heading: str) -> str:
    """The text under a second-level heading, up to the next one."""
    match = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", source(page), re.DOTALL | re.MULTILINE)
    assert match, f"{page.name} has no heading {heading!r}"
    return match[1]


def table_rows(text: str) -> list[list[str]]:
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines() if "|" in line]
    return [row for row in rows if not set("".join(row)) <= set("-: ")]


def settings_read() -> dict[str, str]:
    """Every variable that the product reads, with the default that its reading names ('' when there is none)."""
    found: dict[str, str] = {}
    for path in product_files():
        for name in VARIABLE.findall(source(path)):
            found.setdefault(name, "")
        for node in ast.walk(ast.parse(source(path))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in READERS:
                found |= read_call(node)
    return found


def read_call(node: ast.Call) -> dict[str, str]:
    values = [*node.args, *(keyword.value for keyword in node.keywords)]
    if not isinstance(values[0], ast.Constant):
        return {}  # conf.py's own calls, with a name that is a parameter
    default: Any = ast.literal_eval(values[1]) if len(values) > 1 else ""
    name = str(ast.literal_eval(values[0]))
    return {f"QWEN3VL_{name}": str(int(default)) if isinstance(default, bool) else str(default)}


def settings_table() -> dict[str, str]:
    rows = [row for row in table_rows(section(README, "Settings")) if VARIABLE.fullmatch(row[0].strip("`"))]
    return {row[0].strip("`"): row[1].strip("`") for row in rows}


def test_the_settings_table_names_every_variable_that_the_code_reads_and_no_other() -> None:
    assert sorted(settings_table()) == sorted(settings_read())


def test_the_settings_table_shows_the_defaults_of_the_code() -> None:
    shown = {name: "" if default == EMPTY else default for name, default in settings_table().items()}
    # Their defaults stand beside another expression; the table says what that comes to.
    assert shown.pop("QWEN3VL_DATA_DIR") == settings.BASE_DIR.joinpath("data").relative_to(ROOT).as_posix()
    assert shown.pop("QWEN3VL_CPU_THREADS") == "1"
    assert {name: settings_read()[name] for name in shown} == shown


def our_commands() -> list[str]:
    return sorted(name for name, app in get_commands().items() if str(app).startswith(tuple(PACKAGES)))


def command_rows() -> dict[str, str]:
    return {row[0].strip("`"): row[1].strip("`") for row in table_rows(section(README, "Commands"))[1:]}


def test_manage_py_help_lists_each_documented_command_and_each_of_ours_is_documented() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "manage.py"), "help", "--commands"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert set(command_rows()) <= set(result.stdout.split())
    assert sorted(command_rows()) == our_commands()


def test_each_command_example_is_one_that_the_command_takes() -> None:
    for name, example in command_rows().items():
        words = shlex.split(example)
        assert words[:2] == ["manage.py", name]
        app = get_commands()[name]
        command = load_command_class(app if isinstance(app, str) else app.name, name)
        command.create_parser("manage.py", name).parse_args(words[2:])


def test_each_make_target_of_the_readme_exists() -> None:
    named = set(re.findall(r"\bmake ([a-z]+)", " ".join(block.text for block in bash_blocks(README))))
    assert {"demo", "test", "serve", "lint", "bench"} <= named
    assert named <= set(re.findall(r"^([a-z-]+):", source(ROOT / "Makefile"), re.MULTILINE))


def test_every_bash_block_of_the_users_document_stands_verbatim_in_the_api_page() -> None:
    ours = [block.text for block in bash_blocks(API_PAGE)]
    theirs = [block.text for block in bash_blocks(SEED)]
    assert len(theirs) > 30
    assert [text for text in theirs if text not in ours] == [theirs[0]]
    assert "uvicorn" in theirs[0], "only the start command may differ"


def test_the_bash_blocks_of_the_users_document_keep_their_order() -> None:
    theirs = {block.text for block in bash_blocks(SEED)}
    kept = [block.text for block in bash_blocks(API_PAGE) if block.text in theirs]
    assert kept == [block.text for block in bash_blocks(SEED)][1:]


def headings(page: Path) -> list[str]:
    prose = re.sub(r"^```.*?^```$", "", source(page), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^#+ .+$", prose, re.MULTILINE)


def test_the_headings_of_the_users_document_stand_in_the_api_page_in_their_order() -> None:
    theirs = headings(SEED)
    assert [heading for heading in headings(API_PAGE) if heading in theirs] == theirs


@pytest.mark.parametrize("page", [README, API_PAGE], ids=lambda page: page.name)
def test_every_bash_block_is_bash(page: Path) -> None:
    for block in bash_blocks(page):
        checked = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
        assert checked.returncode == 0, f"{block.heading}: {checked.stderr}"


def test_every_json_block_that_we_added_is_json() -> None:
    fence = re.compile(r"^```json\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    seed = fence.findall(source(SEED))
    added = [text for text in fence.findall(source(API_PAGE)) if text not in seed]
    assert added
    for text in added:
        json.loads(text)


def api_routes() -> set[tuple[str, str]]:
    """(method, route) of everything below /api/."""

    def walk(patterns: list[URLPattern | URLResolver]) -> Iterator[tuple[str, str]]:
        for pattern in patterns:
            if isinstance(pattern, URLResolver):
                yield from walk(pattern.url_patterns)
            elif str(pattern.pattern).lstrip("^").startswith("api/"):
                methods = getattr(pattern.callback, "actions", None) or {"get": ""}
                yield from ((method.upper(), str(pattern.pattern)) for method in methods if method != "head")

    return set(walk(get_resolver().url_patterns))


def documented_calls() -> set[tuple[str, str]]:
    """(method, address) of each curl line of the API page and of each `METHOD /api/...` in its text."""
    text = source(API_PAGE).replace("\\\n", " ")
    calls = {(method, path) for method, path in re.findall(r"\b(GET|POST|PATCH|DELETE) (/api/[^\s`\"']*)", text)}
    for line in re.findall(r"curl [^\n]*", text):
        address = re.search(r"(/api/[^\s\"')]*)", line)
        given = re.search(r"-X (\w+)", line)
        if address:
            calls.add((given[1] if given else "GET", address[1]))
    return calls | {("GET", path) for path in re.findall(r"localhost:8000(/api/(?:docs|schema))", text)}


def documented_routes() -> Iterator[tuple[str, str]]:
    for method, address in documented_calls():
        path = re.sub(r"\{name\}", "adapter_20260215_143022", address.split("?")[0])
        path = re.sub(r"\{id\}|\$RUN_ID", "1", path).rstrip(".,;:")
        try:
            yield method, resolve(path).route
        except Resolver404:
            yield method, f"no such route: {address}"


def test_every_documented_call_has_a_route_and_every_route_is_documented() -> None:
    documented = set(documented_routes())
    assert documented - api_routes() == set()
    schema_pages = {("GET", route) for _, route in api_routes() if "schema/?" in route or "docs/?" in route}
    assert api_routes() - documented - schema_pages == set()


def test_every_error_code_of_the_api_page_stands_in_the_code() -> None:
    text = source(API_PAGE)
    table = text[text.index("| status | `code` | when |") :].split("\n\n")[0]
    codes = [code for row in table_rows(table)[1:] for code in re.findall(r"`([a-z_]+)`", row[1])]
    # DRF's own codes, which core/problem.py passes on.
    from_drf = {"method_not_allowed", "unsupported_media_type"}
    code = "\n".join(source(path) for path in product_files())
    assert len(codes) > 20
    assert [name for name in codes if name not in from_drf and f'"{name}"' not in code] == []


def test_every_event_type_is_documented() -> None:
    assert [name for name in EVENT_TYPES if f"`{name}`" not in section(API_PAGE, "WebSocket")] == []


def decision_pages() -> list[Path]:
    return sorted(DECISIONS.glob("[0-9]*.md"))


def test_each_decision_has_its_three_headings_and_is_linked_from_the_index() -> None:
    pages = decision_pages()
    assert [page.name[:3] for page in pages] == [f"{number:03}" for number in range(1, len(pages) + 1)]
    assert len(pages) >= 6
    for page in pages:
        assert re.findall(r"^## (.+)$", source(page), re.MULTILINE) == ["Context", "Options", "Decision"], page.name
        assert source(page).startswith(f"# {page.name[:3]} "), page.name
        assert f"]({page.name})" in source(DECISIONS / "README.md"), page.name


def test_every_decision_that_the_code_names_exists() -> None:
    named = {number for path in product_files() for number in re.findall(r"docs/decisions/(\d{3})", source(path))}
    assert named
    assert named <= {page.name[:3] for page in decision_pages()}


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-gpu.txt", "requirements-dev.txt"])
def test_each_package_has_its_reason_and_each_reason_its_package(name: str) -> None:
    pinned = re.findall(r"^([A-Za-z0-9_.-]+)(?:\[[\w,]+\])?==", source(ROOT / name), re.MULTILINE)
    record = source(DECISIONS / "005-requirement-sets.md")
    part = record.split(f"### {name}\n", 1)[1].split("\n### ")[0]
    reasons = {row[0].strip("`"): row[1] for row in table_rows(part)[1:]}
    assert sorted(reasons) == sorted(pinned)
    assert all(reasons.values())


def anchors(page: Path) -> set[str]:
    """GitHub's anchor of each heading."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lstrip("#").strip().lower()).replace(" ", "-") for heading in headings(page)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_within_the_project_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", source(page)):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {target}"
        assert path.is_relative_to(ROOT)
        assert not anchor or anchor in anchors(path), f"{page.name}: {target}"


def test_the_changelog_has_the_version_that_the_product_shows() -> None:
    assert re.search(rf"^## \[{re.escape(settings.VERSION)}\]", source(ROOT / "CHANGELOG.md"), re.MULTILINE)
