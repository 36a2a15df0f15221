"""The operations behind the C functions, by number."""

from __future__ import annotations

import enum


class Operation(enum.IntEnum):
    """`enum lm_operation` of native/backend.h."""

    LOAD_MODEL = 0
    START_SERVER = 1
    STOP_SERVER = 2
    UNLOAD_MODEL = 3
    SUSPEND = 4
    RESUME = 5
    SHUTDOWN = 6
    EXIT = 7
