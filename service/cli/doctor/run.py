"""`imagenet-serve doctor`: checks whether this host can run the service with these settings.

    machine.py      processor, threads, memory, limits, folders, port
    libraries.py    torch and torchvision, OpenVINO, CUDA and its driver
    weights.py      the weights, the caches, the API keys

A finding is PASS, WARN or FAIL; WARN and FAIL come with advice. The checks change nothing, and use the network only
to ask for weights that are not on this host.
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
#: Parameters of the demo model: far fewer than the smallest of the twelve variants has.
_DEMO_PARAMETERS = 2_400_000


def examine(settings: Settings) -> Iterator[Finding]:
    """Runs every check and yields its finding."""
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
    """Prints the findings, as lines or as JSON, and returns the exit code: 1 if one of them is FAIL."""
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
    """The last line of the output: the verdict and the number of findings of each level."""
    counts = {level: sum(finding.level is level for finding in findings) for level in Level}
    verdict = "this would not run" if counts[Level.FAIL] else "this can serve"
    return f"{verdict}: " + ", ".join(f"{number} {level}" for level, number in counts.items() if number)
