"""Keeps `import mlx_lm` from importing transformers and the Hub's client, which is four fifths of its time.

mlx-lm's modules import a few of their classes at the top and use them late or, for what lib_mlx does, never. Within
`deferred_imports` these names become stand-ins that import the real thing at their first use. Other importers are
not concerned: `sys.modules` holds no stand-in at any time, and a package that the host has imported is used as it is.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_PACKAGES = frozenset({"transformers", "huggingface_hub"})
_repairs: list[Any] = []  # what was made from stand-ins and waits for the real thing: (function, arguments)
_lock = threading.RLock()
importing = threading.RLock()
"""Held while transformers is imported, also in parts and late: two threads at it can meet half-made modules."""


class Deferred:
    """Stands for `name` of the module `source`: what is asked of it is asked of the real one, imported then."""

    def __init__(self, source: str, name: str) -> None:
        self._source = source
        self._name = name

    def real(self) -> Any:
        """Import and return what this stands for."""
        with importing:
            found = getattr(importlib.import_module(self._source), self._name)
            if self._source.startswith("transformers"):
                _repair()
            return found

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # asked by `typing` and the like, of whatever they meet
            raise AttributeError(attribute)
        return getattr(self.real(), attribute)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the real one."""
        return self.real()(*args, **kwargs)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self.real())

    def __mro_entries__(self, _bases: tuple[Any, ...]) -> tuple[type, ...]:
        """Give a class that is derived from this one a base to be replaced."""
        base = type(self._name, (), {})
        _repairs.append((_rebase, base, self))
        return (base,)


class DeferredAutoTokenizer(Deferred):
    """`AutoTokenizer`; what is registered meanwhile is handed on later."""

    def register(self, *args: Any, **kwargs: Any) -> None:
        """Register a tokenizer class with the real one, once that is imported."""
        _repairs.append((lambda: self.real().register(*args, **kwargs),))


class DeferredBase(Deferred):
    """`PreTrainedTokenizerBase`: while transformers is not imported, no tokenizer has a method of it."""

    def __getattr__(self, attribute: str) -> Any:
        return super().__getattr__(attribute) if "transformers" in sys.modules else None


_KINDS = {"AutoTokenizer": DeferredAutoTokenizer, "PreTrainedTokenizerBase": DeferredBase}


class _Names:
    """What `from package import name` reads in place of a module."""

    def __init__(self, source: str) -> None:
        self._source = source

    def __getattr__(self, name: str) -> Deferred:
        return _KINDS.get(name, Deferred)(self._source, name)


def _rebase(placeholder: type, real: Deferred) -> None:
    derived: Any
    for derived in placeholder.__subclasses__():
        derived.__bases__ = (real.real(),)


def _repair() -> None:
    with _lock:
        while _repairs:
            function, *arguments = _repairs.pop(0)
            function(*arguments)


@contextlib.contextmanager
def deferred_imports() -> Iterator[None]:
    """Defer what mlx-lm's modules import from `_PACKAGES` while they are imported themselves."""
    original = builtins.__import__

    def import_(
        name: str,
        globals: Mapping[str, object] | None = None,  # noqa: A002 - the signature of __import__
        locals: Mapping[str, object] | None = None,  # noqa: A002
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        package, importer = name.partition(".")[0], str((globals or {}).get("__name__", ""))
        if package in _PACKAGES and package not in sys.modules and fromlist and importer.startswith("mlx_lm."):
            return _Names(name)
        return original(name, globals, locals, fromlist or (), level)

    builtins.__import__ = import_
    try:
        yield
    finally:
        builtins.__import__ = original
