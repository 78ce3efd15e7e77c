"""The engine alone, in one process: the median milliseconds of one answer to a prompt with a picture. Prints JSON."""

import json
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from ftproject.engine.answering import ChatRequest
from ftproject.engine.backends import get_backend
from ftproject.engine.configs import TINY_MODEL_NAME, TINY_MODEL_PATH
from ftproject.engine.decoding import DecodingRequest
from ftproject.engine.gpu import device_facts
from ftproject.engine.server_chat import open_chat, read_chat_body


def main() -> None:
    body = read_chat_body(json.load(sys.stdin))
    model = get_backend("transformers", device_facts()).load(TINY_MODEL_NAME, str(TINY_MODEL_PATH))
    spent = []
    with TemporaryDirectory() as folder:
        chat = open_chat(body, Path(folder), Path(folder))
        for _ in range(70):
            began = time.perf_counter()
            model.answer([ChatRequest(chat, DecodingRequest(body.params))])
            spent.append((time.perf_counter() - began) * 1000)
    print(json.dumps({"median_ms": statistics.median(spent[10:])}))


if __name__ == "__main__":
    main()
