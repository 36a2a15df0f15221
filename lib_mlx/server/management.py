"""Looking after a server: is it alive, what is it doing, end a request."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from lib_mlx import memory
from lib_mlx.errors import Cancelled, NotFound
from lib_mlx.server.http import JsonResponse
from lib_mlx.server.metrics import exposition
from lib_mlx.server.openai.models import model_object
from lib_mlx.server.openapi import EVENTS, described
from lib_mlx.server.sse import KEEP_ALIVE_S, sse
from lib_mlx.server.state import state_of
from lib_mlx.status import Status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

    from lib_mlx.server.answers import CancelledRequest, Drain, Health, HealthStatus, ServerReport
    from lib_mlx.server.state import ServerState


async def live(_request: Request) -> Response:
    """`GET /livez`: 200 as long as the server answers at all."""
    return JsonResponse({"status": "ok"})


@described(statuses=(200, 503))
async def health(request: Request) -> Response:
    """`GET /health`: 200 if requests are taken; 503 while they are not, and why."""
    state = state_of(request)
    models = state.registry.known()
    stalled = any(entry.engine is not None and entry.engine.stalled for entry in models)
    states: dict[HealthStatus, bool] = {
        "stopping": state.sessions.closing,
        "draining": state.sessions.draining,
        "suspended": state.registry.suspended,
        "stalled": stalled,
        "failed": any(entry.status == "failed" and entry.spec.pinned for entry in models),
    }
    status: HealthStatus = next((name for name, holds in states.items() if holds), "ok")
    answer: Health = {
        "status": status,
        "models": [entry.id for entry in models if entry.loaded],
        "in_flight": state.sessions.in_flight,
        "uptime_s": round(time.monotonic() - state.started, 3),
    }
    waiting = status == "suspended" and state.config.suspended_requests == "wait"
    return JsonResponse(answer, 200 if status == "ok" or waiting else 503)


async def status(request: Request) -> Response:
    """`GET /v1/status`: models, memory, queue and cache."""
    state = state_of(request)
    rate = state.sessions.metrics.hit_rate()
    report: ServerReport = {
        "status": "ok",
        "pid": os.getpid(),
        "uptime_s": round(time.monotonic() - state.started, 3),
        "models": [model_object(entry) for entry in state.registry.known()],
        "memory": {
            "resident_bytes": memory.resident_bytes(),
            "available_bytes": memory.available_bytes(),
            "limit_bytes": state.config.memory_limit_bytes,
        },
        "queue": {"in_flight": state.sessions.in_flight, "waiting": _waiting(state), "limit": state.sessions.limit},
        "cache": {"hit_rate": None if rate is None else round(rate, 4)},
    }
    return JsonResponse(report)


@described(answers=(EVENTS,))
async def events(request: Request) -> Response:
    """`GET /v1/events`: server-sent events `model` and `handle`: every one's state, then every change.

    Models are the server's; handles are those of the process that runs it, also without a server, as
    `lib_mlx_server_status` reports them.
    """
    return StreamingResponse(
        _events(state_of(request)), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


async def _events(state: ServerState) -> AsyncIterator[bytes]:
    async for change in state.news.read(KEEP_ALIVE_S):
        if change is None:
            yield b": keep-alive\n\n"
        elif isinstance(change, Status):
            yield sse(change.to_json(), "handle")
        else:
            yield sse(model_object(change), "model")


@described(answers=("text/plain",))
async def metrics(request: Request) -> Response:
    """`GET /metrics`: for Prometheus."""
    state = state_of(request)
    held = sum(entry.bytes for entry in state.registry.known())
    gauges: dict[str, tuple[str, float]] = {
        "lib_mlx_requests_in_flight": ("Requests running and waiting.", state.sessions.in_flight),
        "lib_mlx_requests_waiting": ("Requests that wait for their turn.", _waiting(state)),
        "lib_mlx_draining": ("Whether nothing new is taken, 1 or 0.", state.sessions.draining),
        "lib_mlx_queue_limit": ("The most requests in flight.", state.sessions.limit),
        "lib_mlx_models_memory_bytes": ("Memory of the loaded models' weights.", held),
        "lib_mlx_prefix_cache_hit_ratio": (
            "Share of prompt tokens that were known already.",
            state.sessions.metrics.hit_rate() or 0.0,
        ),
        "process_resident_memory_bytes": ("Resident memory of the process.", memory.resident_bytes()),
        "lib_mlx_uptime_seconds": ("Since the server started.", time.monotonic() - state.started),
    }
    body = exposition(state.sessions.metrics, gauges)
    return Response(body, media_type="text/plain; version=1.0.0; charset=utf-8")


def _waiting(state: ServerState) -> int:
    return sum(entry.engine.waiting for entry in state.registry.known() if entry.engine is not None)


async def cancel_request(request: Request) -> Response:
    """`DELETE /v1/requests/{id}`: end a request in flight, which its own client learns as an error."""
    wanted: str = request.path_params["id"]
    session = state_of(request).sessions.find(wanted)
    if session is None:
        raise NotFound(f"No request {wanted!r} is in flight.", hint="Its id is in the header X-Request-Id.")
    session.cancel(Cancelled("The request was cancelled.", hint="DELETE /v1/requests asked for it."))
    answer: CancelledRequest = {"id": wanted, "object": "request", "cancelled": True}
    return JsonResponse(answer)


async def drain(request: Request) -> Response:
    """`POST /v1/drain`: take nothing new and finish what runs, until `DELETE /v1/drain`."""
    return _drain(request, draining=True)


async def end_drain(request: Request) -> Response:
    """`DELETE /v1/drain`: take requests again."""
    return _drain(request, draining=False)


def _drain(request: Request, *, draining: bool) -> Response:
    sessions = state_of(request).sessions
    sessions.draining = draining
    answer: Drain = {"object": "drain", "draining": draining, "in_flight": sessions.in_flight}
    return JsonResponse(answer)


def routes() -> list[Route]:
    """Return the routes."""
    return [
        Route("/livez", live, methods=["GET"]),
        Route("/health", health, methods=["GET"]),
        Route("/v1/health", health, methods=["GET"]),
        Route("/v1/status", status, methods=["GET"]),
        Route("/v1/events", events, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        Route("/v1/drain", drain, methods=["POST"]),
        Route("/v1/drain", end_drain, methods=["DELETE"]),
        Route("/v1/requests/{id}", cancel_request, methods=["DELETE"]),
    ]
