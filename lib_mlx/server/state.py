"""What the endpoints of one server share."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from lib_mlx.generation import GenerationRequest
from lib_mlx.server.image_fetcher import ImageFetcher
from lib_mlx.server.news import News
from lib_mlx.server.openai.response_store import ResponseStore
from lib_mlx.server.prefix_hash import prefix_hash
from lib_mlx.server.profiles import bounded, find_profile
from lib_mlx.server.session import Sessions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request

    from lib_mlx.config import ServerConfig
    from lib_mlx.registry import Registry
    from lib_mlx.server.session import Session
    from lib_mlx.status import Handles


class ServerState:
    """One server's models and the requests in flight. Belongs to its event loop."""

    def __init__(self, registry: Registry, config: ServerConfig, handles: Handles) -> None:
        self.registry = registry
        self.config = config
        self.sessions = Sessions(registry, config.queue_limit, fail_suspended=config.suspended_requests == "fail")
        self.images = ImageFetcher(config)
        self.started = time.monotonic()
        self.news = News(registry, handles)

    def close(self) -> None:
        """Refuse new requests and end the running ones."""
        self.sessions.close()
        self.news.close()

    @cached_property
    def response_store(self) -> ResponseStore:
        """The responses that OpenAI's clients may come back to."""
        return ResponseStore()

    async def start(
        self,
        request: Request,
        model: str | None,
        generation: GenerationRequest | Sequence[GenerationRequest],
        *,
        choices: int = 1,
        keep_alive_s: float | None = None,
        profile: str | None = None,
        user: str | None = None,
    ) -> Session:
        """Start generating for an HTTP request; see `Sessions.start`. Close the session, whatever happens.

        `profile` names the bounds to keep within; raises InvalidArgument if there are none of that name. `user` is
        whom the client asks for, as far as it says: users take turns, or connections.
        """
        client = f"user {user}" if user else f"connection {request.client}"
        wanted = [generation] if isinstance(generation, GenerationRequest) else generation
        requests = [replace(one, client=client) for one in wanted]
        request.state.prefix_hash = prefix_hash(requests[0])
        if profile is not None:
            bounds = find_profile(profile, self.config.profiles)
            requests = [bounded(one, bounds) for one in requests]
        requests = [await self.images.resolve(one) for one in requests]
        return await self.sessions.start(
            model, requests, request_id=request_id(request), choices=choices, keep_alive_s=keep_alive_s
        )


def state_of(request: Request) -> ServerState:
    """Return the state of the server that `request` came to."""
    state: ServerState = request.app.state.server
    return state


def request_id(request: Request) -> str:
    """Return the id that `request` was given; see `server.request_id`."""
    return str(request.state.request_id)
