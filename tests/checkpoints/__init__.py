"""Crafted checkpoints: real models in Hugging Face layout whose greedy output follows a script.

A one-layer llama whose logits depend on the last two tokens alone. Its single attention head has constant
queries and keys, which rotary embedding turns into "look at the token before this one"; its value projection
is a rotation, so that the residual holds `E[last] + R·E[one before]`; the MLP adds nothing. A script's step
(before, last) -> next adds `E[last] + R·E[before]` to the head's row of `next`: a second-order Markov chain,
in which a marker such as `</tool_call>` may stand in many scripts and go on differently in each. Because the
chain reads the token before the last through the KV cache, a cache wrong by one position shows in the output.

The vocabulary is byte-level: 256 bytes, one entry per piece of a script, markers and control tokens as added
tokens. The chat template picks the script: it ends the prompt with `<|go:NAME|>` where NAME is the first word
of the last user message (an unknown word: `hello`), or `after` when the last message is a tool result. Any
prompt without that token runs `hello` too.

    path = build(tmp_path / "crafted")           # any server that reads HF checkpoints can load it
    SCRIPTS["think"].text("qwen")                # what greedy decoding yields, markers included
"""

from tests.checkpoints.build import build
from tests.checkpoints.families import FAMILIES, Call
from tests.checkpoints.scripts import SCRIPTS, Script

__all__ = ["FAMILIES", "SCRIPTS", "Call", "Script", "build"]
