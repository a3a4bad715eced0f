"""The measurements of one trial on a server on loopback: a lone client, saturation, and some rates of arrival."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx

from service.cli.bench import loadgen
from service.cli.bench import run as bench
from service.cli.plan.decide import Candidate, Probe, Trial, next_rate, worth_probing
from service.cli.plan.server_process import ServerProcess, free_port
from service.host.interpreter import module_command, module_environment

#: Enough clients to fill every batch size that is tried, and a queue behind it.
_CLIENTS = 24


@dataclass(frozen=True)
class Effort:
    """Seconds of each measurement, and the number of rates that are tried."""

    alone: float
    saturated: float
    probe: float
    probes: int


FULL = Effort(alone=2.0, saturated=4.0, probe=8.0, probes=4)
QUICK = Effort(alone=1.0, saturated=2.5, probe=3.0, probes=3)

#: Called with what is being measured, in words.
Show = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """Measures candidates with the same photos and objective. ``given`` are the settings that they share."""

    given: Mapping[str, Any]
    photos: Sequence[bytes]
    objective_ms: float
    effort: Effort
    show: Show

    def measure(self, candidate: Candidate, best_rate: float) -> Trial:
        """Runs a trial of ``candidate``. Rates are tried only if it can sustain more than ``best_rate``, in images/s.

        Raises `DidNotStart` if the service does not start with these settings.
        """
        self.show(f"{candidate}: starting")
        with self._serve(candidate) as server:
            trial = self._explore(server, candidate, best_rate)
            return replace(trial, memory_mib=server.memory_mib())

    def _serve(self, candidate: Candidate) -> ServerProcess:
        port = free_port()
        settings = {**self.given, **candidate.settings(), "port": port, "log_level": "warning"}
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        command = module_command("service", "serve", "--host=127.0.0.1", *flags)
        return ServerProcess(command, port, environment=module_environment())

    def _explore(self, server: ServerProcess, candidate: Candidate, best_rate: float) -> Trial:
        effort = self.effort
        self.show(f"{candidate}: one client")
        alone = self._answered(server, effort.alone, clients=1)
        self.show(f"{candidate}: saturation")
        full = self._answered(server, effort.saturated, clients=_CLIENTS)
        # The service says what "auto" has become, so that the proposal can name it.
        card = httpx.get(f"{server.url}/model", verify=False).json()
        decided = replace(
            candidate,
            runtime=candidate.runtime if candidate.runtime != "auto" else card["runtime"],
            max_batch_size=candidate.max_batch_size or card["max_batch_size"],
        )
        alone_ms = bench.percentiles(alone.latencies).get("p50", float("inf"))
        trial = Trial(decided, full.throughput, alone_ms, 0.0)
        if not worth_probing(trial, best_rate, self.objective_ms):
            return trial
        while len(trial.probes) < effort.probes:
            rate = next_rate(trial.ceiling, trial.probes, self.objective_ms)
            if rate is None or max(rate, trial.rate(self.objective_ms)) <= 0:
                break
            self.show(f"{candidate}: {rate:.1f} images/s")
            trial = replace(trial, probes=(*trial.probes, self._probe(server, rate)))
        return trial

    def _answered(self, server: ServerProcess, seconds: float, clients: int) -> loadgen.Tally:
        """Runs a closed loop for ``seconds``, or up to 16 times as long if nobody was answered in that time."""
        tally = self._load(server, seconds, clients=clients)
        for longer in (4, 16):
            if not tally.latencies:
                tally = self._load(server, longer * seconds, clients=clients)
        return tally

    def _probe(self, server: ServerProcess, rate: float) -> Probe:
        began, cpu = time.monotonic(), server.cpu_seconds()
        tally = self._load(server, self.effort.probe, rate=rate)
        saturation = _scraped(server.url, "imagenet_saturation_ratio")
        cores = (server.cpu_seconds() - cpu) / (time.monotonic() - began)
        found = bench.percentiles(tally.latencies)
        bad = tally.sent - len(tally.latencies)
        return Probe(rate, found.get("p99", float("inf")), len(tally.latencies), bad, saturation, cores)

    def _load(self, server: ServerProcess, seconds: float, **load: Any) -> loadgen.Tally:
        warm_up = seconds / 4
        plan = bench.plan(
            server.url, self.photos, bench.Upload(), duration=seconds + warm_up, warm_up=warm_up, **load
        )
        return loadgen.generate(plan)


def _scraped(url: str, name: str) -> float:
    """The value of a metric without labels; 0 if the service has none of that name."""
    for line in httpx.get(f"{url}/metrics", verify=False).text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[1])
    return 0.0
