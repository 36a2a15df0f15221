"""What was trained, put into its model, served, and exchanged while it serves."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import httpx2
import numpy as np
import openai
import pytest
from safetensors.numpy import load_file, save_file

import lib_mlx
from lib_mlx.config import parse_config
from lib_mlx.conversion.config import ConvertConfig
from lib_mlx.conversion.conversion import convert
from lib_mlx.errors import CorruptModel, InvalidArgument, LoadCancelled, ModelNotFound, ShuttingDown, UnsupportedFeature
from lib_mlx.generation import SamplingParams
from lib_mlx.models.adapters import read_shape
from lib_mlx.runtime import get_runtime
from lib_mlx.training.config import TrainConfig
from lib_mlx.training.fuse import fuse
from lib_mlx.training.trainer import train
from tests.server.test_server import eventually
from tests.training.conftest import CODES, write_jsonl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OTHER = dict(zip(CODES, [*list(CODES.values())[1:], next(iter(CODES.values()))], strict=True))
GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all is made."""
    return tmp_path_factory.mktemp("fuse")


def learn(folder: Path, name: str, model: Path, codes: dict[str, str], **values: Any) -> Path:
    """Train until the codes are known by heart; return where."""
    rows = [{"prompt": key, "completion": code} for key, code in codes.items()] * 8
    told = {
        "model_path": str(model),
        "data_path": str(write_jsonl(folder / f"{name}.jsonl", rows)),
        "output_path": str(folder / name),
        "batch_size": 8,
        "schedule": "cosine",
        "validation_share": 0,
        **values,
    }
    return train(parse_config(TrainConfig, told)).path


@pytest.fixture(scope="module")
def base(folder: Path, tiny: Path) -> Path:
    """A model that knows the codes, of weights that were trained and put in the place of the old ones."""
    trained = learn(folder, "full", tiny, CODES, method="full", steps=240, learning_rate=1.5e-3, warmup=10)
    return fuse(str(tiny), trained, folder / "base")


@pytest.fixture(scope="module")
def adapter(folder: Path, base: Path) -> Path:
    """An adapter that knows other codes."""
    return learn(folder, "lora", base, OTHER, method="lora", steps=160, learning_rate=1e-3, rank=16)


@pytest.fixture
def model(base: Path, adapter: Path) -> Iterator[lib_mlx.Model]:
    """The base, which may be given the adapter."""
    with lib_mlx.load_model(base, adapters={"other": str(adapter)}) as loaded:
        yield loaded


def answers(model: lib_mlx.Model) -> dict[str, str]:
    """What a model says to each question."""
    return {name: model.generate(name, sampling=GREEDY, max_tokens=12).text for name in CODES}


def test_what_was_learnt_is_said_over_http(base: Path) -> None:
    """A model that has learnt the codes answers with them to OpenAI's client."""
    with lib_mlx.load_model(base) as model, model.start_server() as server:
        client = openai.OpenAI(base_url=server.base_url, api_key="unused")
        for name, code in CODES.items():
            answer = client.responses.create(model=server.model_id, input=name, temperature=0, max_output_tokens=12)
            assert answer.output_text == code


def test_an_adapter_from_the_start(base: Path, adapter: Path) -> None:
    """A model that is loaded with an adapter says what that has learnt."""
    with lib_mlx.load_model(base, adapter_path=str(adapter)) as model:
        assert answers(model) == OTHER


def test_adapters_change_places(model: lib_mlx.Model) -> None:
    """Put in, taken out and put in again, the answers are those of whoever is in; nothing of the past is reused."""
    assert model.adapters() == ("other",)
    for name, expected in ((None, CODES), ("other", OTHER), ("other", OTHER), (None, CODES), ("other", OTHER)):
        model.set_adapter(name)
        assert answers(model) == expected


def test_adapters_of_a_quantised_model(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Where our own C computes with weights as they are stored, layers change places, too."""
    small = convert(
        parse_config(ConvertConfig, {"model_path": str(base), "output_path": str(tmp_path / "small"), "bits": 8})
    ).path
    with lib_mlx.load_model(small, adapters={"other": str(adapter)}, cpu_weights="quantized") as model:
        assert model.status().model.weights == "quantized"
        for name, expected in ((None, CODES), ("other", OTHER), (None, CODES)):
            model.set_adapter(name)
            assert answers(model) == expected
    with lib_mlx.load_model(small, adapter_path=str(adapter), cpu_weights="quantized") as model:
        assert answers(model) == OTHER
    fused = fuse(str(small), adapter, tmp_path / "fused")
    with lib_mlx.load_model(fused) as model:
        assert model.status().model.weights == "quantized"
        assert answers(model) == OTHER


def test_a_stream_ends_with_what_it_began(model: lib_mlx.Model) -> None:
    """A change waits for the requests under way, and those that come meanwhile wait for the change."""
    stream = model.stream("red", sampling=SamplingParams(temperature=0, logit_bias=()), max_tokens=2000)
    next(stream)
    changing = threading.Thread(target=model.set_adapter, args=("other",))
    changing.start()
    text = "".join(getattr(event, "text", "") for event in stream)
    after = model.generate("red", sampling=GREEDY, max_tokens=12).text
    changing.join(30)
    assert not changing.is_alive()
    assert CODES["red"].endswith(text)
    assert after in {CODES["red"], OTHER["red"]}
    assert answers(model) == OTHER


def test_over_http(model: lib_mlx.Model) -> None:
    """The model's object tells what there is and what is in use; an unknown name is a 404 that lists the known."""
    with model.start_server() as server:
        url = f"{server.base_url}/v1/models/{server.model_id}"
        told = httpx2.get(url).json()
        assert (told["adapter"], told["adapters"]) == (None, ["other"])
        changed = httpx2.post(f"{url}/adapter", json={"name": "other"})
        assert (changed.status_code, changed.json()["adapter"]) == (200, "other")
        assert answers(model) == OTHER
        unknown = httpx2.post(f"{url}/adapter", json={"name": "nobody"})
        assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "adapter")
        assert "'other'" in unknown.json()["error"]["message"]
        assert httpx2.post(f"{url}/adapter", json={"name": None}).json()["adapter"] is None
        assert httpx2.post(f"{url}/adapter", json={}).status_code == 400
        assert answers(model) == CODES


def test_fused(folder: Path, base: Path, adapter: Path) -> None:
    """A model with the adapter in its weights says what model and adapter say."""
    path = fuse(str(base), adapter, folder / "fused")
    with lib_mlx.load_model(path) as model:
        assert answers(model) == OTHER
    with pytest.raises(InvalidArgument, match="exists already"):
        fuse(str(base), adapter, path)


def test_what_does_not_fit(folder: Path, base: Path, adapter: Path, crafted: Path, tmp_path: Path) -> None:
    """A folder without an adapter, one of another model, one of all weights: each is told, and the model goes on."""
    with pytest.raises(ModelNotFound, match="no adapter"):
        lib_mlx.load_model(base, adapter_path=str(tmp_path))
    with pytest.raises(CorruptModel, match="does not fit"):
        lib_mlx.load_model(crafted, adapter_path=str(adapter))
    (tmp_path / "bad").mkdir()
    for file in adapter.glob("adapter*"):
        (tmp_path / "bad" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "bad" / "adapters.safetensors").write_bytes(b"no weights")
    named = {"bad": str(tmp_path / "bad"), "all": str(folder / "full"), "gone": str(tmp_path / "gone")}
    with lib_mlx.load_model(base, adapters=named) as model:
        for name, error in (("bad", CorruptModel), ("all", UnsupportedFeature), ("gone", ModelNotFound)):
            with pytest.raises(error):
                model.set_adapter(name)
            assert answers(model) == CODES


def test_an_adapter_that_does_not_say_its_scale(adapter: Path, tmp_path: Path) -> None:
    """A configuration that lacks what its weights are multiplied with is refused, not guessed."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    del config["lora_parameters"]["scale"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapters.safetensors").touch()
    with pytest.raises(CorruptModel, match="KeyError"):
        read_shape(tmp_path)


@pytest.mark.parametrize(
    "told",
    [
        b"[]",
        b"[" * 100_000,
        b'{"num_layers": Infinity}',
        *(
            json.dumps({"num_layers": -1, "lora_parameters": {"rank": 16, "scale": 2.0}, **other}).encode()
            for other in (
                {"fine_tune_type": "magic"},
                {"fine_tune_type": ["lora"]},
                {"lora_parameters": "rank"},
                {"lora_parameters": {"rank": 0, "scale": 2.0}},
                {"lora_parameters": {"rank": 16, "scale": "NaN"}},
                {"lora_parameters": {"rank": 16, "scale": 2.0, "keys": "self_attn"}},
                {"lora_parameters": {"rank": 16, "scale": 2.0, "keys": [1]}},
            )
        ),
    ],
)
def test_a_strange_configuration(tmp_path: Path, told: bytes) -> None:
    """Whatever is no configuration of an adapter is told so, and nothing is taken for something else."""
    (tmp_path / "adapter_config.json").write_bytes(told)
    (tmp_path / "adapters.safetensors").touch()
    with pytest.raises(CorruptModel, match="is no adapter's"):
        read_shape(tmp_path)


def test_strange_weights(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Weights that are missing, are no numbers or of another kind than weights are: the model goes on without them."""
    whole = load_file(adapter / "adapters.safetensors")
    name = min(whole)
    kinds = {
        "nothing": {},
        "part": {key: array for key, array in whole.items() if key != name},
        "nan": {**whole, name: np.full_like(whole[name], np.nan)},
        "whole numbers": {**whole, name: whole[name].astype(np.int32)},
    }
    for kind, arrays in kinds.items():
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
        save_file(arrays, tmp_path / kind / "adapters.safetensors")
    with lib_mlx.load_model(base, adapters={kind: str(tmp_path / kind) for kind in kinds}) as model:
        for kind in kinds:
            with pytest.raises(CorruptModel, match="lacks" if kind in {"nothing", "part"} else "no weights"):
                model.set_adapter(kind)
            assert answers(model) == CODES


def test_weights_that_were_replaced(folder: Path, tiny: Path, base: Path, adapter: Path) -> None:
    """What a model was given by an adapter of all weights cannot be taken out again: it says so and keeps it."""
    with lib_mlx.load_model(tiny, adapter_path=str(folder / "full"), adapters={"other": str(adapter)}) as model:
        assert answers(model) == CODES
        for name in ("other", None):
            with pytest.raises(UnsupportedFeature, match="keeps the adapter"):
                model.set_adapter(name)
        assert answers(model) == CODES


def test_a_change_that_nobody_waits_for(model: lib_mlx.Model) -> None:
    """While many wait for a suspended model the server answers; those that go away leave no change behind."""
    with model.start_server() as server:
        url = f"{server.base_url}/v1/models/{server.model_id}"
        engine = get_runtime().engine(model._handle)
        engine.suspend()

        body = b'{"name": "other"}'
        head = (
            f"POST /v1/models/{server.model_id}/adapter HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        )
        asked = head.encode() + b"Content-Type: application/json\r\n\r\n" + body
        with contextlib.ExitStack() as waiting:
            for _ in range(40):
                waiting.enter_context(socket.create_connection(("127.0.0.1", server.port), 10)).sendall(asked)
            eventually(lambda: httpx2.get(url, timeout=10).json()["requests"] == 40, 20)
        eventually(lambda: httpx2.get(url, timeout=10).json()["requests"] == 0, 20)
        engine.resume()
        assert httpx2.get(url).json()["adapter"] is None
        assert answers(model) == CODES


def test_a_model_that_goes_away(base: Path, adapter: Path) -> None:
    """Who waits for a change is told when the model is unloaded, and so is who comes after."""
    model = lib_mlx.load_model(base, adapters={"other": str(adapter)})
    engine = get_runtime().engine(model._handle)
    engine.suspend()
    waiting = [engine.adapters.change(name) for name in ("other", None)]
    with pytest.raises(TimeoutError):
        waiting[0].result(0.2)
    model.unload()
    for future in [*waiting, engine.adapters.change("other")]:
        with pytest.raises(ShuttingDown):
            future.result(5)


def test_an_embedding_under_way(model: lib_mlx.Model) -> None:
    """It ends with the adapter it began with, and a change waits for it."""
    engine = get_runtime().engine(model._handle)
    text = list(range(5, 25)) * 40
    expected = engine.embed(text)
    asked: list[threading.Thread] = []

    def between() -> bool:
        if len(asked) < 1:
            asked.append(threading.Thread(target=model.set_adapter, args=("other",)))
        elif not asked[0].is_alive() and engine.adapters.current is None:
            asked[0].start()
            time.sleep(0.3)
        return False

    assert engine.embed(text, cancelled=between) == expected
    asked[0].join(10)
    assert engine.adapters.current == "other"
    assert engine.embed(text) != expected


def test_what_is_in_use_stays(folder: Path, base: Path, adapter: Path, tmp_path: Path) -> None:
    """What cannot be an adapter takes nothing's place; one whose weights cannot be read leaves none, and so it says."""
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    (tmp_path / "bad" / "adapters.safetensors").write_bytes(b"no weights")
    wrong = {"all": str(folder / "full"), "gone": str(tmp_path / "gone"), "bad": str(tmp_path / "bad")}
    with lib_mlx.load_model(base, adapters={"other": str(adapter), **wrong}) as model, model.start_server() as server:
        url = f"{server.base_url}/v1/models/{server.model_id}"
        model.set_adapter("other")
        for name, status, left, expected in (
            ("all", 400, "other", OTHER),
            ("gone", 404, "other", OTHER),
            ("bad", 400, None, CODES),
        ):
            assert httpx2.post(f"{url}/adapter", json={"name": name}).status_code == status
            assert httpx2.get(url).json()["adapter"] == left
            assert answers(model) == expected


def test_given_up(folder: Path, base: Path, adapter: Path) -> None:
    """Fusing that is cancelled leaves nothing."""
    with pytest.raises(LoadCancelled):
        fuse(str(base), adapter, folder / "given-up", cancelled=lambda: True)
    assert not [file for file in folder.iterdir() if "given-up" in file.name]
