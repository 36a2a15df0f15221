"""Answers of a guaranteed form: JSON, regular expressions, grammars, tool calls.

llguidance says at each step which tokens may come next; the rest are masked with plain MLX operations, which run
on any device and differ from row to row of a batch. Compiling happens off the engine thread, masking on it.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lib_mlx.engine.closed_schema import closed
from lib_mlx.errors import UnsupportedFeature

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

    from lib_mlx.engine.output_parser import OutputFormat
    from lib_mlx.generation import Constraint, Tool
    from lib_mlx.models.loader import LoadedTokenizer

_MARKER = re.compile(r"[<\[].+[>\]]", re.DOTALL)
_NO_TEXT = "\ufdd0"  # Unicode assigns it to no character
_KEPT = 64  # compiled grammars per model
# One space after ',' and ':' and no other white space: what models are trained on, and no room to ramble.
_JSON: JsonCompileOptions = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True)
class Gate:
    """When a grammar begins to bind. Each is a token; None: there is no such thing."""

    open_token: int | None = None
    """May come first instead of the constrained text; what follows is free until `close_token`."""
    close_token: int | None = None
    """Ends free text."""
    opened: bool = False
    """The prompt itself opened the free text."""
    call_token: int | None = None
    """Ends free text too, and begins the constrained: a model may call a tool without closing its reasoning."""
    trigger: int | None = None
    """All is free but what begins with this token, each time it comes."""


@dataclass(frozen=True)
class Grammar:
    """A compiled grammar and when it binds; shared by requests, each of which gets a matcher of its own."""

    matcher: LLMatcher
    gate: Gate
    end_tokens: tuple[int, ...]
    """Forbidden while reasoning goes before the text that is held to the grammar: it would never come."""


class GrammarCompiler:
    """Compiles for one model. Any thread; the vocabulary's trie (a second and more) is built at the first use."""

    def __init__(self, tokenizer: LoadedTokenizer, output_format: OutputFormat, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._format = output_format
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._trie: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()  # least recently used first

    def constraint(self, constraint: Constraint, gate: Gate) -> Grammar:
        """Compile the form of an answer.

        Raises:
            UnsupportedFeature: the schema or grammar uses something llguidance cannot guarantee; it is named.
        """
        from llguidance import LLMatcher

        if constraint.kind == "lark":
            text = LLMatcher.grammar_from_lark(str(constraint.value))
        elif constraint.kind == "regex":
            text = LLMatcher.grammar_from_regex(str(constraint.value))
        else:
            text = LLMatcher.grammar_from_json_schema(json.dumps(_json_form(constraint)), _JSON)
        return self._grammar(text, constraint.param, gate)

    def calls_or_constraint(
        self, tools: Sequence[Tool], constraint: Constraint, *, parallel: bool, gate: Gate
    ) -> Grammar:
        """Compile what is either calls of `tools` in the model's own syntax or an answer of a form.

        Raises:
            UnsupportedFeature: as `constraint` and `tool_calls` do, or the form is not one of JSON.
        """
        from llguidance import LLMatcher

        self.constraint(constraint, gate)  # so that what is wrong with it is told of it alone
        start = self._call_start()
        if start is None or constraint.kind not in {"json_schema", "json_object"}:
            raise UnsupportedFeature(
                "This form of the answer and tools cannot be promised together by this model.",
                hint="Ask for one of them.",
                param=constraint.param,
            )
        rules = [
            f"start: {_calls(parallel=parallel)} | form",
            f"form: %json {json.dumps({**_json_form(constraint), 'x-guidance': _JSON})}",
            *self._call_rules(start, tools),
        ]
        text = LLMatcher.grammar_from_lark("\n".join(rules))
        return self._grammar(text, constraint.param, replace(gate, call_token=start))

    def tool_calls(self, tools: Sequence[Tool], *, parallel: bool, forced: bool, gate: Gate) -> Grammar:
        """Compile the calls of `tools` in the model's own syntax.

        They bind from the first token on if `forced`, else each time the model begins a call. Arguments of a tool
        that is not strict are held to its schema where that is possible, else to being an object.

        Raises:
            UnsupportedFeature: the model's syntax is not known, or a strict tool's schema cannot be guaranteed.
        """
        from llguidance import LLMatcher

        start = self._call_start()
        if start is None:
            raise UnsupportedFeature(
                "Tool calls of this model cannot be enforced.",
                hint="Use tool_choice 'auto' and tools without 'strict'.",
                param="tool_choice" if forced else "tools",
            )
        rules = [f"start: {_calls(parallel=parallel and forced)}", *self._call_rules(start, tools)]
        text = LLMatcher.grammar_from_lark("\n".join(rules))
        return self._grammar(text, "tools", replace(gate, call_token=start) if forced else Gate(trigger=start))

    def _call_rules(self, start: int, tools: Sequence[Tool]) -> list[str]:
        """Return the rules of `call`, one of `tools`."""
        schemas = [self._arguments_schema(tool, f"tools.{index}") for index, tool in enumerate(tools)]
        return [
            self._call_rule(start),
            f"body: {' | '.join(f'c{number}' for number in range(len(tools)))}",
            *(_body_rule(number, tool, schemas[number]) for number, tool in enumerate(tools)),
        ]

    def _grammar(self, text: str, param: str, gate: Gate) -> Grammar:
        return Grammar(self._compile(text, param), gate, tuple(sorted(self._tokenizer.wrapper.eos_token_ids)))

    def _arguments_schema(self, tool: Tool, param: str) -> dict[str, Any]:
        from llguidance import LLMatcher

        schema = closed({"type": "object", **tool.parameters})
        try:
            self._compile(LLMatcher.grammar_from_json_schema(json.dumps(schema), _JSON), param)
        except UnsupportedFeature:
            if tool.strict:
                raise
            return {"type": "object"}
        return schema

    def _call_start(self) -> int | None:
        """Return the token that calls begin with, if they are `{"name": …, "arguments": …}` between markers.

        That is how Hermes and Qwen write them; None: how this model does is not known here.
        """
        parse = self._format.parse_tool_call
        known = getattr(parse, "__module__", "").endswith(".json_tools")
        return self._token(self._format.tool_start) if known else None

    def _call_rule(self, start: int) -> str:
        end = self._token(self._format.tool_end)
        closing = f"<[{end}]>" if end is not None else json.dumps(self._format.tool_end)
        return f'call: <[{start}]> "\\n" body "\\n" {closing} "\\n"?'

    def _token(self, marker: str | None) -> int | None:
        """Return the one token that `marker` is, None if it is several."""
        if not marker:
            return None
        index = self._tokenizer.wrapper.backend_tokenizer.token_to_id(marker)
        return None if index is None else int(index)

    def _compile(self, grammar: str, param: str) -> LLMatcher:
        from llguidance import LLMatcher

        with self._lock:
            if (known := self._compiled.get(grammar)) is not None:
                self._compiled.move_to_end(grammar)
                return known
        trie = self._get_trie()
        wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar, trie)
        if wrong:
            raise UnsupportedFeature(
                f"{param!r} cannot be guaranteed: {messages[0].strip()}.",
                hint="Remove what is named, or check its syntax.",
                param=param,
            )
        matcher = LLMatcher(trie, grammar)
        with self._lock:
            self._compiled[grammar] = matcher
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        return matcher

    def _get_trie(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        with self._lock:
            if self._trie is None:
                wrapper = self._tokenizer.wrapper
                with self._tokenizer.lock:
                    backend = copy(wrapper.backend_tokenizer)
                backend.no_padding()
                backend.no_truncation()
                eos = sorted(wrapper.eos_token_ids)
                self._trie = LLTokenizer(_without_markers(backend.to_str()), n_vocab=self._vocab_size, eos_token=eos)
            return self._trie


def _calls(*, parallel: bool) -> str:
    return "call+" if parallel else "call"


def _json_form(constraint: Constraint) -> dict[str, Any]:
    """Return the schema of a JSON form."""
    form: dict[str, Any] = constraint.value if constraint.kind == "json_schema" else {"type": "object"}
    return closed(form)


def _without_markers(tokenizer: str) -> str:
    """Return a tokenizer's JSON in which no text is a control token or a marker.

    Where a grammar leaves one text only, llguidance tokenises it, and would find `<think>` in the string of a schema to
    be the token that begins reasoning, which it then refuses.
    """
    value = json.loads(tokenizer)
    vocabulary = value["model"].get("vocab") or {}
    for token in value.get("added_tokens") or ():
        content = token["content"]
        if not token.get("special") and not _MARKER.fullmatch(content):
            continue
        token.update(content=_NO_TEXT + content, special=True)
        if isinstance(vocabulary, dict) and content in vocabulary:  # it has its id from there
            vocabulary[_NO_TEXT + content] = vocabulary.pop(content)
        elif isinstance(vocabulary, list) and token["id"] < len(vocabulary) and vocabulary[token["id"]][0] == content:
            vocabulary[token["id"]][0] = _NO_TEXT + content
    return json.dumps(value, ensure_ascii=False)


def _body_rule(number: int, tool: Tool, schema: dict[str, Any]) -> str:
    head = json.dumps(f'{{"name": {json.dumps(tool.name)}, "arguments": ')
    arguments = json.dumps({**schema, "x-guidance": _JSON})
    return f'c{number}: {head} a{number} "}}"\na{number}: %json {arguments}'


class GrammarProcessor:
    """The logits processor of one request: masks what its grammar forbids. Engine thread only."""

    def __init__(self, grammar: Grammar, prompt_length: int) -> None:
        self._fresh = grammar.matcher
        self._prompt_length = self._read = prompt_length
        self._gate = grammar.gate
        self._end_tokens = grammar.end_tokens
        self._matcher = grammar.matcher.deep_copy()
        self._free = grammar.gate.opened or grammar.gate.trigger is not None

    def __call__(self, tokens: Any, logits: Any) -> Any:
        """Take in the tokens made since the last call and mask the logits of the next one.

        `tokens` are the prompt's and the answer's so far. Asking twice about the same token changes nothing.
        """
        import mlx.core as mx
        import numpy as np

        for token in tokens[self._read :].tolist():
            self._consume(token)
        self._read = tokens.shape[0]
        if self._free:
            if self._gate.trigger is None:
                logits[:, list(self._end_tokens)] = -mx.inf
            return logits
        allowed = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8) > 0
        if self._matcher.is_error():
            raise RuntimeError(f"the grammar failed: {self._matcher.get_error()}")
        if self._read == self._prompt_length and self._gate.open_token is not None:
            allowed = allowed.copy()
            allowed[self._gate.open_token] = True
        width = logits.shape[-1]
        mask = mx.array(allowed[:width])
        if mask.size < width:
            mask = mx.pad(mask, (0, width - mask.size))
        return mx.where(mask, logits, -mx.inf)

    def _consume(self, token: int) -> None:
        gate = self._gate
        if gate.trigger is not None and self._free:
            if token != gate.trigger:
                return
            self._matcher, self._free = self._fresh.deep_copy(), False
        elif self._free:
            self._free = token not in (gate.close_token, gate.call_token)
            if token != gate.call_token:
                return
        elif token == gate.open_token and not self._matcher.validate_tokens([token]):
            self._free = True
            return
        if not self._matcher.consume_token(token):
            raise RuntimeError(f"the grammar refused a token: {self._matcher.get_error()}")
        if gate.trigger is not None and self._matcher.is_accepting():
            self._free = True
