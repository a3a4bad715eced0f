"""`imagenet-serve plan --p99 MS`: measures settings, resources and autoscaler values for this machine.

    decide.py     what to try next, what to choose and why: pure
    measure.py    one trial against a real server on loopback
    write.py      the folder with the proposal

The sweep varies one setting after the other around the best trial so far. It ends when its time budget is spent.
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
from service.cli.plan.write import Proposal, explanation, write
from service.host import machine as host
from service.settings import available_cores

#: Seconds in which the sweep may begin new trials, full and quick.
BUDGET, QUICK_BUDGET = 420.0, 100.0


class Sweep:
    """Runs trials until all stages are done or the time is over. ``notes`` are cautions for the reader."""

    def __init__(self, bench: measure.Bench, objective_ms: float, budget: float, console: Console) -> None:
        self.trials: list[Trial] = []
        self.notes: list[str] = []
        self._bench = bench
        self._objective_ms = objective_ms
        self._ends = time.monotonic() + budget
        self._console = console

    def run(self, runtimes: Sequence[str], cores: int, *, quick: bool) -> None:
        """Tries the runtimes first, then varies one setting after the other around the best trial."""
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
    """Measures, explains the proposal on stdout and writes it into ``folder``.

    ``given`` are settings that stay as they are; ``photos`` are encoded images; ``budget`` is in seconds. Returns the
    exit code: 1 if no settings keep the objective.
    """
    cores, console = available_cores(), Console(stderr=True)
    with console.status("starting") as status:
        effort = measure.QUICK if quick else measure.FULL
        bench = measure.Bench(given, photos, objective_ms, effort, status.update)
        sweep = Sweep(bench, objective_ms, budget, console)
        sweep.run(runtimes, cores, quick=quick)
    choice = decide.choose(sweep.trials, objective_ms)
    if choice is None:
        print(f"imagenet-serve: {_no_choice(sweep.trials, objective_ms)}", file=sys.stderr)
        return 1
    proposal = Proposal(
        choice,
        decide.scaling(choice, cores, choice.trial.candidate.frontends or 1),
        sweep.trials,
        objective_ms=objective_ms,
        given=given,
        machine=_machine(cores),
        gpu=_on_gpu(str(given.get("device", "auto"))),
        notes=[*sweep.notes, *_cautions(choice.probe.answers)],
    )
    print(explanation(proposal))
    print(f"written: {', '.join(str(file) for file in write(folder, proposal))}")
    return 0


def _on_gpu(device: str) -> bool:
    return device.startswith("cuda") or (device == "auto" and host.gpu() is not None)


def runtimes(device: str) -> list[str]:
    """The runtimes to compare on this host; ``auto`` is the one that the service takes for the fastest."""
    if _on_gpu(device):
        return ["auto", "eager"]
    return ["openvino", "eager"] if find_spec("openvino") else ["eager"]


def _line(stage: str, trial: Trial, objective_ms: float) -> str:
    probe = trial.sustained(objective_ms)
    kept = f"{probe.rate:6.1f}/s at p99 {probe.p99_ms:.1f} ms" if probe else decide.told(trial, objective_ms)
    return (
        f"[dim]{stage:18}[/] {trial.candidate}: {trial.ceiling:.1f} images/s at saturation; [bold]{kept}[/]"
    )


def _no_choice(trials: Sequence[Trial], objective_ms: float) -> str:
    if not trials:
        return "no server started, so nothing was measured; imagenet-serve doctor says why"
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
