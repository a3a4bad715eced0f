"""The meaning of a request's head: target, host, framing and expectation, by RFC 9110 and RFC 9112.

The parser knows the grammar. This module has the further rules by which a server must refuse or reinterpret a head,
each with its section ("9112 3.2" is section 3.2 of RFC 9112).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from service.errors import MalformedRequest, RequestError, Unimplemented, VersionUnknown

#: A host and a port (RFC 3986). The brackets of an IPv6 address belong to the host.
HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]*)?")
#: A target with scheme and authority, as clients send it to proxies.
_ABSOLUTE = re.compile(rb"https?://(?:[^/?#@]*@)?([^/?#@]*)(.*)", re.IGNORECASE | re.DOTALL)

#: A request line of any method and version (9112 3).
_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) [^ \r\n]+ HTTP/([0-9])\.([0-9])\r\n")
#: The known methods (9110 9, RFC 5789). An unknown one is answered 501, one that is known but not offered 405.
_METHODS = {b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH"}

Headers = list[tuple[bytes, bytes]]


class RequestHead(NamedTuple):
    """The meaning of a head. ``target`` begins with a slash; ``length`` is the body's in bytes, None for chunks."""

    target: bytes
    host: bytes | None
    """The host in the target, which overrides the header Host; None if the target has none."""
    length: int | None
    expects: bool
    """True if the client waits for 100 (Continue) before it sends the body."""


def examine(method: bytes, version: str, target: bytes, headers: Headers) -> RequestHead:
    """The meaning of a head that the parser has accepted. Names in ``headers`` are in lower case.

    Raises `MalformedRequest`, `VersionUnknown`, `Unimplemented`.
    """
    if version not in ("1.1", "1.0"):  # 9110 2.5, 15.6.6
        raise VersionUnknown("only HTTP/1.1 and HTTP/1.0 are supported")
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
    # 9110 10.1.1: the expectation of an HTTP/1.0 client, or of a request without a body, is ignored.
    expects = expects and version == "1.1" and (chunked or length > 0)
    return RequestHead(path, host, None if chunked else length, expects)


def refusal(head: bytes) -> RequestError:
    """The error for a ``head`` that the parser has refused."""
    if line := _LINE.match(head):
        method, major, minor = line.groups()
        if (major, minor) not in ((b"1", b"0"), (b"1", b"1")):  # 9110 15.6.6
            return VersionUnknown("only HTTP/1.1 and HTTP/1.0 are supported")
        if method not in _METHODS:  # 9110 9.1
            return Unimplemented("the method is unknown")
    return MalformedRequest("this is not HTTP/1.1 as RFC 9112 has it")


def _check_hosts(hosts: list[bytes], version: str) -> None:
    """Raises `MalformedRequest` unless there is one valid Host; HTTP/1.0 may omit it (9112 3.2)."""
    if len(hosts) > 1:
        raise MalformedRequest("the header Host is there more than once")
    if not hosts and version == "1.1":
        raise MalformedRequest("the header Host is missing, which HTTP/1.1 requires")
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
        raise Unimplemented("chunked is the only supported transfer coding")
