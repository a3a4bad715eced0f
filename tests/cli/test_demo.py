"""`imagenet-serve demo` as a user starts it: the table, the addresses, Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.cli.demo.run import _reachable
from service.errors import CheckpointError
from service.models import checkpoints
from tests import tiny
from tests.server import HTTP, program

DEMO = [sys.executable, "-m", "service", "demo", "--port=0", "--frontends=1", "--max-batch-size=1"]


def test_it_classifies_the_samples_stays_up_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# for the test\nsecret\n")
    command = [*DEMO, "--weights", str(tiny.shared()), "--api-keys-file", str(keys)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    with program(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as demo:
        assert demo.stdout is not None
        shown = []
        for line in demo.stdout:
            shown.append(line)
            if "Ctrl-C" in line:
                break
        text = "".join(shown)
        for name in ("red-panda.jpg", "coffee.jpg", "banana.jpg", "goldfish.jpg", "thing ", "█", " %"):
            assert name in text
        (url,) = re.findall(r"From a shell +curl -F file=@\S+ (http://\S+)/predict", text)
        assert HTTP.get(f"{url}/readyz").status_code == 200
        assert HTTP.get(f"{url}/", headers={"x-api-key": "secret"}).status_code == 200
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=60)
        assert demo.returncode == 0, errors
        assert "Traceback" not in errors


def test_without_the_model_it_says_so_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints.places, "DEMO", tmp_path / "demo")
    with pytest.raises(CheckpointError, match=r"demo model did not come with this installation.*--weights"):
        checkpoints.resolve("demo", "densenet121")


def test_the_visitor_asks_this_host() -> None:
    assert _reachable("http://0.0.0.0:8000") == "http://127.0.0.1:8000"
    assert _reachable("http://[::]:8000") == "http://[::1]:8000"
    assert _reachable("http://10.0.0.1:80") == "http://10.0.0.1:80"
