"""Models loaded when they are asked for, kept by use, given up for memory and for idleness."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from lib_mlx.config import EngineConfig
from lib_mlx.engine import engine
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import (
    CorruptModel,
    InsufficientMemory,
    InvalidArgument,
    LoadCancelled,
    ModelBusy,
    ModelNotFound,
    ShuttingDown,
)
from lib_mlx.models.checkpoint import inspect
from lib_mlx.registry import ModelSpec, Registry
from lib_mlx.registry.need import estimate_need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lib_mlx.registry import ModelEntry

SMALL = EngineConfig(prefix_cache_bytes=0)


@pytest.fixture
def make(crafted: Path) -> Iterator[Callable[..., Registry]]:
    """Return a function that makes a registry with models `a`, `b` and `c`, all the crafted checkpoint."""
    made: list[Registry] = []

    def new(**options: Any) -> Registry:
        registry = Registry(**options)
        for name in "abc":
            registry.add(ModelSpec(name, str(crafted), SMALL))
        made.append(registry)
        return registry

    yield new
    for registry in made:
        registry.close()


def states(registry: Registry) -> dict[str, str]:
    """What has become of each model."""
    return {entry.id: entry.status for entry in registry.known()}


def use(registry: Registry, name: str) -> None:
    """Load a model and give it free again."""
    registry.lease(name).result(30).release()


def eventually(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait until `condition()` holds."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it never became true"
        time.sleep(0.005)


def test_loaded_when_asked_for(make: Callable[..., Registry]) -> None:
    """Nothing is in memory before the first lease; the model stays afterwards."""
    registry = make()
    assert states(registry) == {"a": "available", "b": "available", "c": "available"}
    lease = registry.lease("b").result(30)
    assert (lease.id, lease.engine.context_length) == ("b", 4096)
    assert registry.find("b").busy == 1
    lease.release()
    lease.release()
    assert registry.find("b").busy == 0
    assert states(registry)["b"] == "ready"


def test_many_who_ask_at_once_share_one_load(make: Callable[..., Registry], monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty leases at the same time are one load."""
    from lib_mlx.registry import registry as module

    loads = []

    def counted(*args: Any, **options: Any) -> Any:
        loads.append(args)
        return open_model(*args, **options)

    open_model = module.open_model
    monkeypatch.setattr(module, "open_model", counted)
    registry = make()
    with ThreadPoolExecutor(20) as pool:
        leases = list(pool.map(lambda _: registry.lease("a").result(30), range(20)))
    assert len(loads) == 1
    assert len({id(lease.engine) for lease in leases}) == 1
    assert registry.find("a").busy == 20
    for lease in leases:
        lease.release()
    assert registry.find("a").busy == 0


def test_what_was_not_used_for_longest_goes_first(make: Callable[..., Registry], crafted: Path) -> None:
    """With room for two models, a third takes the place of the one used least recently."""
    registry = make(limit_bytes=int(2.5 * estimate_need(ModelSpec("a", str(crafted), SMALL))))
    use(registry, "a")
    use(registry, "b")
    use(registry, "a")
    use(registry, "c")
    assert states(registry) == {"a": "ready", "b": "available", "c": "ready"}


def test_a_busy_or_pinned_model_does_not_go(make: Callable[..., Registry], crafted: Path) -> None:
    """Where nothing may go, the load fails with need, room and limit; the other model goes on."""
    need = estimate_need(ModelSpec("a", str(crafted), SMALL))
    registry = make(limit_bytes=int(1.5 * need))
    registry.add(ModelSpec("pinned", str(crafted), SMALL, pinned=True))
    lease = registry.lease("a").result(30)
    with pytest.raises(InsufficientMemory, match=r"needs about .* are available, and the limit is"):
        registry.lease("b").result(30)
    assert registry.find("b").error is not None
    lease.release()
    use(registry, "b")
    assert states(registry)["a"] == "available"
    use(registry, "pinned")
    with pytest.raises(InsufficientMemory):
        registry.lease("a").result(30)
    assert states(registry)["pinned"] == "ready"


def test_an_idle_model_is_unloaded(make: Callable[..., Registry]) -> None:
    """After its time without a request it goes; a lease holds it, and may say how long it stays afterwards."""
    registry = make(keep_alive_s=0.1)
    lease = registry.lease("a").result(30)
    time.sleep(0.3)
    assert states(registry)["a"] == "ready"
    lease.release()
    eventually(lambda: states(registry)["a"] == "available")
    lease = registry.lease("a").result(30)
    lease.release(keep_alive_s=float("inf"))
    time.sleep(0.3)
    assert states(registry)["a"] == "ready"
    assert registry.find("a").expires_in_s is None
    registry.lease("a").result(30).release(keep_alive_s=0)
    eventually(lambda: states(registry)["a"] == "available")


def test_a_model_that_cannot_be_loaded(make: Callable[..., Registry], tmp_path: Path) -> None:
    """All who wait are told why; it is tried again when it is asked for again."""
    registry = make()
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    registry.add(ModelSpec("broken", str(tmp_path)))
    waiting = [registry.lease("broken") for _ in range(3)]
    for wanted in waiting:
        with pytest.raises(CorruptModel):
            wanted.result(30)
    assert states(registry)["broken"] == "failed"
    with pytest.raises(CorruptModel):
        registry.lease("broken").result(30)


def test_what_a_model_needs(crafted: Path, tmp_path: Path) -> None:
    """A draft model counts; a file that is not there, `.gguf` too, is a model that is not found."""
    spec = ModelSpec("a", str(crafted), SMALL)
    guessing = SMALL.model_copy(update={"draft_model_path": str(crafted)})
    assert estimate_need(replace(spec, config=guessing)) == 2 * estimate_need(spec)
    with pytest.raises(ModelNotFound):
        estimate_need(replace(spec, path=str(tmp_path / "gone.gguf")))


def test_unloading(make: Callable[..., Registry], crafted: Path) -> None:
    """A model is unloaded unless it is busy, or its host's; one that is not loaded stays as it is."""
    registry = make()
    lease = registry.lease("a").result(30)
    with pytest.raises(ModelBusy):
        registry.unload("a")
    lease.release()
    registry.unload("a")
    registry.unload("a")
    assert states(registry)["a"] == "available"
    own = engine.load(inspect(crafted), SMALL)
    try:
        registry.add_loaded(ModelSpec("own", str(crafted)), own, 1)
        with pytest.raises(InvalidArgument, match="belongs to the program"):
            registry.unload("own")
        registry.close()
        assert own.prepare is not None
        assert states(registry)["own"] == "ready"
    finally:
        own.unload()


def test_a_load_is_cancelled(make: Callable[..., Registry]) -> None:
    """Unloading a model that is still loading ends the load."""
    registry = make()
    held = threading.Event()
    blocked = get_worker().submit(held.wait, 10)
    wanted = registry.lease("a")
    eventually(lambda: registry.find("a").status == "loading")
    unloading = threading.Thread(target=registry.unload, args=("a",))
    unloading.start()
    time.sleep(0.05)
    held.set()
    blocked.result()
    unloading.join(10)
    with pytest.raises(LoadCancelled):
        wanted.result(10)


def test_closing(make: Callable[..., Registry]) -> None:
    """A closed registry has nothing in memory and no thread, and refuses."""
    before = threading.active_count()
    registry = make(keep_alive_s=60)
    use(registry, "a")
    use(registry, "b")
    registry.close()
    assert set(states(registry).values()) == {"available"}
    with pytest.raises(ShuttingDown):
        registry.lease("a")
    eventually(lambda: threading.active_count() <= before)


def test_closing_before_a_load_notices(make: Callable[..., Registry], monkeypatch: pytest.MonkeyPatch) -> None:
    """A load that ends after the registry has given up waiting frees what it loaded."""
    from lib_mlx.registry import registry as module

    loaded: list[Any] = []

    def late(*args: Any, **options: Any) -> Any:
        loaded.append(open_model(*args, **{**options, "cancelled": lambda: False}))
        held.wait(10)
        return loaded[0]

    open_model, held = module.open_model, threading.Event()
    monkeypatch.setattr(module, "open_model", late)
    monkeypatch.setattr(module, "_CLOSE_S", 0.05)
    registry = make()
    wanted = registry.lease("a")
    eventually(lambda: bool(loaded))
    registry.close()
    held.set()
    with pytest.raises(ShuttingDown):
        wanted.result(10)
    assert loaded[0]._closed
    assert states(registry)["a"] == "failed"


def test_room_that_is_being_made(make: Callable[..., Registry], crafted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load waits for a model that is being unloaded, instead of failing for want of its memory."""
    registry = make(limit_bytes=int(1.5 * estimate_need(ModelSpec("a", str(crafted), SMALL))))
    lease = registry.lease("a").result(30)
    held, unload = threading.Event(), lease.engine.unload

    def slow() -> None:
        held.wait(10)
        unload()

    monkeypatch.setattr(lease.engine, "unload", slow)
    lease.release()
    with ThreadPoolExecutor(2) as pool:
        unloads = [pool.submit(registry.unload, "a") for _ in range(2)]
        eventually(lambda: states(registry)["a"] == "unloading")
        wanted = registry.lease("b")
        time.sleep(0.1)
        assert not wanted.done()
        assert not any(one.done() for one in unloads)
        held.set()
        wanted.result(30).release()
        for one in unloads:
            one.result(10)


def test_two_loads_do_not_count_on_the_same_memory(
    make: Callable[..., Registry], crafted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one load is about to take is not free for another."""
    need = estimate_need(ModelSpec("a", str(crafted), SMALL))
    monkeypatch.setattr("lib_mlx.registry.registry.memory.available_bytes", lambda: int(1.5 * need))
    registry = make()
    held = threading.Event()
    blocked = get_worker().submit(held.wait, 10)
    try:
        first = registry.lease("a")
        eventually(lambda: registry.find("a").bytes > 0)
        with pytest.raises(InsufficientMemory):
            registry.lease("b").result(10)
    finally:
        held.set()
        blocked.result()
    first.result(30).release()


def test_names(make: Callable[..., Registry], crafted: Path) -> None:
    """A model answers to its id and its aliases; without a name the first one does; others are not found."""
    registry = make()
    registry.add(ModelSpec("d", str(crafted), aliases=frozenset({"other/name"})))
    assert registry.find(None).id == "a"
    assert registry.find("other/name").id == "d"
    with pytest.raises(ModelNotFound, match="'e' does not exist"):
        registry.find("e")
    with pytest.raises(ModelNotFound):
        registry.lease("e")


def test_discovered_models(crafted: Path) -> None:
    """Models that appear later are found when they are listed or asked for."""
    found: list[ModelSpec] = []

    def discover() -> list[ModelSpec]:  # slow disks hold up nobody who asks for what is known
        with ThreadPoolExecutor(1) as pool:
            pool.submit(registry.known).result(5)
        return found

    registry = Registry(discover=discover)
    assert registry.entries() == []
    found.append(ModelSpec("new", str(crafted), SMALL))
    with pytest.raises(ModelNotFound):
        registry.lease("new")
    assert registry.find("new").status == "available"
    assert [entry.id for entry in registry.entries()] == ["new"]


def test_looking_at_a_gguf_file_does_not_convert_it(tmp_path: Path) -> None:
    """That would take a listing minutes and gigabytes; its facts are not known before its first load."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"x")
    registry = Registry()
    registry.add(ModelSpec("a", str(path)))
    with pytest.raises(ModelNotFound, match="not been converted yet"):
        registry.facts(registry.find("a"))


def test_changes_are_published(make: Callable[..., Registry]) -> None:
    """A subscriber sees the whole life of a model, with a load's progress."""
    registry = make()
    seen: list[ModelEntry] = []
    unsubscribe = registry.subscribe(seen.append)
    use(registry, "a")
    registry.unload("a")
    unsubscribe()
    use(registry, "b")
    changes = [entry.status for entry in seen if entry.id == "a"]
    assert list(dict.fromkeys(changes)) == ["loading", "ready", "unloading", "available"]
    assert {entry.id for entry in seen} == {"a"}
    assert any(0 < entry.progress < 1 and entry.stage for entry in seen)


def test_changes_are_published_in_order(make: Callable[..., Registry]) -> None:
    """However slow a subscriber is, the last that it hears is how it is."""
    registry = make()
    seen: list[str] = []

    def listen(entry: ModelEntry) -> None:
        if entry.status == "loading" and threading.current_thread() is threading.main_thread():
            time.sleep(0.5)
        seen.append(entry.status)

    registry.subscribe(listen)
    registry.lease("a").result(30).release()
    eventually(lambda: registry.find("a").busy == 0)
    assert seen[-1] == "ready"
    assert seen.index("ready") > max(at for at, status in enumerate(seen) if status == "loading")


def test_a_load_asked_for_while_unloading(make: Callable[..., Registry]) -> None:
    """Loading, using and unloading from many threads at once: every lease is answered, and nothing is left busy."""
    registry = make(keep_alive_s=0)

    def visit(number: int) -> None:
        lease = registry.lease("ab"[number % 2]).result(60)
        assert lease.engine.context_length == 4096
        lease.release()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(visit, range(40)))
    eventually(lambda: states(registry) == {"a": "available", "b": "available", "c": "available"})
    assert all(entry.busy == 0 for entry in registry.known())
