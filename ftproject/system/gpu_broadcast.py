"""Sends gpu_stats to the sockets every 2 s while there are any; nothing of it is stored."""

import asyncio
from typing import cast

from ftproject.core.events import GpuStats
from ftproject.core.tail import tail
from ftproject.engine.gpu import gpu_stats

PERIOD_SECONDS = 2.0


class GpuBroadcast:
    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None

    def ensure_started(self) -> None:
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self.run())

    async def run(self) -> None:
        while tail.subscriptions:
            stats = await asyncio.to_thread(gpu_stats)
            tail.broadcast("gpu_stats", cast(GpuStats, stats))
            await asyncio.sleep(PERIOD_SECONDS)


gpu_broadcast = GpuBroadcast()
