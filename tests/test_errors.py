"""The error tree."""

from __future__ import annotations

import re

import lib_mlx.errors as module
from lib_mlx.errors import LibMlxError


def all_errors() -> list[type[LibMlxError]]:
    """Every class of the tree but its root."""
    return [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, LibMlxError)][1:]


def test_codes_are_unique() -> None:
    """A code stands for one error."""
    codes = [kind.code for kind in all_errors()]
    assert len(codes) == len(set(codes)) > 20


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """The drawing at the top of the module shows every class with its code and status, and no other."""
    drawn = re.findall(r"[├└]── (\w+) +(\w+) +(\d+)", module.__doc__ or "")
    assert {(name, code, int(status)) for name, code, status in drawn} == {
        (kind.__name__, kind.code, kind.http_status) for kind in all_errors()
    }


def test_an_error_reads_as_what_and_how_to_fix_it() -> None:
    """The text has the message and the hint; the JSON has both and the code."""
    error = module.QueueFull("Full.", hint="Wait.", retry_after=1)
    assert str(error) == "Full. Wait."
    assert error.to_json() == {"code": "queue_full", "message": "Full.", "hint": "Wait."}
