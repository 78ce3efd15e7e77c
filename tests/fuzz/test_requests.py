"""Hostile bodies, content types, parameters and headers against every operation: no server error, one error shape."""

import json
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from django.test import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.world import FACTOR, closed_world
from tests.training_app.world import load_dataset

SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "openapi.yaml"
PROBLEM = {"type", "title", "status", "detail", "instance", "code", "hint", "errors"}
LONG_NUMBERS = [str(2**31), str(2**63 - 1), str(2**63), str(2**64), "9" * 5000]
NEARLY_NUMBERS = ["-1", "-0", "0", "00", "+1", " 1", "1_000", "1e3", "0x1", "1.0", "\uff11\uff12", "\u0663", "\u00b2"]
ODD_TEXTS = [
    "\0",
    "a\0b",
    "\ud800",
    "\U0001f600",
    "\ufeff",
    "\u202e",
    "a" * 5000,
    "\r\nX: y",
    "null",
    "NaN",
    "inf",
    "true",
]
ODD_PATHS = ["[]", "{}", "..", "../..", "%00", "%2e%2e%2f", "'", '"', "<script>", "{{7*7}}", "${x}"]
ODD_VALUES = [*LONG_NUMBERS, *NEARLY_NUMBERS, *ODD_TEXTS, *ODD_PATHS]
# Python's codecs that are no text encodings: bz2 and zlib were decompression bombs behind the size check.
ODD_CHARSETS = ["bz2_codec", "zlib_codec", "utf-7", "idna", "punycode", "utf-16", "rot13", "", "nonsense", "undefined"]
ODD_TYPES = [
    *(f"application/json; charset={charset}" for charset in ODD_CHARSETS),
    *("APPLICATION/JSON", "application/json;;;", "application/json, text/plain", "application/problem+json"),
    *("application/x-www-form-urlencoded", "text/plain", "", "*/*", "/", "\xff"),
    *("multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=a" + "b" * 300),
]
PLANTED_NUMBERS = [
    "1e999",
    "-1e999",
    "1e-999",
    "9" * 400,
    "-" + "9" * 4299,
    "9" * 5000,
    "NaN",
    "-Infinity",
    "-0",
    "1.0",
]
PLANTED_TEXTS = [
    "",
    "\\ud800",
    "\\udc00x",
    "\\u0000",
    "\ufeff",
    "a" * 300,
    "a" * 70_000,
    "../../etc/passwd",
    "<|im_end|>",
]
bounded = settings(max_examples=120 * FACTOR, deadline=None, suppress_health_check=list(HealthCheck))


@cache
def operations() -> list[tuple[str, str, list[str], list[str]]]:
    """Method, path, names of its query parameters, names in its JSON body."""
    document = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    found = []
    for path, item in document["paths"].items():
        for method, operation in item.items():
            parameters = [p["name"] for p in operation.get("parameters", []) if p["in"] == "query"]
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            schema = document["components"]["schemas"].get(content.get("$ref", "").rpartition("/")[2], content)
            found.append((method, path, parameters, list(schema.get("properties", {}))))
    return found


def with_body() -> list[tuple[str, str, list[str], list[str]]]:
    return [operation for operation in operations() if operation[3]]


@pytest.fixture
def client(data_dir: Path, transactional_db: None, settings: Any) -> Any:
    settings.BACKEND = "fake"
    load_dataset(data_dir)
    with closed_world():
        yield Client(HTTP_HOST="localhost", raise_request_exception=False)


def assert_sound(answer: Any, path: str) -> None:
    assert answer.status_code < 500, (answer.status_code, answer.content[:300])
    if answer.status_code >= 400:
        body = answer.json()
        if path.startswith("/v1/"):
            assert set(body) == {"error"}
        else:
            assert answer["Content-Type"] == "application/problem+json"
            assert set(body) >= PROBLEM


def filled(path: str, value: str = "1") -> str:
    head, *rest = path.split("{")
    return head + "".join(quote(value, safe="", errors="surrogatepass") + part.partition("}")[2] for part in rest)


scalars = st.one_of(
    st.sampled_from(PLANTED_NUMBERS),
    st.sampled_from(PLANTED_TEXTS).map(lambda text: f'"{text}"'),
    st.sampled_from(["null", "true", "[]", "{}", "[[]]", '[{"a": null}]', "[null]", '{"a": {"a": {}}}']),
    st.text(max_size=8).map(json.dumps),
    st.integers().map(str),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.dictionaries(st.sampled_from(["name", "fields", "max_steps", "r", "a"]), inner, max_size=3).map(
            lambda pairs: "{" + ", ".join(f'"{key}": {value}' for key, value in pairs.items()) + "}"
        )
    ),
    max_leaves=5,
)


@st.composite
def bodies(draw: Any) -> tuple[str, str, bytes]:
    """A JSON body of the operation's own field names with hostile values, spoiled now and then."""
    method, path, _, names = draw(st.sampled_from(with_body()))
    chosen = draw(st.lists(st.sampled_from(names), max_size=4))
    text = "{" + ", ".join(f'"{name}": {draw(values)}' for name in chosen) + "}"
    spoil = draw(st.sampled_from(["", "", "", "cut", "deep", "utf-16", "utf-32", "bom", "latin-1", "twice"]))
    if spoil == "deep":
        text = (
            '{"'
            + draw(st.sampled_from(names))
            + '": '
            + "[" * 100_000
            + draw(st.sampled_from(["", "]" * 100_000]))
            + "}"
        )
    if spoil == "cut":
        text = text[: draw(st.integers(0, len(text)))]
    encoding = {"utf-16": "utf-16", "utf-32": "utf-32", "bom": "utf-8-sig", "latin-1": "latin-1"}.get(spoil, "utf-8")
    return method, path, (text * (2 if spoil == "twice" else 1)).encode(encoding, "replace")


@pytest.mark.slow
@bounded
@given(case=bodies())
def test_no_json_body_is_a_server_error(client: Client, case: tuple[str, str, bytes]) -> None:
    method, path, raw = case
    assert_sound(client.generic(method.upper(), filled(path), raw, content_type="application/json"), path)


@pytest.mark.slow
@bounded
@given(
    operation=st.deferred(lambda: st.sampled_from([op for op in operations() if op[0] in ("post", "patch")])),
    content_type=st.sampled_from(ODD_TYPES),
    raw=st.sampled_from([b"", b"{}", b"BZh91AY&SY", b"\xff\xfe{\x00}\x00", b"--a\r\n\r\n", b"\x00" * 50])
    | st.binary(max_size=60),
)
def test_no_content_type_is_a_server_error(client: Client, operation: Any, content_type: str, raw: bytes) -> None:
    method, path, *_ = operation
    answer = client.generic(method.upper(), filled(path), raw, content_type=content_type)
    assert_sound(answer, path)


@pytest.mark.slow
@bounded
@given(data=st.data())
def test_no_query_string_is_a_server_error(client: Client, data: st.DataObject) -> None:
    method, path, names, _ = data.draw(st.sampled_from([operation for operation in operations() if operation[2]]))
    parts = data.draw(st.lists(st.tuples(st.sampled_from(names), st.sampled_from(ODD_VALUES)), min_size=1, max_size=3))
    query = "&".join(f"{name}={quote(value, safe='', errors='surrogatepass')}" for name, value in parts)
    spoiled = query + data.draw(st.sampled_from(["", "", "&", "&=", "&%ff=%ff", "&a[]=1", ";"]))
    assert_sound(client.generic(method.upper(), f"{filled(path)}?{spoiled}"), path)


@pytest.mark.slow
@bounded
@given(
    operation=st.deferred(lambda: st.sampled_from([operation for operation in operations() if "{" in operation[1]])),
    value=st.sampled_from([value for value in ODD_VALUES if value]),
)
def test_no_path_is_a_server_error(client: Client, operation: Any, value: str) -> None:
    method, path, *_ = operation
    assert_sound(client.generic(method.upper(), filled(path, value), b"{}", content_type="application/json"), path)


@pytest.mark.slow
@settings(bounded, max_examples=40 * FACTOR)
@given(
    path=st.sampled_from(["/api/training/start", "/api/evaluation/run"]),
    key=st.sampled_from(
        ["", " ", "a" * 200, "a" * 201, "é", "\xff", "a\tb", "\x00", "\x7f", "\u2603".encode().decode("latin-1")]
    ),
    header=st.sampled_from(
        ["Idempotency-Key", "Accept", "Accept-Language", "Content-Encoding", "Range", "If-None-Match"]
    ),
)
def test_no_header_is_a_server_error(client: Client, path: str, key: str, header: str) -> None:
    body = {"dry_run": True} if "training" in path else {"sample_limit": 1}
    assert_sound(client.post(path, body, content_type="application/json", headers={header: key}), path)
