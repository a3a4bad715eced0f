"""What `plan` tries next and what it makes of it: pure decisions over measurements, without a server or a clock.

A *candidate* is a set of settings. Its *trial* holds what was measured: how many images a second it does at
saturation, and for some rates of arrival (open loop, Poisson) the latency that users would see. It *sustains* the
highest of these rates that kept the objective.

    stages      runtime → max_batch_size → frontends → max_queue_delay_ms, each around the best so far
    next_rate   bisects the rate at which the p99 passes the objective
    choose      the highest sustained rate; of those within the noise of it, the one that takes least
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

#: Rates closer than this are taken for equal: short measurements on a machine that is never quite idle.
NOISE = 0.05
#: Share of the rate at saturation that is tried first. Queues grow without bound towards 1.
_FIRST = 0.7
#: A bisection ends when what is left of it is this share of the rate at saturation.
_FINE = 0.06
#: Milliseconds of waiting for company that are tried.
_DELAYS = (2.0, 5.0)


@dataclass(frozen=True)
class Candidate:
    """Settings to try. None leaves one to the service's own choice."""

    runtime: str = "auto"
    max_batch_size: int | None = None
    frontends: int | None = None
    max_queue_delay_ms: float = 0.0

    def settings(self) -> dict[str, Any]:
        """As the service's settings."""
        return {
            "runtime": self.runtime,
            "max_batch_size": self.max_batch_size or "auto",
            "frontends": self.frontends or "auto",
            "max_queue_delay_ms": f"{self.max_queue_delay_ms:g}",
        }

    def __str__(self) -> str:
        return (
            f"{self.runtime}, batches up to {self.max_batch_size or 'auto'}, {self.frontends or 'auto'} front-ends, "
            f"delay {self.max_queue_delay_ms:g} ms"
        )


@dataclass(frozen=True)
class Probe:
    """One rate of arrival in requests a second, and what came of it."""

    rate: float
    p99_ms: float
    answers: int
    bad: int = 0
    """Requests that were not answered 2xx."""
    saturation: float = 0.0
    """``imagenet_saturation_ratio`` at the end of it: what an autoscaler would have seen."""
    cores: float = 0.0
    """CPU seconds a second that the service's processes took."""

    def keeps(self, objective_ms: float) -> bool:
        return self.answers > 0 and not self.bad and self.p99_ms <= objective_ms


@dataclass(frozen=True)
class Trial:
    """A candidate with every ``auto`` decided, and what was measured of it."""

    candidate: Candidate
    ceiling: float
    """Images a second at saturation."""
    alone_ms: float
    """The median latency of a single client."""
    memory_mib: float
    probes: tuple[Probe, ...] = ()

    def sustained(self, objective_ms: float) -> Probe | None:
        """The highest rate that kept the objective."""
        return max(
            (one for one in self.probes if one.keeps(objective_ms)), key=lambda one: one.rate, default=None
        )

    def rate(self, objective_ms: float) -> float:
        probe = self.sustained(objective_ms)
        return probe.rate if probe else 0.0


@dataclass(frozen=True)
class Choice:
    """The trial that is proposed, the rate that it sustains, and why, in sentences."""

    trial: Trial
    probe: Probe
    reasons: tuple[str, ...]


#: A stage's name, and the candidates that it adds around the best trial so far.
Stage = tuple[str, Callable[[Trial], list[Candidate]]]


def stages(cores: int, *, quick: bool) -> list[Stage]:
    """What is varied after the runtimes have been tried, in order. A trial's candidate has no ``auto`` left."""
    batch: Stage = ("max_batch_size", lambda best: _sizes(best.candidate, quick=quick))
    front: Stage = ("frontends", lambda best: _frontends(best.candidate, cores))
    delay: Stage = ("max_queue_delay_ms", lambda best: _delays(best.candidate))
    return [batch, front] if quick else [batch, front, delay]


def _sizes(best: Candidate, *, quick: bool) -> list[Candidate]:
    size = best.max_batch_size or 1
    wanted = {1, 2 * size} if quick else {1, max(1, size // 2), 2 * size}
    return [replace(best, max_batch_size=other) for other in sorted(wanted - {size})]


def _frontends(best: Candidate, cores: int) -> list[Candidate]:
    wanted = {1, max(1, cores - 1), cores} - {best.frontends}
    return [replace(best, frontends=number) for number in sorted(wanted)]


def _delays(best: Candidate) -> list[Candidate]:
    if best.max_batch_size == 1:  # nobody could join
        return []
    return [replace(best, max_queue_delay_ms=delay) for delay in _DELAYS]


def next_rate(ceiling: float, probes: Sequence[Probe], objective_ms: float) -> float | None:
    """The rate to try next; None when the one that is sought is known well enough."""
    kept = max((one.rate for one in probes if one.keeps(objective_ms)), default=0.0)
    missed = min((one.rate for one in probes if not one.keeps(objective_ms)), default=ceiling)
    if not probes:
        return _FIRST * ceiling
    if missed - kept <= _FINE * ceiling:
        return None
    return (kept + missed) / 2


def worth_probing(trial: Trial, best_rate: float, objective_ms: float) -> bool:
    """Whether the trial could be the one: a lone client within the objective, saturation above the best."""
    return trial.alone_ms <= objective_ms and trial.ceiling > best_rate


def best(trials: Sequence[Trial], objective_ms: float) -> Trial:
    """The one to vary next: by sustained rate, where none has one by the rate at saturation."""
    return max(trials, key=lambda trial: (trial.rate(objective_ms), trial.ceiling))


def choose(trials: Sequence[Trial], objective_ms: float) -> Choice | None:
    """The proposal; None when no candidate kept the objective at any rate that was tried."""
    most = max((trial.rate(objective_ms) for trial in trials), default=0.0)
    if not most:
        return None
    equal = [trial for trial in trials if trial.rate(objective_ms) >= (1 - NOISE) * most]
    chosen = min(equal, key=lambda trial: _expense(trial.candidate))
    probe = chosen.sustained(objective_ms)
    assert probe is not None
    return Choice(chosen, probe, tuple(_reasons(chosen, trials, objective_ms)))


def _expense(candidate: Candidate) -> tuple[Any, ...]:
    """Processes first, then what adds latency. An explicit runtime is no better than another."""
    return (candidate.frontends or 1, candidate.max_queue_delay_ms, candidate.max_batch_size or 1)


def _reasons(chosen: Trial, trials: Sequence[Trial], objective_ms: float) -> list[str]:
    """One sentence a setting: what it was held against, and what each brought."""
    sentences = []
    for name in ("runtime", "max_batch_size", "frontends", "max_queue_delay_ms"):
        rivals: dict[Any, Trial] = {}
        for trial in trials:
            value = getattr(trial.candidate, name)
            if name != "runtime" and trial.candidate.runtime != chosen.candidate.runtime:
                continue
            if value not in rivals or trial.rate(objective_ms) > rivals[value].rate(objective_ms):
                rivals[value] = trial
        mine = getattr(chosen.candidate, name)
        others = [
            f"{value:g}" if isinstance(value, float) else str(value) for value in rivals if value != mine
        ]
        brought = [told(rivals[value], objective_ms) for value in rivals if value != mine]
        shown = f"{mine:g}" if isinstance(mine, float) else str(mine)
        sentence = f"{name}={shown} sustains {chosen.rate(objective_ms):.1f}/s"
        if others:
            sentence += "; " + ", ".join(
                f"{other}: {what}" for other, what in zip(others, brought, strict=True)
            )
        else:
            sentence += "; nothing else was tried"
        sentences.append(sentence)
    most = max(trial.rate(objective_ms) for trial in trials)
    if most > chosen.rate(objective_ms):
        sentences.append(
            f"up to {most:.1f}/s was seen with more processes, delay or batch: within {NOISE:.0%}, "
            "so what takes least is proposed"
        )
    return sentences


def told(trial: Trial, objective_ms: float) -> str:
    """In a few words: the rate that it sustains, or why there is none."""
    if rate := trial.rate(objective_ms):
        return f"{rate:.1f}/s"
    if trial.alone_ms > objective_ms:
        return f"a lone client waits {trial.alone_ms:.0f} ms already"
    if not trial.probes:
        return f"not above it ({trial.ceiling:.1f}/s at saturation)"
    return f"none of the rates tried (p99 {min(one.p99_ms for one in trial.probes):.0f} ms at best)"


#: Of what was sustained, this is where more pods should come: the rest carries the load while they start.
_HEADROOM = 0.85


@dataclass(frozen=True)
class Scaling:
    """What a cluster wants to know."""

    cpu: int
    """Cores, requested and limited: what the plan was measured with."""
    memory_request_mib: int
    memory_limit_mib: int
    saturation: float
    """Mean ``imagenet_saturation_ratio`` of the pods at which one more is wanted."""
    cpu_percent: int
    """The same in CPU of the request."""
    rate: float
    """Requests a second and pod at that point."""


def scaling(choice: Choice, cores: int, frontends: int) -> Scaling:
    """Resources and thresholds of the proposal, from what it took at the rate that it sustains."""
    probe, trial = choice.probe, choice.trial
    seen = probe.saturation or probe.rate / trial.ceiling
    request = _up(1.25 * trial.memory_mib)  # a quarter more than was seen: larger photos, fragmentation
    return Scaling(
        cpu=cores,
        memory_request_mib=request,
        memory_limit_mib=_up(request + 150 * frontends),  # a photo of max_image_pixels in each front-end
        saturation=min(0.95, max(0.05, round(_HEADROOM * seen, 2))),
        cpu_percent=min(95, max(5, round(100 * _HEADROOM * probe.cores / cores))),
        rate=_HEADROOM * probe.rate,
    )


def _up(mib: float, step: int = 128) -> int:
    return int(-(-mib // step) * step)
