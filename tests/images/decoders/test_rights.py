"""What a decoder cannot do any more, tried by a process that has given up its rights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the rights are Linux's")

#: Tries each thing and prints what became of it: "done", or the error's name. A user that is not root, as in the image.
PROGRAM = """
import ctypes, errno, json, mmap, os, signal, socket, sys
from service.images.decoders.rights import Bounds, close_all_but, give_up

kept = int(sys.argv[1])
tracer = ctypes.CDLL(None, use_errno=True)
if os.getuid() == 0:
    os.setgid(65534), os.setuid(65534)
bounds = Bounds()
landlock = tracer.syscall(444, None, ctypes.c_size_t(0), 1)
wait, end = os.pipe()  # the neighbour ends when this process does, which holds the other end
neighbour = os.fork()  # of the same user, and with all its rights
if neighbour == 0:
    os.close(end), os.close(1), os.close(2)
    os.read(wait, 1)
    os._exit(0)
close_all_but({1, 2, kept, end, bounds.descriptor})
give_up()

def fork():
    if os.fork() == 0:
        os._exit(0)

def trace():
    if tracer.ptrace(16, neighbour, 0, 0) != 0:  # PTRACE_ATTACH
        raise OSError(ctypes.get_errno(), "ptrace")

def kill():
    os.kill(neighbour, signal.SIGCONT)

def memory(size):
    bounds.allow(1 << 20)
    mmap.mmap(-1, size).close()

tries = {
    "open": lambda: os.open("/dev/null", os.O_RDONLY),
    "socket": socket.socket,
    "pipe": os.pipe,
    "copy": lambda: os.dup(1),
    "write": lambda: os.write(kept, b"more"),
    "fork": fork,
    "trace": trace,
    "kill": kill,
    "little memory": lambda: memory(1 << 12),
    "much memory": lambda: memory(1 << 28),
}
found = {}
for name, attempt in tries.items():
    try:
        attempt()
        found[name] = "done"
    except OSError as error:
        found[name] = errno.errorcode[error.errno]
print(json.dumps([landlock, found]))
"""


def test_what_is_given_up_is_gone(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    file = tmp_path / "kept"
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT)
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(descriptor)],
            cwd=root,
            pass_fds=(descriptor,),
            capture_output=True,
            text=True,
        )
    finally:
        os.close(descriptor)
    # A file that grows past the limit of none gets a signal, which Python ignores, and an error.
    assert done.returncode == 0, done.stderr
    landlock, found = json.loads(done.stdout)
    traced, signalled = found.pop("trace"), found.pop("kill")
    if landlock >= 1:
        assert traced == "EPERM"
    if landlock >= 6:
        assert signalled == "EPERM"
    assert found == {
        "open": "EMFILE",
        "socket": "EMFILE",
        "pipe": "EMFILE",
        "copy": "EINVAL",  # of fcntl, for a limit of none
        "write": "EFBIG",
        "fork": "EAGAIN",
        "little memory": "done",
        "much memory": "ENOMEM",
    }
    assert file.read_bytes() == b""
