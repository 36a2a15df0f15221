"""The response object before anything was generated: what was asked for, with every field the schema requires."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lib_mlx.server.fields import new_id
from lib_mlx.server.openai.common import echoed_choice

if TYPE_CHECKING:
    from lib_mlx.generation import Usage
    from lib_mlx.server.openai.responses_request import FunctionTool, ReasoningOptions, ResponsesRequest, TextFormat


def new_response(body: ResponsesRequest, model: str, *, temperature: float, top_p: float) -> dict[str, Any]:
    """Return a response to `body`, in progress, or queued if it is made in the background."""
    background = body.background is True
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "queued" if background else "in_progress",
        "incomplete_details": None,
        "model": model,
        "previous_response_id": body.previous_response_id,
        "instructions": body.instructions,
        "output": [],
        "error": None,
        "tools": [_tool(tool) for tool in body.tools or ()],
        "tool_choice": echoed_choice(body.tool_choice),
        "truncation": body.truncation or "disabled",
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "text": _text_options(body),
        "top_p": top_p,
        "presence_penalty": body.presence_penalty or 0.0,
        "frequency_penalty": body.frequency_penalty or 0.0,
        "top_logprobs": body.top_logprobs or 0,
        "temperature": temperature,
        "reasoning": _reasoning(body.reasoning),
        "usage": None,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "store": body.stores,
        "background": background,
        "service_tier": "default",
        "metadata": body.metadata or {},
        "safety_identifier": body.safety_identifier,
        "prompt_cache_key": body.prompt_cache_key,
        **({} if body.user is None else {"user": body.user}),  # no field of Open Responses, and never null in OpenAI's
    }


def usage_of(usage: Usage) -> dict[str, Any]:
    """Return token counts as the Responses API names them."""
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }


def _tool(tool: FunctionTool) -> dict[str, Any]:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": bool(tool.strict),
    }


def _reasoning(options: ReasoningOptions | None) -> dict[str, Any]:
    if options is None:
        return {"effort": None, "summary": None}
    further = {"context": options.context and "current_turn", "mode": options.mode}
    asked = {name: value for name, value in further.items() if value is not None}
    return {"effort": options.effort, "summary": options.summary, **asked}


def _text_options(body: ResponsesRequest) -> dict[str, Any]:
    verbosity = body.text.verbosity if body.text else None
    form = {"format": _format(body.form)}
    return {**form, "verbosity": verbosity} if verbosity else form


def _format(form: TextFormat | None) -> dict[str, Any]:
    if form is None or form.type != "json_schema":
        return {"type": form.type if form else "text"}
    return {
        "type": form.type,
        "name": form.name,
        "description": form.description,
        "schema": form.schema_,
        "strict": form.strict is not False,
    }
