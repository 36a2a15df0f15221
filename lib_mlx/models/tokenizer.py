"""The tokenizer of a checkpoint that has a tokenizer.json, without transformers, whose import takes most of a second.

transformers is a library of exceptions: tokenizer classes that ignore parts of the file, repair it, or add to it. So
`read` gives a tokenizer only where everything in the checkpoint is of a kind whose outcome is known, and that outcome
is what the file says; the ids and prompts are then those of transformers (tests/models/test_tokenizer.py). Anything
else is left to transformers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tokenizers import AddedToken, Tokenizer

from lib_mlx.models import template

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_KNOWN = frozenset({
    *_NAMED, "tokenizer_class", "additional_special_tokens", "extra_special_tokens", "added_tokens_decoder",
    "chat_template", "tool_parser_type", "clean_up_tokenization_spaces", "model_max_length", "model_input_names",
    "padding_side", "truncation_side", "add_bos_token", "add_eos_token", "add_prefix_space", "errors", "legacy",
    "backend", "is_local", "local_files_only", "name_or_path", "split_special_tokens", "response_schema",
})  # fmt: skip
"""The keys of tokenizer_config.json that are either read here or change nothing about a chat prompt's tokens."""


@dataclass(frozen=True)
class _Class:
    """A tokenizer class of transformers that builds its pipeline itself: what it builds, and its special tokens."""

    pipeline: Mapping[str, Any]
    defaults: Mapping[str, str] = field(default_factory=dict)


def _qwen(letter: str, symbol: str) -> _Class:
    """Return what Qwen's classes build; they differ in what they take for a letter."""
    words = (
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?{letter}+|\p{{N}}| ?{symbol}+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False}
    return _Class(
        pipeline={
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        },
        defaults=dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>"),
    )


_GENERIC = frozenset({"TokenizersBackend", "PreTrainedTokenizerFast"})
_CLASSES = {
    "Qwen2Tokenizer": _qwen(r"\p{L}", r"[^\s\p{L}\p{N}]"),
    "Qwen3_5Tokenizer": _qwen(r"[\p{L}\p{M}]", r"[^\s\p{L}\p{M}\p{N}]"),
}
# Model types for which transformers disregards the class that the checkpoint names.
_FORCED = {
    "qwen2": "Qwen2Tokenizer",
    "qwen3_5": "Qwen3_5Tokenizer",
    "qwen3_5_moe": "Qwen3_5Tokenizer",
    "qwen3_5_moe_text": "Qwen3_5Tokenizer",
    "qwen4_exp": "Qwen3_5Tokenizer",
    "hyperclovax_vision_v2": "GPT2Tokenizer",
    "siglip2": "Siglip2Tokenizer",
}


class LightTokenizer:
    """What mlx-lm's `TokenizerWrapper` and lib_mlx ask of a tokenizer. Not thread-safe, as transformers' are not."""

    def __init__(
        self, backend: Tokenizer, specials: Mapping[str, str], chat_template: str | dict[str, str] | None
    ) -> None:
        self.backend_tokenizer = backend
        self.chat_template = chat_template
        """A Jinja template, or several by name."""
        self._specials = specials
        self.eos_token_id = backend.token_to_id(specials["eos_token"]) if "eos_token" in specials else None
        self.all_special_ids = [backend.token_to_id(token) for token in specials.values()]

    def get_vocab(self) -> _Vocabulary:
        """Return the ids by token, added tokens included."""
        return _Vocabulary(self.backend_tokenizer)

    def encode(self, text: str, *, add_special_tokens: Literal[False]) -> list[int]:  # noqa: ARG002 - as callers say it
        """Return the ids of `text`, in which special tokens may stand and to which none is added."""
        return list(self.backend_tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens included."""
        return str(self.backend_tokenizer.decode(ids, skip_special_tokens=False))

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tokenize: bool = True,
        return_dict: Literal[False] = False,  # noqa: ARG002
        **variables: Any,
    ) -> str | list[int]:
        """Return the prompt that the chat template makes of a conversation, as text or ids.

        Raises:
            ValueError: there is no template for it, or no message.
            Exception: whatever the template raises.
        """
        if not messages:
            raise ValueError("there is no message")
        text = template.render(self._template(tools is not None), messages, tools, **{**self._specials, **variables})
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def _template(self, with_tools: bool) -> str:
        if isinstance(self.chat_template, str):
            return self.chat_template
        names = ("tool_use", "default") if with_tools else ("default",)
        found = next((text for name in names if (text := (self.chat_template or {}).get(name)) is not None), None)
        if found is None:
            raise ValueError("the checkpoint has no default chat template")
        return found


class _Vocabulary:
    """A vocabulary that is asked for a few tokens: listing all of them takes longer than reading the file."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend

    def __contains__(self, token: str) -> bool:
        return self._backend.token_to_id(token) is not None

    def __getitem__(self, token: str) -> int:
        index = self._backend.token_to_id(token)
        if index is None:
            raise KeyError(token)
        return int(index)


def read_tokenizer(path: Path, model: Mapping[str, Any]) -> tuple[LightTokenizer, dict[str, Any]] | None:
    """Read the tokenizer of the checkpoint at `path`; return it with tokenizer_config.json, None if it needs more.

    Args:
        path: the model directory.
        model: its config.json.

    Raises:
        Exception: a file is damaged.
    """
    if not (path / "tokenizer.json").is_file() or not (path / "tokenizer_config.json").is_file():
        return None
    config: dict[str, Any] = json.loads((path / "tokenizer_config.json").read_bytes())
    known = _KNOWN.issuperset(config) and not config.get("split_special_tokens") and not config.get("add_prefix_space")
    name = _class_name(config, model)
    if not known or name is None or not _is_complete(path, config):
        return None
    backend = Tokenizer.from_file(str(path / "tokenizer.json"))
    own = _CLASSES.get(name)
    specials = _special_tokens(config, own)
    if specials is None or not _is_plain(backend) or (own is not None and not _is_built_by(own, backend)):
        return None
    if not _adds_nothing(backend, config, specials):
        return None
    named = {name: specials[name] for name in _NAMED if name in specials}
    return LightTokenizer(backend, named, _read_template(path, config)), config


def _class_name(config: Mapping[str, Any], model: Mapping[str, Any]) -> str | None:
    """Return the class that transformers would use, if it is one of those known here."""
    kind, named = str(model.get("model_type")), config.get("tokenizer_class")
    if "model_name" in model or not isinstance(named, str):
        return None
    if kind not in _FORCED and named in _GENERIC:
        return named
    name = _FORCED.get(kind, named.removesuffix("Fast"))
    return name if name in _CLASSES and kind.startswith("qwen") else None


def _is_complete(path: Path, config: Mapping[str, Any]) -> bool:
    """Whether no older or other file has a say in it."""
    others = ["tekken.json"]
    if "added_tokens_decoder" not in config:
        others += ["added_tokens.json", "special_tokens_map.json"]
    return not any((path / name).exists() for name in others)


def _special_tokens(config: Mapping[str, Any], own: _Class | None) -> dict[str, str] | None:
    """Return the special tokens by name; None if they are written in a way that is not known."""
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if not isinstance(extra, list):
        return None
    values = {**(own.defaults if own else {}), **{name: config[name] for name in _NAMED if name in config}}
    values |= {f"extra {number}": value for number, value in enumerate(extra)}
    contents: dict[str, str] = {}
    for name, value in values.items():
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            contents[name] = content
        elif value is not None:
            return None
    return contents


def _is_plain(backend: Tokenizer) -> bool:
    """Whether it is byte-pair encoding that always gives the same tokens, and all of them."""
    model = backend.model
    return type(model).__name__ == "BPE" and not model.dropout and backend.padding is backend.truncation is None


def _is_built_by(own: _Class, backend: Tokenizer) -> bool:
    """Whether `own` would build, from the vocabulary and the merges alone, what the file says."""
    model = backend.model
    options = (model.unk_token, model.continuing_subword_prefix, model.end_of_word_suffix)
    if any(options) or model.fuse_unk or model.byte_fallback or model.ignore_merges:
        return False
    size = backend.get_vocab_size(with_added_tokens=False)
    added = sorted(index for index in backend.get_added_tokens_decoder() if index >= size)
    return added == list(range(size, size + len(added))) and all(
        part == _state(getattr(backend, name)) for name, part in own.pipeline.items()
    )


def _state(part: Any) -> Any:
    return None if part is None else json.loads(part.__getstate__())


def _adds_nothing(backend: Tokenizer, config: Mapping[str, Any], specials: Mapping[str, str]) -> bool:
    """Whether tokenizer.json has all the added tokens that tokenizer_config.json speaks of, and as it says."""
    added = backend.get_added_tokens_decoder()
    listed = {int(index): AddedToken(**token) for index, token in (config.get("added_tokens_decoder") or {}).items()}
    special = {token.content for token in added.values() if token.special}
    return special.issuperset(specials.values()) and all(
        repr(added.get(index)) == repr(token) for index, token in listed.items()
    )


def _read_template(path: Path, config: Mapping[str, Any]) -> str | dict[str, str] | None:
    """Return the chat template, or several by name; files go before tokenizer_config.json."""
    files = {file.stem: file for file in (path / "additional_chat_templates").glob("*.jinja")}
    if (path / "chat_template.jinja").is_file():
        files["default"] = path / "chat_template.jinja"
    if files:
        texts = {name: file.read_text(encoding="utf-8") for name, file in files.items()}
        return texts["default"] if list(texts) == ["default"] else texts
    stored: str | list[Mapping[str, str]] | None = config.get("chat_template")
    if stored is None and (path / "chat_template.json").is_file():  # where processors wrote it before
        stored = json.loads((path / "chat_template.json").read_text(encoding="utf-8")).get("chat_template")
    return {entry["name"]: entry["template"] for entry in stored} if isinstance(stored, list) else stored
