"""What the endpoints of one server share."""

from __future__ import annotations

import time
from functools import cached_property
from typing import TYPE_CHECKING

from lib_mlx.server.openai.response_store import ResponseStore
from lib_mlx.server.session import Sessions

if TYPE_CHECKING:
    from starlette.requests import Request

    from lib_mlx.config import ServerConfig
    from lib_mlx.generation import GenerationRequest
    from lib_mlx.registry import Registry
    from lib_mlx.server.session import Session


class ServerState:
    """One server's models and the requests in flight. Belongs to its event loop."""

    def __init__(self, registry: Registry, config: ServerConfig) -> None:
        self.registry = registry
        self.config = config
        self.sessions = Sessions(registry, config.queue_limit)
        self.started = time.monotonic()

    @cached_property
    def response_store(self) -> ResponseStore:
        """The responses that OpenAI's clients may come back to."""
        return ResponseStore()

    async def start(
        self,
        request: Request,
        model: str | None,
        generation: GenerationRequest,
        *,
        choices: int = 1,
        keep_alive_s: float | None = None,
    ) -> Session:
        """Start generating for an HTTP request; see `Sessions.start`. Close the session, whatever happens."""
        return await self.sessions.start(
            model, generation, request_id=request_id(request), choices=choices, keep_alive_s=keep_alive_s
        )


def state_of(request: Request) -> ServerState:
    """Return the state of the server that `request` came to."""
    state: ServerState = request.app.state.server
    return state


def request_id(request: Request) -> str:
    """Return the id that `request` was given; see `server.request_id`."""
    return str(request.state.request_id)
