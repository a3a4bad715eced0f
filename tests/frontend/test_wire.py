"""Clients that are slow, endless, broken or half gone, on real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import struct

import pytest

from service.frontend import connections, protocol
from tests.api.wire import PATIENCE, Place, Wire, on_the_services_loop, place
from tests.loops import until
from tests.uploads import png

PHOTO = png(1)
LIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


def post(body: bytes, *, length: int | None = None, path: str = "/predict", headers: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n{headers}"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


CHUNKED = (
    b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def reset_on_close(wire: Wire) -> None:
    """Lets the connection end with a reset: a client that only closes may still wait for its answer."""
    linger = struct.pack("ii", 1, 0)
    wire.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


async def still_serves(here: Place) -> None:
    answer = await here.ask(post(PHOTO))
    assert answer.status == 200
    assert here.idle


@on_the_services_loop
async def test_a_request_may_come_in_single_bytes() -> None:
    async with place() as here, here.connect() as wire:
        for byte in post(PHOTO[:40], length=40) + LIVE:
            await wire.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await wire.answer()).status == 422
        assert (await wire.answer()).status == 200


@on_the_services_loop
async def test_a_head_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    async with place() as here, here.connect() as wire:
        await wire.send(LIVE)
        assert (await wire.answer()).status == 200
        await wire.send(b"GET /livez HTTP/1.1\r\n")

        async def drip() -> None:
            while True:
                await wire.send(b"X-More: and more\r\n")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        answer = await wire.answer()
        assert (answer.status, answer.problem()["code"]) == (408, "request_timeout")
        assert await wire.closed()
        dripping.cancel()
        await still_serves(here)


@on_the_services_loop
async def test_a_silent_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SILENT_SECONDS", 0.1)
    async with place() as here, here.connect() as wire:
        assert await wire.closed()


@on_the_services_loop
async def test_empty_lines_do_not_keep_a_connection_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(connections, "_IDLE_SECONDS", 0.1)
    async with place() as here, here.connect() as wire:
        await wire.send(b"\r\n\r\n" + LIVE)
        assert (await wire.answer()).status == 200

        async def drip() -> None:
            while True:
                await wire.send(b"\r\n")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        assert await wire.closed()
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)


@on_the_services_loop
async def test_the_deadline_runs_from_the_first_byte_and_ends_a_body_too() -> None:
    async with place(settings={"request_timeout_ms": 400}) as here, here.connect() as wire:
        request = post(PHOTO)
        await wire.send(request[:30])
        await asyncio.sleep(0.5)
        await wire.send(request[30:-5])
        answer = await wire.answer()
        assert (answer.status, answer.problem()["code"]) == (504, "deadline_exceeded")
        await wire.send(request[-5:] + request[:30])  # whole, and on the same connection too late again
        await asyncio.sleep(0.5)
        await wire.send(request[30:])
        assert (await wire.answer()).status == 504


@on_the_services_loop
async def test_a_slow_upload_within_the_deadline_is_served() -> None:
    async with place() as here, here.connect() as wire:
        request = post(PHOTO)
        for at in range(0, len(request), 300):
            await wire.send(request[at : at + 300])
            await asyncio.sleep(0.01)
        assert (await wire.answer()).status == 200


@pytest.mark.parametrize("chunk", [b"1\r\nx\r\n", b"fffe\r\n" + bytes(0xFFFE) + b"\r\n", b"1;a=b\r\nx\r\n"])
@on_the_services_loop
async def test_a_body_without_end_is_refused_and_read_no_longer_than_a_moment(
    chunk: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "LINGER_SECONDS", 0.3)
    async with place(settings={"max_upload_bytes": 100_000}) as here, here.connect() as wire:
        await wire.send(CHUNKED + b"8\r\n" + PHOTO[:8] + b"\r\n")

        async def send() -> None:
            while True:
                await wire.send(chunk * (1 + 200_000 // len(chunk)))

        sending = asyncio.create_task(send())
        answer = await wire.answer()
        assert (answer.status, answer.problem()["code"]) == (413, "payload_too_large")
        assert await wire.closed()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await still_serves(here)


@on_the_services_loop
async def test_who_stops_after_an_early_answer_keeps_the_connection() -> None:
    async with place(settings={"max_upload_bytes": 100}) as here, here.connect() as wire:
        await wire.send(post(b"", length=500_000))
        assert (await wire.answer()).status == 413
        await wire.send(bytes(500_000) + LIVE)
        assert (await wire.answer()).status == 200


@on_the_services_loop
async def test_a_wrong_type_is_refused_while_the_body_arrives() -> None:
    form = (
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'
    )
    huge = PHOTO[:16] + (60_000).to_bytes(4, "big") * 2 + PHOTO[24:]
    async with place() as here:
        for content, code in (
            (b"%PDF-1.7" + bytes(9000), "unsupported_media_type"),
            (huge + bytes(9000), "image_too_large"),
        ):
            for start in (form, post(b"", length=9_000_000)):
                answer = await here.ask(start + content)
                assert answer.problem()["code"] == code
        answer = await here.ask(form.replace(b"--b", b"--c") + bytes(9000))
        assert answer.problem()["code"] == "malformed_multipart"
        await still_serves(here)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0" * 50,
        b"HELO mail\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01",
    ],
    ids=["zeros", "another protocol", "version", "path", "tls"],
)  # fmt: skip
@on_the_services_loop
async def test_what_is_no_http_gets_a_problem_document(garbage: bytes) -> None:
    async with place() as here, here.connect() as wire:
        await wire.send(garbage)
        answer = await wire.answer()
        wanted = (505, "http_version_not_supported") if b"HTTP/9" in garbage else (400, "malformed_request")
        assert (answer.status, answer.problem()["code"]) == wanted
        assert answer.headers["x-request-id"] == answer.problem()["request_id"]
        assert await wire.closed()
        await still_serves(here)


@on_the_services_loop
async def test_garbage_behind_a_request_never_takes_its_answer() -> None:
    async with place() as here, here.connect() as wire:
        await wire.send(LIVE + b"\0garbage\r\n\r\n")
        assert (await wire.answer()).status == 200
        assert (await wire.answer()).problem()["code"] == "malformed_request"
        assert await wire.closed()


@on_the_services_loop
async def test_a_broken_chunk_ends_the_request_it_is_in() -> None:
    async with place() as here, here.connect() as wire:
        await wire.send(CHUNKED + b"nonsense\r\n")
        assert (await wire.answer()).problem()["code"] == "malformed_request"
        assert await wire.closed()
        await still_serves(here)


@on_the_services_loop
async def test_headers_have_a_limit() -> None:
    async with place() as here, here.connect() as wire:
        answer = asyncio.create_task(wire.answer())
        await wire.send(LIVE[:-2] + b"X-Big: ")
        for _ in range(40):
            await wire.send(b"a" * 10_000)
            if answer.done():
                break
            await asyncio.sleep(0.01)
        assert (await answer).problem()["code"] == "headers_too_large"
        await still_serves(here)


@on_the_services_loop
async def test_trailers_are_not_collected() -> None:
    async with place() as here, here.connect() as wire:
        await wire.send(CHUNKED + b"%x\r\n" % len(PHOTO) + PHOTO + b"\r\n0\r\n")
        await wire.send(b"X-Trailer: of no use\r\n" * 1_000)
        await until(lambda: len(here.connections) == 1)
        (connection,) = here.connections
        await wire.send(b"X-Last: trailer\r\n")
        headers = connection.cycle.scope["headers"]
        await wire.send(b"\r\n")
        assert (await wire.answer()).status == 200
        assert len(headers) == 3


@on_the_services_loop
async def test_pipelined_requests_are_answered_in_order() -> None:
    bad = post(PHOTO[:50])
    async with place() as here, here.connect() as wire:
        await wire.send((post(PHOTO) + LIVE + bad) * 20)
        statuses = [(await wire.answer()).status for _ in range(60)]
        assert statuses == [200, 200, 422] * 20
        await still_serves(here)


@on_the_services_loop
async def test_a_client_that_closes_its_sending_half_is_answered() -> None:
    async with place() as here:
        for request, status in (
            (LIVE, 200),
            (post(PHOTO), 200),
            (post(b"nope"), 415),
            (LIVE + post(PHOTO), 200),
        ):
            async with here.connect() as wire:
                await wire.send(request)
                wire.writer.write_eof()
                for _ in range(request.count(b"HTTP/1.1") - 1):
                    assert (await wire.answer()).status == 200
                assert (await wire.answer()).status == status
                assert await wire.closed()
        async with here.connect() as wire:
            await wire.send(post(PHOTO)[:-1])
            wire.writer.write_eof()
            assert await wire.closed()
        await still_serves(here)


@on_the_services_loop
async def test_a_client_that_is_reset_frees_its_place() -> None:
    async with place() as here:
        here.engine.runner.may_run.clear()
        for half_closed in (False, True):
            async with here.connect() as wire:
                await wire.send(post(PHOTO))
                await until(lambda: not here.idle)
                reset_on_close(wire)
                if half_closed:
                    wire.writer.write_eof()
                wire.writer.transport.abort()
        here.engine.runner.may_run.set()
        await until(lambda: here.idle)
        await until(lambda: not len(here.connections))
        await still_serves(here)


@pytest.mark.parametrize("path", ["/predict", "/predict?top_k=3&", "/features", "/explain"])
@on_the_services_loop
async def test_a_place_is_free_before_the_device_is_when_its_client_hangs_up(path: str) -> None:
    async with place(slots=4, max_batch_size=1) as here:
        here.engine.runner.may_run.clear()
        async with here.connect() as first:
            await first.send(post(PHOTO))
            await until(lambda: len(here.engine.runner.batches) == 1)
            async with here.connect() as wire:
                await wire.send(post(PHOTO, path=path))
                await until(lambda: here.engine.arena.free == 2)
                reset_on_close(wire)
            await until(lambda: here.engine.arena.free == 3)
            here.engine.runner.may_run.set()
            assert (await first.answer()).status == 200
        assert len(here.engine.runner.batches) == 1


@on_the_services_loop
async def test_a_client_that_reads_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "STALLED_SECONDS", 0.2)
    async with place() as here, here.connect() as wire:
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        wire.writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 2000)
        await until(lambda: len(here.connections) == 1)
        await until(lambda: not here.connections, PATIENCE)


def form(parts: list[bytes]) -> bytes:
    body = b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"
    return (
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    ) + body


def part(name: bytes, content: bytes, more: bytes = b"") -> bytes:
    return b'Content-Disposition: form-data; name="' + name + b'"' + more + b"\r\n\r\n" + content


@on_the_services_loop
async def test_forms_of_all_kinds_of_malice() -> None:
    cases = {
        "too_many_images": [part(b"x", b"")] * 5000,
        "malformed_multipart": [b"X-Header: " + b"a" * 2_000_000 + b"\r\n\r\n"],
        "missing_file": [part(b"f\xffle", PHOTO)],
    }
    async with place() as here:
        for code, parts in cases.items():
            assert (await here.ask(form(parts))).problem()["code"] == code
        many = [b"\r\n".join(b"X-%d: y" % n for n in range(5000)) + b"\r\n\r\n"]
        assert (await here.ask(form(many))).problem()["code"] == "malformed_multipart"
        named = form([part(b"file", PHOTO, b'; filename="\xed\xa0\x80\xff\0.png"')])
        assert (await here.ask(named)).status == 200
        batch = named.replace(b"/predict ", b"/predict/batch ").replace(b'"file"', b'"files"')
        batch = batch.replace(b"Content-Length: ", b"Content-Length: 0")
        head, _, body = batch.partition(b"\r\n\r\n")
        batch = head[: head.rindex(b" ")] + b" %d\r\n\r\n" % len(body) + body
        answer = await here.ask(batch)
        assert answer.status == 200
        assert "\ufffd" in json.loads(answer.body)["results"][0]["filename"]


@pytest.mark.parametrize("forged", [b"a\r\n b", b"a\nX-Evil: 1", b"a\rb", b"a\0b", b"a\x1b[31m", b"\xff\xfe"])
@on_the_services_loop
async def test_a_request_id_cannot_split_a_response(forged: bytes) -> None:
    async with place() as here:
        answer = await here.ask(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Request-ID: " + forged + b"\r\n\r\n")
        assert "x-evil" not in answer.headers
        assert len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    "framing",
    [b"0\r\nx: " + b"y" * 40_000, b"1;" + b"e" * 40_000 + b"\r\nz\r\n"],
    ids=["one endless trailer", "chunk extensions"],
)
@on_the_services_loop
async def test_framing_that_no_limit_of_the_body_sees_is_refused(framing: bytes) -> None:
    async with place() as here:
        async with here.connect() as wire:
            await wire.send(CHUNKED + framing)
            for _ in range(40):
                await wire.send(b"y" * 40_000 if framing.startswith(b"0") else framing)
                await asyncio.sleep(0)
            answer = await wire.answer()
            assert (answer.status, answer.problem()["code"]) == (431, "headers_too_large")
        await until(lambda: here.idle)
        await still_serves(here)


@on_the_services_loop
async def test_chunks_of_one_byte_are_a_body() -> None:
    async with place() as here, here.connect() as wire:
        await wire.send(CHUNKED)
        for at in range(len(PHOTO)):
            await wire.send(b"1\r\n" + PHOTO[at : at + 1] + b"\r\n")
        await wire.send(b"0\r\n\r\n")
        assert (await wire.answer()).status == 200
