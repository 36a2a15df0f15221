"""What Ollama's dialect tells of models, and embeddings."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import ollama
import pytest

import lib_mlx

if TYPE_CHECKING:
    from pathlib import Path

    import httpx2


def test_tags(client: ollama.Client) -> None:
    """The models there are, with size, time and a digest."""
    (model,) = client.list().models
    assert model.model == "crafted"
    assert model.size
    assert model.details
    assert (model.details.format, model.details.family) == ("safetensors", "llama")
    assert model.modified_at
    assert model.digest
    assert len(model.digest) == 64


def test_show(client: ollama.Client) -> None:
    """What the files say, and what the model can do."""
    shown = client.show("crafted")
    assert shown.capabilities == ["completion", "tools", "thinking"]
    assert shown.modelinfo
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["llama.context_length"] == 4096
    assert "messages" in (shown.template or "")
    with pytest.raises(ollama.ResponseError) as caught:
        client.show("other")
    assert caught.value.status_code == 404


def test_show_needs_a_model(http: httpx2.Client) -> None:
    """Ollama has no default model, nor has this dialect."""
    answer = http.post("/api/show", json={})
    assert (answer.status_code, answer.json()["error"]) == (400, "The field 'model' is required.")


@pytest.mark.parametrize(("method", "text"), [("GET", "Ollama is running"), ("HEAD", "")])
def test_the_greeting(http: httpx2.Client, method: str, text: str) -> None:
    """Ollama's clients look at the root before anything else."""
    answer = http.request(method, "/")
    assert (answer.status_code, answer.text) == (200, text)


def test_ps(crafted: Path) -> None:
    """The models in memory and until when: the host's own for ever, a further one as its request says."""
    with (
        lib_mlx.load_model(crafted, model_id="own") as model,
        model.start_server(models=[{"model_path": str(crafted), "model_id": "other"}]) as server,
        ollama.Client(host=server.base_url, timeout=30) as client,
    ):
        assert [one.model for one in client.ps().models] == ["own"]
        client.generate("other", "hello", keep_alive="10m")
        own, other = client.ps().models
        assert own.expires_at
        assert own.expires_at > datetime.now(UTC) + timedelta(days=365)
        assert other.expires_at
        assert timedelta(minutes=9) < other.expires_at - datetime.now(UTC) < timedelta(minutes=10)
        assert (other.context_length, other.size_vram) == (4096, 0)
        for century in (1e10, 1e300, "99999999h"):
            client.generate("other", "hello", keep_alive=century)
            assert (ending := client.ps().models[-1].expires_at) is not None
            assert ending.year > 2100
        client.generate("other", keep_alive=0)
        assert [one.model for one in client.ps().models] == ["own"]


def test_version_and_health(http: httpx2.Client) -> None:
    """The library's own version."""
    assert http.get("/api/version").json() == {"version": lib_mlx.__version__}
    assert http.get("/api/health").json() == {"status": "ok"}


def test_embed(client: ollama.Client, http: httpx2.Client) -> None:
    """A vector for each text, of length one; the older endpoint gives the same for one text."""
    answer = client.embed("crafted", ["hello", "other"])
    assert len(answer.embeddings) == 2
    assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-5) for vector in answer.embeddings)
    assert answer.prompt_eval_count
    assert client.embeddings("crafted", "hello").embedding == answer.embeddings[0]
    assert len(client.embed("crafted", "hello", dimensions=4).embeddings[0]) == 4
    assert client.embed("crafted", []).embeddings == []


def test_long_texts_are_cut_if_that_is_asked_for(client: ollama.Client) -> None:
    """Otherwise they are refused with both counts."""
    long = "x " * 5000
    assert client.embed("crafted", long, truncate=True).prompt_eval_count == 4096
    for truncate in (None, False):
        with pytest.raises(ollama.ResponseError, match="context holds 4096"):
            client.embed("crafted", long, truncate=truncate)


@pytest.mark.parametrize("path", ["pull", "push", "create", "copy", "delete", "blobs/sha256:x"])
def test_what_changes_models_is_refused(http: httpx2.Client, path: str) -> None:
    """A server does not change which models there are; the error says what does."""
    answer = http.request("DELETE" if path == "delete" else "POST", f"/api/{path}", json={"model": "x"})
    assert answer.status_code == 400
    assert "lib-mlx pull" in answer.json()["error"]
