"""A GUI-Actor over the wire: what it points at, in each dialect, by official clients."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import ollama
import openai
import pytest

import lib_mlx
from lib_mlx.agent import Agent, ChatGrounder, Clicks, Recorder
from lib_mlx.agent.endpoint import ChatModel
from tests.grounding.conftest import FIXTURES, MODELS, TRAINED, cases, picture
from tests.server import specs

if TYPE_CHECKING:
    from collections.abc import Iterator

CASE = cases(TRAINED)["twins"]
DATA = base64.b64encode((FIXTURES / CASE["file"]).read_bytes()).decode()
URL = f"data:image/png;base64,{DATA}"
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
TEXT = "pyautogui.click(84, 84)"


@pytest.fixture(scope="module")
def pointing() -> Iterator[lib_mlx.Server]:
    """The trained model, served; and the one that never points when it is left to itself."""
    further = [{"model_path": str(FIXTURES / "models" / MODELS[1]), "model_id": "random"}]
    with (
        lib_mlx.load_model(FIXTURES / "models" / TRAINED, model_id="actor") as model,
        model.start_server(models=further) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def wire(pointing: lib_mlx.Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=pointing.base_url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def openai_client(pointing: lib_mlx.Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{pointing.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def chat(**fields: Any) -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": URL}}, {"type": "text", "text": CASE["instruction"]}]
    return {"model": "actor", "messages": [{"role": "user", "content": content}], **fields}


def response(**fields: Any) -> dict[str, Any]:
    content = [{"type": "input_image", "image_url": URL}, {"type": "input_text", "text": CASE["instruction"]}]
    return {"model": "actor", "input": [{"role": "user", "content": content}], **fields}


def check(holder: dict[str, Any]) -> None:
    """Demand what the reference says of the case."""
    assert holder["coordinates"] == [[84, 84]]
    grounding = holder["grounding"]
    assert grounding["image"] == {"width": 420, "height": 252}
    assert grounding["grid"] == {"columns": 15, "rows": 9}
    (pointer,) = grounding["pointers"]
    found = [value for point in pointer["points"] for value in (point["x"], point["y"], point["score"])]
    known = zip(CASE["topk_points"], CASE["topk_values"], strict=True)
    assert found == pytest.approx([value for point, score in known for value in (*point, score)], abs=1e-5)
    assert pointer["points"][0]["pixel"] == [84, 84]
    assert "attention" not in pointer


def chunks(wire: httpx2.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream, which ends as it should."""
    with wire.stream("POST", path, json={**body, "stream": True}) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_chat_completions(wire: httpx2.Client, openai_client: openai.OpenAI) -> None:
    """The text is pyautogui's, coordinates and all else stand beside it; a stream says the same, in its last chunk."""
    (choice,) = wire.post(CHAT, json=chat()).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (TEXT, "stop")
    check(choice)
    told = [chunk["choices"][0] for chunk in chunks(wire, CHAT, chat())]
    assert "".join(one["delta"].get("content") or "" for one in told) == TEXT
    assert [one["finish_reason"] for one in told] == [None] * (len(told) - 1) + ["stop"]
    assert told[-1]["grounding"] == choice["grounding"]
    assert not any("grounding" in one for one in told[:-1])
    answer = openai_client.chat.completions.create(**chat())
    assert answer.choices[0].to_dict()["coordinates"] == [[84, 84]]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == CASE["n_tokens"]


def test_responses(wire: httpx2.Client, openai_client: openai.OpenAI) -> None:
    """The message has them; the stream's last event has the body of a request without one."""
    body = wire.post(RESPONSES, json=response()).json()
    specs.check("openresponses", "ResponseResource", body)
    (item,) = body["output"]
    assert item["content"][0]["text"] == TEXT
    check(item)
    events = chunks(wire, RESPONSES, response())
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    for event in events:
        specs.check("openresponses", specs.event_schemas("openresponses")[event["type"]], event)
    (streamed,) = events[-1]["response"]["output"]
    done = next(event["item"] for event in events if event["type"] == "response.output_item.done")
    assert {**streamed, "id": ""} == {**done, "id": ""} == {**item, "id": ""}
    assert openai_client.responses.create(**response()).output_text == TEXT


def test_options(wire: httpx2.Client) -> None:
    """The map of attention and the number of candidates, as asked for."""
    options = {"attention": True, "points": 1}
    for holder in (
        wire.post(CHAT, json=chat(grounding=options)).json()["choices"][0],
        wire.post(RESPONSES, json=response(grounding=options)).json()["output"][0],
    ):
        (pointer,) = holder["grounding"]["pointers"]
        assert len(pointer["points"]) == 1
        assert [len(row) for row in pointer["attention"]] == [15] * 9
        assert sum(map(sum, pointer["attention"])) == pytest.approx(1, abs=1e-5)
    for wrong in ({"mode": "guess"}, {"points": 0}, {"colour": "red"}):
        refused = wire.post(CHAT, json=chat(grounding=wrong))
        assert refused.status_code == 400
        assert refused.json()["error"]["param"].startswith("grounding.")


def test_its_own_action(wire: httpx2.Client) -> None:
    """Free, the action is the model's; one that points at nothing is the dialect's error, in a stream too."""
    free = {"mode": "free"}
    (choice,) = wire.post(CHAT, json=chat(grounding=free)).json()["choices"]
    assert (choice["message"]["content"], choice["coordinates"]) == (TEXT, [[84, 84]])
    for path, body in ((CHAT, chat()), (RESPONSES, response())):
        asked = {**body, "model": "random", "grounding": free}
        refused = wire.post(path, json={**asked, "store": False} if path == RESPONSES else asked)
        last = chunks(wire, path, asked)[-1]
        if path == CHAT:
            assert refused.status_code == 404
            assert refused.json()["error"]["code"] == last["error"]["code"] == "target_not_found"
        else:
            assert "target_not_found" in json.dumps(refused.json()["error"])
            assert last["type"] == "response.failed"


def test_other_dialects(pointing: lib_mlx.Server) -> None:
    """Anthropic's and Ollama's have the text."""
    source = {"type": "base64", "media_type": "image/png", "data": DATA}
    content: Any = [{"type": "image", "source": source}, {"type": "text", "text": CASE["instruction"]}]
    messages: Any = [{"role": "user", "content": content}]
    with anthropic.Anthropic(base_url=pointing.base_url, api_key="none", max_retries=0) as client:
        answer = client.messages.create(model="actor", max_tokens=64, messages=messages)
        assert answer.content[0].to_dict()["text"] == TEXT
    with ollama.Client(pointing.base_url) as speaker:
        said = speaker.chat("actor", [{"role": "user", "content": CASE["instruction"], "images": [DATA]}])
        assert said.message.content == TEXT


def test_several_answers(wire: httpx2.Client) -> None:
    """They are the same: there is nothing to be random about."""
    choices = wire.post(CHAT, json=chat(n=3, temperature=1)).json()["choices"]
    assert [choice["coordinates"] for choice in choices] == [[[84, 84]]] * 3


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "user", "content": "Click it"}]}, "messages"),
        ({"stop": ["a"]}, "stop"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ],
)
def test_what_is_refused(wire: httpx2.Client, fields: dict[str, Any], param: str) -> None:
    """What pointing has not is a 400 that names it."""
    refused = wire.post(CHAT, json={**chat(), **fields})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_another_model(http: httpx2.Client) -> None:
    """One that does not point refuses to be asked for it."""
    body = {"messages": [{"role": "user", "content": "hello"}], "grounding": {}}
    refused = http.post(CHAT, json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "grounding")


def test_the_model_list(wire: httpx2.Client) -> None:
    """The capability is told."""
    assert "grounding" in wire.post("/api/show", json={"model": "actor"}).json()["capabilities"]


def test_an_agent(pointing: lib_mlx.Server) -> None:
    """An agent that grounds by the server clicks on the target."""
    screen = Recorder(picture(CASE))
    ground = ChatGrounder(ChatModel(f"{pointing.base_url}/v1", "actor"), prompt=None)
    assert Agent(screen, ground).run(Clicks([CASE["instruction"]])).ending == "finished"
    assert screen.done[0][1][0].pixel(420, 252) == (84, 84)
