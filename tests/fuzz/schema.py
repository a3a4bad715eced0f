"""`python -m tests.fuzz.schema [schemathesis's arguments]`: requests made from `/openapi.json`, at a real server.

Every answer has to be one that the schema names, in its shape, and none a 5xx.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests import tiny
from tests.server import Server

#: What a random body may get beside what the schema promises: all of it, but no failure of ours.
_CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,unsupported_method"
)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        weights = tiny.directory(Path(folder))
        with Server(weights=weights, frontends=1) as server:
            command = [
                *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
                *("--checks", _CHECKS, "--seed", "0", "--generation-database", "none", *sys.argv[1:]),
            ]
            found = subprocess.run(command, cwd=folder).returncode
            return found or int(server.terminate() != 0)


if __name__ == "__main__":
    sys.exit(main())
