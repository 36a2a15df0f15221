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
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lib_mlx.config import ServedModel, ServerConfig
from lib_mlx.engine.following import ADDRESS_BYTES, follow, open_model
from lib_mlx.engine.imports import import_on_worker
from lib_mlx.engine.rank_channel import TOGETHER_S, Followers
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import InvalidArgument, LibMlxError, ServerStartFailed

if TYPE_CHECKING:
    from lib_mlx.engine.engine import EngineModel
    from lib_mlx.server.listener import Listener

_UNSTICK_S = 1.0  # for the engine thread to come back when a rank is lost
_ENDS_S = 3.0  # for clients to read how their requests ended
_LOOK_S = 0.02
_STALL_LOOK_S = 1.0
LOST = 3
"""The exit status of a rank that cannot go on."""


def main() -> None:
    """Be the rank that the environment says. `sys.argv` has the path of the control socket, for rank 0."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's; whoever started us tells us to stop
    # From the beginning, for others may never come; of mpirun's processes none knows its rank yet.
    control = _Control(sys.argv[1]) if os.environ.get("MLX_RANK") == "0" else None
    waiting = threading.Timer(TOGETHER_S, _give_up, (control,))
    waiting.daemon = True
    waiting.start()
    try:
        rank = get_worker().run(_join)
    except (LibMlxError, RuntimeError) as error:  # MLX's
        _fail(control, error)
    waiting.cancel()
    if rank:
        follow(rank)
    else:
        _lead(control or _Control(sys.argv[1]))


def _join() -> int:
    mx = import_on_worker("mlx.core")
    from lib_mlx.models import sharding

    device = os.environ.get("LIB_MLX_RANK_DEVICE")
    if device == "cpu":
        mx.set_default_device(mx.cpu)
    elif device is not None:
        raise InvalidArgument(f"LIB_MLX_RANK_DEVICE is {device!r}.", hint="Set it to cpu, or not at all.")
    return sharding.join().rank()


def _give_up(control: _Control | None) -> None:
    _fail(control, RuntimeError(f"not all of them have come together within {TOGETHER_S:g} s"))


def _fail(control: _Control | None, error: Exception) -> None:
    """End this process, which has not become a rank."""
    known = error if isinstance(error, LibMlxError) else None
    told = known or ServerStartFailed(f"The ranks could not be started: {error}.", hint="See what they printed.")
    sys.stderr.write(f"{told.message}\n")
    if control is not None:
        control.send({"failed": told.to_json()})
    os._exit(LOST)


News: TypeAlias = "LibMlxError | EngineModel | None"
"""What rank 0's main thread waits for: a rank or the load that failed, the model, or None for a stop."""


class _Control:
    """The connection with the process that wanted the service: lines of JSON. Its end is the order to end."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(path)
        except OSError:  # whoever wanted the service does no more
            os._exit(LOST)
        self._wanted: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._ends: queue.SimpleQueue[News] | None = None
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, name="lib_mlx-control", daemon=True).start()

    def wanted(self) -> dict[str, Any]:
        """Wait for what is wanted."""
        return self._wanted.get()

    def end_by(self, ends: queue.SimpleQueue[News]) -> None:
        """From now on put None into `ends` at the end; until now this process just ends."""
        with self._lock:
            self._ends = ends

    def send(self, message: dict[str, Any]) -> None:
        """Send `message`, if somebody reads it."""
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError), self._socket.makefile("rb") as lines:
            self._wanted.put(json.loads(lines.readline()))
            lines.read(1)
        with self._lock:
            if self._ends is None:
                os._exit(LOST)  # not 0, by which the launcher would let the others wait
            self._ends.put(None)


def _lead(control: _Control) -> None:
    """Be rank 0."""
    wanted = control.wanted()
    ends: queue.SimpleQueue[News] = queue.SimpleQueue()
    end: News
    try:
        followers = _gather(wanted)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's when a rank is lost; there are answers to end
        followers.watch(ends.put)
        control.end_by(ends)
        # Beside this thread, which has to hear of a rank that is lost meanwhile: the load would wait for it.
        threading.Thread(target=_load, args=(wanted, followers, ends), daemon=True).start()
        end = ends.get()
        if end is not None and not isinstance(end, LibMlxError):
            end = _serve(end, wanted, control, followers, ends)
    except LibMlxError as error:
        end = error
    except Exception as error:
        logging.getLogger(__name__).exception("rank 0 failed")
        end = ServerStartFailed(f"The ranks could not be started: {error}.", hint="See what they printed.")
    if isinstance(end, LibMlxError):
        control.send({"failed": end.to_json()})
        os._exit(LOST)
    followers.close()
    shutil.rmtree(Path(sys.argv[1]).parent, ignore_errors=True)  # whoever made it may have been killed
    os._exit(0)


def _gather(wanted: dict[str, Any]) -> Followers:
    from lib_mlx.models import sharding

    followers = Followers(wanted["host"], get_worker().run(sharding.ranks) - 1)
    get_worker().run(sharding.share, followers.address, ADDRESS_BYTES)
    followers.gather()
    return followers


def _load(wanted: dict[str, Any], followers: Followers, ends: queue.SimpleQueue[News]) -> None:
    try:
        from lib_mlx.engine.engine import load
        from lib_mlx.models import sharding

        sharding.choose(wanted["sharding"])
        model = ServedModel.model_validate(wanted["model"])
        checkpoint = open_model(model)
        same = {"software": sharding.software(), "fingerprint": sharding.fingerprint(checkpoint)}
        followers.tell({"model": wanted["model"], "sharding": wanted["sharding"], **same})
        engine = load(checkpoint, model, ranks=followers)
        followers.await_loaded()
        ends.put(engine)
    except LibMlxError as error:
        ends.put(error)
    except BaseException as error:
        logging.getLogger(__name__).exception("the load failed")
        ends.put(ServerStartFailed(f"The load failed: {error}."))


def _serve(
    engine: EngineModel, wanted: dict[str, Any], control: _Control, followers: Followers, ends: queue.SimpleQueue[News]
) -> LibMlxError | None:
    """Serve until a rank is lost, which is returned, or until a stop."""
    listener = _listen(engine, wanted)
    control.send({"ready": {"base_url": listener.base_url, "uds": listener.uds}})
    end = _await_end(engine, followers, ends)
    if end is not None:
        engine.abandon(end, _UNSTICK_S)
        until = time.monotonic() + _ENDS_S
        while listener.busy and time.monotonic() < until:
            time.sleep(_LOOK_S)
    listener.stop()
    return end


def _await_end(engine: EngineModel, followers: Followers, ends: queue.SimpleQueue[News]) -> LibMlxError | None:
    """Wait for a stop or for a rank that is lost, which is returned.

    Ranks that rank 0 hears of may not reach each other: then a step does not end.
    """
    while True:
        with contextlib.suppress(queue.Empty):
            end = ends.get(timeout=_STALL_LOOK_S)
            return end if isinstance(end, LibMlxError) else None
        if engine.stalled:
            followers.report("a step did not end for a minute")


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
