"""Converts weights at a first start in a process of its own, so that torch's memory ends with it.

    engine ──settings, JSON──▶ this process            it ends when its standard input ends
           ◀──JSON lines────── {"report": [state, detail]} · {"progress": [done, total]} · {"failed": sentence}

The result lies in the cache, where the engine finds it (`service.models.serving`). So an engine is as small after its
first start as after any other, and a conversion that runs out of memory ends this process alone.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from service.errors import CheckpointError
from service.models import serving
from service.models.checkpoints import Progress
from service.models.loaded import Report
from service.models.placement import place
from service.settings import Settings

log = logging.getLogger(__name__)


_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from service.models.preparing import main; main()"


def prepare(settings: Settings, report: Report, progress: Progress) -> None:
    """Fills the cache for a start with these settings, if the model is not there yet and the cache is writable.

    Raises `StartError` if the weights cannot be read, or if the process ends without a reason.
    """
    if "torch" in sys.modules or not serving.wants_preparing(settings, progress):
        return  # torch is in this process already, so another process would save nothing
    serving.refuse_without_torch(settings.weights)
    report("loading", "reading and converting the weights with torch; the next start finds them in the cache")
    # -P: a folder named `service` in the working directory must not be imported.
    command = [sys.executable, "-P", "-c", _PROGRAM, str(Path(__file__).resolve().parents[2])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(settings.model_dump_json(exclude_unset=True) + "\n")
        process.stdin.flush()
        failed = ""
        for line in process.stdout:
            message = json.loads(line)
            if "progress" in message:
                progress(*message["progress"])
            elif "report" in message:
                report(*message["report"])
            else:
                failed = message["failed"]
    if failed:
        raise CheckpointError(failed)
    if process.returncode:
        raise CheckpointError(
            f"the weights could not be converted: the process {_ending(process.returncode)}"
        )


def _ending(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed; it may need more memory"
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _say(**message: Any) -> None:
    # One write a line keeps lines of several threads apart.
    os.write(_OUT, (json.dumps(message) + "\n").encode())


#: Descriptor for messages. Standard output carries only these; what a library prints goes to standard error.
_OUT = 1


def main() -> None:
    """Runs the process."""
    global _OUT
    from service.errors import StartError
    from service.observability import logs

    settings = Settings(**json.loads(sys.stdin.readline()))
    _OUT = os.dup(1)
    os.dup2(2, 1)
    logs.configure(settings, "converter")
    threading.Thread(target=_end_with_the_engine, daemon=True).start()
    from service.models import building

    def report(state: str, detail: str) -> None:
        _say(report=[state, detail])

    try:
        placement = place(settings.device, settings.precision, settings.runtime)
        building.prepare(settings, placement, report, lambda done, total: _say(progress=[done, total]))
    except StartError as error:
        _say(failed=str(error))


def _end_with_the_engine() -> None:
    sys.stdin.read()
    os._exit(1)
