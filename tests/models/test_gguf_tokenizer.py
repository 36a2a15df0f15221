from __future__ import annotations

import io
import itertools
import json
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import regex  # type: ignore[import-untyped]
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from lib_mlx.errors import CorruptModel
from lib_mlx.models.gguf.file import GgufFile
from lib_mlx.models.gguf.tokenizer import TokenizerFiles
from tests.models.gguf_files import byte_alphabet

if TYPE_CHECKING:
    from collections.abc import Callable

TEXTS = [
    "Hello, world!",
    "  two  spaces and\ttabs\t\t",
    "\n\n\n    indented\n",
    "\r\nwindows\r\n",
    "1234567890 and 3.14159",
    "don't WE'LL they've",
    "naïve café déjà-vu",
    "日本語のテキスト 你好 안녕하세요",
    "👩‍💻 emoji 🏳️‍🌈",
    "combining e\u0301 and \u200b zero width",
    "x = {'a': [1, 2], \"b\": None}  # code",
    "trailing space ",
    "",
]


def tokenizer_of(metadata: dict[str, Any]) -> Tokenizer:
    keys = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    return Tokenizer.from_str(json.dumps(TokenizerFiles(Path("m.gguf"), keys).tokenizer))


def reference_bpe(metadata: dict[str, Any], patterns: list[str]) -> Callable[[str], list[int]]:
    """A plain reading of llama.cpp's byte-level BPE: split by each pattern in turn, then merge by rank."""
    alphabet = byte_alphabet()
    vocab = {token: number for number, token in enumerate(metadata["tokens"])}
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(metadata["merges"])}

    def split(text: str, pattern: str) -> list[str]:
        parts, at = [], 0
        for match in regex.finditer(pattern, text):
            parts += [text[at : match.start()], match.group()]
            at = match.end()
        return [part for part in [*parts, text[at:]] if part]

    def merge(word: list[str]) -> list[str]:
        if metadata.get("pre") == "llama-bpe" and "".join(word) in vocab:
            return ["".join(word)]
        while len(word) > 1:
            rank, at = min((ranks.get(pair, 1 << 30), at) for at, pair in enumerate(itertools.pairwise(word)))
            if rank == 1 << 30:
                break
            word[at : at + 2] = [word[at] + word[at + 1]]
        return word

    def encode(text: str) -> list[int]:
        parts = [unicodedata.normalize("NFC", text)] if metadata.get("pre") == "qwen2" else [text]
        for pattern in patterns:
            parts = [piece for part in parts for piece in split(part, pattern)]
        return [vocab[token] for part in parts for token in merge([alphabet[byte] for byte in part.encode()])]

    return encode


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_ENDS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDS}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDS}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def bpe_metadata(pre: str, **more: Any) -> dict[str, Any]:
    merges = [
        "h e",
        "l l",
        "he ll",
        "hell o",
        "Ġ w",
        "o r",
        "Ġw or",
        "1 2",
        "Ġ Ġ",
        "Ġ Ċ",
        "Ċ Ċ",
        "Ċ ĊĊ",
        "' t",
        "a b",
        "ab c",
    ]
    words = [merge.replace(" ", "") for merge in merges]
    tokens = [*byte_alphabet(), *words, "<|bos|>", "<|eos|>", "<tool>"]
    types = [1] * (len(tokens) - 3) + [3, 3, 4]
    ids = {"bos_token_id": len(tokens) - 3, "eos_token_id": len(tokens) - 2}
    return {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": types, "merges": merges} | ids | more


SPLITS = [
    ("gpt-2", [GPT2]),
    ("smollm", [r"\p{N}", GPT2]),
    ("llama-bpe", [LLAMA3]),
    ("qwen2", [LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")]),
    ("dbrx", [LLAMA3]),
    ("gpt-4o", [GPT4O]),
    ("deepseek-coder", [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"]),
]


@pytest.mark.parametrize(("pre", "patterns"), SPLITS)
@settings(max_examples=60, deadline=None)
@given(text=st.one_of(st.sampled_from(TEXTS), st.text(alphabet="hello w12 \n'tabcé.日👩\u200d!\r\t", max_size=40)))
def test_byte_level_tokens_are_those_of_llama_cpp(pre: str, patterns: list[str], text: str) -> None:
    """Each splitting rule gives the tokens of a plain reading of llama.cpp's, and decodes to the text."""
    metadata = bpe_metadata(pre)
    tokenizer = tokenizer_of(metadata)
    encoded = tokenizer.encode(text, add_special_tokens=False).ids
    assert encoded == reference_bpe(metadata, patterns)(text)
    assert tokenizer.decode(encoded) == (unicodedata.normalize("NFC", text) if pre == "qwen2" else text)


def test_control_and_user_tokens_are_found_in_text() -> None:
    """Added tokens are one token each; only control tokens are special."""
    tokenizer = tokenizer_of(bpe_metadata("gpt-2"))
    ids = tokenizer.encode("<|bos|>hello<tool>", add_special_tokens=False).ids
    assert [tokenizer.id_to_token(token) for token in ids] == ["<|bos|>", "hello", "<tool>"]
    assert tokenizer.decode(ids) == "hello<tool>"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, ["hello"]),
        ({"add_bos_token": True}, ["<|bos|>", "hello"]),
        ({"add_bos_token": True, "add_eos_token": True}, ["<|bos|>", "hello", "<|eos|>"]),
        ({"pre": "llama-bpe"}, ["<|bos|>", "hello"]),
        ({"pre": "llama-bpe", "add_bos_token": False}, ["hello"]),
    ],
)
def test_bos_and_eos_are_added_as_the_file_says(more: dict[str, Any], expected: list[str]) -> None:
    """Plain text gets bos and eos where the metadata, or llama.cpp's default for the rule, asks for them."""
    assert tokenizer_of(bpe_metadata("gpt-2") | more).encode("hello").tokens == expected


def test_whole_words_come_before_merges_for_llama3() -> None:
    """A word of the vocabulary that no merge leads to is still one token."""
    metadata = bpe_metadata("llama-bpe", add_bos_token=False)
    metadata["tokens"][-1] = "zebra"
    metadata["token_type"][-1] = 1
    assert tokenizer_of(metadata).encode("zebra").tokens == ["zebra"]


@pytest.fixture(scope="module")
def sentencepiece_model() -> sentencepiece.SentencePieceProcessor:
    corpus = [*TEXTS[4:7], "the quick brown fox jumps over the lazy dog and the other dogs", "hello hello world"] * 4
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=model,
        model_type="bpe",
        vocab_size=340,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def spm_metadata(model: sentencepiece.SentencePieceProcessor, **more: Any) -> dict[str, Any]:
    def kind(piece: int) -> int:
        return 2 if model.is_unknown(piece) else 3 if model.is_control(piece) else 6 if model.is_byte(piece) else 1

    ids = range(model.vocab_size())
    return {
        "model": "llama",
        "tokens": [model.id_to_piece(piece) for piece in ids],
        "scores": [model.get_score(piece) for piece in ids],
        "token_type": [kind(piece) for piece in ids],
        "bos_token_id": model.bos_id(),
        "eos_token_id": model.eos_id(),
        "unknown_token_id": model.unk_id(),
    } | more


@pytest.mark.parametrize("text", [text for text in TEXTS if text])
def test_sentencepiece_tokens_are_those_of_sentencepiece(
    text: str, sentencepiece_model: sentencepiece.SentencePieceProcessor
) -> None:
    """A `llama` tokenizer gives SentencePiece's own tokens, bytes for unknown characters included."""
    tokenizer = tokenizer_of(spm_metadata(sentencepiece_model))
    expected = sentencepiece_model.encode(text)
    assert tokenizer.encode(text, add_special_tokens=False).ids == expected
    assert tokenizer.encode(text).ids == [sentencepiece_model.bos_id(), *expected]
    assert tokenizer.decode(expected) == text


def test_no_space_is_put_first_where_the_file_says_so(
    sentencepiece_model: sentencepiece.SentencePieceProcessor,
) -> None:
    """`add_space_prefix` false, as in gemma, keeps the text as it is in both directions."""
    tokenizer = tokenizer_of(spm_metadata(sentencepiece_model, add_space_prefix=False))
    ids = tokenizer.encode("hello world", add_special_tokens=False)
    assert not ids.tokens[0].startswith("▁")
    assert tokenizer.decode(ids.ids) == "hello world"


@pytest.mark.parametrize(
    "damage",
    [
        {"tokens": []},
        {"tokens": None},
        {"token_type": [1, 1]},
        {"merges": ["no such"]},
        {"merges": ["h"]},
        {"merges": ["hel lo"]},
        {"merges": None},
        {"bos_token_id": -1},
        {"eos_token_id": "x"},
    ],
)
def test_lists_that_do_not_fit_are_refused(damage: dict[str, Any]) -> None:
    """A vocabulary that contradicts itself is `corrupt_model`."""
    with pytest.raises(CorruptModel):
        tokenizer_of(bpe_metadata("gpt-2") | damage)


@pytest.mark.model
def test_smollm2_tokenizes_as_llama_cpp_reads_it(smollm2: Path) -> None:
    """SmolLM2's tokens for whitespace, digits, newlines and other scripts are right, and so is its chat."""
    from mlx_lm.tokenizer_utils import load

    tokenizer = load(smollm2)
    fast = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    vocab = fast.get_vocab()
    tokens = sorted(vocab, key=lambda token: vocab[token])
    merges = [" ".join(merge) for merge in json.loads((smollm2 / "tokenizer.json").read_text())["model"]["merges"]]
    reference = reference_bpe({"tokens": tokens, "merges": merges}, [r"\p{N}", GPT2])
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == reference(text)
        assert tokenizer.decode(ids) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    text = tokenizer.decode(chat)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert chat.count(vocab["<|im_start|>"]) == 3
    assert tokenizer.eos_token_ids == {vocab["<|im_end|>"]}


def test_the_reader_and_the_tokenizer_agree(tmp_path: Path) -> None:
    """Metadata written by llama.cpp's package and read back give the same tokenizer."""
    from tests.models.gguf_files import write_gguf

    with GgufFile(write_gguf(tmp_path / "m.gguf").path) as file:
        files = TokenizerFiles(file.path, file.metadata)
    assert files.ends == [264]
    assert files.config["eos_token"] == "<|im_end|>"
    assert "im_start" in files.config["chat_template"]
