"""The service with threads in place of processes, as on a system without memfd and SOCK_SEQPACKET."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests import tiny
from tests.server import HTTP, program
from tests.uploads import png

PROGRAM = """
import sys
from service import settings
from service.shared import transport
transport.PROCESSES = False
transport._KIND = __import__("socket").SOCK_DGRAM
from service.supervisor.supervisor import Supervisor
sys.exit(Supervisor(settings.load(weights=sys.argv[1], port=0, log_format="json"), processes=False).run())
"""


def test_a_laptop_can_try_it(tmp_path: Path) -> None:
    weights = tiny.shared()
    with program([sys.executable, "-c", PROGRAM, str(weights)], stderr=subprocess.PIPE, text=True) as service:
        assert service.stderr is not None
        lines = []
        for line in service.stderr:
            lines.append(line)
            if '"ready on' in line:
                break
        url = re.search(r"listening on (http://[^\"]+)", "".join(lines))
        assert url, lines
        answer = HTTP.post(url[1] + "/predict", files={"file": png(1)})
        assert answer.status_code == 200
        assert HTTP.get(url[1] + "/readyz").status_code == 200
        service.terminate()
        assert service.wait(30) == 0
