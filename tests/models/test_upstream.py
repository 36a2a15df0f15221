"""What lib_mlx needs of mlx-lm's internal interfaces. A failure here means: mlx-lm changed, read its release notes."""

from __future__ import annotations

import inspect
from importlib.metadata import version

import mlx.core as mx

from lib_mlx.models import upstream


def parameters(function: object) -> list[str]:
    """Names of a callable's parameters."""
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_the_pinned_version() -> None:
    """The contracts below were read in this minor version."""
    assert version("mlx-lm").startswith("0.32.")


def test_batch_generator() -> None:
    """The scheduler's calls exist with these names."""
    keywords = {"completion_batch_size", "prefill_batch_size", "prefill_step_size", "stream"}
    assert keywords <= set(parameters(upstream.BatchGenerator.__init__))
    wanted = ["prompts", "max_tokens", "caches", "all_tokens", "samplers", "logits_processors", "stop_sequences"]
    assert parameters(upstream.BatchGenerator.insert)[1:] == wanted
    assert parameters(upstream.BatchGenerator.remove)[1:] == ["uids", "return_prompt_caches"]


def test_text_state_machine() -> None:
    """Segments come with their states, and a marker split over chunks is found."""
    machine = upstream.TextStateMachine({"a": [("<x>", "b")], "b": []})
    state = machine.make_state("a")
    state, first = machine.split(state, "1<")
    state, second = machine.split(state, "x>2")
    assert (first, second, state[0]) == ([("a", "1")], [("a", ""), ("b", "2")], "b")
    assert machine.flush(state)[1:] == ("", "b")


def test_stop_sequences() -> None:
    """An end token stops."""
    matcher = upstream.StopSequences([(5,)]).matcher()
    assert [matcher.advance(token) for token in (4, 5)] == [False, True]


def test_filters_keep_the_likely_tokens() -> None:
    """Each filter sets the logits of what it removes to minus infinity."""
    logprobs = mx.log(mx.array([[0.5, 0.3, 0.15, 0.05]]))
    kept = [
        (mx.isfinite(filtered).tolist()[0])
        for filtered in (
            upstream.apply_top_k(logprobs, 2),
            upstream.apply_top_p(logprobs, 0.6),
            upstream.apply_min_p(logprobs, 0.25),
        )
    ]
    assert kept == [[True, True, False, False], [True, True, False, False], [True, True, True, False]]


def test_tokenizer_wrapper() -> None:
    """The attributes that output formats are read from."""
    names = (
        "has_thinking think_start think_end rfind_think_start rfind_think_end has_tool_calling tool_call_start "
        "tool_call_end tool_parser response_transitions structural_markers eos_token_ids apply_chat_template"
    )
    missing = [name for name in names.split() if not hasattr(upstream.TokenizerWrapper, name)]
    assert not missing
    assert parameters(upstream.load_tokenizer)[:3] == ["model_path", "tokenizer_config_extra", "eos_token_ids"]
    assert parameters(upstream.load_model)[:2] == ["model_path", "lazy"]
