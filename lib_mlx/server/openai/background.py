"""Responses made in the background: nobody needs to wait for them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from lib_mlx.errors import Cancelled, Internal, LibMlxError
from lib_mlx.generation import Failed

if TYPE_CHECKING:
    from lib_mlx.generation import GenerationEvent
    from lib_mlx.server.openai.response_run import ResponseRun
    from lib_mlx.server.session import Session

log = logging.getLogger(__name__)


class BackgroundRun:
    """Reads a session to its end, whoever listens. Belongs to the event loop.

    Args:
        run: what takes the events.
        starting: ends with the session; it may have to wait for its model.
    """

    def __init__(self, run: ResponseRun, starting: asyncio.Task[Session]) -> None:
        self._run = run
        self._starting = starting
        self._session: Session | None = None
        self._task = asyncio.create_task(self._work())  # the loop itself keeps no task alive

    async def cancel(self) -> None:
        """End the response now, cancelled. No effect once it is finished."""
        if self._run.fold.finished:
            return
        error = Cancelled("The response was cancelled.")
        if self._session is None:  # the session is closed when it comes
            self._take(Failed(error))
        else:
            self._session.end(error)
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        try:
            session = self._session = await self._starting
        except LibMlxError as error:
            self._take(Failed(error))
            return
        except Exception as error:
            log.exception("a response in the background could not be started")
            self._take(Failed(Internal(f"The response could not be started: {type(error).__name__}.")))
            return
        try:
            while not self._run.fold.finished:
                for _, event in await session.next():
                    self._take(event)
        except Exception as error:
            log.exception("a response in the background could not be rendered")
            self._take(Failed(Internal(f"The answer could not be rendered: {type(error).__name__}.")))
        finally:
            session.close()

    def _take(self, event: GenerationEvent) -> None:
        if not self._run.fold.finished:  # a cancellation may have come before
            self._run.take([event])
