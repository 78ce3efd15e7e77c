"""Ctrl+C during training: how long until every process is gone, and whether the adapter is there."""

import signal
import time
from pathlib import Path

import psutil
from django.conf import settings

from benchmarks.instance import LONG_TRAINING, instance, print_table


def main() -> None:
    with instance("shutdown") as served:
        served.load_digits()
        served.wait_until_training(served.start_training(LONG_TRAINING), step=10)
        family = served.processes()
        began = time.monotonic()
        served.process.send_signal(signal.SIGINT)
        alive = psutil.wait_procs(family, timeout=30)[1]
        seconds = time.monotonic() - began
    adapters = list((Path(settings.DATA_DIR) / "shutdown" / "adapters").glob("adapter_*/adapter_model.safetensors"))
    print_table(
        "Ctrl+C during training",
        [
            ("all processes gone after", f"{seconds:.1f} s", "<= 15 s"),
            ("processes left", str(len(alive)), "0"),
            ("adapters saved", str(len(adapters)), "1"),
        ],
    )
