from __future__ import annotations

import hashlib
import json
import os
from base64 import b64encode
from typing import TYPE_CHECKING

import pytest

from lib_mlx.errors import DownloadFailed
from lib_mlx.models import fetch
from tests.models.web import Site, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = os.urandom(1_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
NAME = "some_model-1.0-py3-none-any.whl"
INDEX_VARIABLES = (
    "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL",
    "PIP_CONFIG_FILE",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*INDEX_VARIABLES, "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / "config"))


@pytest.fixture
def site() -> Iterator[Site]:
    with serve(Site(pages={f"/files/{NAME}": CONTENT})) as running:
        yield running


def get(site: Site, target: Path, digest: str = DIGEST, size: int = len(CONTENT)) -> list[tuple[int, int]]:
    steps: list[tuple[int, int]] = []
    url = f"{site.url}/files/{NAME}"
    fetch.fetch_file(url, target, size=size, sha256=digest, progress=lambda *step: steps.append(step))
    return steps


def test_a_file_arrives_whole(site: Site, tmp_path: Path) -> None:
    """The file bears its name only when complete, and progress ends at its size."""
    steps = get(site, tmp_path / "d" / NAME)
    assert (tmp_path / "d" / NAME).read_bytes() == CONTENT
    assert steps[0] == (0, len(CONTENT))
    assert steps[-1] == (len(CONTENT), len(CONTENT))
    assert [path.name for path in (tmp_path / "d").iterdir()] == [NAME]


def test_an_interrupted_download_goes_on(site: Site, tmp_path: Path) -> None:
    """Only what is missing is asked for, after a part left by another process and after broken connections."""
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:100_000])
    site.cut_after = [200_000, 300_000]
    get(site, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert [wanted for _, _, wanted in site.requests] == ["bytes=100000-", "bytes=300000-", "bytes=600000-"]


def test_a_server_without_ranges_starts_again(site: Site, tmp_path: Path) -> None:
    """A server that sends the whole file in spite of Range does not corrupt it."""
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:100_000])
    site.ranges = False
    get(site, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_dropped(site: Site, tmp_path: Path) -> None:
    """A part that cannot be right is started over."""
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT + b"x")
    get(site, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == CONTENT


@pytest.mark.parametrize("damage", [CONTENT[:-1] + b"?", CONTENT + b"more"])
def test_wrong_content_leaves_nothing(damage: bytes, site: Site, tmp_path: Path) -> None:
    """A file with another hash or size is an error, and neither it nor a part remains."""
    site.pages[f"/files/{NAME}"] = damage
    with pytest.raises(DownloadFailed, match="SHA-256"):
        get(site, tmp_path / NAME)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_part_is_not_resumed_for_ever(site: Site, tmp_path: Path) -> None:
    """When the part was wrong the download fails once, and the next one succeeds."""
    (tmp_path / f"{NAME}.part").write_bytes(b"?" * 100_000)
    with pytest.raises(DownloadFailed):
        get(site, tmp_path / NAME)
    get(site, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_a_server_that_sends_nothing_ends_in_an_error(site: Site, tmp_path: Path) -> None:
    """After a few fruitless attempts the download fails and keeps the part for another time."""
    site.cut_after = [1000, 0, 0, 0, 0, 0]
    with pytest.raises(DownloadFailed, match="closed early") as caught:
        get(site, tmp_path / NAME)
    assert "goes on from where it stopped" in caught.value.hint
    assert (tmp_path / f"{NAME}.part").read_bytes() == CONTENT[:1000]


def test_a_refusal_is_reported_at_once(site: Site, tmp_path: Path) -> None:
    """A 403 is not retried."""
    site.status[f"/files/{NAME}"] = 403
    with pytest.raises(DownloadFailed, match="answered 403"):
        get(site, tmp_path / NAME)
    assert len(site.requests) == 1


def test_interruption_keeps_the_part(site: Site, tmp_path: Path) -> None:
    """Ctrl-C in the middle leaves a part and no file."""

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch.fetch_file(
            f"{site.url}/files/{NAME}", tmp_path / NAME, size=len(CONTENT), sha256=DIGEST, progress=interrupt
        )
    assert [path.name for path in tmp_path.iterdir()] == [f"{NAME}.part"]
    get(site, tmp_path / NAME)
    assert site.requests[-1][2].startswith("bytes=")


@pytest.mark.parametrize("kind", ["text/html", "application/vnd.pypi.simple.v1+json"])
def test_the_index_page_leads_to_the_file(kind: str, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both forms of a simple index are read, with relative links."""
    html = f'<a href="../../files/other.whl">o</a><a href="../../files/{NAME}#sha256=00">n</a>'.encode()
    listing = {"files": [{"filename": "other.whl", "url": "x"}, {"filename": NAME, "url": f"../../files/{NAME}"}]}
    site.pages["/simple/some-model/"] = html if kind == "text/html" else json.dumps(listing).encode()
    site.types["/simple/some-model/"] = kind
    monkeypatch.setenv("PIP_INDEX_URL", f"{site.url}/simple/")
    assert fetch.find_file("some-model", NAME) == f"{site.url}/files/{NAME}"


def test_an_index_with_a_login_is_used(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """User and password of the index's address are sent, to files on the same host too."""
    site.login = "Basic " + b64encode(b"me:p@ss").decode()
    site.pages["/simple/some-model/"] = f'<a href="/files/{NAME}">n</a>'.encode()
    site.types["/simple/some-model/"] = "text/html"
    monkeypatch.setenv("UV_INDEX_URL", site.url.replace("://", "://me:p%40ss@") + "/simple")
    url = fetch.find_file("some-model", NAME)
    fetch.fetch_file(url, tmp_path / NAME, size=len(CONTENT), sha256=DIGEST, progress=lambda *_: None)
    assert (tmp_path / NAME).exists()


def test_every_index_that_fails_is_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """When no index has the file the error says why for each, and shows no password."""
    site.pages["/simple/some-model/"] = b"<html></html>"
    site.types["/simple/some-model/"] = "text/html"
    monkeypatch.setenv("PIP_INDEX_URL", f"{site.url}/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"http://u:secret@127.0.0.1:9/simple {site.url}/nowhere")
    with pytest.raises(DownloadFailed) as caught:
        fetch.find_file("some-model", NAME)
    assert "has no some_model" in caught.value.message
    assert "refused" in caught.value.message
    assert "answered 404" in caught.value.message
    assert "secret" not in str(caught.value)


def test_the_indexes_are_those_of_pip_and_uv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The default index is asked only where no other is configured; pip.conf and named uv indexes count."""
    monkeypatch.setattr(fetch, "_pip_config", dict)
    assert fetch.indexes() == [fetch.DEFAULT_INDEX]
    monkeypatch.setenv("UV_INDEX", "inner=https://a.example/simple/ https://b.example/simple?x=y")
    assert fetch.indexes() == [fetch.DEFAULT_INDEX, "https://a.example/simple", "https://b.example/simple?x=y"]
    monkeypatch.setenv("PIP_INDEX_URL", "https://c.example/simple")
    assert fetch.indexes()[0] == "https://c.example/simple"
    assert fetch.DEFAULT_INDEX not in fetch.indexes()
    monkeypatch.undo()
    for name in INDEX_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://d.example/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    assert fetch.indexes() == ["https://d.example/simple"]


def test_only_http_addresses_are_opened() -> None:
    """A file: or ftp: link on an index page is not followed."""
    with pytest.raises(OSError, match="not an http address"):
        fetch.open_url("file:///etc/passwd")
