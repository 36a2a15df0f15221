"""The families' markers, chat templates and ways of writing tool calls."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Call:
    """A tool call; each family writes it in its own syntax."""

    name: str
    arguments: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Family:
    """One family's markers, turn syntax and way of writing calls."""

    name: str
    eos: str
    bos: str | None
    think: tuple[str, str]
    tool: tuple[str, str]
    call_body: Literal["hermes", "gemma4", "mistral"]
    template: str
    added: tuple[str, ...]
    """Control tokens besides markers and eos."""
    opens_think: bool = False
    """The prompt itself ends with the reasoning marker."""


PRELUDE = """\
{%- macro text_of(content) -%}
{%- if content is string -%}{{ content }}
{%- elif content is iterable -%}{%- for part in content -%}{{ part.text or '' }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(go='@DEFAULT@') -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{%- set words = text_of(message.content).split() -%}
{%- set ns.go = words[0] if words and words[0] in @NAMES@ else '@DEFAULT@' -%}
{%- elif message.role == 'tool' -%}{%- set ns.go = 'after' -%}
{%- endif -%}
{%- endfor -%}
{%- set thinking = enable_thinking is not defined or enable_thinking -%}
"""

_CHATML = """\
{%- if tools -%}
{{ '<|im_start|>system\\n# Tools\\n<tools>' }}
{%- for tool in tools -%}{{ '\\n' }}{{ tool | tojson }}{%- endfor -%}
{{ '\\n</tools>\\nAnswer calls as <tool_call>JSON</tool_call>.<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{{ '<|im_start|>user\\n<tool_response>\\n' + text_of(message.content) + '\\n</tool_response>' }}
{%- else -%}
{{ '<|im_start|>' + message.role + '\\n' + text_of(message.content) }}
{%- for tool_call in message.tool_calls or [] -%}
{%- if tool_call.function -%}{%- set tool_call = tool_call.function -%}{%- endif -%}
{{ '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
{{- tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}@GO@{%- endif -%}"""

_GEMMA4 = """\
{%- if tools -%}
{{ '<|turn>system\\n' }}
{%- for tool in tools -%}{{ '<|tool>' }}{{ tool | tojson }}{{ '<tool|>' }}{%- endfor -%}
{{ '<turn|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
{{- text_of(message.content) }}
{%- for tool_call in message.tool_calls or [] -%}
{%- if tool_call.function -%}{%- set tool_call = tool_call.function -%}{%- endif -%}
{{ '<|tool_call>call:' + tool_call.name + '{' }}
{%- if tool_call.arguments is string -%}{{ tool_call.arguments }}
{%- else -%}
{%- for key, value in tool_call.arguments | items -%}
{{ key }}{{ ':<|"|>' }}{{ value }}{{ '<|"|>' }}{{ '' if loop.last else ',' }}
{%- endfor -%}
{%- endif -%}
{{ '}<tool_call|>' }}
{%- endfor -%}
{{ '<turn|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|turn>model\\n' }}@GO@{%- endif -%}"""

_MISTRAL = """\
{{ '<s>' }}
{%- if tools -%}{{ '[AVAILABLE_TOOLS]' }}{{ tools | tojson }}{{ '[/AVAILABLE_TOOLS]' }}{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{{ '[INST]' + text_of(message.content) + '[/INST]' }}
{%- elif message.role == 'system' -%}{{ '[SYSTEM_PROMPT]' + text_of(message.content) + '[/SYSTEM_PROMPT]' }}
{%- elif message.role == 'tool' -%}{{ '[TOOL_RESULTS]' + text_of(message.content) + '[/TOOL_RESULTS]' }}
{%- else -%}
{{ text_of(message.content) }}
{%- for tool_call in message.tool_calls or [] -%}
{%- if tool_call.function -%}{%- set tool_call = tool_call.function -%}{%- endif -%}
{{ '[TOOL_CALLS]' + tool_call.name + '[ARGS]' }}
{{- tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson }}
{%- endfor -%}
{{ '</s>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}@GO@{%- endif -%}"""

HERMES_TOOL = ("<tool_call>", "</tool_call>")
THINK = ("<think>", "</think>")
_QWEN = Family("qwen", "<|im_end|>", None, THINK, HERMES_TOOL, "hermes", _CHATML, ("<|endoftext|>", "<|im_start|>"))
FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        _QWEN,
        dataclasses.replace(_QWEN, name="qwen_open_think", opens_think=True),
        Family(
            name="gemma4",
            eos="<turn|>",
            bos=None,
            think=("<|channel>thought", "<channel|>"),
            tool=("<|tool_call>", "<tool_call|>"),
            call_body="gemma4",
            template=_GEMMA4,
            added=("<|turn>", "<|tool>", "<tool|>", "<|channel>"),
        ),
        Family(
            name="mistral",
            eos="</s>",
            bos="<s>",
            think=THINK,
            tool=("[TOOL_CALLS]", ""),
            call_body="mistral",
            template=_MISTRAL,
            added=("<s>", "[INST]", "[/INST]", "[ARGS]"),
        ),
    )
}


def call_body(call: Call, family: Family) -> str:
    if family.call_body == "hermes":
        return "\n" + json.dumps({"name": call.name, "arguments": dict(call.arguments)}) + "\n"
    if family.call_body == "mistral":
        return f"{call.name}[ARGS]{json.dumps(dict(call.arguments))}"
    arguments = ",".join(f'{key}:<|"|>{value}<|"|>' for key, value in call.arguments.items())
    return f"call:{call.name}{{{arguments}}}"


def marks_of(family: Family) -> tuple[str, ...]:
    """The added tokens a script may contain."""
    if family.call_body == "gemma4":
        return (*family.tool, "<|channel>", "<channel|>")
    inner = ("[ARGS]",) if family.call_body == "mistral" else ()
    return (*family.think, *filter(None, family.tool), *inner)


def split_marks(text: str, family: Family) -> list[str]:
    """Cut `text` at the family's added tokens, which are tokens of their own."""
    pattern = "|".join(re.escape(mark) for mark in marks_of(family))
    return [part for part in re.split(f"({pattern})", text) if part]
