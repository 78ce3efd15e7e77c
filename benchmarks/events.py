"""Events of a run process at ten sockets: complete, in order, and how late."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from websockets.sync.client import connect

from benchmarks.instance import LONG_TRAINING, instance, print_table, quantiles

SOCKETS = 10
STEPS = 150


def main() -> None:
    with instance("events") as served:
        served.load_digits()
        address = served.url.replace("http", "ws") + "/ws?types=training_progress,training_complete"

        def listen(_: int) -> list[tuple[int, float]]:
            frames: list[tuple[int, float]] = []
            with connect(address, proxy=None) as socket:
                while True:
                    frame = json.loads(socket.recv(timeout=300))
                    sent = datetime.fromisoformat(frame["timestamp"]).timestamp()
                    frames.append((frame["id"], time.time() - sent))
                    if frame["type"] == "training_complete":
                        return frames

        with ThreadPoolExecutor(SOCKETS) as pool:
            listeners = [pool.submit(listen, number) for number in range(SOCKETS)]
            time.sleep(1)
            sft = {**LONG_TRAINING["sft_config"], "max_steps": STEPS}
            run_id = served.start_training({**LONG_TRAINING, "sft_config": sft})
            received = [listener.result(timeout=600) for listener in listeners]
        page = served.api.get(f"/api/training/runs/{run_id}/events", limit=500)
        wanted = {"training_progress", "training_complete"}
        stored = [event["id"] for event in page["events"] if event["type"] in wanted]
        complete = sum([number for number, _ in frames] == stored for frames in received)
        median, p99 = quantiles([delay for frames in received for _, delay in frames])
    print_table(
        "Events from a run process",
        [
            ("sockets complete and in order", f"{complete} of {SOCKETS} ({len(stored)} events each)", "all"),
            ("delay", f"median {1000 * median:.0f} ms, p99 {1000 * p99:.0f} ms", "median < 250 ms"),
        ],
    )
