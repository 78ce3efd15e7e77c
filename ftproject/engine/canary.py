"""Shows that a server uses an adapter before its answers are called fine-tuned.

vLLM drops the weights of vision layers with no more than a warning unless it was started with
--enable-tower-connector-lora, and a key prefix that it does not know turns a whole adapter off (both known upstream).
"""

from __future__ import annotations

import base64
import math
import struct
import threading
import time
import zlib
from collections.abc import Mapping
from typing import Any

from ftproject.engine.remote import RemoteError, RemoteServer

KEPT_SECONDS = 600.0
LONGEST_SECONDS = 120.0  # eight tokens, the loading of an adapter included
SAME = 1e-6
# A server that batches gives other probabilities beside other neighbours: an effect must stand out of that.
OVER_NOISE = 3.0
TOKENS = 8
PROMPTS = ("Describe the image.", "What is shown here? Answer in one word.", "Read the text in the image.")
MISSING_FLAGS = (
    "start it with --enable-lora --enable-tower-connector-lora and a --max-lora-rank of at least the adapter's r, "
    "or serve the merged model"
)


class AdapterCanary:
    """Asks base, adapter and base again the same about a known picture.

    Answers of the adapter that differ from the base's no more than those among themselves are a refusal.
    """

    def __init__(self, server: RemoteServer) -> None:
        self.server = server
        self._shown: dict[tuple[str, str, int], float] = {}
        self._lock = threading.Lock()

    def require_effect(self, base: str, adapter: str) -> None:
        """Raises RemoteError adapter_ignored; an effect that was shown counts for ten minutes of the same server."""
        seconds = self.server.settings.seconds
        if not self._lock.acquire(timeout=seconds):
            raise RemoteError("generation_timeout", f"{adapter} could not be tried out within {seconds:.0f} s")
        try:
            shown = (base, adapter, self.server.losses)
            if time.monotonic() - self._shown.get(shown, -math.inf) < KEPT_SECONDS:
                return
            if not any(self._differs(base, adapter, prompt) for prompt in PROMPTS):
                message = (
                    f"{self.server.settings.host} answers as if the adapter {adapter} were not there: {MISSING_FLAGS}"
                )
                raise RemoteError("adapter_ignored", message)
            self._shown[shown] = time.monotonic()
        finally:
            self._lock.release()

    def _differs(self, base: str, adapter: str, prompt: str) -> bool:
        first, tuned = self._ask(base, prompt), self._ask(adapter, prompt)
        effect = distance(first, tuned)
        return effect > SAME and effect > OVER_NOISE * distance(first, self._ask(base, prompt))

    def _ask(self, model: str, prompt: str) -> tuple[str, list[float]]:
        content = [{"type": "image_url", "image_url": {"url": PICTURE}}, {"type": "text", "text": prompt}]
        body = {"model": model, "messages": [{"role": "user", "content": content}], "temperature": 0.0}
        seconds = min(LONGEST_SECONDS, self.server.settings.seconds)
        answer = self.server.complete(
            body | {"max_tokens": TOKENS, "logprobs": True, "top_logprobs": 1}, seconds=seconds
        )
        return read_probabilities(answer)


def distance(one: tuple[str, list[float]], other: tuple[str, list[float]]) -> float:
    """How far two answers are apart: infinitely when their texts differ, else by their tokens' log-probabilities.

    >>> distance(("red", [-0.5]), ("red", [-0.75])), distance(("red", []), ("blue", []))
    (0.25, inf)
    """
    if one[0] != other[0] or len(one[1]) != len(other[1]):
        return math.inf
    return max((abs(first - second) for first, second in zip(one[1], other[1], strict=True)), default=0.0)


def read_probabilities(answer: Mapping[str, Any]) -> tuple[str, list[float]]:
    """An answer's text and the log-probabilities of its tokens, none where the server gives none."""
    try:
        choice = answer["choices"][0]
        tokens = (choice.get("logprobs") or {}).get("content") or []
        return str(choice["message"]["content"]), [float(token["logprob"]) for token in tokens]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise RemoteError("inference_server_failed", "the inference server gave no chat completion") from error


def _picture(size: int = 64) -> str:
    """A ring in colour on a gradient as a PNG data URI: the same bytes everywhere, without an image library."""
    rows = bytearray()
    for y in range(size):
        rows.append(0)
        for x in range(size):
            ring = 18 < math.hypot(x - size / 2, y - size / 2) < 26
            rows += bytes((220, 30, 60)) if ring else bytes((3 * x, 2 * y, 160))
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(rows))), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()


PICTURE = _picture()
