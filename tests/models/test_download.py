"""Downloads go on where they stopped, whoever stopped them, and several processes fetch a file once."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Semaphore

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.models.checkpoints import download, partial
from service.models.checkpoints.download import DownloadError, fetch
from service.models.runtimes import manifest
from tests.models.loopback import Reply, Request, serve

CONTENT = bytes(range(256)) * 16_000  # 4 MB: several chunks
OTHER = CONTENT[::-1]


def ranged(
    content: bytes, request: Request, tag: str = '"one"', cut: int | None = None, hang: bool = False
) -> Reply:
    """As a server with ranges answers; ``cut`` ends the connection after so many bytes."""
    headers = {"ETag": tag}
    wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
    if wanted is None or request.headers.get("if-range", tag) != tag:
        return Reply(200, content, headers, cut, hang)
    start = int(wanted[1])
    if start >= len(content):
        return Reply(416, b"", headers)
    headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    return Reply(206, content[start:], headers, cut, hang)


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(0, len(CONTENT)), max_size=6),
    ranges=st.booleans(),
    hashed=st.booleans(),
    tag=st.sampled_from(['"strong"', 'W/"weak"', ""]),
)
def test_whatever_cuts_it_the_file_is_whole_or_not_there(
    cuts: list[int], ranges: bool, hashed: bool, tag: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    target = tmp_path_factory.mktemp("cache") / "weights.pth"
    prefix = hashlib.sha256(CONTENT).hexdigest()[:8] if hashed else ""
    left = list(cuts)

    def answer(request: Request) -> Reply:
        cut = left.pop(0) if left else None
        return ranged(CONTENT, request, tag, cut) if ranges else Reply(200, CONTENT, cut=cut)

    with serve(answer) as server:
        for _ in range(len(cuts) + 1):  # each is a process that starts again
            try:
                digest = fetch(f"{server.url}/w", target, sha256_prefix=prefix)
                break
            except DownloadError:
                assert not target.exists()
    assert digest == hashlib.sha256(CONTENT).hexdigest()
    assert target.read_bytes() == CONTENT
    assert leftovers(target.parent) == {target.name}


def test_a_connection_that_breaks_is_gone_on_with_at_once(tmp_path: Path) -> None:
    with serve(lambda request: ranged(CONTENT, request, cut=1_500_000)) as server:
        fetch(f"{server.url}/w", tmp_path / "w")
        starts = [request.headers.get("range") for request in server.requests]
    assert (tmp_path / "w").read_bytes() == CONTENT
    assert starts == [None, "bytes=1500000-", "bytes=3000000-"]


@pytest.mark.parametrize("hashed", [True, False])
def test_what_the_server_has_changed_meanwhile_is_fetched_from_the_beginning(
    tmp_path: Path, hashed: bool
) -> None:
    """With a hash to hold it against and without: the tag then says so."""
    prefix = hashlib.sha256(OTHER).hexdigest()[:8] if hashed else ""
    tag = "" if hashed else '"two"'
    with serve(lambda request: ranged(CONTENT, request, "" if hashed else '"one"', cut=100_000)) as server:
        with pytest.raises(DownloadError, match="cut after"):
            fetch(f"{server.url}/w", tmp_path / "w", sha256_prefix=prefix)
        half = (tmp_path / "w.partial").read_bytes()
        origin = (tmp_path / "w.partial.from").read_text()
    assert half == CONTENT[: len(half)]
    with serve(lambda request: ranged(OTHER, request, tag)) as server:
        # The same address, as a server that was updated would have.
        (tmp_path / "w.partial.from").write_text(re.sub(r"http://[^/]+", server.url, origin))
        fetch(f"{server.url}/w", tmp_path / "w", sha256_prefix=prefix)
    assert (tmp_path / "w").read_bytes() == OTHER


def test_bytes_of_another_address_are_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "w.partial").write_bytes(CONTENT[:999])
    (tmp_path / "w.partial.from").write_text('{"url": "http://elsewhere/w", "mark": "\\"one\\""}')
    with serve(lambda request: ranged(CONTENT, request)) as server:
        fetch(f"{server.url}/w", tmp_path / "w")
        assert [request.headers.get("range") for request in server.requests] == [None]
    assert (tmp_path / "w").read_bytes() == CONTENT


def test_a_server_that_is_down_for_a_moment_costs_nothing_of_what_is_there(tmp_path: Path) -> None:
    with serve(lambda request: ranged(CONTENT, request)) as server:
        url = f"{server.url}/w"
        (tmp_path / "w.partial").write_bytes(CONTENT[:2_000_000])
        (tmp_path / "w.partial.from").write_text(json.dumps({"url": url, "mark": '"one"'}))
        server.answer = lambda request: Reply(503)
        with pytest.raises(DownloadError, match="503"):
            fetch(url, tmp_path / "w")
        server.answer = lambda request: ranged(CONTENT, request)
        fetch(url, tmp_path / "w")
        assert server.requests[-1].headers["range"] == "bytes=2000000-"


def test_a_full_disk_is_not_filled_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> tuple[str, int]:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_copy", full)
    with (
        serve(lambda request: ranged(CONTENT, request)) as server,
        pytest.raises(DownloadError, match="No space left"),
    ):
        fetch(f"{server.url}/w", tmp_path / "w")
    assert leftovers(tmp_path) == set()


#: Without the packages' own imports, which bring torch: seconds, and none of it is used.
PROGRAM = """
import sys, types
from pathlib import Path
for name in ("service.models", "service.models.checkpoints"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [name.replace(".", "/")]
from service.models.checkpoints.download import fetch
fetch(sys.argv[1], Path(sys.argv[2]))
"""


def in_a_process(url: str, target: Path) -> subprocess.Popen[bytes]:
    root = Path(__file__).parent.parent.parent
    return subprocess.Popen([sys.executable, "-c", PROGRAM, url, str(target)], cwd=root)


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_killed_process_leaves_one_file_that_the_next_one_finishes(tmp_path: Path) -> None:
    """As a container that is restarted while its weights load, again and again."""
    target, held = tmp_path / "w", tmp_path / "w.partial"

    # A megabyte, then silence until the client is gone.
    with serve(lambda request: ranged(CONTENT, request, cut=1 << 20, hang=True)) as server:
        for kills in range(1, 4):
            process = in_a_process(f"{server.url}/w", target)
            until(lambda: held.exists() and held.stat().st_size >= kills << 20)  # noqa: B023
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert leftovers(tmp_path) == {"w.partial", "w.partial.from"}
        server.answer = lambda request: ranged(CONTENT, request)
        assert in_a_process(f"{server.url}/w", target).wait(60) == 0
        assert server.requests[-1].headers["range"] == f"bytes={3 << 20}-"
    assert target.read_bytes() == CONTENT
    assert leftovers(tmp_path) == {"w"}


def test_of_many_at_once_one_fetches_and_all_have_it(tmp_path: Path) -> None:
    waiting, everybody = Semaphore(0), Event()

    def answer(request: Request) -> Reply:
        everybody.wait(60)
        return ranged(CONTENT, request)

    def one(url: str) -> str:
        return fetch(url, tmp_path / "w", progress=lambda done, total: waiting.release())

    with serve(answer) as server, ThreadPoolExecutor(8) as threads:
        jobs = [threads.submit(one, f"{server.url}/w") for _ in range(8)]
        for _ in range(7):  # all but the one that the server keeps
            assert waiting.acquire(timeout=60)
        everybody.set()
        digests = {job.result(60) for job in jobs}
        assert len(server.requests) == 1
    assert digests == {hashlib.sha256(CONTENT).hexdigest()}
    assert leftovers(tmp_path) == {"w"}


def test_a_holder_that_hangs_or_a_file_system_without_locks_keeps_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial, "PATIENCE", 0.3)
    with (tmp_path / "w.partial").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with serve(lambda request: ranged(CONTENT, request)) as server:
            fetch(f"{server.url}/w", tmp_path / "w")
        assert (tmp_path / "w").read_bytes() == CONTENT

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with serve(lambda request: ranged(OTHER, request)) as server:
        fetch(f"{server.url}/w", tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == OTHER


def test_old_leftovers_are_swept_and_what_is_under_way_is_not(tmp_path: Path) -> None:
    old, held, fresh = (tmp_path / f"{name}.partial" for name in ("vgg19.0123abcd", "held", "fresh"))
    for path in (old, held, fresh):
        path.write_bytes(b"x")
    for path in (old, held):
        os.utime(path, (0, 0))
    with held.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        partial.sweep(tmp_path)
    assert leftovers(tmp_path) == {"held.partial", "fresh.partial"}
    partial.sweep(tmp_path / "there is none")


def test_half_done_folders_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    dead, living, young = (tmp_path / f"{name}.partial" for name in ("dead", "living", "young"))
    for path in (dead, living, young):
        path.mkdir()
        (path / "model.bin").write_bytes(b"x")
    for path in (dead, living):
        os.utime(path, (0, 0))
    with partial.locked(living):
        partial.sweep(tmp_path, 60.0)
        assert leftovers(tmp_path) == {"living.partial", "young.partial"}
    partial.sweep(tmp_path, 60.0, "somebody")
    assert leftovers(tmp_path) == {"living.partial", "young.partial"}
    partial.sweep(tmp_path, 60.0)
    assert leftovers(tmp_path) == {"young.partial"}


def test_an_artifact_is_written_beside_anybodys_files(tmp_path: Path) -> None:
    name = f"densenet.{'0a' * 16}.partial"
    for folder in (name, "movie.partial", "0a.partial"):
        (tmp_path / folder).mkdir()
        os.utime(tmp_path / folder, (0, 0))
    partial.sweep(tmp_path, 60.0, manifest._STEM)
    assert leftovers(tmp_path) == {"movie.partial", "0a.partial"}
