"""Models in Anthropic's shape: pages of a list, and the served one through its client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anthropic
import pytest
from anthropic.types import ModelInfo
from starlette.datastructures import QueryParams

from lib_mlx.errors import InvalidArgument
from lib_mlx.server.anthropic.models import models_page, read_query

if TYPE_CHECKING:
    import httpx2


class Entry:
    """What the list shows of a model that is not loaded."""

    def __init__(self, name: str, created: int) -> None:
        self.id = name
        self.created = created
        self.engine = None


ENTRIES: list[Any] = [Entry(f"m{number}", number) for number in range(5)]


def page(query: str) -> tuple[list[str], bool]:
    """The names on a page, and whether there are more."""
    found = models_page(ENTRIES, read_query(QueryParams(query)))
    names = [entry["id"] for entry in found["data"]]
    assert (found["first_id"], found["last_id"]) == ((names[0], names[-1]) if names else (None, None))
    return names, found["has_more"]


@pytest.mark.parametrize(
    ("query", "names", "more"),
    [
        ("", ["m4", "m3", "m2", "m1", "m0"], False),
        ("limit=5", ["m4", "m3", "m2", "m1", "m0"], False),
        ("limit=2", ["m4", "m3"], True),
        ("limit=2&after_id=m3", ["m2", "m1"], True),
        ("limit=2&after_id=m2", ["m1", "m0"], False),
        ("after_id=m0", [], False),
        ("limit=2&before_id=m1", ["m3", "m2"], True),
        ("limit=2&before_id=m2", ["m4", "m3"], False),
        ("before_id=m4", [], False),
        ("lifecycle[]=active&lifecycle[]=retired", ["m4", "m3", "m2", "m1", "m0"], False),
        ("lifecycle[]=retired", [], False),
        ("beta=true&limit=1", ["m4"], True),
    ],
)
def test_pages(query: str, names: list[str], more: bool) -> None:
    """Newest first; a page begins behind or ends before the model that is named."""
    assert page(query) == (names, more)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=many", "limit"),
        ("limit=99999999999999999999", "limit"),
        ("after_id=other", "after_id"),
        ("before_id=other", "before_id"),
        ("before_id=m1&after_id=m1", "before_id"),
        ("lifecycle[]=young", "lifecycle.0"),
        ("colour=red", "colour"),
    ],
)
def test_wrong_parameters(query: str, param: str) -> None:
    """They are named."""
    with pytest.raises(InvalidArgument) as caught:
        page(query)
    assert caught.value.param == param


def test_the_served_model(any_claude: anthropic.Anthropic) -> None:
    """The client's list and lookup give it, of the client's type."""
    (model,) = any_claude.models.list(limit=1)
    assert any_claude.models.retrieve("crafted") == model
    ModelInfo.model_validate(model.to_dict())
    assert (model.id, model.max_input_tokens, model.lifecycle) == ("crafted", 4096, "active")
    assert model.capabilities is not None
    assert model.capabilities.thinking.types.enabled.supported
    assert not model.capabilities.image_input.supported
    with pytest.raises(anthropic.NotFoundError) as caught:
        any_claude.models.retrieve("other/name")
    assert (caught.value.type, caught.value.error_code) == ("not_found_error", "model_not_found")


def test_one_path_and_two_dialects(http: httpx2.Client) -> None:
    """The header of Anthropic's clients decides where both have a route."""
    header = {"anthropic-version": "2023-06-01"}
    assert http.get("/v1/models").json()["object"] == "list"
    assert http.get("/v1/models", headers=header).json()["has_more"] is False
    assert http.get("/anthropic/v1/models").json()["has_more"] is False
    assert http.get("/v1/models/crafted", headers=header).json()["type"] == "model"
