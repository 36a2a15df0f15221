"""How much of the waiting prompts to process per step, so that running streams wait no longer than a fixed time."""

from __future__ import annotations

_WITH_STREAMS_S = 0.2  # of prefill per step while others decode; a step that takes longer by itself doubles at most
_ALONE_S = 0.5  # of prefill per step while nobody waits for tokens: until a cancellation or a new prompt is seen
_LEAST, _MOST = 16, 2048  # tokens: fewer waste the machine, more bring nothing
_NEW = 0.3  # the weight of a new measurement
_ROW = 2.5  # prompt tokens that a row's token is taken to cost before it was measured


class PrefillPace:
    """Learns the speed of one model. Engine thread only.

    Args:
        rate: a first guess, in prompt tokens per second.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        """Prompt tokens per second."""
        self._decode_s: dict[int, float] = {}
        """Seconds of a step without prompts, by the magnitude of its rows (1, 2-3, 4-7, …)."""

    def chunk(self, *, rows: int) -> int:
        """Return how many prompt tokens to process in the next step, in which `rows` decode."""
        seconds = max(_WITH_STREAMS_S, self._decode(rows)) if rows else _ALONE_S
        return min(_MOST, max(_LEAST, int(self.rate * seconds)))

    def stepped(self, seconds: float, prompt_tokens: int, *, rows: int) -> None:
        """Take in how long a step took that processed so many prompt tokens and decoded `rows`."""
        if prompt_tokens:
            prefill = max(seconds - self._decode(rows), 0.2 * seconds, 1e-6)
            self.rate += _NEW * (prompt_tokens / prefill - self.rate)
        elif rows:
            known = self._decode_s.setdefault(rows.bit_length(), seconds)
            self._decode_s[rows.bit_length()] = known + _NEW * (seconds - known)

    def _decode(self, rows: int) -> float:
        """Return what `rows` take, from those of the same magnitude; else in proportion to the nearest fewer ones."""
        size = rows.bit_length()
        if not rows or size in self._decode_s:
            return self._decode_s.get(size, 0.0)
        fewer = max((known for known in self._decode_s if known < size), default=None)
        if fewer is None:
            return min(self._decode_s.values(), default=rows * _ROW / self.rate)
        return self._decode_s[fewer] * float(2 ** (size - fewer))
