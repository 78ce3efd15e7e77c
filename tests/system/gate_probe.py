"""A gate before an application that only notes who came in, asked without an event loop."""

import asyncio
import json
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.utils import timezone

from ftproject.core.api_keys import create_api_key, judge_api_key, revoke_api_key
from ftproject.core.callers import SCOPE_KEY
from ftproject.core.errors import UnauthorizedError
from ftproject.core.gate import Gate
from ftproject.core.models import ApiKey, KeyScope
from ftproject.scopes import scope_of_request
from tests.system.gate_cases import KEYS, Case, expected


class RememberedKeys:
    """The database's verdict on each text, asked once; the matrix is about the gate."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.verdicts: dict[str, ApiKey | UnauthorizedError] = {}
        for text in texts:
            try:
                self.verdicts[text] = judge_api_key(text)
            except UnauthorizedError as refusal:
                self.verdicts[text] = refusal

    async def judge(self, key: str, peer: str) -> ApiKey:
        verdict = self.verdicts[key]
        if isinstance(verdict, UnauthorizedError):
            # The same exception again and again would keep every frame that it ever went through.
            raise verdict.with_traceback(None)
        return verdict


def make_keys() -> dict[str, str]:
    """The Authorization header of each kind of key."""
    made = {scope.value: create_api_key(name=scope.value, scope=scope)[1] for scope in KeyScope}
    past = timezone.now() - timedelta(seconds=1)
    made["expired"] = create_api_key(name="old", scope=KeyScope.ADMIN, expires_at=past)[1]
    row, made["revoked"] = create_api_key(name="gone", scope=KeyScope.ADMIN)
    revoke_api_key(prefix=row.prefix)
    made["wrong"] = made["admin"][:-1] + ("A" if made["admin"][-1] != "A" else "B")
    made["unknown"] = "qwen3vl_00000000_" + "x" * 43
    made["malformed"] = "qwen3vl_oops"
    made["foreign"] = "sk-something-else"
    headers = {name: f"Bearer {key}" for name, key in made.items()} | {"none": "", "basic": "Basic cm9vdDpyb290"}
    assert set(headers) == set(KEYS)
    return headers


class Probe:
    def __init__(self) -> None:
        self.texts = make_keys()
        keys = RememberedKeys(
            text.partition(" ")[2] for name, text in self.texts.items() if name not in {"none", "basic"}
        )
        self.gate = Gate(self.application, keys=keys, scope_of=scope_of_request)
        self.loop = asyncio.new_event_loop()
        self.reached: list[str] = []
        self.sent: list[Any] = []

    def close(self) -> None:
        self.loop.close()

    async def application(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached.append(scope[SCOPE_KEY].kind)

    async def receive(self) -> Any:
        return {"type": "websocket.connect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    def outcome(self, case: Case) -> str:
        """`local` or `key` when the application was reached, else the code of the refusal."""
        self.reached, self.sent = [], []
        scope = case.scope(self.texts) | {"extensions": {"websocket.http.response": {}}}
        asked = self.gate(scope, self.receive, self.send)
        if case.kind == "websocket":  # a socket with a key is watched by a task
            self.loop.run_until_complete(asked)
        else:
            run(asked)
        if self.reached:
            assert self.sent == []
            return self.reached[0]
        assert self.sent[0]["status"] in {401, 403, 404}
        return code_of(case, self.sent[1]["body"])


def run(coroutine: Any) -> None:
    """Nothing in these cases waits, so no event loop is needed: many more cases in the same time."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("the gate waited")


def code_of(case: Case, body: bytes) -> str:
    if case.method == "HEAD" and case.kind == "http":
        assert body == b""
        return expected(case) if expected(case) not in {"local", "key"} else "a refusal"
    answer = json.loads(body)
    if case.path.startswith("/v1/"):
        assert set(answer) == {"error"}
        return str(answer["error"]["code"])
    assert answer["hint"]
    return str(answer["code"])
