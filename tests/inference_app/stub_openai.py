"""A hand-made server of OpenAI's protocol with vLLM's adapter routes, in this process, that can misbehave."""

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BASE = "Qwen/Qwen3-VL-2B-Instruct"


@dataclass
class StubOpenAI:
    """`behaviour` names what it does wrong; `requests` are the bodies that it got, canaries included."""

    behaviour: str = ""
    key: str = ""
    adapters: dict[str, str] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    cut_off: threading.Event = field(default_factory=threading.Event)
    noise: float = 0.0  # how far the same question's probabilities lie apart from one time to the next

    def start(self) -> str:
        stub = self

        class Handler(StubHandler):
            owner = stub

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    @property
    def chats(self) -> list[dict[str, Any]]:
        """The chat requests that are no canaries."""
        return [body for body in self.requests if "messages" in body and "logprobs" not in body]


class StubHandler(BaseHTTPRequestHandler):
    owner: StubOpenAI

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        if self.refused():
            return
        served = [{"id": BASE, "object": "model", "root": BASE, "parent": None}]
        served += [{"id": name, "object": "model", "parent": BASE} for name in self.owner.adapters]
        if self.owner.behaviour == "no models":
            served = []
        self.answer(200, {"object": "list", "data": served} if self.owner.behaviour != "odd models" else [1])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.owner.requests.append(body)
        self.owner.headers.append(dict(self.headers))
        if self.refused():
            return
        if self.path == "/v1/load_lora_adapter":
            self.load_adapter(body)
        elif self.owner.behaviour == "knows its models" and body["model"] not in {BASE, *self.owner.adapters}:
            self.answer(404, {"error": {"message": f"The model {body['model']!r} does not exist."}})
        elif body.get("stream"):
            self.stream(body)
        else:
            self.complete(body)

    def refused(self) -> bool:
        behaviour = self.owner.behaviour
        if self.owner.key and self.headers.get("Authorization") != f"Bearer {self.owner.key}":
            self.answer(401, {"error": {"message": "wrong key"}})
        elif behaviour == "redirect":
            self.send_response(307)
            self.send_header("Location", "http://169.254.169.254/")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif behaviour == "html":
            self.answer(200, None, raw=b"<html>login</html>")
        elif behaviour.isdecimal() and self.command == "POST":
            self.answer(int(behaviour), {"error": {"message": f"stub says {behaviour}"}})
        else:
            return False
        return True

    def load_adapter(self, body: dict[str, str]) -> None:
        if self.owner.behaviour == "no loading":
            self.answer(404, {"detail": "Not Found"})
            return
        if body["lora_name"] in self.owner.adapters:
            self.answer(400, {"error": {"message": f"The lora adapter {body['lora_name']!r} has already been loaded."}})
            return
        self.owner.adapters[body["lora_name"]] = body["lora_path"]
        self.answer(200, None, raw=b"Success")

    def text_of(self, body: dict[str, Any]) -> str:
        tuned = body["model"] in self.owner.adapters and self.owner.behaviour not in {"ignores adapters", "vision lost"}
        parts = body["messages"][-1]["content"]
        asked = parts if isinstance(parts, str) else " ".join(part.get("text", "<image>") for part in parts)
        return f"{'tuned' if tuned else 'base'} {asked}"

    def complete(self, body: dict[str, Any]) -> None:
        text = self.text_of(body)
        if self.owner.behaviour == "slightly tuned":
            text = text.replace("tuned", "base")
        shift = 0.001 if body["model"] in self.owner.adapters and self.owner.behaviour == "slightly tuned" else 0.0
        shift += self.owner.noise * (len(self.owner.requests) % 3)
        tokens = [{"token": word, "logprob": -0.5 - shift} for word in text.split()]
        if self.owner.behaviour == "no logprobs":
            tokens = []
        choice = {"message": {"role": "assistant", "content": text}, "logprobs": {"content": tokens}}
        usage = {"prompt_tokens": 7, "completion_tokens": len(text.split()), "total_tokens": 7 + len(text.split())}
        self.answer(200, {"choices": [{"index": 0, "finish_reason": "stop", **choice}], "usage": usage})

    def stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        if self.owner.behaviour in {"silent", "comments only"}:
            self.say_nothing()
            self.owner.cut_off.set()
        else:
            self.stream_words(self.text_of(body).split(" "))

    def stream_words(self, words: list[str]) -> None:
        if self.owner.behaviour == "endless":
            words = ["x"] * 10_000
        for place, word in enumerate(words):
            if not self.event({"choices": [{"index": 0, "delta": {"content": word if place == 0 else f" {word}"}}]}):
                self.owner.cut_off.set()
                return
            if self.owner.behaviour == "endless":
                time.sleep(0.01)
            if self.owner.behaviour == "breaks off":
                return
            if self.owner.behaviour == "fails later":
                self.event({"error": {"message": "out of memory"}})
                return
        self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        if self.owner.behaviour != "no usage":
            usage = {"prompt_tokens": 7, "completion_tokens": len(words), "total_tokens": 7 + len(words)}
            self.event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def say_nothing(self) -> None:
        """Until the client has hung up."""
        if self.owner.behaviour == "silent":
            self.wfile.flush()
            self.connection.recv(1024)
        while self.owner.behaviour == "comments only" and self.comment():
            time.sleep(0.05)

    def comment(self) -> bool:
        try:
            self.wfile.write(b": processing\n\n")
            self.wfile.flush()
        except OSError:
            return False
        return True

    def event(self, body: dict[str, Any]) -> bool:
        try:
            data = json.dumps({"id": "chatcmpl-9", "created": 1, **body}, ensure_ascii=False)
            self.wfile.write(b"data: " + data.encode() + b"\r\n\r\n")
            self.wfile.flush()
        except OSError:
            return False
        return True

    def answer(self, status: int, body: Any, *, raw: bytes | None = None) -> None:
        data = json.dumps(body).encode() if raw is None else raw
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
