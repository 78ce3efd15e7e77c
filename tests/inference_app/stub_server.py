"""A hand-made model server for fast tests: HTTP over the unix socket as the real one, answers made up.

What it should do stands in the prompt of a request ("die", "sleep 3", "fail 500 out_of_memory", "garbage", "until
cancelled", "stream", "stream break") or in a flag of its start. It imports nothing of the product.
"""

import argparse
import json
import os
import re
import signal
import socketserver
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

STARTED = time.monotonic()
LORAS: dict[str, str] = {}
CANCELLED: set[str] = set()
ANSWERING = threading.Event()
LEAVING = threading.Event()
OPTIONS = argparse.Namespace()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def address_string(self) -> str:
        return "socket"

    def do_GET(self) -> None:
        loaded = time.monotonic() - STARTED >= OPTIONS.load_seconds and not OPTIONS.load_error
        error = {"code": "model_load_failed", "message": OPTIONS.load_error} if OPTIONS.load_error else None
        facts = {"mode": "base", "adapter": None, "device": "cpu", "memory_mb": 7} if loaded else {}
        percent = 100 if loaded else 40
        self.answer(
            200,
            {"loaded": loaded, "model_name": OPTIONS.model_name, "loading_percent": percent, "error": error, **facts},
        )

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/load_lora_adapter":
            self.load_adapter(body)
            return
        if self.path == "/cancel":
            CANCELLED.add(body["request_id"])
            self.answer(200, {})
            return
        content = body["messages"][-1]["content"]
        text = content if isinstance(content, str) else content[-1]["text"]
        if OPTIONS.heard:
            with open(OPTIONS.heard, "a") as stream:
                print(text, file=stream)
        ANSWERING.set()
        try:
            self.chat(text, body)
        finally:
            ANSWERING.clear()

    def load_adapter(self, body: dict[str, str]) -> None:
        if body["lora_name"] in LORAS:
            self.refuse(400, "adapter_loaded", "already loaded")
        else:
            LORAS[body["lora_name"]] = body["lora_path"]
            self.answer(200, "Success")

    def chat(self, text: str, body: dict[str, Any]) -> None:
        if text == "die":
            print("last words of the stub", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if wait := re.fullmatch(r"sleep ([\d.]+)", text):
            time.sleep(float(wait[1]))
        if text == "until cancelled":
            while self.headers["X-Request-ID"] not in CANCELLED:
                time.sleep(0.01)
            self.answer(499, "")
        elif text == "garbage":
            self.answer(200, {"choices": []})
        elif failure := re.fullmatch(r"fail (\d+) (\w+)", text):
            self.refuse(int(failure[1]), failure[2], f"stub says {failure[2]}")
        elif body.get("stream"):
            self.stream(text)
        elif body["model"] not in {OPTIONS.model_name, *LORAS}:
            self.refuse(404, "model_not_found", "unknown model")
        else:
            self.complete(body)

    def complete(self, body: dict[str, Any]) -> None:
        content = json.dumps({"pid": os.getpid(), **body})
        self.answer(
            200,
            {
                "choices": [
                    {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
                ],
                "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
                "timings": {"generation_ms": 1.25, "prefill_ms": 0.75, "load_ms": 0.0},
            },
        )

    def stream(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for piece in ("", "one ", "two"):
            self.chunk({"delta": {"content": piece}, "finish_reason": None})
        if text == "stream garbage":
            self.wfile.write(b"data: {\n\n")
        if text == "stream die":
            os.kill(os.getpid(), signal.SIGKILL)
        if text in {"stream", "hello"}:
            self.chunk({"delta": {}, "finish_reason": "stop"})
            self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def chunk(self, choice: dict[str, Any]) -> None:
        body = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [{"index": 0, **choice}]}
        self.wfile.write(b"data: " + json.dumps(body).encode() + b"\n\n")
        self.wfile.flush()

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer(status, {"error": {"code": code, "message": message}})

    def answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


def die_at_end_of_stdin() -> None:
    while os.read(0, 4096):
        pass
    os._exit(3)


def leave(*_: object) -> None:
    def when_answered() -> None:
        while ANSWERING.is_set():
            time.sleep(0.01)
        time.sleep(0.05)
        os._exit(0)

    if not OPTIONS.deaf:
        threading.Thread(target=when_answered).start()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket")
    parser.add_argument("--model-name")
    parser.add_argument("--load-seconds", type=float, default=0.0)
    parser.add_argument("--load-error")
    parser.add_argument("--deaf", action="store_true", help="SIGTERM is not heard")
    parser.add_argument("--starts", help="a file that gets a line per start")
    parser.add_argument("--heard", help="a file that gets a line per chat request")
    OPTIONS = parser.parse_args()
    signal.signal(signal.SIGTERM, leave)
    threading.Thread(target=die_at_end_of_stdin, daemon=True).start()
    if OPTIONS.starts:
        with open(OPTIONS.starts, "a") as stream:
            print(os.getpid(), file=stream)
    Server(OPTIONS.socket, Handler).serve_forever()
