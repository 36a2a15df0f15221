"""What every rank but the first does: load its part of the model and do as rank 0 says, until that is gone."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from typing import TYPE_CHECKING, Any

from lib_mlx import memory
from lib_mlx.config import ServedModel
from lib_mlx.engine.rank_channel import connect
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import Internal, LibMlxError

if TYPE_CHECKING:
    from lib_mlx.engine.mirror import FollowingGenerator
    from lib_mlx.engine.rank_channel import RankConnection
    from lib_mlx.models.checkpoint import Checkpoint

ADDRESS_BYTES = 256
"""Of rank 0's address, as it is shared."""


def follow(rank: int) -> None:
    """Be rank `rank` for the rest of this process. Main thread."""
    from lib_mlx.models import sharding

    connection = connect(get_worker().run(sharding.share, None, ADDRESS_BYTES), rank)
    commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    try:
        first = connection.receive()
        threading.Thread(target=_obey, args=(connection, first, commands), daemon=True).start()
        while True:
            commands.put(connection.receive())
    except OSError:  # rank 0 is gone
        os._exit(0)


def open_model(model: ServedModel) -> Checkpoint:
    """Find the model that is to be divided on this machine, and refuse what cannot be; raises LibMlxError."""
    from lib_mlx.models import checkpoint, sharding, store

    found = checkpoint.inspect(
        store.resolve(model.model_path, model.revision), trust_remote_code=model.trust_remote_code
    )
    sharding.check(found, model)
    return found


def _obey(connection: RankConnection, first: dict[str, Any], commands: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Load this rank's part and do as rank 0 says, for ever."""
    try:
        generator = _load(first)
        connection.send({"loaded": True})
        while True:
            get_worker().run(generator.carry_out, commands.get())
    except BaseException as error:
        told = error
        if not isinstance(told, LibMlxError):
            logging.getLogger(__name__).exception("this rank cannot go on")
            told = Internal(f"It cannot go on: {error}.")
        with contextlib.suppress(OSError):
            connection.send({"failed": told.to_json()})
        connection.close()
        os._exit(1)


def _load(first: dict[str, Any]) -> FollowingGenerator:
    from lib_mlx.models import sharding

    sharding.check_software(first["software"])
    from lib_mlx.engine.assembly import new_weights
    from lib_mlx.engine.mirror import FollowingGenerator

    sharding.choose(first["sharding"])
    model = ServedModel.model_validate(first["model"])
    checkpoint = open_model(model)
    sharding.check_model(checkpoint, first["fingerprint"])
    memory.check_fits(checkpoint.weight_bytes // sharding.ranks(), f"This rank's part of {checkpoint.path.name!r}")
    weights, _ = get_worker().run(new_weights, checkpoint, lambda _: None, lambda: False, model)
    return FollowingGenerator(weights.network, weights.cache)
