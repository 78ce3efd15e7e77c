"""Input files for the workflow tests, cut from the bundled demo data, and a loopback image server."""

import base64
import csv
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.workflow.served import ROOT

DIGITS = ROOT / "ftproject" / "engine" / "assets" / "demo" / "digits.csv"


def digit_rows(count: int) -> list[dict[str, str]]:
    with DIGITS.open(encoding="utf-8", newline="") as stream:
        return [row for row, _ in zip(csv.DictReader(stream), range(count), strict=False)]


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="session")
def dataset_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The columns that the document's mapping names; one row without its mandatory image."""
    rows = digit_rows(60)
    table = [
        {
            "prompt": row["prompt"],
            "response": row["answer"],
            "input_image_url": row["image"] if number != 7 else "",
            "swapped_image": rows[number - 1]["image"] if number % 2 else "",
        }
        for number, row in enumerate(rows)
    ]
    return write_csv(tmp_path_factory.mktemp("documents") / "dataset.csv", table)


@pytest.fixture(scope="session")
def data_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The columns that the document's closing script names."""
    folder = tmp_path_factory.mktemp("script")
    rows = [{name: row[name] for name in ("prompt", "answer", "image")} for row in digit_rows(120)]
    return write_csv(folder / "data.csv", rows)


@pytest.fixture(scope="session")
def photo_server() -> Iterator[str]:
    """host:port of a loopback server with one picture, photo.jpg."""
    picture = base64.b64decode(digit_rows(1)[0]["image"].split(",", 1)[1])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.send_header("Content-Length", str(len(picture)))
            self.end_headers()
            self.wfile.write(picture)

        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
