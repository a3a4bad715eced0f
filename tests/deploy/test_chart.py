"""The Helm chart's values: each says what it does to whoever sets it. (`deploy/verify helm` renders them.)"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHART = Path(__file__).parent.parent.parent / "deploy" / "helm"


def test_every_value_says_what_it_does() -> None:
    lines = [
        line for line in (CHART / "values.yaml").read_text().splitlines() if re.match(r" *\w+: \S", line)
    ]
    assert len(lines) > 20
    assert [line for line in lines if "  # " not in line] == []


def test_every_value_is_read() -> None:
    yaml = pytest.importorskip("yaml")
    templates = "".join(path.read_text() for path in (CHART / "templates").iterdir())
    for name, value in yaml.safe_load((CHART / "values.yaml").read_text()).items():
        for inner in value if isinstance(value, dict) and value else [None]:
            path = f"Values.{name}" + (f".{inner}" if inner else "")
            assert path in templates or f'"{name}"' in templates, path


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl")
def test_what_is_generated_is_of_today() -> None:
    done = subprocess.run([CHART.parent / "generate", "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
