"""Stop sequences on text: the answer ends before the first one, and no part of it is ever shown."""

from __future__ import annotations


class StopMatcher:
    """Passes text through until one of `stops` appears; holds back what may be the beginning of one.

    Works on text and not on tokens, because the same text can be tokenised in many ways. Any chunking of a
    text gives the same result. Not thread-safe; one per request.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.matched: str | None = None
        """The stop sequence that ended the text."""

    def feed(self, text: str) -> str:
        """Return the part of `text` (and of what was held back) that is certain to be shown."""
        if self.matched is not None or not text:
            return ""
        if not self._stops:
            return text
        pending = self._held + text
        found = [(at, -len(stop), stop) for stop in self._stops if (at := pending.find(stop)) >= 0]
        # The stop that is complete first wins; a longer one that starts at the same place can only end later.
        if found:
            _, at, stop = min((at - minus, at, stop) for at, minus, stop in found)
            self.matched, self._held = stop, ""
            return pending[:at]
        keep = max(_overlap(pending, stop) for stop in self._stops)
        self._held = pending[len(pending) - keep :]
        return pending[: len(pending) - keep]

    def flush(self) -> str:
        """Return what was held back: the text ended without a stop sequence."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest proper prefix of `stop` that `text` ends with."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
