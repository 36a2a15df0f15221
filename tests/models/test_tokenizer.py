"""Our tokenizer against transformers': the same ids and prompts, or none of ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx_lm.models
import pytest
from jinja2.exceptions import SecurityError, UndefinedError
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordPiece
from transformers import AutoTokenizer
from transformers.models.auto.tokenization_auto import MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS

from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.loader import load_tokenizer
from lib_mlx.models.tokenizer import LightTokenizer, read_tokenizer
from tests.checkpoints import FAMILIES, build

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TOOL = {"type": "function", "function": {"name": "f", "description": "<b>é</b>", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"city": "Zürich", "n": [1, None]}}}
TEXTS = (
    "", " ", "\n\n  x\t", "Hello, world! 12345 it's WE'LL", "naïve Zürich — 東京 🇨🇭👩‍👩‍👧 e\u0301 \u202e",
    "a<|im_end|>b<s>[INST]<turn|>",
    "<think>x</think><tool_call>", "if x:\n\treturn  y  # \r\n\r\n", "\x00\x7f\ufeff", "9" * 50, "क्षि ก็ لا",
)  # fmt: skip
CHATS: tuple[list[dict[str, Any]], ...] = (
    *([{"role": "user", "content": text}] for text in TEXTS),
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "tool"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"},
        {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
    ],
)


def theirs(path: Path) -> Any:
    """Load with transformers."""
    return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)


def ours(path: Path) -> LightTokenizer | None:
    """Load without."""
    found = read_tokenizer(path, json.loads((path / "config.json").read_text()))
    return found and found[0]


def outcome(render: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Return what a template gives, or the text of its complaint."""
    try:
        return render(*arguments, **options)
    except Exception as error:  # noqa: BLE001 - whatever a template raises
        return str(error)


def assert_equal(path: Path) -> None:
    """Ids, prompts as text and as ids, and special tokens are the same."""
    light, full = ours(path), theirs(path)
    assert light is not None
    for text in TEXTS:
        ids = light.encode(text, add_special_tokens=False)
        assert ids == full.encode(text, add_special_tokens=False), text
        assert light.decode(ids) == full.decode(ids)
    assert light.chat_template == full.chat_template
    assert light.eos_token_id == full.eos_token_id
    assert set(light.all_special_ids) <= set(full.all_special_ids)
    for chat in CHATS:
        for tools in (None, [TOOL]):
            for variables in ({}, {"enable_thinking": False, "add_generation_prompt": True, "custom": {"a": (1, "x")}}):
                options: dict[str, Any] = {"tools": tools, "return_dict": False, **variables}
                for tokenize in (True, False):
                    found = outcome(light.apply_chat_template, chat, tokenize=tokenize, **options)
                    assert found == outcome(full.apply_chat_template, chat, tokenize=tokenize, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_crafted_checkpoints(family: str, tmp_path: Path) -> None:
    """Each crafted family is read without transformers, with the same outcome."""
    assert_equal(build(tmp_path / family, family))


@pytest.mark.model
def test_smollm2(smollm2: Path) -> None:
    """So is a real checkpoint."""
    assert_equal(smollm2)


def test_the_markers_are_those_that_mlx_lm_infers(crafted: Path, tmp_path: Path) -> None:
    """A checkpoint read without transformers has the same reasoning and tool markers as one read with it."""
    copy = shutil.copytree(crafted, tmp_path / "copy")
    edit(copy, from_slow=False)  # a key that is not known here
    light, full = (load_tokenizer(inspect(path)).wrapper for path in (crafted, copy))
    assert isinstance(light._tokenizer, LightTokenizer)
    assert not isinstance(full._tokenizer, LightTokenizer)
    names = (
        "has_chat_template has_thinking think_start think_end think_start_tokens think_end_tokens has_tool_calling "
        "tool_call_start tool_call_end tool_parser response_transitions structural_markers eos_token_ids"
    )
    for name in names.split():
        assert getattr(light, name) == getattr(full, name), name


TEMPLATES = {
    "tojson": "{{ tools | tojson(indent=1) }}{{ '<é>' | tojson }}{{ {'b': 1, 'a': 2} | tojson(sort_keys=True) }}",
    "loop controls": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "generation": "{% set n = 1 %}{% generation %}{% set n = 2 %}x{{ n }}{% endgeneration %}{{ n }}",
    "blocks trimmed": "a\n  {% if true %}\n  b\n  {% endif %}\nc{{ bos_token }}{{ eos_token }}{{ pad_token }}",
    "namespace": "{% set ns = namespace(self=1, a=2) %}{% set ns.a = 3 %}{{ ns.a }}{{ dict(a=1) }}",
    "complaint": "{{ raise_exception('no') }}",
    "sandbox": "{{ messages.append(1) }}",
    "undefined": "{{ documents is none }}{{ custom is defined }}{{ nothing.x }}",
    "reasoning": "{% for m in messages %}{{ m.thinking }}{{ m.reasoning_content }}{% endfor %}",
    "nothing": "{% for m in messages %}{{ m.content is defined }}{% endfor %}",
    "date": "{{ strftime_now('%Y-%m-%d') }}",
    "syntax": "{% if %}",
    "internals": "{{ ''.__class__ }}",
}


@pytest.mark.parametrize("text", TEMPLATES.values(), ids=TEMPLATES)
def test_the_language_of_templates(text: str, crafted: Path, tmp_path: Path) -> None:
    """What a template can say, and what it is refused, is the same."""
    copy = shutil.copytree(crafted, tmp_path / "copy")
    edit(copy, chat_template=text)
    light, full = ours(copy), theirs(copy)
    assert light is not None
    for chat in CHATS[-2:]:
        options: dict[str, Any] = {"tools": [TOOL], "tokenize": False}
        found, expected = (outcome(one.apply_chat_template, chat, **options) for one in (light, full))
        assert found == expected


@pytest.mark.parametrize("text", ["{% set ns = namespace(_a=1) %}", "{{ dict.__class__.__mro__ }}{{ dict.mro() }}"])
def test_a_template_does_not_reach_the_interpreter(text: str, crafted: Path) -> None:
    """What leads out of the sandbox is refused."""
    light = ours(crafted)
    assert light is not None
    light.chat_template = text
    with pytest.raises((SecurityError, UndefinedError)):
        light.apply_chat_template(CHATS[0])


def test_where_templates_stand(crafted: Path, tmp_path: Path) -> None:
    """A file goes before the configuration, and there may be several, one of them for tools."""
    copy = shutil.copytree(crafted, tmp_path / "copy")
    several = [{"name": name, "template": f"{name}!"} for name in ("default", "tool_use")]
    edit(copy, chat_template=several)
    assert_equal(copy)
    (copy / "chat_template.jinja").write_text("file é")
    assert_equal(copy)
    (copy / "additional_chat_templates").mkdir()
    (copy / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    assert_equal(copy)
    (copy / "chat_template.jinja").unlink()
    light = ours(copy)
    assert light is not None
    with pytest.raises(ValueError, match="default"):
        light.apply_chat_template(CHATS[0])


def edit(path: Path, file: str = "tokenizer_config.json", **changes: Any) -> None:
    """Change keys of a checkpoint's JSON file."""
    changed = json.loads((path / file).read_text()) | changes
    (path / file).write_text(json.dumps(changed))


QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN_3_5 = QWEN.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")


def qwen(path: Path, words: str = QWEN, name: str = "Qwen2Tokenizer", kind: str = "qwen3") -> Path:
    """Write a tokenizer as Qwen's checkpoints have them."""
    path.mkdir(exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "w"), ("9", "9"), ("Ã", "¼")]
    vocab = {token: number for number, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(words), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    tokenizer.save(str(path / "tokenizer.json"))
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{{ unk_token }}"
    config = {"tokenizer_class": name, "eos_token": "<|im_end|>", "bos_token": None, "chat_template": template}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "config.json").write_text(json.dumps({"model_type": kind}))
    return path


@pytest.mark.parametrize(
    ("words", "name", "kind"),
    [
        (QWEN, "Qwen2Tokenizer", "qwen3"),
        (QWEN, "Qwen2TokenizerFast", "qwen2"),
        (QWEN_3_5, "Qwen2Tokenizer", "qwen3_5"),
        (QWEN_3_5, "Qwen3_5Tokenizer", "qwen3_5_text"),
        (r"\s+|\S+", "PreTrainedTokenizerFast", "qwen3"),
    ],
)
def test_qwen(words: str, name: str, kind: str, tmp_path: Path) -> None:
    """A class that builds its own pipeline is known if the file says what it would build."""
    assert_equal(qwen(tmp_path, words, name, kind))


def mlx_lm_types() -> list[str]:
    """Return the model types that mlx-lm knows."""
    return sorted(file.stem for file in Path(str(mlx_lm.models.__file__)).parent.glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "TokenizersBackend", "Qwen2Tokenizer", "Qwen3_5Tokenizer"])
def test_every_model_type(name: str, tmp_path: Path) -> None:
    """For no model type does transformers take another class, or other tokens, than is assumed here."""
    paths = [qwen(tmp_path / str(number), words) for number, words in enumerate((QWEN, QWEN_3_5, r"\p{N}|\s+|\w+"))]
    known = 0
    for kind in sorted({*mlx_lm_types(), *MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS}):
        for path in paths:
            edit(path, tokenizer_class=name)
            (path / "config.json").write_text(json.dumps({"model_type": kind}))
            light = ours(path)
            if light is not None:
                known += 1
                full = theirs(path)
                for text in TEXTS[:5]:
                    assert light.encode(text, add_special_tokens=False) == full.encode(text, add_special_tokens=False)
                assert light._specials == full.special_tokens_map, (kind, name)
    assert known


def changed(**keys: Any) -> Callable[[Path], None]:
    """Return an edit of tokenizer_config.json."""
    return lambda path: edit(path, **keys)


def wordpiece(path: Path) -> None:
    """Replace the tokenizer by one that is not byte-pair encoding."""
    tokenizer = Tokenizer(WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(["<|im_end|>"])
    tokenizer.save(str(path / "tokenizer.json"))


def truncating(path: Path) -> None:
    """Have the file itself cut prompts."""
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.save(str(path / "tokenizer.json"))


UNKNOWN: Mapping[str, Callable[[Path], object]] = {
    "no file": lambda path: (path / "tokenizer.json").unlink(),
    "no configuration": lambda path: (path / "tokenizer_config.json").unlink(),
    "another class": changed(tokenizer_class="LlamaTokenizer"),
    "no class": changed(tokenizer_class=None),
    "code": changed(auto_map={"AutoTokenizer": ["x.X", None]}),
    "a template in code": changed(chat_template_type="deepseek_v32"),
    "a prefix space": changed(add_prefix_space=True),
    "special tokens as text": changed(split_special_tokens=True),
    "a special token that is not in the file": changed(pad_token="<pad>"),
    "an ordinary token as a special one": changed(pad_token="<think>"),
    "special tokens by name": changed(extra_special_tokens={"image_token": "<think>"}),
    "an added token of other kind": changed(added_tokens_decoder={"0": {"content": "!", "special": True}}),
    "Mistral's own file": lambda path: (path / "tekken.json").write_text("{}"),
    "an older file": lambda path: (path / "special_tokens_map.json").write_text("{}"),
    "no byte pairs": wordpiece,
    "truncation": truncating,
    "Qwen with other words": changed(tokenizer_class="Qwen2Tokenizer"),
    "a model with a class of its own": lambda path: edit(path, "config.json", model_type="qwen2"),
}


@pytest.mark.parametrize("change", UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_not_known_is_left_to_transformers(
    change: Callable[[Path], object], crafted: Path, tmp_path: Path
) -> None:
    """Whatever might change the tokens in a way that is not known here is no tokenizer of ours."""
    copy = shutil.copytree(crafted, tmp_path / "copy")
    assert ours(copy) is not None
    change(copy)
    assert ours(copy) is None


def test_only_plain_data_reaches_a_template(crafted: Path) -> None:
    """Objects with methods are refused: a sandbox cannot know what they do."""
    light = ours(crafted)
    assert light is not None
    with pytest.raises(TypeError, match="plain data"):
        light.apply_chat_template(CHATS[0], path=Path())
