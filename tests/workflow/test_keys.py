"""A server on a public address: its first key, who gets in with it from elsewhere, and what it leaves in the trail."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from websockets.asyncio.client import connect

from tests.postgres.databases import own_database
from tests.workflow.served import ROOT, Served, served

pytestmark = pytest.mark.slow
KEY = re.compile(r"qwen3vl_[0-9a-f]{8}_[\w-]{43}")
# What a proxy adds; so to the gate this is no request of this machine.
FROM_ELSEWHERE = {"X-Forwarded-For": "203.0.113.9", "Host": "ft.example.com"}


def ask(server: Served, method: str, path: str, key: str | None = None, **more: Any) -> httpx.Response:
    headers = FROM_ELSEWHERE | ({"Authorization": f"Bearer {key}"} if key else {})
    return httpx.request(method, server.url + path, headers=headers, timeout=30, trust_env=False, **more)


def manage(server: Served, *arguments: str) -> str:
    environment = {**os.environ, "QWEN3VL_DATA_DIR": str(server.data_dir), **own_database(server.data_dir)}
    command = [sys.executable, str(ROOT / "manage.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


async def first_event(server: Served, key: str | None) -> Any:
    headers = FROM_ELSEWHERE | ({"Authorization": f"Bearer {key}"} if key else {})
    headers.pop("Host")
    address = f"ws://127.0.0.1:{server.port}/ws"
    async with connect(address, additional_headers=headers, proxy=None) as socket:
        return json.loads(await socket.recv())


async def test_a_public_server_lets_in_who_has_a_key_and_nobody_else(tmp_path: Path) -> None:
    with served(tmp_path / "data", QWEN3VL_HOST="0.0.0.0") as server:  # noqa: S104
        admin = KEY.findall(server.log.read_text())
        assert len(admin) == 1
        assert ask(server, "GET", "/api/system/health").json()["code"] == "authentication_required"
        assert ask(server, "GET", "/api/system/health", admin[0]).json()["status"] == "ok"
        assert server.get("/api/system/health")["status"] == "ok"

        reader = manage(server, "api_key", "create", "reader")
        refused = ask(server, "POST", "/api/sessions/", reader, json={"name": "a"})
        assert (refused.status_code, refused.json()["needed_scope"]) == (403, "run")
        assert ask(server, "GET", "/v1/models", reader).json()["object"] == "list"
        assert ask(server, "GET", "/v1/models", reader + "x").json()["error"]["code"] == "invalid_api_key"
        assert ask(server, "POST", "/api/sessions/", admin[0], json={"name": "a"}).status_code == 201

        assert (await first_event(server, reader))["type"] == "gpu_stats"
        with pytest.raises(websockets.InvalidStatus) as turned_away:
            await first_event(server, None)
        assert turned_away.value.response.status_code == 401

        manage(server, "api_key", "revoke", reader[:16])
        assert ask(server, "GET", "/api/system/health", reader).json()["code"] == "revoked_api_key"
        entries = ask(server, "GET", "/api/system/audit", admin[0]).json()["entries"]
        told = [(entry["caller_kind"], entry["route"], entry["status"]) for entry in entries]
        assert told == [
            ("command", "api_key", 0),
            ("key", "sessions-list", 201),
            ("command", "api_key", 0),
            ("command", "serve", 0),
        ]
        assert entries[1]["caller"] == admin[0][:16]
