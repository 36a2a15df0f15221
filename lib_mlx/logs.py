"""The log files that hosts ask for (`log_file`, `log_level`): what happened, never what was said."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from lib_mlx.errors import InvalidArgument

if TYPE_CHECKING:
    from lib_mlx.config import LogLevel

_LOGGERS = ("lib_mlx", "uvicorn.error")
if not os.environ.get("LIB_MLX_DEBUG"):  # of a host that has set up no logging, logging would print to its stderr
    logging.getLogger("lib_mlx").addHandler(logging.NullHandler())
_FORMAT = "%(asctime)s.%(msecs)03d %(process)d %(levelname)s %(name)s: %(message)s"


class LogFile:
    """A file that records are appended to, until it is closed. Several may be open, also of one path."""

    def __init__(self, handler: logging.Handler) -> None:
        self._handler = handler

    def close(self) -> None:
        """Write no more. Idempotent."""
        _switch.remove(self._handler)


class _Switch:
    """Puts handlers on the library's loggers.

    While there are any, the loggers' level is as low as a handler's; whoever else reads those loggers, further up in a
    Python host, goes on seeing what it saw before and not more.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handlers: list[logging.Handler] = []
        self._onward = _Onward()

    def add(self, handler: logging.Handler) -> None:
        with self._lock:
            self._handlers.append(handler)
            for logger in map(logging.getLogger, _LOGGERS):
                logger.addHandler(handler)
            self._adjust()

    def remove(self, handler: logging.Handler) -> None:
        with self._lock:
            if handler not in self._handlers:
                return
            self._handlers.remove(handler)
            for logger in map(logging.getLogger, _LOGGERS):
                logger.removeHandler(handler)
            self._adjust()
        handler.close()

    def _adjust(self) -> None:
        for logger in map(logging.getLogger, _LOGGERS):
            logger.propagate = not self._handlers
            if self._handlers:
                logger.setLevel(min(logging.getLogger().level, *(handler.level for handler in self._handlers)))
                logger.addHandler(self._onward)
            else:
                logger.setLevel(logging.NOTSET)
                logger.removeHandler(self._onward)


class _Handler(logging.handlers.WatchedFileHandler):
    max_bytes: int | None = None

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # its folder is gone, or descriptors are: opening it anew is not guarded
            super().emit(record)  # which begins a new file where somebody has moved the old one
            if self.max_bytes is not None and self.stream is not None and self.stream.tell() > self.max_bytes:
                Path(self.baseFilename).replace(f"{self.baseFilename}.1")

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the disk is full: what could not be written is lost
            super().close()

    def handleError(self, _record: logging.LogRecord) -> None:  # noqa: N802 - logging's
        """Lose the record, of a full disk for example: logging would print to the host's stderr."""


class _Onward(logging.Handler):
    """Hands a record to the root logger, by the root's level."""

    def emit(self, record: logging.LogRecord) -> None:
        root = logging.getLogger()
        if record.levelno >= root.level and root.handlers:
            root.handle(record)


_switch = _Switch()


def open_log(path: str, level: LogLevel, *, max_bytes: int | None = None) -> LogFile:
    """Begin to append records of `level` and above to the file `path`, which is made if need be.

    One line each: time, process, level, module, message. A file that is moved away is begun anew; with `max_bytes` one
    that has grown so large is moved to `path`.1.

    Raises:
        InvalidArgument: it cannot be written.
    """
    try:
        handler = _Handler(Path(path), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InvalidArgument(
            f"The log file {path!r} cannot be written: {error.strerror or error}.",
            hint="Its folder must exist and be writable.",
            param="log_file",
        ) from None
    handler.max_bytes = max_bytes
    handler.setLevel(level.upper())
    handler.setFormatter(logging.Formatter(_FORMAT, "%Y-%m-%dT%H:%M:%S"))
    _switch.add(handler)
    return LogFile(handler)
