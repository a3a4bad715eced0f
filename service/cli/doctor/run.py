"""`imagenet-serve doctor`: whether this host could run the service with these settings, and what to do where not.

    machine.py      processor, threads, memory, limits, folders, port
    libraries.py    torch and torchvision, OpenVINO, CUDA and its driver
    weights.py      the weights, the caches, the API keys

Each check is PASS, WARN or FAIL, and the last two come with what to do. It changes nothing, and uses the network
only to ask for weights that are not here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from rich.text import Text

from service.cli import tables
from service.cli.doctor import libraries, machine, weights
from service.cli.doctor.finding import Finding, Level, passed, warned
from service.models.catalog import VARIANTS
from service.settings import Settings, strangers

__all__ = ["Finding", "Level", "examine", "report", "run"]

_COLOURS = {Level.PASS: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}
#: Of the demo model: far below the smallest of the twelve.
_DEMO_PARAMETERS = 2_400_000


def examine(settings: Settings) -> Iterator[Finding]:
    """Every check, one after the other."""
    parameters = _DEMO_PARAMETERS if settings.weights == "demo" else VARIANTS[settings.model].parameters
    for sentence in strangers(os.environ):
        yield warned("settings", sentence, "correct its name, or unset it")
    yield passed("settings", f"model {settings.model}, weights {settings.weights}, device {settings.device}")
    yield from machine.checks(settings, parameters)
    yield from libraries.checks(settings)
    yield weights.weights(settings)
    yield from weights.caches(settings)
    if (finding := weights.keys(settings)) is not None:
        yield finding


def run(findings: Iterator[Finding], *, as_json: bool) -> int:
    """Prints the findings as they come, as a list or as JSON. The exit code is 1 if one of them is FAIL."""
    seen = list(findings) if as_json else list(_shown(findings))
    worst = Level.FAIL if any(finding.level is Level.FAIL for finding in seen) else Level.PASS
    if as_json:
        print(
            json.dumps({"ok": worst is not Level.FAIL, "findings": [asdict(one) for one in seen]}, indent=2)
        )
    else:
        tables.screen().print(report(seen))
    return int(worst is Level.FAIL)


def _shown(findings: Iterator[Finding]) -> Iterator[Finding]:
    console = tables.screen()
    for finding in findings:
        line = Text.assemble(
            (f"{finding.level:5}", _COLOURS[finding.level]), (f"{finding.check:17}", "bold"), finding.found
        )
        console.print(line, soft_wrap=True)
        if finding.advice:
            console.print(Text(f"      → {finding.advice}", _COLOURS[finding.level]), soft_wrap=True)
        yield finding


def report(findings: Sequence[Finding]) -> str:
    """The last line."""
    counts = {level: sum(finding.level is level for finding in findings) for level in Level}
    verdict = "this would not run" if counts[Level.FAIL] else "this can serve"
    return f"{verdict}: " + ", ".join(f"{number} {level}" for level, number in counts.items() if number)
