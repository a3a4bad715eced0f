"""One file over HTTP into a cache: whole and checked, or not there at all.

Plain ``urllib``, so that fetching torchvision's weights needs no further dependency. Proxies are taken
from the environment, as its users expect.
"""

from __future__ import annotations

import hashlib
import http.client
import sys
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

#: Called with the bytes done and, where the server told it, the total.
Progress = Callable[[int, int | None], None]

_CHUNK = 1 << 20

#: Seconds without a single byte after which a connection counts as dead.
_SILENCE = 60.0


class DownloadError(Exception):
    """The file could not be had. ``status`` is the server's answer where there was one."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


def fetch(
    url: str,
    destination: Path,
    *,
    sha256_prefix: str = "",
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
    progress: Progress | None = None,
) -> str:
    """Download to ``destination`` and return the SHA-256, 64 hex digits.

    The bytes go to a temporary neighbour that takes the name only when the length and the hash are
    right, so a cut connection or a full disk leaves no half file behind, and two processes that start
    together do not meet. Raises `DownloadError`.
    """
    request = urllib.request.Request(
        url, data=body, headers={"User-Agent": "imagenet-serve", **(headers or {})}
    )
    report = progress or terminal_progress(destination.name)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _opener().open(request, timeout=_SILENCE) as response:
            return _store(response, destination, sha256_prefix, report)
    except urllib.error.HTTPError as error:
        with error:
            raise DownloadError(f"the server answered {error.code} {error.reason}", error.code) from error
    except urllib.error.URLError as error:
        raise DownloadError(f"the server cannot be reached ({error.reason})") from error
    except http.client.HTTPException as error:
        raise DownloadError(f"the server broke off ({type(error).__name__})") from error
    except OSError as error:
        raise DownloadError(error.strerror or str(error)) from error


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, 64 hex digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def terminal_progress(name: str) -> Progress:
    """A line on stderr that rewrites itself, where stderr is a terminal; elsewhere nothing."""
    if not sys.stderr.isatty():
        return lambda done, total: None

    def draw(done: int, total: int | None) -> None:
        of = f"/{total / 1e6:.0f}" if total else ""
        sys.stderr.write(f"\r{name}  {done / 1e6:.0f}{of} MB" + ("\n" if done == total else ""))
        sys.stderr.flush()

    return draw


def _store(
    response: http.client.HTTPResponse, destination: Path, sha256_prefix: str, report: Progress
) -> str:
    length = response.headers.get("Content-Length")
    total = int(length) if length and length.isdigit() else None
    partial = destination.with_name(f"{destination.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("xb") as file:
            digest, done = _copy(response, file, total, report)
        if total is not None and done != total:
            raise DownloadError(f"the connection was cut after {done} of {total} bytes")
        if not digest.startswith(sha256_prefix):
            raise DownloadError(f"its SHA-256 begins with {digest[:8]}, not with {sha256_prefix}")
        partial.replace(destination)
    finally:
        partial.unlink(missing_ok=True)
    return digest


def _copy(
    response: http.client.HTTPResponse, file: BinaryIO, total: int | None, report: Progress
) -> tuple[str, int]:
    digest, done = hashlib.sha256(), 0
    report(done, total)
    while chunk := response.read(_CHUNK):
        file.write(chunk)
        digest.update(chunk)
        done += len(chunk)
        report(done, total)
    return digest.hexdigest(), done


class _SameHostOnly(urllib.request.HTTPRedirectHandler):
    """Follow redirects, and leave the credentials behind when they lead to another host."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if (
            following is not None
            and urllib.parse.urlsplit(newurl).netloc != urllib.parse.urlsplit(req.full_url).netloc
        ):
            following.remove_header("Authorization")
        return following


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_SameHostOnly)
