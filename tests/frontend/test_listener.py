"""The listening socket, with real connections."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.errors import ConfigurationError
from service.frontend import listener


@pytest.fixture
def port() -> Iterator[socket.socket]:
    with listener.bind("127.0.0.1", 0) as bound:
        yield bound


@pytest.mark.skipif(sys.platform != "linux", reason="the filter is Linux's")
def test_newcomers_are_held_back_and_the_others_stay(port: socket.socket) -> None:
    address = port.getsockname()
    with socket.create_connection(address) as early:
        listener.refuse_newcomers(port)
        with pytest.raises(TimeoutError):
            socket.create_connection(address, timeout=0.2)
        early.sendall(b"still here")
        accepted, _ = port.accept()
        with accepted:
            assert accepted.recv(64) == b"still here"
            accepted.sendall(b"so am I")
            assert early.recv(64) == b"so am I"
        port.settimeout(0.2)
        with pytest.raises(TimeoutError):
            port.accept()


def test_the_url_names_an_ipv6_address_in_brackets(port: socket.socket) -> None:
    assert listener.url(port) == f"http://127.0.0.1:{port.getsockname()[1]}"
    if socket.has_dualstack_ipv6():
        with listener.bind("::1", 0) as six:
            assert listener.url(six).startswith("http://[::1]:")


def test_a_taken_port_is_said_in_one_sentence(port: socket.socket) -> None:
    with pytest.raises(ConfigurationError, match="choose another with --host and --port"):
        listener.bind(*port.getsockname())


def test_a_unix_socket_replaces_a_dead_ones_and_no_living_ones(tmp_path: Path) -> None:
    path = tmp_path / "service.sock"
    dead = listener.bind_unix(path)
    dead.close()
    assert path.is_socket()
    with listener.bind_unix(path) as living:
        assert listener.url(living) == f"unix:{path}"
        listener.refuse_newcomers(living)  # nothing to do for it, and no error
        with pytest.raises(ConfigurationError, match="--uds"):
            listener.bind_unix(path)
        listener.remove_unanswered(path)
        assert path.is_socket()
    listener.remove_unanswered(path)
    assert not path.exists()


def test_a_unix_socket_takes_no_files_place(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(ConfigurationError, match="cannot listen"):
        listener.bind_unix(path)
    listener.remove_unanswered(path)
    assert path.read_text() == "mine"
