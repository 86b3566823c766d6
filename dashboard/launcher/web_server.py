"""uvicorn's server for `make start`, which wakes rarely while nobody asks it anything."""

from __future__ import annotations

import asyncio
import contextlib
from types import FrameType

import uvicorn

# The header with the date counts seconds.
TICK_SECONDS = 1.0


class WebServer(uvicorn.Server):
    """Wakes once a second instead of ten times, and at once for a signal."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stopping = asyncio.Event()
        self.loop: asyncio.AbstractEventLoop | None = None

    async def main_loop(self) -> None:
        self.loop = asyncio.get_running_loop()
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), TICK_SECONDS)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        # None while it starts: then the first tick ends it.
        if self.loop:
            self.loop.call_soon_threadsafe(self.stopping.set)
