"""The listening socket: bound once by the supervisor, shared by all front-ends, closed without losing a connection.

Closing a listening socket resets every connection that the kernel has completed and no process has accepted. So
`refuse_newcomers` comes first: from then on the kernel drops packets that would open a connection. For a moment the
front-ends accept the connections that are under way; after it none is left to be reset.
"""

from __future__ import annotations

import ctypes
import logging
import socket
import struct
import sys
from pathlib import Path

from service.errors import ConfigurationError

log = logging.getLogger(__name__)

#: Connections that the kernel completes ahead of `accept`, for bursts of new clients.
BACKLOG = 2048
#: From Linux's asm-generic/socket.h; Python has no name for it.
_SO_ATTACH_FILTER = 26
#: Classic BPF over a TCP header: a packet with SYN and without ACK is dropped, any other passes.
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte of flags
    (0x54, 0, 0, 0x12),  # keep SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN alone?
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # pass
)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. The host ``::`` means every address, those of IPv4 included.

    Raises `ConfigurationError` if the address cannot be bound.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        every = family == socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(address[:2], family=family, backlog=BACKLOG, dualstack_ipv6=every)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(
            f"cannot listen on {host} port {port}: {reason}; choose another with --host and --port"
        ) from error


def reserve(host: str, port: int) -> socket.socket:
    """A socket that reserves ``port`` for processes of this user that bind it with SO_REUSEPORT. It never listens.

    Raises `ConfigurationError` if the address cannot be bound.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Bound once without SO_REUSEPORT: with the option, a bind would succeed beside another service's listeners.
        socket.create_server(address[:2], family=family).close()
        holder = socket.socket(family, kind)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(
            f"cannot listen on {host} port {port}: {reason}; choose another with --grpc-port"
        ) from error
    return holder


def bind_unix(path: Path) -> socket.socket:
    """A listening Unix socket at ``path``, open to every user who may enter its folder.

    Replaces a socket that a dead service left. Raises `ConfigurationError` if the path cannot be bound.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        remove_unanswered(path)
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigurationError(f"cannot listen on {path}: {error.strerror or error}; see --uds") from error
    return listener


def remove_unanswered(path: Path) -> None:
    """Removes the Unix socket at ``path`` if no service answers there."""
    if path.is_socket() and not _answers(path):
        path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


def url(listener: socket.socket, scheme: str = "http") -> str:
    """The service's URL, such as ``http://127.0.0.1:8000``, or ``unix:`` and a path."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def refuse_newcomers(listener: socket.socket) -> None:
    """Lets the kernel drop new connections to any copy of ``listener``. Existing ones, and those under way, stay.

    A new client's kernel tries again after a second and is refused once the socket is closed. On a system without
    socket filters nothing happens, and a connection of the last moment may be reset.
    """
    if sys.platform != "linux" or listener.family == socket.AF_UNIX:
        return
    program = b"".join(struct.pack("=HBBI", *instruction) for instruction in _DROP_SYN)
    instructions = ctypes.create_string_buffer(program, len(program))
    try:
        listener.setsockopt(
            socket.SOL_SOCKET,
            _SO_ATTACH_FILTER,
            struct.pack("@HP", len(_DROP_SYN), ctypes.addressof(instructions)),
        )
    except OSError as error:
        log.warning("cannot hold new connections back: %s", error.strerror)
