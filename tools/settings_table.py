"""Writes the table of variables in docs/cli.md: `python -m tools.settings_table`. tests/test_docs.py compares."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from lib_mlx.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCUMENT = Path(__file__).resolve().parent.parent / "docs/cli.md"
_BEGIN = "<!-- variables: written by `python -m tools.settings_table` -->\n"
_END = "<!-- end of variables -->"


def rows() -> Iterator[str]:
    """Yield a row for each key of each table that is no list of tables."""
    for table, field in Settings.model_fields.items():
        kind = field.annotation
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            continue
        for key, inner in kind.model_fields.items():
            default = inner.get_default(call_default_factory=True)
            shown = "" if default is None or default is PydanticUndefined or default in ([], {}) else f"`{default}`"
            meaning = " ".join((inner.description or "").split()).split(". ")[0].rstrip(".")
            yield f"| `LIB_MLX_{table.upper()}__{key.upper()}` | {shown} | {meaning.replace('|', chr(92) + '|')} |\n"


def with_table(text: str) -> str:
    """Return the document with the table as it is now."""
    before, _, rest = text.partition(_BEGIN)
    after = rest.partition(_END)[2]
    table = "| variable | default | meaning |\n|---|---|---|\n" + "".join(rows())
    return f"{before}{_BEGIN}\n{table}\n{_END}{after}"


def main() -> None:
    """Write it."""
    DOCUMENT.write_text(with_table(DOCUMENT.read_text()))


if __name__ == "__main__":
    main()
