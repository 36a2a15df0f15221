"""Prompt prefixes that need not be computed again. Engine thread only.

A radix tree over token runs, bounded in bytes, least recently used first out.
Each entry is the KV cache of one token sequence, stored when a request ends or is cancelled. A later prompt takes
the longest useful piece: an entry that is a prefix of it or, where caches can be trimmed, the part of any entry
that agrees with it. MLX arrays are immutable, so taking an entry copies no data; it is copied when first written.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lib_mlx.models.upstream import can_trim_prompt_cache, trim_prompt_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from lib_mlx.models.kv_cache import KVCache

    Tokens = NDArray[np.int32]


@dataclass(eq=False)
class _Node:
    """`run` leads here from `parent`; `cache`, if any, holds exactly the tokens on the way from the root."""

    run: Tokens
    parent: _Node | None
    children: dict[int, _Node] = field(default_factory=dict)
    depth: int = 0
    """Tokens from the root."""
    cache: KVCache | None = None
    nbytes: int = 0
    check: Callable[[], bool] | None = None
    """Whether `cache` is sound, to be asked before its first use."""


@dataclass(frozen=True)
class Entry:
    """What is stored for one token sequence."""

    tokens: Tokens
    salt: str
    cache: KVCache


class PrefixCache:
    """KV caches by the tokens they hold, `max_bytes` at most; 0 stores nothing.

    `salt` separates callers that must not learn from timing what others have asked.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._roots: dict[str, _Node] = {}
        self._recent: OrderedDict[_Node, None] = OrderedDict()  # stored entries, least recently used first

    def __len__(self) -> int:
        return len(self._recent)

    def take(self, tokens: Sequence[int], salt: str = "") -> tuple[KVCache | None, int]:
        """Return a cache for the longest known prefix of `tokens`, and its length.

        At least one token is left over: a model needs one to produce logits from. The cache is the caller's own.
        """
        found, usable = self._find(np.asarray(tokens, np.int32), salt)
        if found is None or found.cache is None or usable <= 0:
            return None, 0
        if found.check is not None and not found.check():
            self._drop(found)
            return self.take(tokens, salt)
        found.check = None
        self._recent.move_to_end(found)
        cache = copy.deepcopy(found.cache)
        if found.depth > usable:
            trim_prompt_cache(cache, found.depth - usable)
        return cache, usable

    def known(self, tokens: Tokens, salt: str = "") -> int:
        """Return how many tokens `take` would find."""
        return self._find(tokens, salt)[1]

    def store(
        self, tokens: Sequence[int], cache: KVCache, salt: str = "", check: Callable[[], bool] | None = None
    ) -> None:
        """Keep `cache`, which holds exactly `tokens`. Entries it makes superfluous are dropped.

        `check` is asked before the first use; if it says no, the entry is dropped.
        """
        nbytes = sum(layer.nbytes for layer in cache)
        if not len(tokens) or nbytes > self.max_bytes:
            return
        root = self._roots.setdefault(salt, _Node(np.empty(0, np.int32), None))
        held = np.asarray(tokens, np.int32)
        if (longer := self._superset(root, held)) is not None:
            self._recent.move_to_end(longer)
            return
        node = self._insert(root, held)
        self._forget(node)
        node.cache, node.nbytes, node.check = cache, nbytes, check
        self._recent[node] = None
        self.nbytes += nbytes
        if can_trim_prompt_cache(cache):  # it serves every prefix of itself
            for shorter in list(_ancestors(node)):
                self._drop(shorter)
        self.shrink(self.nbytes - self.max_bytes)

    def shrink(self, nbytes: int) -> int:
        """Drop entries of `nbytes` bytes or more in all, least recently used first; return how many bytes went."""
        before = self.nbytes
        while self._recent and before - self.nbytes < nbytes:
            self._drop(next(iter(self._recent)))
        return before - self.nbytes

    def entries(self) -> Iterator[Entry]:
        """Yield what is stored, most recently used first."""
        salts = {id(root): salt for salt, root in self._roots.items()}
        for node in reversed(self._recent):
            runs, root = [node.run], node
            while root.parent is not None:
                root = root.parent
                runs.append(root.run)
            if node.cache is not None:
                yield Entry(np.concatenate(runs[::-1]), salts[id(root)], node.cache)

    def clear(self) -> None:
        """Drop everything."""
        self._roots.clear()
        self._recent.clear()
        self.nbytes = 0

    def _find(self, query: Tokens, salt: str) -> tuple[_Node | None, int]:
        node, shared = self._descend(self._roots.get(salt), query)
        return self._best(node, min(shared, len(query) - 1))

    def _descend(self, root: _Node | None, query: Tokens) -> tuple[_Node | None, int]:
        """Follow `query` from `root`; return the last node touched and how many tokens agree."""
        node, at = root, 0
        while node is not None and at < len(query) and (child := node.children.get(int(query[at]))):
            agree = agreement(child.run, query[at:])
            at += agree
            node = child
            if agree < len(child.run):
                break
        return node, at

    def _best(self, node: _Node | None, limit: int) -> tuple[_Node | None, int]:
        """Return the entry that saves most at `node`, where `limit` tokens are usable at most."""
        if node is None:
            return None, 0
        # Every entry at or below `node` agrees with the query in `limit` tokens, if it can be cut to them.
        for entry in _entries_below(node):
            if entry.depth <= limit or (entry.cache and can_trim_prompt_cache(entry.cache)):
                return entry, min(entry.depth, limit)
        for entry in _ancestors(node):
            if entry.cache is not None and entry.depth <= limit:
                return entry, entry.depth
        return None, 0

    def _superset(self, root: _Node, tokens: Tokens) -> _Node | None:
        """Return an entry that can be cut to `tokens`, if there is one."""
        node, shared = self._descend(root, tokens)
        if node is None or shared < len(tokens):
            return None
        return next((e for e in _entries_below(node) if e.cache and can_trim_prompt_cache(e.cache)), None)

    def _insert(self, root: _Node, tokens: Tokens) -> _Node:
        """Return the node at exactly `tokens`, splitting a run where needed."""
        node, at = root, 0
        while at < len(tokens):
            child = node.children.get(int(tokens[at]))
            if child is None:
                child = _Node(tokens[at:].copy(), node, depth=len(tokens))
                node.children[int(tokens[at])] = child
                return child
            agree = agreement(child.run, tokens[at:])
            at += agree
            node = child if agree == len(child.run) else _split(child, agree)
        return node

    def _drop(self, node: _Node) -> None:
        """Remove an entry and the branch that only it needed."""
        self._forget(node)
        while node.parent is not None and node.cache is None and not node.children:
            del node.parent.children[int(node.run[0])]
            node = node.parent
        if node.parent is None and not node.children:  # clients choose salts: none is kept for itself
            self._roots = {salt: root for salt, root in self._roots.items() if root is not node}

    def _forget(self, node: _Node) -> None:
        if node.cache is not None:
            self.nbytes -= node.nbytes
            node.cache, node.nbytes, node.check = None, 0, None
            del self._recent[node]


def agreement(run: Tokens, query: Tokens) -> int:
    """Return how many tokens at the beginning of both are equal."""
    length = min(len(run), len(query))
    differ = run[:length] != query[:length]
    return int(differ.argmax()) if differ.any() else length


def _split(node: _Node, at: int) -> _Node:
    """Put a new node `at` tokens into `node`'s run; return it."""
    parent = node.parent
    if parent is None:
        raise ValueError("the root has no run to split")
    middle = _Node(node.run[:at], parent, depth=node.depth - len(node.run) + at)
    parent.children[int(node.run[0])] = middle
    node.run, node.parent = node.run[at:], middle
    middle.children[int(node.run[0])] = node
    return middle


def _ancestors(node: _Node) -> Iterator[_Node]:
    while node.parent is not None:
        node = node.parent
        yield node


def _entries_below(node: _Node) -> Iterator[_Node]:
    """Yield the entries at and below `node`, nearest first: the less is trimmed, the better."""
    level = [node]
    while level:
        yield from (entry for entry in level if entry.cache is not None)
        level = [child for entry in level for child in entry.children.values()]
