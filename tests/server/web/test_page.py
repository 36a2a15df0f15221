"""The page in a real browser, on a real server with crafted models: what people see and do."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

import lib_mlx
from tests.checkpoints import SCRIPTS, build
from tests.checkpoints.scripts import Script
from tests.fixtures import GUI
from tests.models.vision import PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TOOL = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}}
TIME = {"type": "function", "name": "get_time", "parameters": {"type": "object"}}
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c49444154789c636068600000000300012b0a0b2a0000000049454e44ae426082"
)
HOSTILE = Script(
    "hostile",
    (
        "<script>",
        "window.hacked = 1",
        "</script>\n\n",
        "<img src=x ",
        "onerror=window.hacked=2>\n\n",
        "[press](java",
        "script:window.hacked=3)\n\n",
        "[fine](https://example.org/a) ![spy](https://example.org/spy.png)\n\n",
        "invoice\u202egnp.exe\n\n",
        "```html\n<b>bold",
        "</b></code></pre>",
        "<script>window.hacked = 4",
    ),
)
BIG = Script("big", tuple(f"{letter * 15} *{letter}* `{letter}` " * 40 + "\n\n" for letter in "pqrs"), end="loop")
OWN = {"hello": SCRIPTS["hello"], "after": SCRIPTS["after"], "hostile": HOSTILE, "big": BIG}


@pytest.fixture(scope="module")
def served(crafted: Path, crafted_family: Callable[[str], Path]) -> Iterator[lib_mlx.Server]:
    """A server with a model of its own, one that is loaded when it is asked for, and one that cannot be."""
    further = [{"model_path": str(crafted_family("mistral")), "model_id": "other"}, {"model_path": "/nowhere/broken"}]
    with lib_mlx.load_model(crafted, model_id="own") as model, model.start_server(models=further) as server:
        yield server


def watched(page: Any, base_url: str) -> list[str]:
    """Return what will have gone wrong in a page: failed scripts, breaches of the policy, requests to others."""
    problems: list[str] = []

    def look(request: Any) -> None:
        if not request.url.startswith((base_url, "data:", f"blob:{base_url}")):
            problems.append(request.url)

    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda told: problems.append(told.text) if "Content Security" in told.text else None)
    page.on("request", look)
    return problems


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Return a function that opens the page of a server in a browser of its own, which is to go well."""
    contexts = []
    problems: list[list[str]] = []

    def opened(server: lib_mlx.Server, fragment: str = "", before: str = "", **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(15_000)
        page = context.new_page()
        problems.append(watched(page, server.base_url))
        if before:
            page.add_init_script(before)
        page.goto(f"{server.base_url}/{fragment}")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not any(problems)


@pytest.fixture(scope="module")
def tab(browser: Any, served: lib_mlx.Server) -> Iterator[tuple[Any, list[str]]]:
    """One page for many tests, for a browser takes its time to make one; and what went wrong in it."""
    context = browser.new_context()
    context.set_default_timeout(15_000)
    page = context.new_page()
    yield page, watched(page, served.base_url)
    context.close()


@pytest.fixture
def page(tab: tuple[Any, list[str]], served: lib_mlx.Server) -> Iterator[Any]:
    """The page, as somebody sees it for the first time; it is to go well."""
    page, problems = tab
    page.goto(f"{served.base_url}/livez")
    page.evaluate("localStorage.clear()")
    problems.clear()
    page.goto(served.base_url)
    yield page
    page.unroute_all(behavior="ignoreErrors")
    assert problems == []


def ask(page: Any, text: str) -> Any:
    """Send a message and wait for the end of the answer; return the exchange."""
    page.fill("#message", text)
    page.press("#message", "Enter")
    page.wait_for_selector("#send:visible")
    return page.locator(".exchange").last


def give_tools(page: Any, *tools: Any) -> None:
    """Let requests have tools."""
    page.click("#open-settings")
    page.fill("[name=tools]", json.dumps(tools))
    page.keyboard.press("Escape")


def until(page: Any, expression: str) -> None:
    """Wait until an expression holds in the page, whose policy forbids Playwright's own way."""
    ends = time.monotonic() + 15
    while not page.evaluate(expression):
        assert time.monotonic() < ends, f"it never became true: {expression}"
        page.wait_for_timeout(20)


# Asking and answering


def test_an_answer(page: Any) -> None:
    """A message is sent with Enter; the answer stands below it with what it took."""
    exchange = ask(page, "hello there")
    assert exchange.locator(".question").inner_text() == "hello there"
    assert exchange.locator(".items").inner_text() == SCRIPTS["hello"].text()
    assert re.search(
        r"own · \d+ in.* · \d+ tokens out · .*first [\d.]+ s · [\d.]+ s", exchange.locator(".stats").inner_text()
    )
    assert page.input_value("#message") == ""
    assert exchange.locator(".answer").get_attribute("aria-busy") == "false"
    assert page.get_attribute("#conversation", "aria-live") == "polite"


def test_the_conversation_goes_on(page: Any) -> None:
    """Each request has all that was said before, but what was refused."""
    requests: list[Any] = []
    page.on("request", lambda sent: requests.append(sent.post_data_json) if sent.method == "POST" else None)
    ask(page, "think first")
    page.click("#open-settings")
    page.fill("[name=temperature]", "7")
    assert ask(page, "refused").locator(".error").count() == 1
    page.fill("[name=temperature]", "")
    ask(page, "hello again")
    roles = [item.get("role", item["type"]) for item in requests[-1]["input"]]
    assert roles == ["user", "reasoning", "assistant", "user"]
    assert (requests[-1]["store"], requests[-1]["stream"], requests[-1]["model"]) == (False, True, "own")


def test_it_streams_and_stops(page: Any) -> None:
    """Text grows while it is made; the button ends it, what has come stays, and the server has nothing left to do."""
    page.fill("#message", "loop")
    page.click("#send")
    page.wait_for_selector(".items p")
    first = len(page.inner_text(".items"))
    until(page, f"document.querySelector('.items').innerText.length > {first}")
    assert page.locator("#send").is_hidden()
    assert page.get_attribute(".answer", "aria-busy") == "true"
    page.click("#stop")
    page.wait_for_selector("#send:visible")
    assert page.inner_text(".note") == "Stopped."
    assert page.inner_text(".items").startswith("round and again round")
    assert page.evaluate("document.activeElement.id") == "message"
    until(page, "fetch('/health').then((answer) => answer.json()).then((health) => health.in_flight === 0)")
    assert ask(page, "hello").locator(".items").inner_text() == SCRIPTS["hello"].text()


def test_an_answer_that_was_cut(page: Any) -> None:
    """It says that it was, and where."""
    page.click("#open-settings")
    page.fill("[name=max_output_tokens]", "5")
    assert ask(page, "long").locator(".note").inner_text().startswith("Cut at 5 tokens")


def test_reasoning_is_folded(page: Any) -> None:
    """It is there, apart from the answer, and opens at a press."""
    exchange = ask(page, "think")
    inner = exchange.locator(".reasoning .prose")
    assert not inner.is_visible()
    assert exchange.locator(".items > .prose").inner_text() == "The answer is 42"
    assert exchange.locator("summary").inner_text() == "Reasoning, 3 words"
    exchange.locator("summary").press("Enter")
    assert inner.inner_text() == "Let me think."


def test_a_tool_call(page: Any) -> None:
    """It shows its name and arguments; a result that is given goes back to the model."""
    give_tools(page, TOOL)
    exchange = ask(page, "think_tool")
    assert exchange.locator(".call code").inner_text() == "get_weather"
    assert json.loads(exchange.locator(".call pre").inner_text()) == {"city": "Paris"}
    exchange.locator(".result textarea").fill("sunny")
    exchange.get_by_role("button", name="Send result").click()
    page.wait_for_selector("#send:visible")
    second = page.locator(".exchange").last
    assert second.locator(".question").inner_text().split("\n")[-1] == "sunny"
    assert second.locator(".items").inner_text() == SCRIPTS["after"].text()
    assert not exchange.locator(".result").is_visible()


def test_several_tool_calls(page: Any) -> None:
    """Their results are sent together."""
    give_tools(page, TOOL, TIME)
    exchange = ask(page, "tools")
    first, second = exchange.locator(".result textarea").all()
    first.fill("sunny")
    exchange.get_by_role("button", name="Send result").first.click()
    assert second.evaluate("field => field === document.activeElement")
    second.fill("noon")
    exchange.get_by_role("button", name="Send result").first.click()
    page.wait_for_selector("#send:visible")
    assert page.locator(".exchange").last.locator(".label").all_inner_texts() == [
        "Result of get_weather",
        "Result of get_time",
    ]


def test_asking_again_and_otherwise(page: Any) -> None:
    """The last question can be asked again, or changed first."""
    ask(page, "hello")
    page.get_by_role("button", name="Again").click()
    page.wait_for_selector("#send:visible")
    assert page.locator(".exchange").count() == 1
    page.get_by_role("button", name="Edit").click()
    assert page.input_value("#message") == "hello"
    assert page.locator(".exchange").count() == 0


def test_copying(open_page: Callable[..., Any], served: lib_mlx.Server) -> None:
    """What is copied is what the model wrote."""
    page = open_page(served, permissions=["clipboard-read", "clipboard-write"])
    ask(page, "think").get_by_role("button", name="Copy").click()
    assert page.evaluate("navigator.clipboard.readText()") == "The answer is 42"


def test_copying_without_a_clipboard(open_page: Callable[..., Any], served: lib_mlx.Server) -> None:
    """Browsers give plain HTTP from other machines no clipboard: the page does without."""
    page = open_page(
        served,
        before="delete Navigator.prototype.clipboard; document.oncopy = () => (window.copied = `${getSelection()}`)",
    )
    button = ask(page, "hello").get_by_role("button", name="Copy")
    button.click()
    assert page.inner_text("#said") == "Copied"
    assert page.locator("textarea.unseen").count() == 0


def test_attachments(page: Any) -> None:
    """An image and a sound are shown and sent; that this model takes text alone is told in full, and text goes on."""
    requests: list[Any] = []
    page.on("request", lambda sent: requests.append(sent.post_data_json) if sent.method == "POST" else None)
    page.set_input_files(
        "#files",
        [
            {"name": "tree.png", "mimeType": "image/png", "buffer": PNG},
            {"name": "voice.mp3", "mimeType": "audio/mpeg", "buffer": b"ID3"},
            {"name": "notes.pdf", "mimeType": "application/pdf", "buffer": b"%PDF"},
        ],
    )
    page.wait_for_selector("#attachments img")
    until(page, "document.querySelector('#attachments img').naturalWidth === 1")
    assert page.locator("#attachments .file").count() == 2
    assert page.inner_text("#attachments .invalid").startswith("notes.pdf: neither an image nor a sound")
    exchange = ask(page, "What is this?")
    image, sound, text = requests[0]["input"][0]["content"]
    assert (image["type"], image["image_url"][:22]) == ("input_image", "data:image/png;base64,")
    assert sound == {"type": "input_audio", "input_audio": {"data": "SUQz", "format": "mp3"}}
    assert text == {"type": "input_text", "text": "What is this?"}
    error = exchange.locator(".error").inner_text()
    assert "This model reads text, not images." in error
    assert {"400", "unsupported_feature", "input.0.content.0.image_url"} <= set(error.split())
    assert re.search(r"req_[0-9a-f]{32}", error)
    exchange.get_by_role("button", name="Edit").click()
    for _ in range(2):
        page.locator("#attachments button").first.click()
    assert ask(page, "hello").locator(".items").inner_text() == SCRIPTS["hello"].text()


def test_a_model_that_sees(open_page: Callable[..., Any]) -> None:
    """The page shows it a picture, and its answer."""
    with lib_mlx.load_model(PLAIN, model_id="sees") as model, model.start_server() as server:
        page = open_page(server)
        page.set_input_files("#files", [str(GUI / "screenshots/icon.png")])
        page.wait_for_selector("#attachments img")
        page.click("#open-settings")
        page.fill("[name=max_output_tokens]", "4")
        page.keyboard.press("Escape")
        exchange = ask(page, "What is this?")
        assert exchange.locator(".error").count() == 0
        assert re.search(r"4 tokens|4 output", exchange.inner_text()), exchange.inner_text()


def test_a_pasted_image(page: Any) -> None:
    """What is pasted or dropped is attached as well."""
    page.evaluate(
        """() => {
            const files = new DataTransfer();
            files.items.add(new File(["x"], "pasted.png", { type: "image/png" }));
            document.querySelector("#message").dispatchEvent(new ClipboardEvent("paste", { clipboardData: files }));
            document.dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true }));
        }"""
    )
    until(page, "document.querySelectorAll('#attachments li').length === 2")
    page.get_by_role("button", name="Remove pasted.png").first.click()
    assert page.locator("#attachments li").count() == 1


# Settings


def test_settings(page: Any) -> None:
    """They are sent as they are, kept for the next visit, and reset at a press; what is empty is not sent."""
    requests: list[Any] = []
    page.on("request", lambda sent: requests.append(sent.post_data_json) if sent.method == "POST" else None)
    page.click("#open-settings")
    given = {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "max_output_tokens": 50, "seed": 7}
    given |= {"repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": -0.2}
    for name, value in given.items():
        page.fill(f"[name={name}]", str(value))
    page.fill("[name=instructions]", "Be brief.")
    page.select_option("[name=thinking]", "off")
    page.fill("[name=further]", '{"profile": "fast"}')
    ask(page, "hello")
    fixed = {"model": "own", "stream": True, "store": False, "input": requests[0]["input"]}
    assert requests[0] == {**fixed, **given, "instructions": "Be brief.", "thinking": False, "profile": "fast"}
    page.reload()
    page.click("#open-settings")
    assert page.input_value("[name=seed]") == "7"
    page.click("#reset")
    page.click("#clear")
    ask(page, "hello")
    assert requests[-1] == {**fixed, "input": requests[-1]["input"]}


def test_settings_that_cannot_be_read(page: Any) -> None:
    """They are named beside their field, and nothing is sent or lost."""
    page.click("#open-settings")
    page.fill("[name=tools]", "[{")
    assert page.inner_text("#tools-error").startswith("This is not JSON")
    page.fill("[name=tools]", "{}")
    assert page.inner_text("#tools-error") == "This must be a list of tools."
    page.fill("#message", "hello")
    page.press("#message", "Enter")
    assert page.evaluate("document.activeElement.name") == "tools"
    assert page.input_value("#message") == "hello"
    assert page.locator(".exchange").count() == 0


# Errors


@pytest.mark.slow
def test_the_server_stops_meanwhile(crafted: Path, open_page: Callable[..., Any]) -> None:
    """An answer that is cut short says why; the page finds the server again when it is back."""
    with lib_mlx.load_model(crafted, model_id="own") as model:
        server = model.start_server()
        page = open_page(server)
        page.fill("#message", "loop")
        page.press("#message", "Enter")
        page.wait_for_selector(".items p")
        server.stop()
        page.wait_for_selector(".error")
        error = page.inner_text(".error")
        assert "shutting_down" in error or "connection_lost" in error
        page.wait_for_selector("#offline:visible")
        assert page.inner_text("#health-text") == "unreachable"
        page.evaluate("document.querySelector('#clear').click()")
        error = ask(page, "hello").locator(".error").inner_text()
        assert "does not answer" in error
        assert "start it again" in error
        with model.start_server(port=server.port):
            page.wait_for_selector("#offline", state="hidden")
            page.get_by_role("button", name="Try again").click()
            page.wait_for_selector(f"text={SCRIPTS['hello'].text()}")


def test_a_model_that_cannot_be_loaded(page: Any) -> None:
    """Its error is that of the answer, and stands in the list of models."""
    until(page, "document.querySelector('#model').options.length === 3")
    page.select_option("#model", "broken")
    error = ask(page, "hello").locator(".error").inner_text()
    assert {"404", "model_not_found"} <= set(error.split())
    page.click("#open-server")
    assert "model_not_found" in page.locator(".card", has_text="broken").inner_text()


def test_an_answer_of_somebody_else(page: Any) -> None:
    """What is no error of this server is shown as it came."""
    page.route("**/v1/responses", lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))
    error = ask(page, "hello").locator(".error").inner_text()
    assert "<h1>Bad gateway</h1>" in error
    assert "502" in error


# The server and its models


def test_the_servers_state(page: Any, served: lib_mlx.Server) -> None:
    """Where it is, how it is, what it does and has, and how fast its models are."""
    ask(page, "long")
    page.click("#open-server")
    page.wait_for_selector(".card >> text=/tokens.s/")
    facts = page.inner_text("#facts")
    assert f"Port\n{served.port}" in facts
    assert "Host\n127.0.0.1" in facts
    assert "Health\nok" in facts
    assert re.search(r"Queue\n0 running, 0 waiting, of 64\nMemory\n[\d.]+ .B used, [\d.]+ .B free", facts)
    card = page.locator(".card", has_text="own").inner_text()
    assert re.search(r"own\s+ready\s+\d+ .B · 4,096 tokens of context · ", card)
    page.locator(".card", has_text="own").get_by_role("button", name="Unload").click()
    page.wait_for_selector("text=belongs to the program that serves it")


def test_two_models(page: Any) -> None:
    """Another model is loaded when it is chosen and asked, or at a press; the choice is kept."""
    until(page, "document.querySelector('#model').options.length === 3")
    assert page.locator("#model option").first.inner_text() == "own"
    page.select_option("#model", "other")
    assert ask(page, "hello").locator(".stats").inner_text().startswith("other · ")
    until(page, "document.querySelector('#model').selectedOptions[0].text === 'other'")
    page.click("#open-server")
    card = page.locator(".card", has_text="other")
    card.get_by_role("button", name="Unload").click()
    card.get_by_role("button", name="Load", exact=True).click()
    card.get_by_role("button", name="Unload").wait_for()
    card.get_by_role("button", name="Unload").click()
    card.get_by_role("button", name="Load", exact=True).wait_for()
    page.reload()
    until(page, "document.querySelector('#model').value === 'other'")


def test_a_load_in_progress(page: Any) -> None:
    """How far it is stands beside the model's name, in its card, and where the answer will be."""
    state = {"status": "loading", "progress": 0.4, "stage": "reading weights", "error": None}
    loading = {"id": "own", "object": "model", "memory_bytes": 0, "requests": 0, "expires_in_s": None, **state}
    held: list[Any] = []
    page.route("**/v1/models", lambda route: route.fulfill(json={"data": [loading]}))
    page.route("**/v1/responses", lambda route: held.append(route))  # noqa: PLW0108 - Playwright marks its handlers
    events = f"event: model\ndata: {json.dumps({**loading, 'progress': 0.5})}\n\n"
    page.route("**/v1/events", lambda route: route.fulfill(content_type="text/event-stream", body=events))
    page.route(
        "**/v1/status",
        lambda route: route.fulfill(
            json={
                "models": [],
                "pid": 1,
                "uptime_s": 1,
                "memory": {"resident_bytes": 1, "available_bytes": 1, "limit_bytes": None},
                "queue": {"in_flight": 0, "waiting": 0, "limit": 1},
                "cache": {"hit_rate": None},
            }
        ),
    )
    page.reload()
    until(page, "document.querySelector('#model-progress').value === 0.5")
    assert page.locator("#model-progress").is_visible()
    page.fill("#message", "hello")
    page.press("#message", "Enter")
    page.wait_for_selector(".stats >> text=Loading own: 50 % reading weights")
    page.click("#open-server")
    page.wait_for_selector(".card >> text=50 % reading weights")
    held[0].abort()


# What is kept


def test_reloading_keeps_the_conversation(page: Any) -> None:
    """It is there again with all its parts, goes on, and is gone when it is cleared, unless that is undone."""
    give_tools(page, TOOL)
    page.set_input_files("#files", [{"name": "tree.png", "mimeType": "image/png", "buffer": PNG}])
    page.wait_for_selector("#attachments img")
    ask(page, "refused")
    ask(page, "think_tool")
    before = page.inner_text("#exchanges")
    page.reload()
    assert page.inner_text("#exchanges") == before.replace("69 bytes", "69 bytes, no longer kept")
    assert page.locator(".call pre").count() == 1
    page.locator(".result textarea").fill("sunny")
    page.get_by_role("button", name="Send result").click()
    page.wait_for_selector(f"text={SCRIPTS['after'].text()}")
    page.click("#clear")
    assert page.locator(".exchange").count() == 0
    page.click("#undo")
    assert page.locator(".exchange").count() == 3
    page.click("#clear")
    page.reload()
    assert page.locator(".exchange").count() == 0
    assert page.locator("#empty").is_visible()


def test_leaving_in_the_middle(page: Any) -> None:
    """What had come of an answer when the page was left is there, as one that was stopped."""
    page.fill("#message", "loop")
    page.press("#message", "Enter")
    page.wait_for_selector(".items p")
    page.reload()
    assert page.inner_text(".note") == "Stopped."
    assert page.inner_text(".items").startswith("round and again")
    assert ask(page, "hello").locator(".error").count() == 0


def test_only_so_much_is_kept(page: Any) -> None:
    """The oldest exchanges go first; a storage that others have filled is no error."""
    old = [{"text": f"q{n}", "files": [], "output": [], "outcome": "completed", "model": "own"} for n in range(300)]
    page.evaluate("kept => localStorage.setItem('lib_mlx.conversation', kept)", json.dumps(old))
    page.reload()
    page.evaluate("localStorage.setItem('other', 'x'.repeat(4_900_000))")
    ask(page, "hello")
    kept = json.loads(page.evaluate("localStorage.getItem('lib_mlx.conversation')") or "[]")
    assert len(kept) <= 200
    assert kept[-1]["text"] == "hello"


@pytest.mark.parametrize("kept", ["", "{", "5", "{}", "[5]", '[{"output": 1}]', "null"])
def test_what_it_did_not_write(page: Any, kept: str) -> None:
    """A storage with something else in it is none."""
    page.evaluate(
        "kept => ['conversation', 'settings'].map((name) => { localStorage[`lib_mlx.${name}`] = kept; })", kept
    )
    page.evaluate("window.onpagehide = null")
    page.reload()
    assert page.locator(".exchange").count() == 0
    assert ask(page, "hello").locator(".items").inner_text() == SCRIPTS["hello"].text()


def test_without_storage(open_page: Callable[..., Any], served: lib_mlx.Server) -> None:
    """A browser that keeps nothing is enough."""
    before = """for (const name of ["localStorage", "sessionStorage"])
        Object.defineProperty(window, name, { get() { throw new DOMException("no", "SecurityError"); } });"""
    page = open_page(served, before=before)
    assert ask(page, "hello").locator(".items").inner_text() == SCRIPTS["hello"].text()
    page.click("#theme")
    assert page.get_attribute("html", "data-theme") == "light"


# Looks and hands


def ground(page: Any) -> int:
    """How light the page is, from 0 to 255."""
    return int(re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[0])


def test_light_and_dark(open_page: Callable[..., Any], served: lib_mlx.Server) -> None:
    """As the system has it, or as the switch says, which is remembered."""
    page = open_page(served, color_scheme="dark")
    assert ground(page) < 50
    page.click("#theme")
    assert (page.get_attribute("#theme", "aria-label"), ground(page) > 200) == ("Theme: light", True)
    page.reload()
    assert ground(page) > 200
    page.click("#theme")
    page.emulate_media(color_scheme="light")
    assert ground(page) < 50
    page.click("#theme")
    assert (page.get_attribute("#theme", "aria-label"), ground(page) > 200) == ("Theme: system", True)


CONTRAST = """() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgb = (color) => {
        canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = (color) => {
        const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        const [r, g, b] = rgb(color).map((part) => linear(part / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (node) => {
        const color = getComputedStyle(node).backgroundColor;
        return rgb(color)[3] === 255 || !node.parentElement ? color : behind(node.parentElement);
    };
    const poor = [];
    for (const node of document.querySelectorAll("body *")) {
        const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
        if (!own || node.disabled || !node.checkVisibility() || node.closest("svg")) continue;
        const [a, b] = [light(getComputedStyle(node).color), light(behind(node))].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) poor.push([node.outerHTML.slice(0, 100), ratio]);
    }
    return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(open_page: Callable[..., Any], served: lib_mlx.Server, scheme: str) -> None:
    """All text has the contrast that WCAG's AA asks for."""
    page = open_page(served, color_scheme=scheme)
    page.wait_for_timeout(100)
    assert page.evaluate(CONTRAST) == []
    give_tools(page, TOOL)
    ask(page, "think_tool").locator("summary").click()
    page.set_input_files("#files", [{"name": "tree.png", "mimeType": "image/png", "buffer": PNG}])
    page.wait_for_selector("#attachments img")
    ask(page, "refused")
    for panel in ("server", "settings", "inspector"):
        page.click(f"#open-{panel}")
        assert page.evaluate(CONTRAST) == []


def test_a_phone(open_page: Callable[..., Any], served: lib_mlx.Server) -> None:
    """At 390 pixels all is reached and nothing is wider than the screen, whatever was written."""
    page = open_page(served, viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    fits = "document.documentElement.scrollWidth <= 390 && document.querySelector('#conversation').scrollWidth <= 390"
    assert page.evaluate(fits)
    give_tools(page, TOOL)
    ask(page, "think_tool " + "unbroken" * 40)
    page.set_input_files("#files", [{"name": "a long name " * 9 + ".png", "mimeType": "image/png", "buffer": PNG}])
    page.wait_for_selector("#attachments img")
    assert page.evaluate(fits)
    ask(page, "refused")
    assert page.evaluate(fits)
    for panel in ("server", "settings", "inspector"):
        page.tap(f"#open-{panel}")
        assert page.locator(f"#panel-{panel}").is_visible()
        assert page.evaluate(f"{fits} && document.querySelector('#panel').scrollWidth <= 390")
        page.locator(f"#panel-{panel} .close").tap()
    assert page.locator("#message").is_visible()


def test_the_keyboard_alone(page: Any) -> None:
    """The message has the focus; Shift+Enter breaks a line, Escape stops; Tab reaches all, in order, and is seen."""
    keys = page.keyboard
    assert page.evaluate("document.activeElement.id") == "message"
    keys.type("hello")
    keys.press("Shift+Enter")
    keys.type("there")
    assert page.input_value("#message") == "hello\nthere"
    keys.press("Enter")
    page.wait_for_selector("#send:visible")
    keys.type("loop")
    keys.press("Enter")
    page.wait_for_selector(".exchange:last-child .items p")
    keys.press("Escape")
    page.wait_for_selector(".note >> text=Stopped.")
    page.evaluate("document.activeElement.blur()")
    seen = []
    for _ in range(40):
        keys.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        if seen[-1] == "send":
            break
        assert page.evaluate(
            "getComputedStyle(document.activeElement).outlineStyle !== 'none' || document.activeElement.id == 'message'"
        )
    bar = ["open-server", "model", "open-settings", "open-inspector", "clear", "theme"]
    # Where Tab begins after the focus was taken away is the browser's to say: a round is read from the first stop.
    order = [stop for stop in seen if stop in {*bar, "conversation", "message", "attach", "send"}]
    assert order[-4:] == ["conversation", "message", "attach", "send"] or order == ["attach", "send"]
    page.focus(".skip")
    assert page.evaluate("document.querySelector('.skip').getBoundingClientRect().top >= 0")
    tabbed = []
    for _ in bar:
        keys.press("Tab")
        tabbed.append(page.evaluate("document.activeElement.id"))
    assert tabbed == bar
    page.focus("#open-settings")
    keys.press("Enter")
    assert page.evaluate("document.activeElement.closest('#panel-settings') !== null")
    assert page.get_attribute("#open-settings", "aria-expanded") == "true"
    keys.press("Escape")
    assert page.evaluate("document.activeElement.id") == "open-settings"


def test_everything_has_a_name(page: Any) -> None:
    """Buttons and fields are labelled, for those who do not see them."""
    give_tools(page, TOOL)
    ask(page, "think_tool")
    for panel in ("server", "settings", "inspector"):
        page.click(f"#open-{panel}")
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("button, input, select, textarea, progress, summary")]
                .filter((node) => node.checkVisibility() && !node.ariaLabel && !node.labels?.length)
                .filter((node) => !node.textContent.trim())
                .map((node) => node.outerHTML)"""
        )
        assert nameless == []


def test_calm_for_those_who_ask_for_it(open_page: Callable[..., Any], served: lib_mlx.Server) -> None:
    """Nothing moves where motion is to be reduced."""
    page = open_page(served, reduced_motion="reduce")
    page.fill("#message", "loop")
    page.press("#message", "Enter")
    page.wait_for_selector(".pulse")
    assert page.evaluate("getComputedStyle(document.querySelector('.pulse')).animationName") == "none"
    page.click("#stop")


def test_reading_back_while_it_streams(open_page: Callable[..., Any], served: lib_mlx.Server) -> None:
    """The end is followed until somebody scrolls up."""
    page = open_page(served, viewport={"width": 800, "height": 400})
    page.fill("#message", "loop")
    page.press("#message", "Enter")
    box = "document.querySelector('#conversation')"
    at_end = f"{box}.scrollHeight - {box}.scrollTop - {box}.clientHeight < 48"
    until(page, f"{box}.scrollHeight > 700 && {at_end}")
    page.evaluate(f"{box}.scrollTop = 0")
    height = page.evaluate(f"{box}.scrollHeight")
    until(page, f"{box}.scrollHeight > {height} || !document.querySelector('#send').hidden")
    assert page.evaluate(f"{box}.scrollTop") == 0


# The key


@pytest.fixture(scope="module")
def guarded(crafted: Path) -> Iterator[lib_mlx.Server]:
    """A server whose key has all that addresses could change."""
    with lib_mlx.load_model(crafted, model_id="own") as model, model.start_server(api_key="k%41&#/+=~") as server:
        yield server


def test_a_key_in_the_address(guarded: lib_mlx.Server, open_page: Callable[..., Any]) -> None:
    """It is taken out of the address at once, sent to the server, and kept for this tab alone."""
    assert guarded.api_key is not None
    page = open_page(guarded, f"#key={quote(guarded.api_key, safe='')}")
    assert page.url == f"{guarded.base_url}/"
    assert page.evaluate("history.length") <= 2
    assert ask(page, "hello").locator(".items").inner_text() == SCRIPTS["hello"].text()
    page.reload()
    assert ask(page, "hello").locator(".error").count() == 0
    assert page.evaluate("JSON.stringify(localStorage)").find(guarded.api_key) == -1
    page.get_by_role("button", name="Inspect").last.click()
    assert guarded.api_key not in page.content()


def test_asking_for_the_key(guarded: lib_mlx.Server, open_page: Callable[..., Any]) -> None:
    """Without one, or with a wrong one, the page asks; not again and again; the right one lets go on."""
    page = open_page(guarded)
    page.wait_for_selector("#key-dialog[open]")
    assert page.evaluate("document.activeElement.id") == "key"
    page.fill("#key", "wrong")
    page.press("#key", "Enter")
    page.wait_for_selector("text=is not the server")
    page.click("#key-later")
    page.wait_for_timeout(2500)
    assert page.locator("#key-dialog").is_hidden()
    assert page.inner_text("#health-text") == "needs a key"
    assert ask(page, "hello").locator(".error dd").first.inner_text() == "401"
    page.fill("#key", guarded.api_key)
    page.press("#key", "Enter")
    until(page, "document.querySelector('#health-text').innerText === 'ready'")
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector(f"text={SCRIPTS['hello'].text()}")


def test_another_key_for_an_open_page(guarded: lib_mlx.Server, open_page: Callable[..., Any]) -> None:
    """An address with a key may be opened where the page is already."""
    page = open_page(guarded, "#key=wrong")
    page.wait_for_selector("#key-dialog[open]")
    page.evaluate(f"location.hash = 'key=' + {json.dumps(quote(str(guarded.api_key), safe=''))}")
    until(page, "document.querySelector('#health-text').innerText === 'ready'")
    assert page.url == f"{guarded.base_url}/"
    assert page.locator("#key-dialog").is_hidden()


# What models write


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lib_mlx.Server]:
    """A model that writes what would be a page's end, and long answers."""
    path = build(tmp_path_factory.mktemp("crafted") / "hostile", scripts=OWN)
    with lib_mlx.load_model(path, model_id="<b>hostile</b>") as model, model.start_server() as server:
        yield server


def test_hostile_text(hostile: lib_mlx.Server, open_page: Callable[..., Any]) -> None:
    """Markup, handlers, addresses that are scripts and reordered names are text, while they stream and afterwards."""
    page = open_page(hostile)
    for _ in range(2):
        exchange = ask(page, "hostile")
        items = exchange.locator(".items")
        text = items.inner_text()
        assert "<script>window.hacked = 1</script>" in text
        assert "<img src=x onerror=window.hacked=2>" in text
        assert "[press](javascript:window.hacked=3)" in text
        assert "invoiceU+202Egnp.exe" in text
        assert items.locator("figure pre").inner_text() == "<b>bold</b></code></pre><script>window.hacked = 4\n"
        links = items.locator("a").evaluate_all("all => all.map(({ href, rel, target }) => [href, rel, target])")
        assert links == [
            ["https://example.org/a", "noopener noreferrer", "_blank"],
            ["https://example.org/spy.png", "noopener noreferrer", "_blank"],
        ]
        assert items.locator("img, script, iframe, b").count() == 0
        assert exchange.locator(".stats").inner_text().startswith("<b>hostile</b>")
        page.reload()
        page.wait_for_selector(".exchange")
    assert page.evaluate("window.hacked") is None


def test_the_policy_holds(browser: Any, served: lib_mlx.Server) -> None:
    """Markup that got into the page would neither run nor ask anybody, and no string becomes markup."""
    injected = "<script>window.hacked = 1</script><p id=x onclick='window.hacked = 2' style='color: red'>x</p>"

    def inject(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=answer.text().replace("</body>", f"{injected}</body>"))

    page = browser.new_page()
    page.route(f"{served.base_url}/", inject)
    page.add_init_script(
        """window.broken = [];
        document.addEventListener("securitypolicyviolation", (event) => broken.push(event.effectiveDirective));"""
    )
    page.goto(served.base_url)
    page.dispatch_event("#x", "click")
    page.evaluate(
        """async () => {
            const attempt = (what) => { try { what(); } catch (error) { broken.push(error.name); } };
            attempt(() => { document.querySelector("#empty").innerHTML = "<img src=x onerror='window.hacked=3'>"; });
            attempt(() => { setTimeout("window.hacked = 4"); });
            document.body.append(Object.assign(new Image(), { src: "http://127.0.0.1:9/x.png" }));
            await fetch("http://127.0.0.1:9/").catch(() => {});
            await new Promise((done) => setTimeout(done, 200));
        }"""
    )
    assert page.evaluate("window.hacked") is None
    assert set(page.evaluate("broken")) == {
        *("script-src-elem", "script-src-attr", "style-src-attr", "connect-src", "img-src"),
        *("require-trusted-types-for", "TypeError"),
    }
    page.close()


@pytest.mark.alone
@pytest.mark.slow
def test_a_megabyte(hostile: lib_mlx.Server, open_page: Callable[..., Any]) -> None:
    """The page answers to its reader while an answer of a megabyte streams, and when it is there."""
    page = open_page(hostile)
    page.click("#open-settings")
    page.fill("[name=max_output_tokens]", "800")
    page.click("#open-inspector")
    page.evaluate(
        """() => {
            window.longest = 0;
            let last = performance.now();
            setInterval(() => {
                window.longest = Math.max(window.longest, performance.now() - last);
                last = performance.now();
            }, 10);
        }"""
    )
    page.fill("#message", "big")
    page.press("#message", "Enter")
    page.wait_for_selector(".note", timeout=60_000)
    assert page.evaluate("window.longest") < 1000
    assert len(page.inner_text(".items")) > 600_000
    page.reload()
    page.wait_for_selector(".note", timeout=60_000)
    assert len(page.inner_text(".items")) > 600_000


# The inspector


def test_the_inspector(page: Any) -> None:
    """The request to the letter, the answer's head, and each event with its time and its text."""
    bodies: list[str] = []
    page.on("request", lambda sent: bodies.append(sent.post_data) if sent.method == "POST" else None)
    ask(page, "hello").get_by_role("button", name="Inspect").click()
    assert json.loads(page.inner_text("#inspected pre.request")) == json.loads(bodies[0])
    assert re.fullmatch(r"HTTP 200 · after \d+ ms · req_\w+", page.inner_text("#inspected-status"))
    rows = page.locator("#inspected-events summary").all_inner_texts()
    names = [row.split("\n")[1] for row in rows]
    assert (names[0], names[-2:]) == ("created", ["completed", "[DONE]"])
    assert names.count("output_text.delta") == len(SCRIPTS["hello"].pieces)
    times = [int(row.split(" ms")[0]) for row in rows]
    assert times == sorted(times)
    page.locator("#inspected-events summary", has_text="completed").click()
    shown = json.loads(page.inner_text("#inspected-events pre"))
    assert shown["response"]["status"] == "completed"


def test_inspecting_what_can_be_run(open_page: Callable[..., Any], guarded: lib_mlx.Server) -> None:
    """The request is copied as it was sent, also as a command, in which the key is a variable."""
    permissions = ["clipboard-read", "clipboard-write"]
    page = open_page(guarded, f"#key={quote(str(guarded.api_key), safe='')}", permissions=permissions)
    ask(page, "it's").get_by_role("button", name="Inspect").click()
    page.get_by_role("button", name="Copy JSON").click()
    body = page.evaluate("navigator.clipboard.readText()")
    assert json.loads(body)["input"][0]["content"] == [{"type": "input_text", "text": "it's"}]
    page.get_by_role("button", name="Copy curl").click()
    command = page.evaluate("navigator.clipboard.readText()")
    assert command.startswith(f"curl -N {guarded.base_url}/v1/responses ")
    assert "Bearer $LIB_MLX_KEY" in command
    assert str(guarded.api_key) not in command
    assert "it'\\''s" in command


def test_many_events(page: Any) -> None:
    """They are shown by hundreds; a refusal is shown as it came."""
    page.click("#open-inspector")
    page.click("#open-settings")
    page.fill("[name=max_output_tokens]", "400")
    ask(page, "loop").get_by_role("button", name="Inspect").click()
    assert page.locator("#inspected-events li").count() == 300
    page.get_by_role("button", name="Show more").click()
    assert page.locator("#inspected-events li").count() > 400
    assert not page.get_by_role("button", name="Show more").is_visible()
    page.click("#open-settings")
    page.fill("[name=temperature]", "9")
    ask(page, "hello").get_by_role("button", name="Inspect").click()
    assert json.loads(page.inner_text("#inspected-body"))["error"]["param"] == "temperature"
