"""The scripts as a Markov chain, and the chain as the weights of a llama."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tests.checkpoints.families import Family, marks_of
from tests.checkpoints.scripts import Script, answer_start, expand

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

HIDDEN = 256
ROPE_THETA = 10_000.0
ATTENTION_SHARPNESS = 12.0
HEAD_GAIN = 30.0
MIN_MARGIN = 4.0
DEFAULT_SCRIPT = "hello"

Floats: TypeAlias = NDArray[np.float32]


def _byte_alphabet() -> list[str]:
    """GPT-2's printable stand-in for each byte value."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(rest)) for byte in range(256)]


_ALPHABET = _byte_alphabet()


def _spell(piece: str | bytes) -> str:
    """The vocabulary entry of a piece: its bytes in the byte-level alphabet."""
    return "".join(_ALPHABET[byte] for byte in (piece.encode() if isinstance(piece, str) else piece))


State: TypeAlias = tuple[str, str]
"""The token before the last, and the last token, in vocabulary spelling; "" is any token."""


class Chain:
    """The vocabulary and the transitions of a set of scripts."""

    def __init__(self, family: Family, scripts: Iterable[Script]) -> None:
        self.family = family
        self.names: list[str] = []
        self.transitions: dict[State, str] = {}
        self._added = dict.fromkeys((*family.added, family.eos, *marks_of(family)))
        for script in scripts:
            self.names.append(script.name)
            self._add(script)
        pieces = {token for pair, after in self.transitions.items() for token in (*pair, after)} - {""}
        self.spoken = pieces
        vocabulary = [*_ALPHABET, *sorted(pieces - set(_ALPHABET) - set(self._added))]
        self.vocabulary = {token: number for number, token in enumerate(vocabulary)}
        self.added = list(self._added)
        self.ids = {token: number for number, token in enumerate([*vocabulary, *self.added])}

    def _add(self, script: Script) -> None:
        """Add the script at the first chunk width at which no state has two successors."""
        clash = None
        for width in range(4, 24):
            found = dict(self.transitions)
            clash = next((step for step in self._steps(script, width) if found.setdefault(*step) != step[1]), None)
            if clash is None:
                self.transitions = found
                return
        raise ValueError(f"script {script.name!r} contradicts itself or another one at {clash}")

    def _steps(self, script: Script, width: int) -> Iterator[tuple[State, str]]:
        """The script's steps, with reasoning after `go:NAME` and without it after `go:NAME!`."""
        family = self.family
        tokens = [
            piece if isinstance(piece, str) and piece in self._added else _spell(piece)
            for piece in expand(script, family, width)
        ]
        again = tokens[-len(script.pieces) :] if script.end == "loop" else []
        prompt = [self._go(script.name), *(family.think[:1] if family.opens_think else ())]
        yield from self._walk(prompt, tokens, again)
        yield from self._walk([self._go(script.name + "!")], tokens[answer_start(tokens, family) :], again)

    def _go(self, name: str) -> str:
        token = f"<|go:{name}|>"
        self._added[token] = None
        return token

    def _walk(self, start: Sequence[str], body: Sequence[str], again: Sequence[str]) -> Iterator[tuple[State, str]]:
        """Each step of `body` after the prompt's last tokens `start`; a lone one follows any token."""
        before, last = ["", *start][-2:]
        for token in [*body, *(again[:2] or [self.family.eos])]:
            yield (before, last), token
            before, last = last, token


def weights_of(chain: Chain) -> dict[str, Floats]:
    """The checkpoint's tensors under their Hugging Face names."""
    random = np.random.default_rng(7)
    size = len(chain.ids)
    embed = random.standard_normal((size, HIDDEN)).astype(np.float32)
    mute = [number for token, number in chain.vocabulary.items() if token not in chain.spoken]
    embed[mute] = embed[mute[0]]  # bytes no script speaks are one and the same to the model
    embed /= np.sqrt(np.mean(embed**2, axis=1, keepdims=True))
    rotation = np.linalg.qr(random.standard_normal((HIDDEN, HIDDEN)))[0].astype(np.float32)
    head = _head(chain, embed, rotation, silent=mute[0])
    zeros, ones, identity = (
        np.zeros(HIDDEN, np.float32),
        np.ones(HIDDEN, np.float32),
        np.eye(HIDDEN, dtype=np.float32),
    )
    layer = "model.layers.0"
    query, key = _previous_token_head()
    return {
        "model.embed_tokens.weight": embed,
        f"{layer}.input_layernorm.weight": ones,
        f"{layer}.self_attn.q_proj.weight": np.zeros((HIDDEN, HIDDEN), np.float32),
        f"{layer}.self_attn.q_proj.bias": query,
        f"{layer}.self_attn.k_proj.weight": np.zeros((HIDDEN, HIDDEN), np.float32),
        f"{layer}.self_attn.k_proj.bias": key,
        f"{layer}.self_attn.v_proj.weight": rotation,
        f"{layer}.self_attn.v_proj.bias": zeros,
        f"{layer}.self_attn.o_proj.weight": identity,
        f"{layer}.self_attn.o_proj.bias": zeros.copy(),
        f"{layer}.post_attention_layernorm.weight": ones.copy(),
        f"{layer}.mlp.gate_proj.weight": np.zeros((16, HIDDEN), np.float32),
        f"{layer}.mlp.up_proj.weight": np.zeros((16, HIDDEN), np.float32),
        f"{layer}.mlp.down_proj.weight": np.zeros((HIDDEN, 16), np.float32),
        "model.norm.weight": ones.copy(),
        "lm_head.weight": head,
    }


def _previous_token_head() -> tuple[Floats, Floats]:
    """Constant query and key whose rotary score is greatest at distance one."""
    half = HIDDEN // 2
    angles = ROPE_THETA ** (-np.arange(half) / half)
    query = np.concatenate([np.ones(half), np.zeros(half)]) * ATTENTION_SHARPNESS
    key = np.concatenate([np.cos(angles), np.sin(angles)]) * ATTENTION_SHARPNESS
    return query.astype(np.float32), key.astype(np.float32)


def _head(chain: Chain, embed: Floats, rotation: Floats, silent: int) -> Floats:
    """The output rows: each transition's state is added to its successor, then errors are corrected.

    Two scripts may share a state's halves without sharing the state; the perceptron rule settles those.

    Raises:
        ValueError: some transition still wins by less than `MIN_MARGIN` logits.
    """
    ids = chain.ids
    anything = [
        silent,
        ids[_spell("\n")],
        *(ids[token] for token in chain.added[:8]),
        *range(300, len(ids), 40),
    ]
    steps = [
        (one, ids[last], ids[after])
        for (before, last), after in chain.transitions.items()
        for one in ([ids[before]] if before else anything)
    ]
    fallback = ids[chain.transitions["", f"<|go:{DEFAULT_SCRIPT}!|>"]]
    steps += [(one, silent, fallback) for one in anything]
    before, last, after = (np.array(column) for column in zip(*steps, strict=True))
    states = embed[last] + embed[before] @ rotation.T
    states /= np.sqrt(np.mean(states**2, axis=1, keepdims=True))
    head = np.zeros_like(embed)
    rows = np.arange(len(steps))
    for _ in range(200):
        logits = states @ head.T
        wanted = logits[rows, after].copy()
        logits[rows, after] = -np.inf
        rival = logits.argmax(axis=1)
        margin = wanted - logits[rows, rival]
        weak = np.flatnonzero(margin < HEAD_GAIN / 2)
        if not weak.size:
            return head
        for step in weak:
            head[after[step]] += states[step] * HEAD_GAIN / HIDDEN / 2
            if np.isfinite(margin[step]) and margin[step] > -HEAD_GAIN:
                head[rival[step]] -= states[step] * HEAD_GAIN / HIDDEN / 4
    worst = int(margin.argmin())
    token = {number: token for token, number in ids.items()}
    if margin[worst] < MIN_MARGIN:
        raise ValueError(f"the step {[token[i] for i in steps[worst]]} wins by {margin[worst]:.1f} logits only")
    return head
