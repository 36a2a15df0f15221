"""What is imported late, in processes of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.fixtures import GUI

if TYPE_CHECKING:
    from pathlib import Path

VISION = GUI / "models/tiny-qwen2-vl"
BEFORE = (
    "import sys, lib_mlx.models.upstream as upstream; assert not {'transformers', 'huggingface_hub'} & {*sys.modules};"
)
AFTER = "import mlx.core; mlx.core.clear_streams()"


def run(code: str, *arguments: object) -> str:
    """Run code in a new interpreter; return what it prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_load_and_an_answer_need_neither(crafted: Path) -> None:
    """From the import to the last token, neither transformers nor the Hub's client is there."""
    code = (
        "import sys, lib_mlx;"
        "model = lib_mlx.load_model(sys.argv[1]);"
        "print(model.generate('hello', max_tokens=4).usage.completion);"
        "print({'transformers', 'huggingface_hub'} & {*sys.modules}); model.unload()"
    )
    assert run(code, crafted) == "4\nset()\n"


@pytest.mark.parametrize("first", ["", "import transformers;", "import mlx_lm;"])
def test_the_host_may_use_mlx_lm_itself(first: str, crafted: Path) -> None:
    """mlx-lm works as ever in the same process, whoever imported it, and transformers, first."""
    code = (
        f"{first}{'' if first else BEFORE}"
        "import sys, lib_mlx.models.upstream, mlx_lm;"
        "model, tokenizer = mlx_lm.load(sys.argv[1]);"
        "import transformers;"
        "assert isinstance(tokenizer._tokenizer, transformers.PreTrainedTokenizerFast);"
        "assert tokenizer._thinking_kwarg == 'enable_thinking' and tokenizer.has_chat_template;"
        "print(mlx_lm.generate(model, tokenizer, 'hello', max_tokens=3) != '');" + AFTER
    )
    assert run(code, crafted) == "True\n"


def test_a_wrapper_made_by_the_host(crafted: Path) -> None:
    """A tokenizer of transformers is known as such, though mlx-lm met transformers' classes as stand-ins."""
    code = BEFORE + (
        "from transformers import AutoTokenizer;"
        "wrapper = upstream.TokenizerWrapper(AutoTokenizer.from_pretrained(sys.argv[1]));"
        "wrapper._tokenizer.chat_template = None;"
        "print(upstream.TokenizerWrapper(wrapper._tokenizer).has_chat_template);" + AFTER
    )
    assert run(code, crafted) == "False\n"


def test_a_class_that_mlx_lm_derives(crafted: Path, tmp_path: Path) -> None:
    """mlx-lm's own tokenizer class is registered and gets its real base as soon as it is wanted."""
    copy = shutil.copytree(crafted, tmp_path / "copy")
    config = json.loads((copy / "tokenizer_config.json").read_text()) | {"tokenizer_class": "NewlineTokenizer"}
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    code = (
        "import sys, pathlib, mlx_lm.tokenizer_utils as utils;"
        "tokenizer = utils.load(pathlib.Path(sys.argv[1]));"
        "print(type(tokenizer._tokenizer).__mro__, tokenizer.encode('a\\nb'), tokenizer.decode([65, 66]));" + AFTER
    )
    assert run(BEFORE + code, copy) == run(code, copy)


def test_a_failed_import_is_told_when_it_is_needed() -> None:
    """Without transformers, what needs it fails by name, and again at the next time."""
    code = BEFORE + (
        "sys.modules['transformers'] = None\n"
        "import mlx_lm.tokenizer_utils as utils\n"
        "for _ in range(2):\n"
        "    try: utils.AutoTokenizer.from_pretrained('x')\n"
        "    except ImportError as error: print(error.name)\n" + AFTER
    )
    assert run(code) == "transformers\ntransformers\n"


def test_imports_of_others_are_not_concerned() -> None:
    """Only mlx-lm's own modules meet stand-ins, and only while they are imported."""
    code = (
        "import builtins, sys, types\n"
        "from lib_mlx.models.deferred import deferred_imports\n"
        "original = builtins.__import__\n"
        "with deferred_imports():\n"
        "    theirs = {'__name__': 'mlx_lm.x'}\n"
        "    exec('from huggingface_hub import snapshot_download as f', theirs)\n"
        "    print(type(theirs['f']).__name__, 'huggingface_hub' in sys.modules)\n"
        "    from huggingface_hub import snapshot_download\n"
        "    print(type(snapshot_download).__name__)\n"
        "print(builtins.__import__ is original)"
    )
    assert run(code) == "Deferred False\nfunction\nTrue\n"


def test_two_loads_at_one_moment(tmp_path: Path) -> None:
    """One imports mlx-vlm while the other one's tokenizer is left to transformers: both succeed."""
    other = shutil.copytree(VISION, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer_config.json").read_text())
    tokenizer["extra_special_tokens"] = {"image_token": "<|image_pad|>"}
    (other / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    code = (
        "import lib_mlx, threading\n"
        "gate, told = threading.Barrier(2), []\n"
        "def load(path):\n"
        "    gate.wait()\n"
        "    with lib_mlx.load_model(path) as model: told.append(model.status().model.status)\n"
        f"threads = [threading.Thread(target=load, args=(path,)) for path in {[str(VISION), str(other)]}]\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]; print(told)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "['ready', 'ready']\n", done.stderr
