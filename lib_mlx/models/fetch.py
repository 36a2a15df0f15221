"""Fetching one known file from a Python package index: resumable, checked, and never half there.

Uses the index that pip or uv is configured with, the system's certificates (or `PIP_CERT`, `SSL_CERT_FILE`) and
the usual proxy variables.
"""

from __future__ import annotations

import base64
import configparser
import hashlib
import html.parser
import http.client
import json
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import platformdirs

from lib_mlx.errors import DownloadFailed
from lib_mlx.models.disk import is_full

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_INDEX = "https://pypi.org/simple"
TIMEOUT = 20.0  # seconds for a connection, and for each read of it
_ATTEMPTS = 4  # in a row without a single byte
_CHUNK = 1 << 18
_NETWORK_ERRORS = (OSError, http.client.HTTPException)  # URLError, TimeoutError and SSLError are OSErrors


def open_url(url: str, headers: dict[str, str] | None = None, *, method: str = "GET", timeout: float = TIMEOUT) -> Any:
    """Open an http(s) URL, which may hold a user and password; the response is a context manager.

    Raises:
        OSError, http.client.HTTPException: the network's or the server's refusal (`urllib.error.HTTPError`).
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise urllib.error.URLError(f"not an http address: {parts.scheme}")
    headers = {"User-Agent": "lib-mlx", **(headers or {})}
    if parts.username is not None:
        secret = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(secret.encode()).decode()
        parts = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    request = urllib.request.Request(parts.geturl(), headers=headers, method=method)  # noqa: S310 - checked above
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=tls_context()))
    return opener.open(request, timeout=timeout)


def tls_context() -> ssl.SSLContext:
    """Return what checks certificates: by the file that the environment names, else as the system does."""
    bundle = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE") or os.environ.get("REQUESTS_CA_BUNDLE")
    if bundle and Path(bundle).is_file():
        return ssl.create_default_context(cafile=bundle)
    import truststore

    return truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def indexes() -> list[str]:
    """Return the package indexes to ask, in order: those uv and pip are told of, else the default one."""
    env = os.environ
    first = [env.get(name, "") for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")]
    config = _pip_config()
    first.append(config.get("index-url", ""))
    if not any(first):
        first = [DEFAULT_INDEX]
    names = ("UV_INDEX", "UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL")
    more = " ".join([*(env.get(name, "") for name in names), config.get("extra-index-url", "")]).split()
    plain = (index.partition("=")[2] if "=" in index.partition("://")[0] else index for index in [*first, *more])
    return [index.rstrip("/") for index in dict.fromkeys(plain) if index]


def _pip_config() -> dict[str, str]:
    """Return the `[global]` section of pip's configuration files, the user's over the machine's."""
    parser = configparser.RawConfigParser()
    files = [Path("/etc/pip.conf"), Path("~/.pip/pip.conf").expanduser()]
    files.append(platformdirs.user_config_path("pip", appauthor=False) / "pip.conf")
    files.append(Path("~/.config/pip/pip.conf").expanduser())
    files.append(Path(os.environ.get("PIP_CONFIG_FILE", os.devnull)))
    try:
        parser.read(files, encoding="utf-8")
        return dict(parser.items("global")) if parser.has_section("global") else {}
    except (configparser.Error, UnicodeDecodeError):
        return {}


def find_file(project: str, filename: str) -> str:
    """Return the URL of a project's file on the first index that has it.

    Raises:
        DownloadFailed: no index could be reached or has the file.
    """
    reasons = []
    for index in indexes():
        shown = urllib.parse.urlsplit(index).hostname or index
        try:
            found = _find_on(index, project, filename)
        except _NETWORK_ERRORS as error:
            reasons.append(f"{shown}: {_reason(error)}")
            continue
        except ValueError as error:  # a page that is neither JSON nor text
            reasons.append(f"{shown}: its answer cannot be read ({error})")
            continue
        if found:
            return found
        reasons.append(f"{shown}: has no {filename}")
    raise DownloadFailed(
        f"{filename} could not be found on a package index ({'; '.join(reasons)}).",
        hint="Check the network; behind a mirror or proxy set PIP_INDEX_URL, HTTPS_PROXY and SSL_CERT_FILE.",
    )


def _find_on(index: str, project: str, filename: str) -> str | None:
    page = f"{index}/{project}/"
    accept = {"Accept": "application/vnd.pypi.simple.v1+json, text/html;q=0.5"}
    with open_url(page, accept) as response:
        body = response.read(16 << 20)
        base, kind = response.geturl(), response.headers.get_content_type()
    links = [str(file["url"]) for file in json.loads(body)["files"]] if kind.endswith("json") else _links(body)
    for link in links:
        url = urllib.parse.urljoin(base, link)
        if urllib.parse.unquote(urllib.parse.urlsplit(url).path).endswith("/" + filename):
            return _with_login(url, index)
    return None


def _with_login(url: str, index: str) -> str:
    """Carry the index's user and password over to files of the same host."""
    login = urllib.parse.urlsplit(index).netloc.rpartition("@")[0]
    parts = urllib.parse.urlsplit(urllib.parse.urldefrag(url).url)
    same = parts.hostname == urllib.parse.urlsplit(index).hostname
    return parts._replace(netloc=f"{login}@{parts.netloc}").geturl() if login and same else parts.geturl()


def _links(page: bytes) -> list[str]:
    class Anchors(html.parser.HTMLParser):
        found: list[str] = []  # noqa: RUF012 - one instance

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag == "a":
                self.found += [value for key, value in attrs if key == "href" and value]

    anchors = Anchors()
    anchors.feed(page.decode("utf-8"))
    return anchors.found


def fetch_file(url: str, target: Path, *, size: int, sha256: str, progress: Callable[[int, int], None]) -> Path:
    """Download `url` to `target`, resuming `target`.part if it is there; return `target`.

    Only a file of the right size and hash ever bears the name `target`. When interrupted the part stays and the
    next call goes on from it; when the content is wrong nothing stays.

    Raises:
        DownloadFailed: the server refused, the connection failed for good, or the content is not the expected.
        OSError: the file cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    if part.exists() and part.stat().st_size > size:
        part.unlink()
    failures = 0
    while (have := part.stat().st_size if part.exists() else 0) < size:
        try:
            _append(url, part, have, size, progress)
            failure: Exception = ConnectionError("the connection was closed early")
        except urllib.error.HTTPError as error:
            if error.code != 416 and error.code < 500:
                raise _failed(target.name, error) from None
            if error.code == 416:
                part.unlink(missing_ok=True)
            failure = error
        except _NETWORK_ERRORS as error:
            if is_full(error):
                raise
            failure = error
        failures = 0 if part.exists() and part.stat().st_size > have else failures + 1
        if failures >= _ATTEMPTS:
            raise _failed(target.name, failure)
        time.sleep(0.2 * failures)
    _check(part, size, sha256)
    part.replace(target)
    return target


def _append(url: str, part: Path, have: int, size: int, progress: Callable[[int, int], None]) -> None:
    with open_url(url, {"Range": f"bytes={have}-"} if have else None) as response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        with part.open("ab" if resumed else "wb") as file:
            _copy(response, file, have if resumed else 0, size, progress)


def _copy(response: IO[bytes], file: IO[bytes], done: int, size: int, progress: Callable[[int, int], None]) -> None:
    progress(done, size)
    while done <= size and (chunk := response.read(_CHUNK)):
        file.write(chunk)
        done += len(chunk)
        progress(min(done, size), size)


def _check(part: Path, size: int, sha256: str) -> None:
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256 or part.stat().st_size != size:
        part.unlink()
        raise DownloadFailed(
            f"{part.name.removesuffix('.part')} is not the expected file: its SHA-256 is {found}, not {sha256}.",
            hint="Nothing was kept. Try again; if it happens again, the package index or a proxy alters files.",
        )


def _failed(name: str, error: Exception) -> DownloadFailed:
    return DownloadFailed(
        f"{name} could not be downloaded: {_reason(error)}.",
        hint="Check the network and try again; the download goes on from where it stopped.",
    )


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code}"
    reason = getattr(error, "reason", None) or error
    return str(reason) or type(error).__name__
