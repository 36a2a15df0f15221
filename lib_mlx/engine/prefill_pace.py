"""How much of the waiting prompts to process per step, so that running streams wait no longer than a fixed time."""

from __future__ import annotations

_WITH_STREAMS_S = 0.2  # of prefill per step while others decode; a step that takes longer by itself doubles at most
_ALONE_S = 0.5  # of prefill per step while nobody waits for tokens: until a cancellation or a new prompt is seen
_LEAST, _MOST = 16, 2048  # tokens: fewer waste the machine, more bring nothing
_NEW = 0.3  # the weight of a new measurement


class PrefillPace:
    """Learns the speed of one model. Engine thread only.

    Args:
        rate: a first guess, in prompt tokens per second.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        """Prompt tokens per second."""
        self._decode_s = 0.0

    def chunk(self, *, streams: bool) -> int:
        """Return how many prompt tokens to process in the next step, in which `streams` may decode."""
        seconds = max(_WITH_STREAMS_S, self._decode_s) if streams else _ALONE_S
        return min(_MOST, max(_LEAST, int(self.rate * seconds)))

    def stepped(self, seconds: float, prompt_tokens: int, *, streams: bool) -> None:
        """Take in how long a step took that processed so many prompt tokens and decoded `streams`."""
        if prompt_tokens:
            prefill = max(seconds - (self._decode_s if streams else 0.0), 0.2 * seconds, 1e-6)
            self.rate += _NEW * (prompt_tokens / prefill - self.rate)
        elif streams:
            self._decode_s += _NEW * (seconds - self._decode_s)
