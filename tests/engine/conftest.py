"""A crafted model in memory, and a way to run requests on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lib_mlx.engine import engine
from lib_mlx.engine.event_stream import ThreadEventStream
from lib_mlx.generation import Failed, Finished, GenerationRequest, Message, ReasoningDelta, TextDelta, ToolCallDelta
from lib_mlx.models.checkpoint import inspect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from lib_mlx.engine.engine import EngineModel
    from lib_mlx.engine.job import Job
    from lib_mlx.generation import GenerationEvent


@pytest.fixture(scope="session")
def model(crafted: Path) -> Iterator[EngineModel]:
    """The crafted qwen-family model, loaded once."""
    loaded = engine.load(inspect(crafted))
    yield loaded
    loaded.unload()


class Run:
    """One request under way, read by the test's thread."""

    def __init__(self, model: EngineModel, script: str, *, system: str = "", **options: Any) -> None:
        self.stream = ThreadEventStream()
        messages = (Message("system", system),) if system else ()
        request = GenerationRequest(messages=(*messages, Message("user", script)), **options)
        self.job: Job = model.submit(model.prepare(request), self.stream)
        self.events: list[GenerationEvent] = []

    def wait(self) -> Run:
        """Read to the end."""
        while not self.events or not isinstance(self.events[-1], (Finished, Failed)):
            self.events += self.stream.get()
        return self

    @property
    def text(self) -> str:
        """The answer."""
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))

    @property
    def reasoning(self) -> str:
        """The reasoning."""
        return "".join(event.text for event in self.events if isinstance(event, ReasoningDelta))

    @property
    def calls(self) -> list[tuple[str, str]]:
        """Names and arguments of the tool calls."""
        return [(event.name, event.arguments) for event in self.events if isinstance(event, ToolCallDelta)]

    @property
    def end(self) -> Finished:
        """The terminal event of a run that went well."""
        last = self.events[-1]
        assert isinstance(last, Finished), last
        return last

    @property
    def failure(self) -> Failed:
        """The terminal event of a run that did not."""
        last = self.events[-1]
        assert isinstance(last, Failed), last
        return last
