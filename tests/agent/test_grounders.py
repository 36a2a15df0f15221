"""Places in what models say."""

from __future__ import annotations

import http.server
import json
import threading
from typing import Any

import pytest
from PIL import Image

from lib_mlx.agent import ChatGrounder, Place, read_place
from lib_mlx.agent.endpoint import ChatModel
from lib_mlx.errors import TargetNotFound


@pytest.mark.parametrize(
    ("said", "scale", "place"),
    [
        ("[500, 250]", "auto", (0.5, 0.25)),
        ("[0.5, 0.25]", "auto", (0.5, 0.25)),
        ("Thought: there.\nAction: click(start_box='(500,250)')", "thousand", (0.5, 0.25)),
        ("<|box_start|>(400,200),(600,300)<|box_end|>", "thousand", (0.4, 0.2)),
        ("[400, 200, 600, 300]", "thousand", (0.5, 0.25)),
        ("pyautogui.click(x=100, y=50)", "pixel", (0.5, 0.5)),
        ("pyautogui.click(100, 50)", "pixel", (0.5, 0.5)),
        ("(1, 1)", "auto", (0.001, 0.001)),
    ],
)
def test_places(said: str, scale: str, place: tuple[float, float]) -> None:
    """Points and boxes in the ways that models have, of a picture of 200 x 100 pixels."""
    assert read_place(said, 200, 100, scale) == Place(*place)  # type: ignore[arg-type]


@pytest.mark.parametrize("said", ["", "I do not see it.", "[1, 2", "[-5, 3]", "[2000, 3]"])
def test_no_place(said: str) -> None:
    """An answer without one, or with one that is not on the picture, is an error."""
    with pytest.raises(TargetNotFound):
        read_place(said, 200, 100)


@pytest.mark.parametrize("grounding", [True, {}, {"pointers": []}, [1], {"pointers": [{"points": [{"x": "left"}]}]}])
def test_another_server(grounding: Any) -> None:
    """What it means by `grounding` may be something else: then its words are read."""

    class Other(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.dumps({"choices": [{"grounding": grounding, "message": {"content": "[500, 250]"}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        model = ChatModel(f"http://127.0.0.1:{server.server_address[1]}/v1")
        assert ChatGrounder(model)(Image.new("RGB", (20, 10)), "it") == Place(0.5, 0.25)
        thread.join()
