"""tokenizer.json and tokenizer_config.json from GGUF's `tokenizer.ggml.*` metadata.

Two models exist: `gpt2`, byte-level BPE with a merge table, whose way of splitting text is named by
`tokenizer.ggml.pre`; and `llama`, SentencePiece BPE, whose merges follow from the pieces' scores. A splitting
rule that is not known is refused: a near one would feed the model tokens it has never seen together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lib_mlx.errors import CorruptModel, UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_DIGITS = {"type": "Digits", "individual_digits": True}


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(*patterns: str) -> list[dict[str, Any]]:
    return [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns
    ]


_GPT2 = [_byte_level(use_regex=True)]
_PLAIN = _byte_level(use_regex=False)
_PRE_TOKENIZERS: Mapping[str, list[dict[str, Any]]] = {
    "gpt-2": _GPT2,
    "olmo": _GPT2,
    "smollm": [_DIGITS, *_GPT2],
    "starcoder": [_DIGITS, *_GPT2],
    "refact": [_DIGITS, *_GPT2],
    "llama-bpe": [*_split(_LLAMA3), _PLAIN],
    "llama3": [*_split(_LLAMA3), _PLAIN],
    "llama-v3": [*_split(_LLAMA3), _PLAIN],
    "dbrx": [*_split(_LLAMA3), _PLAIN],  # Phi-4's
    "gpt-4o": [*_split(_GPT4O), _PLAIN],
    "smaug-bpe": [*_split(_LLAMA3), _PLAIN],
    "qwen2": [*_split(_QWEN2), _PLAIN],
    "deepseek-r1-qwen": [*_split(_QWEN2), _PLAIN],
    "tekken": [*_split(_TEKKEN), _PLAIN],
    "deepseek-coder": [
        *_split(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"),
        _DIGITS,
        _PLAIN,
    ],
}
_WHOLE_WORDS_FIRST = {"llama-bpe", "llama3", "llama-v3", "tekken"}
"""Splitting rules whose vocabularies hold words that their merges do not lead to."""
_BOS_BY_DEFAULT = {"llama-bpe", "llama3", "llama-v3", "tekken"}


class TokenizerFiles:
    """The two files' contents, and the ids the model's configuration needs.

    Raises:
        UnsupportedModel: the tokenizer's model or splitting rule is not known here.
        CorruptModel: the lists of tokens, types and scores do not fit together.
    """

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self._path = path
        self._meta = metadata
        self._tokens: list[str] = self._list("tokens", str)
        self._types: list[int] = self._list("token_type", int, len(self._tokens))
        kind = metadata.get("tokenizer.ggml.model")
        if kind not in ("gpt2", "llama"):
            raise UnsupportedModel(
                f"{path} has a tokenizer of the kind {kind!r}, which cannot be converted.",
                hint="Use the model's safetensors repository instead.",
            )
        self._sentencepiece = kind == "llama"
        self.bos = self._id("bos")
        self.eos = self._id("eos")
        self.ends = [end for end in dict.fromkeys((self.eos, self._id("eot"), self._id("eom"))) if end is not None]
        self.tokenizer = self._tokenizer()
        self.config = self._config()

    @property
    def vocab_size(self) -> int:
        """How many tokens the tokenizer has; the model's embeddings may be padded beyond."""
        return len(self._tokens)

    def _damaged(self, what: str) -> CorruptModel:
        return CorruptModel(f"The tokenizer of {self._path} is damaged: {what}.", hint="Fetch the file again.")

    def _list(self, key: str, kind: type, size: int | None = None) -> list[Any]:
        value = self._meta.get(f"tokenizer.ggml.{key}")
        if value is None and key == "token_type":
            return [1] * (size or 0)
        if not isinstance(value, list) or not value or not isinstance(value[0], kind):
            raise self._damaged(f"it has no list of {key}")
        if size is not None and len(value) != size:
            raise self._damaged(f"{len(value)} {key} for {size} tokens")
        return value

    def _id(self, name: str) -> int | None:
        value = self._meta.get(f"tokenizer.ggml.{name}_token_id")
        if value is not None and not (isinstance(value, int) and 0 <= value < len(self._tokens)):
            raise self._damaged(f"its {name} token is {value!r}")
        return value

    @property
    def _pre(self) -> str:
        return str(self._meta.get("tokenizer.ggml.pre", "(none)"))

    def _flag(self, name: str, default: bool) -> bool:
        return bool(self._meta.get(f"tokenizer.ggml.{name}", default))

    def _tokenizer(self) -> dict[str, Any]:
        vocab = {token: number for number, token in enumerate(self._tokens)}
        if len(vocab) != len(self._tokens):
            raise self._damaged("a token occurs twice")
        parts = self._sentencepiece_parts(vocab) if self._sentencepiece else self._byte_level_parts(vocab)
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": self._added_tokens(),
            **parts,
            "post_processor": self._post_processor(),
        }

    def _byte_level_parts(self, vocab: dict[str, int]) -> dict[str, Any]:
        if self._pre not in _PRE_TOKENIZERS:
            raise UnsupportedModel(
                f"{self._path} splits text by the rule {self._pre!r}, which is not known here.",
                hint=f"Known: {', '.join(_PRE_TOKENIZERS)}. Use the model's safetensors repository instead.",
            )
        merges = [merge.split(" ") for merge in self._list("merges", str)]
        if any(len(merge) != 2 or not vocab.keys() >= {*merge, "".join(merge)} for merge in merges):
            raise self._damaged("a merge is not of two tokens to a third")
        steps = _PRE_TOKENIZERS[self._pre]
        return {
            "normalizer": {"type": "NFC"} if self._pre == "qwen2" else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0],
            "decoder": _byte_level(use_regex=True) | {"add_prefix_space": True},
            "model": _bpe(vocab, merges, ignore_merges=self._pre in _WHOLE_WORDS_FIRST),
        }

    def _sentencepiece_parts(self, vocab: dict[str, int]) -> dict[str, Any]:
        scores = self._list("scores", float, len(self._tokens))
        mergeable = [
            token for token, kind in zip(self._tokens, self._types, strict=True) if kind not in (_UNKNOWN, _CONTROL)
        ]
        unknown = self._id("unknown")
        prefix = self._flag("add_space_prefix", default=True)
        marks: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
        decoder: list[dict[str, Any]] = [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        if prefix:
            marks.insert(0, {"type": "Prepend", "prepend": "▁"})
            decoder.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        return {
            "normalizer": {"type": "Sequence", "normalizers": marks},
            "pre_tokenizer": None,
            "decoder": {"type": "Sequence", "decoders": decoder},
            "model": _bpe(
                vocab,
                _merges_from_scores(mergeable, vocab, scores),
                unk_token=self._tokens[unknown] if unknown is not None else None,
                fuse_unk=True,
                byte_fallback=True,
            ),
        }

    def _added_tokens(self) -> list[dict[str, Any]]:
        return [
            {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind != _USER_DEFINED,
            }
            for number, (token, kind) in enumerate(zip(self._tokens, self._types, strict=True))
            if kind in (_CONTROL, _USER_DEFINED) or (kind == _UNKNOWN and self._sentencepiece)
        ]

    def _post_processor(self) -> dict[str, Any] | None:
        """Return the step that puts bos before, and eos after, a text that is not a chat."""
        add_bos = self._flag("add_bos_token", default=self._sentencepiece or self._pre in _BOS_BY_DEFAULT)
        first = self.bos if add_bos else None
        last = self.eos if self._flag("add_eos_token", default=False) else None
        if first is None and last is None:
            return None

        def around(*sequences: dict[str, Any]) -> list[dict[str, Any]]:
            ends = [
                [] if mark is None else [{"SpecialToken": {"id": self._tokens[mark], "type_id": 0}}]
                for mark in (first, last)
            ]
            return [*ends[0], *sequences, *ends[1]]

        a, b = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
        return {
            "type": "TemplateProcessing",
            "single": around(a),
            "pair": [*around(a), *around(b)],
            "special_tokens": {
                self._tokens[mark]: {"id": self._tokens[mark], "ids": [mark], "tokens": [self._tokens[mark]]}
                for mark in (first, last)
                if mark is not None
            },
        }

    def _config(self) -> dict[str, Any]:
        def text(token: int | None) -> str | None:
            return None if token is None else self._tokens[token]

        config: dict[str, Any] = {
            # The class that takes tokenizer.json as it is; others rebuild it by rules of their own.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": text(self.bos),
            "eos_token": text(self.eos),
            "unk_token": text(self._id("unknown")),
            "pad_token": text(self._id("padding") if self._id("padding") is not None else self.eos),
            "clean_up_tokenization_spaces": False,
        }
        template = self._meta.get("tokenizer.chat_template")
        if isinstance(template, str) and template.strip():
            config["chat_template"] = template
        return config


def _bpe(
    vocab: dict[str, int],
    merges: Sequence[Sequence[str]],
    *,
    unk_token: str | None = None,
    fuse_unk: bool = False,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk_token,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": fuse_unk,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": vocab,
        "merges": merges,
    }


def _merges_from_scores(
    pieces: Sequence[str], vocab: Mapping[str, int], scores: Sequence[float]
) -> list[tuple[str, str]]:
    """Return SentencePiece's merges, best first: every way to put a piece together, by the piece's score."""
    found: list[tuple[float, int, int, int, str, str]] = []
    for piece in pieces:
        for left, right in ((piece[:cut], piece[cut:]) for cut in range(1, len(piece))):
            if left in vocab and right in vocab:
                number = vocab[piece]
                found.append((-scores[number], number, vocab[left], vocab[right], left, right))
    found.sort(key=lambda merge: merge[:4])
    return [merge[4:] for merge in found]
