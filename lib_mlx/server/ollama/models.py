"""The routes of Ollama's dialect that tell of models, and of the server."""

from __future__ import annotations

import asyncio
import hashlib
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from lib_mlx.errors import InvalidArgument, LibMlxError
from lib_mlx.server.http import JsonResponse, WireModel, read_json
from lib_mlx.server.ollama.common import bare_name, timestamp
from lib_mlx.server.openapi import described
from lib_mlx.server.state import state_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from lib_mlx.registry import ModelEntry, Registry
    from lib_mlx.registry.facts import ModelFacts

_NEVER = 100 * 365 * 86400.0  # seconds; Ollama shows a date a century away for models that stay


class ShowBody(WireModel):
    """The body of `POST /api/show`."""

    model: Annotated[str, Field(min_length=1)] | None = None
    name: Annotated[str, Field(min_length=1)] | None = None
    """Ollama's older name for `model`."""
    verbose: bool | None = None
    # Shown as they are in the files, whatever these say.
    system: str | None = None
    template: str | None = None


async def tags(request: Request) -> Response:
    """`GET /api/tags`: the models there are."""
    return JsonResponse({"models": await asyncio.to_thread(_tags, state_of(request).registry)})


def _tags(registry: Registry) -> list[dict[str, Any]]:
    return [
        {
            "name": entry.id,
            "model": entry.id,
            "modified_at": timestamp(facts.modified),
            "size": facts.weight_bytes,
            "digest": _digest(entry, facts),
            "details": _details(facts),
        }
        for entry, facts in _described(registry, registry.entries())
    ]


async def ps(request: Request) -> Response:
    """`GET /api/ps`: the models in memory."""
    return JsonResponse({"models": await asyncio.to_thread(_ps, state_of(request).registry)})


def _ps(registry: Registry) -> list[dict[str, Any]]:
    ready = [entry for entry in registry.known() if entry.loaded]
    return [
        {
            "name": entry.id,
            "model": entry.id,
            "size": entry.bytes,
            "size_vram": entry.bytes if entry.engine is not None and entry.engine.device == "gpu" else 0,
            "digest": _digest(entry, facts),
            "details": _details(facts),
            "expires_at": timestamp(time.time() + (_NEVER if entry.expires_in_s is None else entry.expires_in_s)),
            "context_length": facts.context_length,
        }
        for entry, facts in _described(registry, ready)
    ]


@described(body=ShowBody)
async def show(request: Request) -> Response:
    """`POST /api/show`: what a model's files say."""
    body = await read_json(request, ShowBody)
    name = body.model or body.name
    if name is None:
        raise InvalidArgument("The field 'model' is required.", param="model")
    return JsonResponse(await asyncio.to_thread(_show, state_of(request).registry, name))


def _show(registry: Registry, name: str) -> dict[str, Any]:
    entry = registry.find(bare_name(name))
    facts = registry.facts(entry)
    family = facts.family
    return {
        "modelfile": f"FROM {entry.id}\n",
        "parameters": "",
        "template": facts.template,
        "license": "",
        "modified_at": timestamp(facts.modified),
        "details": _details(facts),
        "model_info": {
            "general.architecture": family,
            f"{family}.context_length": facts.context_length,
            f"{family}.embedding_length": facts.config.get("hidden_size"),
            f"{family}.block_count": facts.config.get("num_hidden_layers"),
            f"{family}.attention.head_count": facts.config.get("num_attention_heads"),
            f"{family}.vocab_size": facts.config.get("vocab_size"),
        },
        "capabilities": [*facts.capabilities],
    }


async def greet(_request: Request) -> Response:
    """`GET /` for all but browsers: what Ollama's clients look for, its command line too, to know that it is there."""
    return PlainTextResponse("Ollama is running")


async def tell_version(_request: Request) -> Response:
    """`GET /api/version`: lib_mlx's own."""
    return JsonResponse({"version": version("lib-mlx")})


async def health(_request: Request) -> Response:
    """`GET /api/health`."""
    return JsonResponse({"status": "ok"})


def _described(registry: Registry, entries: list[ModelEntry]) -> list[tuple[ModelEntry, ModelFacts]]:
    """Return the models whose files can be read."""
    described = []
    for entry in entries:
        try:
            described.append((entry, registry.facts(entry)))
        except (LibMlxError, OSError):
            continue
    return described


def _details(facts: ModelFacts) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": facts.family,
        "families": [facts.family],
        "parameter_size": "",
        "quantization_level": facts.quantization,
    }


def _digest(entry: ModelEntry, facts: ModelFacts) -> str:
    """Return what tells this model from others and changes with its files; reading the weights would take long."""
    return hashlib.sha256(f"{entry.spec.path}\0{facts.weight_bytes}\0{facts.modified}".encode()).hexdigest()


def routes() -> list[Route]:
    """Return the routes."""
    return [
        Route("/api/tags", tags, methods=["GET"]),
        Route("/api/ps", ps, methods=["GET"]),
        Route("/api/show", show, methods=["POST"]),
        Route("/api/version", tell_version, methods=["GET"]),
        Route("/api/health", health, methods=["GET"]),
    ]
