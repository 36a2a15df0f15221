from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from typing import TYPE_CHECKING

import pytest

from lib_mlx.errors import DownloadFailed, ModelNotFound, UnsupportedModel
from lib_mlx.models import download, hub, store
from lib_mlx.models.folders import hub_cache
from tests.models.web import Site, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMIT = "a" * 40
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"hi",
    "model.safetensors": os.urandom(2_000_000),
    "pytorch_model.bin": b"pickled",
    "modeling_name.py": b"code",
    "onnx/config.json": b"{}",
}


def publish(site: Site, repo: str, files: dict[str, bytes]) -> None:
    """Put a repository on the site as the Hub's API shows it."""
    about = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
    tree = [
        {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        for name, data in files.items()
    ]
    for path, answer in ((f"revision/{'main'}", about), (f"revision/{COMMIT}", about), (f"tree/{COMMIT}", tree)):
        site.pages[f"/api/models/{repo}/{path}"] = json.dumps(answer).encode()
        site.types[f"/api/models/{repo}/{path}"] = "application/json"
    for name, data in files.items():
        path = f"/{repo}/resolve/{COMMIT}/{name}"
        site.pages[path] = data
        site.headers[path] = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, own_folders: Path) -> Iterator[Site]:
    with serve(Site(pages={"/api/models": b"[]"})) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        publish(running, "org/name", FILES)
        yield running


def test_weights_and_small_files_are_fetched_and_nothing_else(site: Site) -> None:
    """A repository arrives without pickled weights, code and subfolders, and then resolves by its name."""
    steps: list[tuple[str, int, int]] = []
    path = download.pull("org/name", lambda *step: steps.append(step))
    assert sorted(file.name for file in path.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert store.resolve("org/name") == path
    total = sum(len(FILES[file.name]) for file in path.iterdir())
    assert steps[-1] == ("download", total, total)


def test_a_short_name_comes_from_the_hub_when_it_answers(site: Site) -> None:
    """smollm2 is taken from its repository; the package index is not asked."""
    publish(site, "HuggingFaceTB/SmolLM2-135M-Instruct", FILES)
    path = download.pull("smollm2")
    assert path.is_relative_to(hub_cache())
    site.requests.clear()
    assert download.pull("smollm2") == path
    assert site.requests == []


def test_a_repository_without_safetensors_is_refused_before_the_download(site: Site) -> None:
    """Pickled weights are never fetched: the error says so."""
    publish(site, "org/pickled", {"config.json": b"{}", "pytorch_model.bin": b"pickled"})
    with pytest.raises(UnsupportedModel, match="safetensors"):
        download.pull("org/pickled")
    assert not any("resolve" in path and method == "GET" for method, path, _ in site.requests)


def test_an_unknown_repository_is_model_not_found(site: Site) -> None:
    """The Hub's 404 is `model_not_found`; a gated repository says how to get access."""
    site.headers["/api/models/org/none/revision/main"] = {"X-Error-Code": "RepoNotFound"}
    with pytest.raises(ModelNotFound, match="org/none"):
        download.pull("org/none")
    site.status["/api/models/org/gated/revision/main"] = 403
    site.headers["/api/models/org/gated/revision/main"] = {"X-Error-Code": "GatedRepo"}
    with pytest.raises(DownloadFailed, match="terms") as caught:
        download.pull("org/gated")
    assert "HF_TOKEN" in caught.value.hint
    with pytest.raises(ModelNotFound):
        download.pull("org/name/more")


def test_a_cached_repository_is_used_when_the_hub_is_away(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pulling what is cached succeeds offline; what is not cached is `download_failed` with the reason."""
    path = download.pull("org/name")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert download.pull("org/name") == path
    with pytest.raises(DownloadFailed, match="HF_HUB_OFFLINE"):
        download.pull("org/other")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert download.pull("org/name") == path
    with pytest.raises(DownloadFailed, match="cannot be reached"):
        download.pull("org/other")


def test_a_silent_hub_costs_less_than_three_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts and never answers is given up in time."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        start = time.monotonic()
        assert hub.is_reachable() is False
        assert time.monotonic() - start < 3


def test_a_flipped_bit_in_the_cache_is_found(site: Site) -> None:
    """The check of the cache reads every file, whether Git or Git LFS has named it, and names the damaged ones."""
    publish(site, "org/name", FILES)
    path = download.pull("org/name")
    repos: list[str] = []
    assert hub.verify_cache(repos.append) == []
    assert repos == ["org/name"]
    blob = path.parents[1] / "blobs" / hashlib.sha1(b"blob 4\0text", usedforsecurity=False).hexdigest()
    blob.write_bytes(b"text")
    (path / "README.md").symlink_to(blob)
    assert hub.verify_cache() == []
    for name in ("model.safetensors", "README.md"):
        content = bytearray((path / name).read_bytes())
        content[-1] ^= 1
        (path / name).write_bytes(content)
    assert sorted(hub.verify_cache()) == ["org/name: README.md is damaged", "org/name: model.safetensors is damaged"]
