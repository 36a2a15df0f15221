"""One rank of a model that is divided among several processes; `mlx.launch` starts them (`service/ranks.py`).

Rank 0 loads its part, serves HTTP, and tells the others each step. It ends with the process that wanted the service, by
the end of its control socket; the others end with rank 0, by the end of theirs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, TypeAlias

from lib_mlx.config import ServedModel, ServerConfig
from lib_mlx.engine.rank_channel import Followers, RankConnection, connect
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import LibMlxError, ServerStartFailed

if TYPE_CHECKING:
    from lib_mlx.engine.engine import EngineModel
    from lib_mlx.models.checkpoint import Checkpoint
    from lib_mlx.server.listener import Listener

_ADDRESS_BYTES = 256
_UNSTICK_S = 1.0  # for the engine thread to come back when a rank is lost
_ENDS_S = 3.0  # for clients to read how their requests ended
_LOOK_S = 0.02
LOST = 3
"""The exit status of a rank 0 that has lost another rank."""


def main() -> None:
    """Be the rank that the environment says. `sys.argv` has the path of the control socket, for rank 0."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's; whoever started us tells us to stop
    rank = get_worker().run(_join)
    if rank:
        _follow()
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's when a rank is lost; there are answers to end
        _lead(sys.argv[1])


def _join() -> int:
    import mlx.core as mx

    from lib_mlx.models import sharding

    if os.environ.get("LIB_MLX_RANK_DEVICE") == "cpu":
        mx.set_default_device(mx.cpu)
    return sharding.join().rank()


def _open(message: dict[str, Any]) -> tuple[Checkpoint, ServedModel]:
    """Find the model that is to be divided, and refuse what cannot be."""
    from lib_mlx.models import checkpoint, sharding, store

    model = ServedModel.model_validate(message["model"])
    found = checkpoint.inspect(
        store.resolve(model.model_path, model.revision), trust_remote_code=model.trust_remote_code
    )
    sharding.check(found, model)
    return found, model


# The other ranks


def _follow() -> None:
    from lib_mlx.models import sharding

    connection = connect(get_worker().run(sharding.share, None, _ADDRESS_BYTES))
    commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    try:
        first = connection.receive()
        threading.Thread(target=_obey, args=(connection, first, commands), daemon=True).start()
        while True:
            commands.put(connection.receive())
    except OSError:  # rank 0 is gone
        os._exit(0)


def _obey(connection: RankConnection, first: dict[str, Any], commands: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Load this rank's part and do as rank 0 says, for ever."""
    try:
        from lib_mlx.engine.assembly import new_weights
        from lib_mlx.engine.mirror import FollowingGenerator

        checkpoint, model = _open(first)
        weights, _ = get_worker().run(new_weights, checkpoint, lambda _: None, lambda: False, model)
        generator = FollowingGenerator(weights.network, weights.cache)
        while True:
            get_worker().run(generator.carry_out, commands.get())
    except BaseException as error:
        logging.getLogger(__name__).exception("this rank cannot go on")
        with contextlib.suppress(OSError):
            connection.send({"failed": str(error)})
        connection.close()
        os._exit(1)


# Rank 0

News: TypeAlias = "LibMlxError | EngineModel | None"
"""What rank 0's main thread waits for: a rank or the load that failed, the model, or None for a stop."""


class _Control:
    """The connection with the process that wanted the service: lines of JSON."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._lines = self._socket.makefile("rb")

    def receive(self) -> dict[str, Any] | None:
        """Wait for a message; None at the end."""
        with contextlib.suppress(OSError, ValueError):
            message: dict[str, Any] = json.loads(self._lines.readline())
            return message
        return None

    def send(self, message: dict[str, Any]) -> None:
        """Send `message`, if somebody reads it."""
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")


def _lead(path: str) -> None:
    control = _Control(path)
    wanted = control.receive()
    if wanted is None:
        os._exit(0)
    ends: queue.SimpleQueue[News] = queue.SimpleQueue()
    threading.Thread(target=_await_stop, args=(control, ends), daemon=True).start()
    end: News
    try:
        followers = _gather(wanted)
        followers.watch(ends.put)
        # Beside this thread, which has to hear of a rank that is lost meanwhile: the load would wait for it.
        threading.Thread(target=_load, args=(wanted, followers, ends), daemon=True).start()
        end = ends.get()
        if end is not None and not isinstance(end, LibMlxError):
            end = _serve(end, wanted, control, ends)
    except LibMlxError as error:
        end = error
    except Exception as error:
        logging.getLogger(__name__).exception("rank 0 failed")
        end = ServerStartFailed(f"The ranks could not be started: {error}.", hint="See what they printed.")
    if isinstance(end, LibMlxError):
        control.send({"failed": end.to_json()})
        os._exit(LOST)
    followers.close()
    os._exit(0)


def _await_stop(control: _Control, ends: queue.SimpleQueue[News]) -> None:
    control.receive()
    ends.put(None)


def _gather(wanted: dict[str, Any]) -> Followers:
    from lib_mlx.models import sharding

    followers = Followers(wanted["host"], get_worker().run(sharding.ranks) - 1)
    get_worker().run(sharding.share, followers.address, _ADDRESS_BYTES)
    followers.gather()
    followers.tell({"model": wanted["model"]})
    return followers


def _load(wanted: dict[str, Any], followers: Followers, ends: queue.SimpleQueue[News]) -> None:
    try:
        from lib_mlx.engine.engine import load

        checkpoint, model = _open(wanted)
        ends.put(load(checkpoint, model, ranks=followers))
    except LibMlxError as error:
        ends.put(error)
    except BaseException as error:
        logging.getLogger(__name__).exception("the load failed")
        ends.put(ServerStartFailed(f"The load failed: {error}."))


def _serve(
    engine: EngineModel, wanted: dict[str, Any], control: _Control, ends: queue.SimpleQueue[News]
) -> LibMlxError | None:
    """Serve until a rank is lost, which is returned, or until a stop."""
    listener = _listen(engine, wanted)
    control.send({"ready": {"base_url": listener.base_url, "uds": listener.uds}})
    end = ends.get()
    if isinstance(end, LibMlxError):
        engine.abandon(end, _UNSTICK_S)
        until = time.monotonic() + _ENDS_S
        while listener.busy and time.monotonic() < until:
            time.sleep(_LOOK_S)
    listener.stop()
    return end if isinstance(end, LibMlxError) else None


def _listen(engine: EngineModel, wanted: dict[str, Any]) -> Listener:
    from lib_mlx.registry import Registry
    from lib_mlx.registry.slot import ModelSpec
    from lib_mlx.runtime import get_runtime
    from lib_mlx.server.listener import Listener

    model = ServedModel.model_validate(wanted["model"])
    registry = Registry()
    name = model.model_id or os.path.basename(model.model_path)  # noqa: PTH119 - it may be a repository's name
    registry.add_loaded(ModelSpec(name, model.model_path, model), engine, int(time.time()))
    listener = Listener(registry, ServerConfig.model_validate(wanted["server"]), get_runtime())
    listener.start()
    return listener


if __name__ == "__main__":
    main()
