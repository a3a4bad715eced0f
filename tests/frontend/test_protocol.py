"""Requests of every framing, however their bytes fall: each is read as what it is, and as nothing else."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.api.wire import on_the_services_loop, place
from tests.frontend.fed import Fed
from tests.loops import on_a_loop, until
from tests.uploads import png

#: What a proxy in front would take for a part of a body.
SMUGGLED = b"GET /livez HTTP/1.1\r\nHost: smuggled\r\n\r\n"
OFFERS = (
    b"",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n",
    b"Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Key: x\r\n",
    b"Connection: upgrade\r\nUpgrade: TLS/1.0, h2c\r\n",
)


@dataclass(frozen=True)
class Sent:
    method: str
    body: bytes
    chunked: bool
    offer: bytes

    def as_bytes(self) -> bytes:
        target = b"x:80" if self.method == "CONNECT" else b"/a"
        head = self.method.encode() + b" " + target + b" HTTP/1.1\r\nHost: x\r\n" + self.offer
        if self.chunked:
            half = len(self.body) // 2
            parts = [part for part in (self.body[:half], self.body[half:]) if part]
            chunks = b"".join(b"%x;e=1\r\n%s\r\n" % (len(part), part) for part in parts)
            return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nTrailer: x\r\n\r\n"
        length = b"Content-Length: %d\r\n" % len(self.body) if self.body else b""
        return head + length + b"\r\n" + self.body

    @property
    def as_asked(self) -> tuple[str, str, bytes]:
        return (self.method, "/" if self.method == "CONNECT" else "/a", self.body)


BODIES = st.sampled_from([b"", b"x", SMUGGLED, b"\r\n\r\n" * 3, b"0\r\n\r\n" + SMUGGLED]) | st.binary(
    max_size=40
)
REQUESTS = st.builds(
    Sent,
    st.sampled_from(["GET", "POST", "OPTIONS", "CONNECT"]),
    BODIES,
    st.booleans(),
    st.sampled_from(OFFERS),
)


@given(st.lists(REQUESTS, min_size=1, max_size=5), st.data())
@settings(max_examples=150)
def test_every_request_is_read_whole_and_alone_however_its_bytes_fall(
    requests: list[Sent], data: st.DataObject
) -> None:
    sent = b"".join(request.as_bytes() for request in requests)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(sent) - 1), max_size=8)))
    pieces = [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]

    @on_a_loop
    async def run() -> None:
        fed = Fed()
        await fed.feed(*pieces)
        await until(lambda: len(fed.asked) == len(requests) and len(fed.statuses) == len(requests))
        assert fed.asked == [request.as_asked for request in requests]
        assert fed.statuses == [200] * len(requests)
        assert fed.most == 1
        assert fed.connections.intake.held == 0
        assert not fed.pipe.closed

    run()


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("chunked", [False, True])
def test_an_offer_to_upgrade_is_passed_over_at_every_split(offer: bytes, chunked: bool) -> None:
    request = Sent("POST", SMUGGLED, chunked, offer)
    sent = request.as_bytes() + SMUGGLED.replace(b"smuggled", b"x")

    @on_a_loop
    async def run() -> None:
        for at in range(1, len(sent)):
            fed = Fed()
            await fed.feed(sent[:at], sent[at:])
            await until(lambda fed=fed: len(fed.statuses) == 2)  # type: ignore[misc]
            assert fed.asked == [request.as_asked, ("GET", "/livez", b"")]

    run()


@on_a_loop
async def test_what_follows_a_request_waits_until_its_answer_is_taken() -> None:
    fed = Fed(answer=1000)
    fed.pipe.takes = False
    many = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n" * 500
    fed.pipe.protocol.data_received(many)
    await until(lambda: len(fed.asked) == 1 and bool(fed.pipe.waiting))
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(fed.asked) == 1
    assert fed.pipe.paused
    assert len(many) > fed.connections.intake.held > len(many) * 0.9
    fed.pipe.take()
    await until(lambda: len(fed.statuses) == 500)
    assert not fed.pipe.paused
    assert fed.connections.intake.held == 0


@on_a_loop
async def test_successors_that_nobody_has_room_for_cost_the_connection_not_the_answer() -> None:
    fed = Fed()
    fed.connections.intake.limit = 100
    fed.pipe.takes = False
    fed.pipe.protocol.data_received(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n" * 500)
    await until(lambda: bool(fed.pipe.waiting))
    fed.pipe.take()
    await until(lambda: fed.pipe.closed)
    assert fed.statuses == [200]


@pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java here")
def test_javas_own_client_uploads(tmp_path: Path) -> None:
    source = tmp_path / "Ask.java"
    source.write_text("""
        import java.net.URI; import java.net.http.*; import java.nio.file.*;
        class Ask { public static void main(String[] given) throws Exception {
            var client = HttpClient.newHttpClient();
            for (int i = 0; i < 3; i++) {
                var request = HttpRequest.newBuilder(URI.create(given[0])).header("Content-Type", "image/png");
                var photo = HttpRequest.BodyPublishers.ofFile(Path.of(given[1]));
                var sent = i == 2 ? HttpRequest.BodyPublishers.fromPublisher(photo) : photo;
                var answer = client.send(request.expectContinue(i == 1).POST(sent).build(),
                    HttpResponse.BodyHandlers.ofString());
                System.out.println(answer.statusCode());
        } } }""")
    (tmp_path / "photo.png").write_bytes(png(1))

    @on_the_services_loop
    async def run() -> None:
        async with place() as here:
            host, port = here.address
            java = await asyncio.to_thread(
                subprocess.run,
                ["java", str(source), f"http://{host}:{port}/predict", str(tmp_path / "photo.png")],
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert java.stdout.split() == ["200", "200", "200"], java.stderr

    run()


@on_a_loop
async def test_a_head_and_its_body_are_one_write() -> None:
    """uvloop makes a system call of each, and a segment: the client would wake twice."""
    fed = Fed(answer=1000)
    for count in range(1, 4):
        fed.pipe.protocol.data_received(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda count=count: len(fed.statuses) == count)  # type: ignore[misc]
        assert fed.pipe.writes == count
    assert fed.pipe.written.count(b"x" * 1000) == 3


@on_a_loop
async def test_an_answer_before_the_end_is_written_before_the_connection_closes() -> None:
    fed = Fed(answer=1000)
    fed.pipe.protocol.data_received(b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    await until(lambda: fed.pipe.closed)
    assert fed.pipe.written.endswith(b"x" * 1000)
