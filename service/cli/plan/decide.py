"""The decisions of `plan`: what to try next, and what to propose. Pure functions of measurements, without a clock.

A *candidate* is a set of settings. Its *trial* holds the measurements: the images a second at saturation, and for
some rates of arrival (open loop, Poisson) the latency that users would see. It *sustains* the highest of these rates
that kept the objective.

    stages      runtime → max_batch_size → frontends → max_queue_delay_ms, each around the best so far
    next_rate   bisects the rate at which the p99 passes the objective
    choose      the highest sustained rate; of all within `NOISE` of it, the candidate with the least expense
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

#: Rates that differ by less than this share count as equal, since measurements are short and no machine is quite idle.
NOISE = 0.05
#: The rate that is tried first, as a share of the rate at saturation. Queues grow without bound towards 1.
_FIRST = 0.7
#: The bisection ends when its interval is this share of the rate at saturation.
_FINE = 0.06
#: The values of max_queue_delay_ms that are tried, beside 0.
_DELAYS = (2.0, 5.0)


@dataclass(frozen=True)
class Candidate:
    """Settings to try. None means the service's own choice."""

    runtime: str = "auto"
    max_batch_size: int | None = None
    frontends: int | None = None
    max_queue_delay_ms: float = 0.0

    def settings(self) -> dict[str, Any]:
        """The candidate as the service's settings."""
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
    """The measurement at one rate of arrival, in requests a second."""

    rate: float
    p99_ms: float
    answers: int
    bad: int = 0
    """The number of requests without a 2xx answer."""
    saturation: float = 0.0
    """``imagenet_saturation_ratio`` at the end of the measurement, as an autoscaler would have seen it."""
    cores: float = 0.0
    """CPU seconds of the service's processes a second."""

    def keeps(self, objective_ms: float) -> bool:
        return self.answers > 0 and not self.bad and self.p99_ms <= objective_ms


@dataclass(frozen=True)
class Trial:
    """The measurements of a candidate, in which every ``auto`` has become a value."""

    candidate: Candidate
    ceiling: float
    """Images a second at saturation."""
    alone_ms: float
    """The median latency of a single client."""
    memory_mib: float
    probes: tuple[Probe, ...] = ()

    def sustained(self, objective_ms: float) -> Probe | None:
        """The measurement with the highest rate that kept the objective, if any."""
        return max(
            (one for one in self.probes if one.keeps(objective_ms)), key=lambda one: one.rate, default=None
        )

    def rate(self, objective_ms: float) -> float:
        probe = self.sustained(objective_ms)
        return probe.rate if probe else 0.0


@dataclass(frozen=True)
class ChosenTrial:
    """The proposed trial, the measurement at the rate that it sustains, and the reasons, in sentences."""

    trial: Trial
    probe: Probe
    reasons: tuple[str, ...]


#: A stage's name, and the candidates that it adds around the best trial so far.
Stage = tuple[str, Callable[[Trial], list[Candidate]]]


def stages(cores: int, *, quick: bool) -> list[Stage]:
    """The stages after that of the runtimes, in order."""
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
    if best.max_batch_size == 1:  # no second image could join the first
        return []
    return [replace(best, max_queue_delay_ms=delay) for delay in _DELAYS]


def next_rate(ceiling: float, probes: Sequence[Probe], objective_ms: float) -> float | None:
    """The rate to try next by bisection; None when the sustained rate is known to `_FINE`."""
    kept = max((one.rate for one in probes if one.keeps(objective_ms)), default=0.0)
    missed = min((one.rate for one in probes if not one.keeps(objective_ms)), default=ceiling)
    if not probes:
        return _FIRST * ceiling
    if missed - kept <= _FINE * ceiling:
        return None
    return (kept + missed) / 2


def worth_probing(trial: Trial, best_rate: float, objective_ms: float) -> bool:
    """True if the trial can beat the best: a lone client keeps the objective, and saturation is above the best rate."""
    return trial.alone_ms <= objective_ms and trial.ceiling > best_rate


def best(trials: Sequence[Trial], objective_ms: float) -> Trial:
    """The trial to vary next: the highest sustained rate, or if no trial sustains any, the highest at saturation."""
    return max(trials, key=lambda trial: (trial.rate(objective_ms), trial.ceiling))


def choose(trials: Sequence[Trial], objective_ms: float) -> ChosenTrial | None:
    """The proposal; None if no candidate kept the objective at any rate."""
    most = max((trial.rate(objective_ms) for trial in trials), default=0.0)
    if not most:
        return None
    equal = [trial for trial in trials if trial.rate(objective_ms) >= (1 - NOISE) * most]
    chosen = min(equal, key=lambda trial: _expense(trial.candidate))
    probe = chosen.sustained(objective_ms)
    assert probe is not None
    return ChosenTrial(chosen, probe, tuple(_reasons(chosen, trials, objective_ms)))


def _expense(candidate: Candidate) -> tuple[Any, ...]:
    """The sort key of what a candidate costs: processes first, then added latency, then batch size."""
    return (candidate.frontends or 1, candidate.max_queue_delay_ms, candidate.max_batch_size or 1)


def _reasons(chosen: Trial, trials: Sequence[Trial], objective_ms: float) -> list[str]:
    """One sentence for each setting: the rate of the chosen value, and that of every other value."""
    names = ("runtime", "max_batch_size", "frontends", "max_queue_delay_ms")
    sentences = [
        _reason(name, chosen, _rivals(name, chosen, trials, objective_ms), objective_ms) for name in names
    ]
    most = max(trial.rate(objective_ms) for trial in trials)
    if most > chosen.rate(objective_ms):
        sentences.append(
            f"up to {most:.1f}/s was seen with more processes, delay or batch; that is within {NOISE:.0%}, "
            "so the settings with the least expense are proposed"
        )
    return sentences


def _rivals(name: str, chosen: Trial, trials: Sequence[Trial], objective_ms: float) -> dict[Any, Trial]:
    """The best trial of each other value of the setting ``name``; only trials of the chosen runtime are comparable."""
    best_of: dict[Any, Trial] = {}
    for trial in trials:
        value = getattr(trial.candidate, name)
        comparable = name == "runtime" or trial.candidate.runtime == chosen.candidate.runtime
        if comparable and (
            value not in best_of or trial.rate(objective_ms) > best_of[value].rate(objective_ms)
        ):
            best_of[value] = trial
    best_of.pop(getattr(chosen.candidate, name))
    return best_of


def _reason(name: str, chosen: Trial, rivals: Mapping[Any, Trial], objective_ms: float) -> str:
    own = f"{name}={_shown(getattr(chosen.candidate, name))} sustains {chosen.rate(objective_ms):.1f}/s"
    others = [f"{_shown(value)}: {told(trial, objective_ms)}" for value, trial in rivals.items()]
    return f"{own}; {', '.join(others) or 'nothing else was tried'}"


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def told(trial: Trial, objective_ms: float) -> str:
    """The rate that the trial sustains, or the reason why there is none, in a few words."""
    if rate := trial.rate(objective_ms):
        return f"{rate:.1f}/s"
    if trial.alone_ms > objective_ms:
        return f"a lone client waits {trial.alone_ms:.0f} ms already"
    if not trial.probes:
        return f"not above it ({trial.ceiling:.1f}/s at saturation)"
    return f"none of the rates tried (p99 {min(one.p99_ms for one in trial.probes):.0f} ms at best)"


#: The share of the sustained rate at which more pods are wanted; the rest carries the load while they start.
_HEADROOM = 0.85


@dataclass(frozen=True)
class Scaling:
    """The values for a cluster."""

    cpu: int
    """Cores, as request and limit: those that the plan was measured with."""
    memory_request_mib: int
    memory_limit_mib: int
    saturation: float
    """The pods' mean ``imagenet_saturation_ratio`` at which one more pod is wanted."""
    cpu_percent: int
    """The CPU at that point, in percent of the request."""
    rate: float
    """Requests a second and pod at that point."""


def scaling(choice: ChosenTrial, cores: int, frontends: int) -> Scaling:
    """The proposal's resources and thresholds, from the measurement at the rate that it sustains."""
    probe, trial = choice.probe, choice.trial
    seen = probe.saturation or probe.rate / trial.ceiling
    request = _up(1.25 * trial.memory_mib)  # a quarter more than measured: larger photos, fragmentation
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
