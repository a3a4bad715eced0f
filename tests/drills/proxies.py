"""nginx and HAProxy in front of two services, each as one process on a free port of the loopback.

What each way of configuring them is called says what it does beyond the proxy's defaults; connections to the services
are kept in all of them. docs/OPERATIONS.md recommends the ones that lost nothing.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.drills import wire


@dataclass(frozen=True)
class Way:
    """One configuration. ``keeps`` says whether a rollout behind it must lose nothing."""

    proxy: str
    name: str
    balance: str
    checks: bool
    retries: bool
    keeps: bool


#: With "retries" a request is sent to the other instance when a kept connection turns out to be closed.
WAYS = [
    Way("haproxy", "checks and retries", "leastconn", checks=True, retries=True, keeps=True),
    Way("haproxy", "checks and retries", "roundrobin", checks=True, retries=True, keeps=True),
    Way("haproxy", "checks", "leastconn", checks=True, retries=False, keeps=False),
    Way("haproxy", "checks", "roundrobin", checks=True, retries=False, keeps=False),
    Way("haproxy", "retries", "leastconn", checks=False, retries=True, keeps=False),
    Way("haproxy", "neither", "roundrobin", checks=False, retries=False, keeps=False),
    Way("nginx", "retries", "least_conn", checks=False, retries=True, keeps=True),
    Way("nginx", "retries", "round robin", checks=False, retries=True, keeps=True),
    Way("nginx", "defaults", "least_conn", checks=False, retries=False, keeps=False),
    Way("nginx", "defaults", "round robin", checks=False, retries=False, keeps=False),
]


def missing(proxy: str) -> bool:
    return shutil.which(proxy) is None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def running(way: Way, ports: list[int]) -> Iterator[tuple[str, int]]:
    """The proxy's address. It is stopped with the block."""
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "proxy.conf"
        write = haproxy if way.proxy == "haproxy" else nginx
        config.write_text(write(way, port, ports, folder))
        command = ["haproxy", "-db", "-f", str(config)]
        if way.proxy == "nginx":
            command = ["nginx", "-p", str(folder), "-c", str(config), "-g", "daemon off;"]
        with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
            try:
                _wait(port, process, folder / "log")
                yield "127.0.0.1", port
            finally:
                process.terminate()


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + 30
    while wire.Client(("127.0.0.1", port)).ask(b"", "/readyz", "GET").status != 200:
        if process.poll() is not None or time.monotonic() > give_up:
            raise AssertionError(log.read_text())
        time.sleep(0.05)


def haproxy(way: Way, port: int, ports: list[int], folder: Path) -> str:
    # `fall 1` and a check each second: within drain_delay_ms nobody is sent here any more.
    check = "check inter 1s fall 1 rise 1" if way.checks else ""
    servers = "\n".join(f"    server s{n} 127.0.0.1:{p} {check}" for n, p in enumerate(ports))
    options = "    option httpchk GET /readyz\n" if way.checks else ""
    if way.retries:
        options += "    retries 3\n    option redispatch 1\n    retry-on conn-failure empty-response 503\n"
    else:
        options += "    retries 0\n"
    return f"""\
global
    maxconn 1000
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout http-keep-alive 60s
frontend in
    bind 127.0.0.1:{port}
    default_backend services
backend services
    balance {way.balance}
    http-reuse always
{options}{servers}
"""


def nginx(way: Way, port: int, ports: list[int], folder: Path) -> str:
    # Passive checks are all that nginx has: an instance that refuses is left alone for a second.
    servers = "\n".join(f"        server 127.0.0.1:{p} max_fails=1 fail_timeout=1s;" for p in ports)
    balance = "least_conn;" if way.balance == "least_conn" else ""
    retries = "proxy_next_upstream error timeout http_503 non_idempotent;" if way.retries else ""
    return f"""\
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream services {{
        {balance}
{servers}
        keepalive 32;
    }}
    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 11m;
        location / {{
            proxy_pass http://services;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_read_timeout 60s;
            {retries}
        }}
    }}
}}
"""
