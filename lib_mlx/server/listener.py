"""One HTTP server in a thread of its own, with its own event loop: started, reachable, surely stopped."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from lib_mlx.errors import AddressInUse, InvalidArgument, LibMlxError, ServerStartFailed
from lib_mlx.server.app import create_app
from lib_mlx.server.connections import MAX_HEAD_BYTES, BoundedProtocol
from lib_mlx.server.state import ServerState

if TYPE_CHECKING:
    from collections.abc import Callable

    from lib_mlx.config import ServerConfig
    from lib_mlx.registry import Registry
    from lib_mlx.status import Handles

log = logging.getLogger(__name__)
for _name in ("uvicorn.error", "python_multipart"):  # complaints of clients: nothing that a host must read on stderr
    logging.getLogger(_name).addHandler(logging.NullHandler())

_SO_NOSIGPIPE = 0x1022  # Darwin; Python has no name for it
_START_TIMEOUT_S = 10.0
_BACKLOG = 512


class _Server(uvicorn.Server):
    """uvicorn's server, telling when it accepts connections."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then tell."""
        await super().startup(sockets)
        self.accepting.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop, and cut the connections of those who have not read their answers by then."""
        await super().shutdown(sockets)
        for connection in self.server_state.connections:
            connection.transport.abort()
        await asyncio.sleep(0)  # sockets are closed on the next turn of the loop


class Listener:
    """Serves `registry` at the address of `config`, and tells of `handles`. `start` once, `stop` once; any thread."""

    def __init__(self, registry: Registry, config: ServerConfig, handles: Handles) -> None:
        self._socket = _bind(config.host, config.port) if config.uds is None else _bind_unix(Path(config.uds))
        self.host = config.host
        self.uds = config.uds
        self.port: int = self._socket.getsockname()[1] if config.uds is None else 0
        self._state = ServerState(registry, config, handles)
        options = uvicorn.Config(
            create_app(self._state),
            loop="asyncio",
            http=BoundedProtocol,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
        self._server = _Server(options)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"lib_mlx-server-{self.port}", daemon=True)

    @property
    def base_url(self) -> str:
        """The root of the API for clients; OpenAI's may append `/v1` or not."""
        if self.uds is not None:
            return "http://localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def busy(self) -> bool:
        """Whether a request is in flight. Any thread."""
        return self._state.sessions.in_flight > 0

    def start(self) -> None:
        """Block until the server accepts connections.

        Raises:
            ServerStartFailed: it does not, within ten seconds.
        """
        self._thread.start()
        if not self._server.accepting.wait(_START_TIMEOUT_S) or self._failure is not None:
            self.stop(0)
            raise ServerStartFailed(f"The server did not start: {self._failure or 'timeout'}.")

    def stop(self, deadline_s: float = 5.0) -> bool:
        """End running streams with their terminal event, then close. Returns whether all ended in time.

        Blocks for `deadline_s` at most, plus one second in which connections are cut.
        """
        self._call(self._state.close)
        self._server.should_exit = True
        self._thread.join(deadline_s)
        if self._thread.is_alive():
            self._server.force_exit = True
            self._thread.join(1)
        return not self._thread.is_alive()

    def suspend(self) -> None:
        """Evaluate nothing for any of the models until `resume`; requests wait or fail, as configured."""
        self._state.registry.suspend()
        self._call(self._state.sessions.suspended)

    def resume(self) -> None:
        """Go on."""
        self._state.registry.resume()

    def _call(self, function: Callable[[], None]) -> None:
        """Have the loop call `function`, if it still runs."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            try:
                loop.call_soon_threadsafe(function)
            except RuntimeError:
                log.debug("the loop closed meanwhile")

    def _run(self) -> None:
        try:
            with asyncio.Runner() as runner:
                self._loop = runner.get_loop()
                runner.run(self._server.serve(sockets=[self._socket]))
        except BaseException as error:
            self._failure = error
            log.debug("the server ended", exc_info=error)
        finally:
            self._socket.close()
            if self.uds is not None:
                Path(self.uds).unlink(missing_ok=True)
            self._server.accepting.set()


def _bind(host: str, port: int) -> socket.socket:
    """Return a bound socket: the caller learns at once that a port is taken, and which one 0 became."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise InvalidArgument(
            f"The host {host!r} cannot be resolved: {error}.", hint="Use 127.0.0.1.", param="host"
        ) from None
    listening = socket.socket(family, kind, proto)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform == "darwin":  # a thread's signal mask does not keep SIGPIPE from the process there
            listening.setsockopt(socket.SOL_SOCKET, _SO_NOSIGPIPE, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)  # of two that may share a port, only one can listen
    except OSError as error:
        listening.close()
        raise _bind_error(host, port, error) from None
    listening.set_inheritable(False)
    return listening


def _bind_unix(path: Path) -> socket.socket:
    """Return a bound Unix socket that only this user may connect to; one that nobody listens on is replaced."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(str(path)) == 0:
                    raise AddressInUse(f"Somebody listens on {path}.", hint="Use another path.", param="uds")
            path.unlink()
        _bind_privately(listening, path)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise ServerStartFailed(
            f"Cannot listen on {path}: {error.strerror or error}.",
            hint="The path must be new, in a folder that exists, and of 100 characters at most.",
            param="uds",
        ) from None
    except LibMlxError:
        listening.close()
        raise
    listening.set_inheritable(False)
    return listening


def _bind_privately(listening: socket.socket, path: Path) -> None:
    """Bind, and let nobody connect in between: the file appears under its name with its mode set."""
    if path.exists():
        raise FileExistsError(errno.EEXIST, "there is a file of this name")
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.unlink(missing_ok=True)
    listening.bind(str(staged))
    staged.chmod(0o600)
    staged.rename(path)


def _bind_error(host: str, port: int, error: OSError) -> LibMlxError:
    if error.errno == errno.EADDRINUSE:
        return AddressInUse(f"{host}:{port} is taken.", hint="Use another port, or 0 for a free one.", param="port")
    return ServerStartFailed(
        f"Cannot listen on {host}:{port}: {error.strerror}.",
        hint="Ports below 1024 need privileges; the host must be an address of this machine.",
    )
