"""Stop sequences on text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_mlx.engine.stop_matcher import StopMatcher


def run(stops: tuple[str, ...], chunks: list[str]) -> tuple[str, str | None]:
    """Return what was shown of `chunks` and the stop that ended it."""
    matcher = StopMatcher(stops)
    shown = "".join(matcher.feed(chunk) for chunk in chunks)
    return shown + matcher.flush(), matcher.matched


@pytest.mark.parametrize(
    ("stops", "text", "shown", "matched"),
    [
        (("STOP",), "one STOP two", "one ", "STOP"),
        (("STOP",), "one STO", "one STO", None),
        (("b", "abc"), "xabc", "xa", "b"),
        (("abc", "b"), "xabd", "xa", "b"),
        (("\n\n",), "a\n\nb", "a", "\n\n"),
        (("é",), "caf\u00e9", "caf", "é"),
        ((), "anything", "anything", None),
        (("aab",), "aaab", "a", "aab"),
    ],
)
def test_text_ends_before_the_first_stop_to_complete(
    stops: tuple[str, ...], text: str, shown: str, matched: str | None
) -> None:
    """Text ends before the stop sequence that is complete first."""
    assert run(stops, [text]) == (shown, matched)


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple),
    st.lists(st.text("abc", max_size=5), max_size=8),
)
def test_chunking_does_not_matter(stops: tuple[str, ...], chunks: list[str]) -> None:
    """However the text is cut into chunks, the same part of it is shown."""
    assert run(stops, chunks) == run(stops, list("".join(chunks)))


@given(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple), st.text("abc", max_size=20))
def test_no_stop_is_ever_shown(stops: tuple[str, ...], text: str) -> None:
    """What is shown contains no stop sequence, and is a prefix of the text."""
    shown, _ = run(stops, list(text))
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)


def test_nothing_is_held_back_without_need() -> None:
    """Only text that may begin a stop sequence waits."""
    matcher = StopMatcher(("STOP",))
    assert matcher.feed("hello S") == "hello "
    assert matcher.feed("o") == "So"
