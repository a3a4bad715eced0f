"""The MUSTs of RFC 9110 and RFC 9112 for a server like this, each by a request and its answer."""

from __future__ import annotations

import re

import pytest

from service.api.head import HOST
from tests.api.wire import on_the_services_loop, place
from tests.uploads import png

PHOTO = png(1)


def get(
    *lines: str, target: str = "/livez", version: str = "1.1", method: str = "GET", host: str = "Host: x"
) -> bytes:
    head = [f"{method} {target} HTTP/{version}", *([host] if host else []), "Connection: close", *lines]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n"


def post(*lines: str, body: bytes = PHOTO, **more: str) -> bytes:
    return get(f"Content-Length: {len(body)}", *lines, target="/predict", method="POST", **more) + body


CHUNKED = b"1\r\nx\r\n0\r\n\r\n"
#: What is sent, and the statuses that come back, in order.
MUSTS: dict[str, tuple[bytes, list[int]]] = {
    "9112 2.2: empty lines before a request": (b"\r\n\r\n" + get(), [200]),
    "9112 2.2: a bare CR": (b"GET /livez HTTP/1.1\rHost: x\r\n\r\n", [400]),
    "9112 2.2: a space before the first header": (b"GET /livez HTTP/1.1\r\n X: y\r\nHost: x\r\n\r\n", [400]),
    "9112 3.2: no Host": (get(host=""), [400]),
    "9112 3.2: no Host, with another version": (get(host="", version="1.0"), [200]),
    "9112 3.2: two Hosts": (get("Host: y"), [400]),
    "9112 3.2: two equal Hosts": (get("Host: x"), [400]),
    "9112 3.2: two Hosts, with another version": (get("Host: y", version="1.0"), [400]),
    "9112 3.2: an empty Host": (get(host="Host:"), [200]),
    "9112 3.2: a Host with a port": (get(host="Host: example.com:8000"), [200]),
    "9112 3.2: an IPv6 Host": (get(host="Host: [::1]:8000"), [200]),
    "9112 3.2: a Host that is none": (get(host="Host: a b"), [400]),
    "9112 3.2: a Host with a path": (get(host="Host: a/b"), [400]),
    "9112 3.2: a Host with somebody's name": (get(host="Host: me@a"), [400]),
    "9112 3.2.2: the absolute form": (get(target="http://example.com/livez"), [200]),
    "9112 3.2.2: the absolute form without a path": (get(target="http://example.com"), [200]),
    "9112 3.2.2: the absolute form with a query alone": (get(target="http://example.com?a=b"), [200]),
    "9112 3.2.4: the asterisk form": (get(target="*", method="OPTIONS"), [204]),
    "9112 3.2.4: the asterisk form of another method": (get(target="*"), [400]),
    "9112 5.1: a space before the colon": (get("X : y"), [400]),
    "9112 5.2: a folded header": (get("X: y\r\n z"), [400]),
    "9112 6.1: a coding that is not known": (
        get("Transfer-Encoding: gzip, chunked", method="POST") + CHUNKED,
        [501],
    ),
    "9112 6.1: chunked is not last": (
        get("Transfer-Encoding: chunked, gzip", method="POST") + CHUNKED,
        [400],
    ),
    "9112 6.1: chunked in HTTP/1.0": (
        get("Transfer-Encoding: chunked", method="POST", version="1.0") + CHUNKED,
        [400],
    ),
    "9112 6.1: chunked and a length": (post("Transfer-Encoding: chunked"), [400]),
    "9112 6.3: two lengths": (post("Content-Length: 1"), [400]),
    "9112 6.3: a length that is none": (get("Content-Length: +1", method="POST") + b"x", [400]),
    "9112 9.3: HTTP/1.0 ends the connection": (get(version="1.0") + get(), [200]),
    "9112 9.6: nothing after close": (get() + get(), [200]),
    "9110 2.5: a higher minor version": (get(version="1.2"), [505]),
    "9110 2.5: another major version": (get(version="2.0"), [505]),
    "9110 2.5: a major version that the parser does not know": (get(version="3.1"), [505]),
    "9112 2.3: a version that is none": (get(version="1.11"), [400]),
    "9110 7.8: an upgrade that is not offered": (get("Upgrade: h2c", "Connection: Upgrade"), [200]),
    "9110 9.1: a method that nobody knows": (get(method="BREW"), [501]),
    "9110 9.1: methods are case-sensitive": (get(method="get"), [501]),
    "9110 9.1: a method that begins as another": (get(method="GETS"), [501]),
    "9110 9.1: a method that is no token": (get(method="G(T"), [400]),
    "9110 9.1: a method that is known and not offered": (get(method="PATCH", target="/predict"), [405]),
    "9110 9.1: HEAD": (get(method="HEAD"), [200]),
    "9110 9.1: HEAD of what takes POST": (get(method="HEAD", target="/predict"), [405]),
    "9110 9.3.6: CONNECT": (get(method="CONNECT", target="x:80"), [405]),
    "9110 9.3.7: OPTIONS": (get(method="OPTIONS", target="/predict"), [204]),
    "9110 9.3.7: OPTIONS of nothing": (get(method="OPTIONS", target="/nothing"), [404]),
    "9110 9.3.8: TRACE": (get(method="TRACE"), [405]),
    "9110 10.1.1: 100 before the body is read": (post("Expect: 100-continue"), [100, 200]),
    "9110 10.1.1: no 100 in HTTP/1.0": (post("Expect: 100-continue", version="1.0"), [200]),
    "9110 10.1.1: no 100 without a body": (get("Expect: 100-continue"), [200]),
}


@pytest.mark.parametrize(("request_", "statuses"), MUSTS.values(), ids=MUSTS)
@on_the_services_loop
async def test_a_must_of_the_standards(request_: bytes, statuses: list[int]) -> None:
    async with place() as here, here.connect() as wire:
        await wire.send(request_)
        answer = await wire.reader.read()
    starts = list(re.finditer(rb"HTTP/1\.1 (\d+)", answer))
    found = [int(start[1]) for start in starts]
    assert found == statuses
    head, _, body = answer[starts[-1].start() :].partition(b"\r\n\r\n")
    assert b"\r\ndate: " in head.lower()  # 9110 6.6.1
    if found[-1] == 405:
        assert b"\r\nallow: " in head.lower()  # 9110 15.5.6
    if request_.startswith(b"HEAD") or found[-1] == 204:
        assert body == b""  # 9110 9.3.2, 15.3.5


@on_the_services_loop
async def test_the_host_of_an_absolute_target_counts() -> None:
    async with place(settings={"allowed_hosts": "good.example"}) as here:
        for target, host, status in (
            ("http://good.example/model", "Host: evil.example", 200),
            ("http://evil.example/model", "Host: good.example", 421),
        ):
            assert (await here.ask(get(target=target, host=host))).status == status


@on_the_services_loop
async def test_an_answer_in_place_of_100_ends_the_connection() -> None:
    """What follows may be the body, and is never a request."""
    async with place(settings={"max_upload_bytes": 100}) as here, here.connect() as wire:
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5000\r\n\r\n"
        await wire.send(head)
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        await wire.send(get())
        assert await wire.closed()


@pytest.mark.parametrize("path", ["/predict", "/predict/", "/features/", "/labels/", "/v2/health/ready/"])
@on_the_services_loop
async def test_a_slash_at_the_end_is_the_same_route(path: str) -> None:
    async with place() as here:
        ask = (
            get(target=path)
            if "v2" in path or "labels" in path
            else post().replace(b"/predict", path.encode())
        )
        assert (await here.ask(ask)).status == 200


def test_hosts_that_are_names() -> None:
    for host in (b"a", b"a-b.c_d", b"1.2.3.4:80", b"[::1]", b"", b"a%20b"):
        assert HOST.fullmatch(host)
    for host in (b"a b", b"a:b", b"a/b", b"[::1", b"\xc3\xa4", b"a@b", b"a,b c"):
        assert not HOST.fullmatch(host)
