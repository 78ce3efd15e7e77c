"""Starts and ends what lives as long as the web process: the housekeeper; works with and without lifespan support."""

from ftproject.core.gate import AsgiApp, Receive, Scope, Send
from ftproject.system.housekeeping import housekeeper
from inference_app.model_server import model_server


class Lifespan:
    """uvicorn speaks lifespan; under daphne, which does not, the first request starts the housekeeper."""

    def __init__(self, app: AsgiApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.live(receive, send)
            return
        housekeeper.ensure_started()
        await self.app(scope, receive, send)

    async def live(self, receive: Receive, send: Send) -> None:
        await receive()
        housekeeper.ensure_started()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        housekeeper.stop()
        model_server.close()
        await send({"type": "lifespan.shutdown.complete"})
