"""What the head of a request means: target, host, framing and expectation, as RFC 9110 and RFC 9112 have it.

The parser below knows the grammar. This is the list of what else a server must refuse or read otherwise; the
sections are named beside each rule.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from service.errors import MalformedRequest, RequestError, Unimplemented, VersionUnknown

#: A host and a port (RFC 3986); of an IPv6 address the brackets belong to the host.
HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]*)?")
#: A target with its scheme and authority, as proxies get it.
_ABSOLUTE = re.compile(rb"https?://(?:[^/?#@]*@)?([^/?#@]*)(.*)", re.IGNORECASE | re.DOTALL)

#: A request line of any method and version (9112 3).
_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) [^ \r\n]+ HTTP/([0-9])\.([0-9])\r\n")
#: Methods that are known here, offered or not (9110 9, 5789): an unknown one is 501 and not 405.
_METHODS = {b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH"}

Headers = list[tuple[bytes, bytes]]


class Head(NamedTuple):
    """``target`` begins with a slash. ``length`` is the body's in bytes, None for one in chunks."""

    target: bytes
    host: bytes | None
    """What the target names in place of the header Host; None if it names none."""
    length: int | None
    expects: bool
    """Whether the client waits to be told that it may send the body."""


def examine(method: bytes, version: str, target: bytes, headers: Headers) -> Head:
    """The meaning of a head that the parser took. Names in ``headers`` are in lower case.

    Raises `MalformedRequest`, `VersionUnknown`, `Unimplemented`.
    """
    if version not in ("1.1", "1.0"):  # 9110 2.5, 15.6.6
        raise VersionUnknown("HTTP/1.1 and HTTP/1.0 are spoken here")
    hosts: list[bytes] = []
    codings: list[bytes] = []
    length = 0
    expects = False
    for name, value in headers:
        if name == b"host":
            hosts.append(value)
        elif name == b"content-length":
            length = int(value)
        elif name == b"transfer-encoding":
            codings.append(value.strip().lower())
        elif name == b"expect":
            expects = value.strip().lower() == b"100-continue"
    _check_hosts(hosts, version)
    path, host = _resolve(method, target)
    chunked = bool(codings)
    if chunked:
        _check_codings(codings, version)
    # 9110 10.1.1: the expectation of a client that speaks HTTP/1.0, or sends nothing, means nothing.
    expects = expects and version == "1.1" and (chunked or length > 0)
    return Head(path, host, None if chunked else length, expects)


def refusal(head: bytes) -> RequestError:
    """What is wrong with a ``head`` that the parser did not take."""
    if line := _LINE.match(head):
        method, major, minor = line.groups()
        if (major, minor) not in ((b"1", b"0"), (b"1", b"1")):  # 9110 15.6.6
            return VersionUnknown("HTTP/1.1 and HTTP/1.0 are spoken here")
        if method not in _METHODS:  # 9110 9.1
            return Unimplemented("the method is none that is known here")
    return MalformedRequest("this is not HTTP/1.1 as RFC 9112 has it")


def _check_hosts(hosts: list[bytes], version: str) -> None:
    """9112 3.2: one, and a valid one; none of a client that speaks HTTP/1.0."""
    if len(hosts) > 1:
        raise MalformedRequest("the header Host is there more than once")
    if not hosts and version == "1.1":
        raise MalformedRequest("the header Host is missing, which HTTP/1.1 asks for")
    if hosts and not HOST.fullmatch(hosts[0].strip()):
        raise MalformedRequest("the header Host holds no host name")


def _resolve(method: bytes, target: bytes) -> tuple[bytes, bytes | None]:
    """The path and query of a target in any of the four forms (9112 3.2), and the host in it."""
    if target.startswith(b"/"):
        return target, None
    if target == b"*" and method == b"OPTIONS":
        return b"/", None
    if method == b"CONNECT":
        return b"/", None
    found = _ABSOLUTE.fullmatch(target)
    if found is None or not found[1] or not HOST.fullmatch(found[1]):
        raise MalformedRequest("the request's target is neither a path nor an address")
    rest = found[2]
    return (rest if rest.startswith(b"/") else b"/" + rest), found[1]


def _check_codings(codings: list[bytes], version: str) -> None:
    if version == "1.0":  # 9112 6.1
        raise MalformedRequest("Transfer-Encoding means nothing in HTTP/1.0")
    if codings != [b"chunked"]:
        raise Unimplemented("chunked is the only transfer coding that is understood here")
