"""Downloads one file over HTTP into a cache: completely and checked, or not at all.

It uses plain ``urllib``, so fetching torchvision's weights needs no further dependency. Proxies come from the
environment, as its users expect.
"""

from __future__ import annotations

import hashlib
import http
import http.client
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from service.models.cache import file_sha256
from service.models.checkpoints.partial import Partial, claim, sweep

#: Called with the bytes done and, if the server told it, the total.
Progress = Callable[[int, int | None], None]

_CHUNK = _MIB = 1 << 20

#: Seconds without a byte after which a connection counts as dead.
_SILENCE = 60.0

#: Most connections in a row that bring less than a chunk; then the download fails.
_POOR_CONNECTIONS = 3


class DownloadError(Exception):
    """The file could not be downloaded. ``status`` is the server's HTTP status if it answered."""

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
    """Downloads to ``destination`` and returns the SHA-256, 64 hex digits. Raises `DownloadError`.

    The bytes go to a neighbouring file (partial.py), which takes the name only if length and hash are right. An
    interrupted download is resumed, by this process or the next, if the server can confirm that the content is
    unchanged. Of several processes that start together, one downloads and the others wait for it.
    """
    request = urllib.request.Request(
        url, data=body, headers={"User-Agent": "imagenet-serve", **(headers or {})}
    )
    report = progress or terminal_progress(destination.name)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        sweep(destination.parent)
        with claim(destination, lambda done: report(done, None)) as partial:
            if partial is not None:
                return _fetch(request, partial, sha256_prefix, report)
        digest = file_sha256(destination)
    except OSError as error:
        raise DownloadError(error.strerror or str(error)) from error
    if not digest.startswith(sha256_prefix):
        raise DownloadError(f"another process fetched it, and its SHA-256 begins with {digest[:8]}")
    return digest


def terminal_progress(name: str) -> Progress:
    """Returns a progress line on stderr that rewrites itself; does nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        return lambda done, total: None

    def draw(done: int, total: int | None) -> None:
        of = f"/{total / _MIB:.0f}" if total else ""
        sys.stderr.write(f"\r{name}  {done / _MIB:.0f}{of} MiB" + ("\n" if done == total else ""))
        sys.stderr.flush()

    return draw


def _fetch(request: urllib.request.Request, partial: Partial, sha256_prefix: str, report: Progress) -> str:
    """Downloads through as many connections as it takes, as long as each brings something."""

    def resumable() -> bool:
        # Without a validator or a hash nobody could tell whether the rest belongs to these bytes.
        return partial.size > 0 and bool(partial.mark(request.full_url) or sha256_prefix)

    if partial.mark(request.full_url) is None or not resumable():
        partial.restart(request.full_url, "")
    poor = 0
    while True:
        before = partial.size
        try:
            digest = _store(request, partial, sha256_prefix, report)
            partial.publish()
            return digest
        except _Another:
            partial.restart(request.full_url, "")
            poor += 1
        except _Cut as error:
            gained = partial.size - before
            poor = poor + 1 if gained < _CHUNK else 0
            if gained <= 0 or poor >= _POOR_CONNECTIONS or not resumable():
                if not resumable():
                    partial.discard()
                raise DownloadError(str(error)) from error
        except DownloadError:
            if not resumable():
                partial.discard()
            raise
        except OSError:  # mostly a full disk: these bytes would keep others from it
            partial.discard()
            raise
        if poor >= _POOR_CONNECTIONS:
            partial.discard()
            raise DownloadError("the server sends another content each time")


class _Cut(Exception):
    """The connection ended too early; the bytes that came are right."""


class _Another(Exception):
    """The partial bytes do not belong to the server's present content."""


def _store(request: urllib.request.Request, partial: Partial, sha256_prefix: str, report: Progress) -> str:
    """Runs one connection. Appends to the partial bytes, or starts anew if the server does."""
    start = partial.size
    mark = partial.mark(request.full_url)
    for name in ("Range", "If-range"):  # in urllib's spelling
        request.remove_header(name)
    if start:
        request.add_header("Range", f"bytes={start}-")
        if mark:
            request.add_header("If-Range", mark)
    try:
        with urllib.request.build_opener(_SameHostOnly).open(request, timeout=_SILENCE) as response:
            goes_on = str(response.headers.get("Content-Range", "")).startswith(f"bytes {start}-")
            if start and response.status != http.HTTPStatus.PARTIAL_CONTENT:
                start = 0
            elif start and not goes_on:
                raise _Another
            if not start:
                partial.restart(request.full_url, _mark(response))
            return _receive(response, partial, start, sha256_prefix, report)
    except urllib.error.HTTPError as error:
        with error:
            if start and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise _Another from error
            raise DownloadError(f"the server answered {error.code} {error.reason}", error.code) from error
    except urllib.error.URLError as error:
        raise _Cut(f"the server cannot be reached ({error.reason})") from error
    except http.client.HTTPException as error:
        raise _Cut(f"the server broke off ({type(error).__name__})") from error
    except (ConnectionError, TimeoutError) as error:
        raise _Cut(f"the server broke off ({error.strerror or type(error).__name__})") from error


def _receive(
    response: http.client.HTTPResponse, partial: Partial, start: int, sha256_prefix: str, report: Progress
) -> str:
    length = response.headers.get("Content-Length")
    total = start + int(length) if length and length.isdigit() else None
    digest, done = _copy(response, partial.file, start, total, report)
    if total is not None and done != total:
        raise _Cut(f"the connection was cut after {done} of {total} bytes")
    if not digest.startswith(sha256_prefix):
        if start:
            raise _Another
        partial.restart(response.url, "")
        raise DownloadError(f"its SHA-256 begins with {digest[:8]}, not with {sha256_prefix}")
    return digest


def _mark(response: http.client.HTTPResponse) -> str:
    """Returns a validator for ``If-Range``: a strong ETag, or a date; empty without one."""
    tag = str(response.headers.get("ETag") or "")
    return tag if tag.startswith('"') else str(response.headers.get("Last-Modified") or "")


def _copy(
    response: http.client.HTTPResponse, file: BinaryIO, start: int, total: int | None, report: Progress
) -> tuple[str, int]:
    """Hashes the first ``start`` bytes of ``file`` and appends the response's. Returns the SHA-256 and the length of
    all."""
    digest, done = hashlib.sha256(), 0
    file.seek(0)
    while done < start and (chunk := file.read(min(_CHUNK, start - done))):
        digest.update(chunk)
        done += len(chunk)
    report(done, total)
    # read1 returns what has arrived: on a slow network a whole chunk would be a long silence.
    while chunk := response.read1(_CHUNK):
        file.write(chunk)
        file.flush()  # the next process can resume here, whatever ends this one
        digest.update(chunk)
        done += len(chunk)
        report(done, total)
    return digest.hexdigest(), done


class _SameHostOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects and drops the credentials when they lead to another host."""

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
