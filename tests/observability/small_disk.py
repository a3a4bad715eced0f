"""A service whose temporary folder is a small file system that outlives it, as a pod's volume outlives a container.

Runs in mount and user namespaces of its own:
`unshare --user --map-root-user --mount python -m tests.observability.small_disk`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path

from tests.server import HTTP, Server
from tests.uploads import png

#: MiB: a quarter of what k8s/base gives.
SIZE = 16
KILLS = 5


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}m", "tmpfs", folder], check=True)
        try:
            for _ in range(KILLS):
                _serve_and_kill(folder)
                print("left:", [path.name[:23] for path in Path(folder).iterdir()], flush=True)
            with Server(module="tests.drills.hostile", frontends=2, environment={"TMPDIR": folder}) as last:
                assert last.terminate() == 0
            assert list(Path(folder).iterdir()) == []
        finally:
            subprocess.run(["umount", folder], check=True)


def _serve_and_kill(folder: str) -> None:
    with Server(module="tests.drills.hostile", frontends=2, environment={"TMPDIR": folder}) as server:
        assert HTTP.post(server.url + "/predict", files={"file": png(1)}).status_code == 200
        pids = [server.pid, *server.children().values()]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        server.wait()


if __name__ == "__main__":
    main()
