"""`imagenet-serve plan --p99 MS`: settings, resources and autoscaler values for this machine, measured on it.

    decide.py     what to try next, what to choose and why: pure
    measure.py    one trial against a real server on loopback
    write.py      the folder with the proposal

The sweep goes one setting after the other, around the best so far, and ends when its budget of time is spent.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from service.cli.plan import decide, measure
from service.cli.plan.decide import Candidate, Trial
from service.cli.plan.server_process import DidNotStart
from service.cli.plan.write import explanation, write
from service.host import machine as host
from service.settings import available_cores

#: Seconds that the sweep may begin new trials, in full and quick.
BUDGET, QUICK_BUDGET = 420.0, 100.0


class Sweep:
    """Trials until the stages or the time are over. ``notes`` say what a reader of the result must know."""

    def __init__(self, bench: measure.Bench, objective_ms: float, budget: float, console: Console) -> None:
        self.trials: list[Trial] = []
        self.notes: list[str] = []
        self._bench = bench
        self._objective_ms = objective_ms
        self._ends = time.monotonic() + budget
        self._console = console

    def run(self, runtimes: Sequence[str], cores: int, *, quick: bool) -> None:
        """The runtimes first, then one setting after the other around the best."""
        frontends = max(1, cores - 1)
        self._try("runtime", [Candidate(runtime=runtime, frontends=frontends) for runtime in runtimes])
        for name, stage in decide.stages(cores, quick=quick):
            if self.trials:
                self._try(name, stage(decide.best(self.trials, self._objective_ms)))

    def _try(self, stage: str, candidates: Sequence[Candidate]) -> None:
        for candidate in candidates:
            if self.trials and time.monotonic() >= self._ends:
                self.notes.append(f"the time was over before {stage} had been varied fully (--budget)")
                return
            best_rate = max((trial.rate(self._objective_ms) for trial in self.trials), default=0.0)
            try:
                self.trials.append(self._bench.measure(candidate, best_rate))
            except DidNotStart as error:
                self.notes.append(f"{candidate} did not start: {str(error).splitlines()[-1]}")
                continue
            self._console.print(
                _line(stage, self.trials[-1], self._objective_ms), highlight=False, soft_wrap=True
            )


def run(
    objective_ms: float,
    given: Mapping[str, Any],
    runtimes: Sequence[str],
    photos: Sequence[bytes],
    folder: Path,
    *,
    quick: bool,
    budget: float,
) -> int:
    """Sweeps, explains on stdout, writes ``folder``. The exit code is 1 when nothing keeps the objective."""
    console, cores = Console(stderr=True), available_cores()
    with console.status("starting") as status:
        effort = measure.QUICK if quick else measure.FULL
        bench = measure.Bench(given, photos, objective_ms, effort, lambda text: status.update(text))
        sweep = Sweep(bench, objective_ms, budget, console)
        sweep.run(runtimes, cores, quick=quick)
    choice = decide.choose(sweep.trials, objective_ms)
    if choice is None:
        print(f"imagenet-serve: {_no_choice(sweep.trials, objective_ms)}", file=sys.stderr)
        return 1
    candidate = choice.trial.candidate
    scaling = decide.scaling(choice, cores, candidate.frontends or 1)
    gpu = str(given.get("device", "")).startswith("cuda") or (
        host.gpu() is not None and given.get("device") != "cpu"
    )
    machine = _machine(cores)
    notes = [*sweep.notes, *_cautions(choice.probe.answers)]
    print(explanation(choice, scaling, objective_ms, machine, notes))
    files = write(
        folder,
        choice,
        scaling,
        sweep.trials,
        objective_ms=objective_ms,
        given=given,
        machine=machine,
        gpu=gpu,
        notes=notes,
    )
    print(f"written: {', '.join(str(file) for file in files)}")
    return 0


def runtimes(device: str) -> list[str]:
    """Those that can be compared on this host; ``auto`` is whatever the service takes for the fastest."""
    on_cpu = device == "cpu" or (device == "auto" and host.gpu() is None)
    if on_cpu:
        return ["openvino", "eager"] if find_spec("openvino") else ["eager"]
    return ["auto", "eager"]


def _line(stage: str, trial: Trial, objective_ms: float) -> str:
    probe = trial.sustained(objective_ms)
    kept = f"{probe.rate:6.1f}/s at p99 {probe.p99_ms:.1f} ms" if probe else decide.told(trial, objective_ms)
    return (
        f"[dim]{stage:18}[/] {trial.candidate}: {trial.ceiling:.1f} images/s at saturation; [bold]{kept}[/]"
    )


def _no_choice(trials: Sequence[Trial], objective_ms: float) -> str:
    if not trials:
        return "no server came up, so nothing was measured; imagenet-serve doctor says why"
    quickest = min(trials, key=lambda trial: trial.alone_ms)
    return (
        f"nothing kept a p99 of {objective_ms:g} ms; a lone client waits {quickest.alone_ms:.1f} ms at best "
        f"({quickest.candidate}). Take a larger --p99, a smaller model, --precision bf16, or an int8 artifact"
    )


def _machine(cores: int) -> str:
    gpu = host.gpu()
    return f"{host.cpu_model()}, {cores} cores ({', '.join(host.cpu_extensions())})" + (
        f", {gpu}" if gpu else ""
    )


def _cautions(answers: int) -> Iterator[str]:
    yield "the load generator ran on the same cores, so a client elsewhere sees a little more throughput"
    if answers < 300:
        yield f"the p99 is of {answers} answers, so it is one of the slowest {max(1, answers // 100) + 1}"
