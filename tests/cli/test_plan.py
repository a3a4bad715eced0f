"""`imagenet-serve plan`: its decisions on made-up measurements, what it writes, and one short run for real."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from service.cli.main import cli
from service.cli.plan import decide, measure
from service.cli.plan.decide import Candidate, Probe, Trial
from service.cli.plan.write import Proposal, write
from service.settings import Settings
from tests import tiny

OBJECTIVE = 50.0
ROOT = Path(__file__).resolve().parents[2]


def trial(rate: float = 0.0, *, ceiling: float = 100.0, alone: float = 10.0, **candidate: Any) -> Trial:
    settings = {"runtime": "openvino", "max_batch_size": 4, "frontends": 1, **candidate}
    kept = Probe(rate, 40.0, 400, saturation=0.7, cores=1.5)
    missed = Probe(1.2 * rate + 1, 90.0, 400)
    return Trial(Candidate(**settings), ceiling, alone, 700.0, (kept, missed) if rate else (missed,))


# ---- which is chosen -------------------------------------------------------------------------------------------------


def test_the_highest_rate_that_keeps_the_objective_wins() -> None:
    fast, slow = trial(60, runtime="openvino"), trial(30, runtime="eager", ceiling=300)
    choice = decide.choose([slow, fast], OBJECTIVE)
    assert choice is not None
    assert choice.trial is fast
    assert choice.probe.rate == 60
    assert "runtime=openvino sustains 60.0/s; eager: 30.0/s" in choice.reasons


def test_within_the_noise_the_one_that_takes_least_wins() -> None:
    plain, more = trial(60), trial(61, frontends=2, max_queue_delay_ms=2.0)
    choice = decide.choose([more, plain], OBJECTIVE)
    assert choice is not None
    assert choice.trial is plain
    assert "61.0/s" in " ".join(choice.reasons)
    clearly = decide.choose([trial(70, frontends=2), plain], OBJECTIVE)
    assert clearly is not None
    assert clearly.trial.candidate.frontends == 2


def test_nothing_is_proposed_when_nothing_keeps_it() -> None:
    assert decide.choose([trial(), trial(alone=80.0)], OBJECTIVE) is None
    assert decide.choose([], OBJECTIVE) is None


def test_a_rate_with_refusals_is_not_sustained() -> None:
    full = replace(trial(60), probes=(Probe(60, 10.0, 400, bad=1), Probe(20, 10.0, 400)))
    assert full.rate(OBJECTIVE) == 20


@given(st.lists(st.tuples(st.floats(0, 500), st.integers(1, 8), st.integers(1, 32)), min_size=1, max_size=12))
def test_the_choice_is_never_far_below_the_best(found: list[tuple[float, int, int]]) -> None:
    trials = [trial(rate, frontends=front, max_batch_size=size) for rate, front, size in found]
    most = max(rate for rate, _, _ in found)
    choice = decide.choose(trials, OBJECTIVE)
    assert (choice is None) == (most == 0)
    if choice is not None:
        assert choice.probe.rate >= (1 - decide.NOISE) * most
        assert choice.probe.keeps(OBJECTIVE)


# ---- what is tried ---------------------------------------------------------------------------------------------------


@given(limit=st.floats(1, 99), most=st.integers(2, 6))
def test_the_rates_close_in_on_the_limit(limit: float, most: int) -> None:
    """A made-up server that keeps the objective up to ``limit`` of 100 a second."""
    probes: list[Probe] = []
    while len(probes) < most and (rate := decide.next_rate(100.0, probes, OBJECTIVE)) is not None:
        assert 0 < rate < 100
        probes.append(Probe(rate, 10.0 if rate <= limit else 500.0, 100))
    kept = max((one.rate for one in probes if one.keeps(OBJECTIVE)), default=0.0)
    assert kept <= limit
    assert limit - kept <= max(6.0, 70.0 / 2 ** (len(probes) - 1))


def test_what_cannot_win_is_not_probed() -> None:
    assert decide.worth_probing(trial(), 50.0, OBJECTIVE)
    assert not decide.worth_probing(trial(alone=51.0), 0.0, OBJECTIVE)
    assert not decide.worth_probing(trial(ceiling=49.0), 50.0, OBJECTIVE)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("cores", [1, 2, 16])
def test_each_stage_varies_one_setting(cores: int, quick: bool) -> None:
    best = trial(10)
    stages = decide.stages(cores, quick=quick)
    assert [name for name, _ in stages][:2] == ["max_batch_size", "frontends"]
    for name, stage in stages:
        for candidate in stage(best):
            assert candidate != best.candidate
            assert replace(candidate, **{name: getattr(best.candidate, name)}) == best.candidate
            assert (candidate.frontends or 1) <= max(1, cores)


def test_batches_of_one_wait_for_nobody() -> None:
    *_, (name, delays) = decide.stages(2, quick=False)
    assert name == "max_queue_delay_ms"
    assert delays(trial(10, max_batch_size=1)) == []


# ---- what a cluster is told ------------------------------------------------------------------------------------------


def test_pods_are_added_before_the_limit() -> None:
    choice = decide.choose([trial(60)], OBJECTIVE)
    assert choice is not None
    scaling = decide.scaling(choice, cores=2, frontends=1)
    assert scaling.saturation == pytest.approx(0.85 * 0.7, abs=0.01)
    assert scaling.cpu_percent == round(85 * 1.5 / 2)
    assert scaling.rate < 60
    assert 700 < scaling.memory_request_mib < scaling.memory_limit_mib
    assert scaling.memory_request_mib % 128 == scaling.memory_limit_mib % 128 == 0


def written(folder: Path) -> Path:
    choice = decide.choose([trial(60), trial(30, runtime="eager")], OBJECTIVE)
    assert choice is not None
    scaling = decide.scaling(choice, cores=2, frontends=1)
    proposal = Proposal(
        choice,
        scaling,
        [choice.trial],
        objective_ms=OBJECTIVE,
        given={"model": "densenet169", "weights": "pretrained"},
        machine="a test",
        gpu=False,
        notes=["a note"],
    )
    write(folder / "plan", proposal)
    return folder / "plan"


def test_the_env_file_is_what_the_service_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (written(tmp_path) / "imagenet-serve.env").read_text().splitlines()
    for name, _, value in (line.partition("=") for line in lines if not line.startswith("#")):
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert (settings.model, settings.max_batch_size, settings.frontends) == ("densenet169", 4, 1)
    assert settings.runtime == "openvino"


@pytest.mark.parametrize("overlay", ["cpu", "autoscale"])
def test_the_component_builds_on_the_overlays(tmp_path: Path, overlay: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl")
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    written(tmp_path / "k8s")
    mine = tmp_path / "k8s/mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(f"resources: [../overlays/{overlay}]\ncomponents: [../plan]\n")
    done = subprocess.run(["kubectl", "kustomize", mine], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built = {document["kind"]: document for document in yaml.safe_load_all(done.stdout)}
    (container,) = built["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["requests"]["cpu"] in ("2", 2)
    assert built["ConfigMap"]["data"]["IMAGENET_MAX_BATCH_SIZE"] == "4"
    assert built["ConfigMap"]["data"]["IMAGENET_DRAIN_DELAY_MS"] == "5000"
    if overlay == "cpu":
        target = built["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["resource"]["target"]
        assert target["averageUtilization"] == 64
    else:
        assert built["ScaledObject"]["spec"]["triggers"][0]["metadata"]["threshold"] == "0.59"


# ---- for real --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_short_sweep_over_a_real_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "QUICK", measure.Effort(alone=0.2, saturated=0.2, probe=1.0, probes=1))
    out = tmp_path / "plan"
    weights = tiny.shared()
    done = CliRunner().invoke(
        cli,
        [
            "plan",
            "--p99=30000",
            "--quick",
            "--budget=0",
            "--runtime=eager",
            f"--weights={weights}",
            f"--out={out}",
        ],
    )
    assert done.exit_code == 0, done.output
    assert "runtime=eager sustains" in done.stdout
    document = json.loads((out / "plan.json").read_text())
    (only,) = document["trials"]
    assert only["ceiling"] > 0
    assert only["memory_mib"] > 50
    assert re.search("the time was over before .* had been varied", (out / "PLAN.md").read_text())
    assert f"IMAGENET_WEIGHTS={weights}" in (out / "imagenet-serve.env").read_text()


def test_an_impossible_objective_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure.Bench, "measure", lambda *_: trial(alone=80.0))
    out = tmp_path / "plan"
    done = CliRunner().invoke(cli, ["plan", "--p99=0.001", "--quick", f"--out={out}", "--weights=demo"])
    assert done.exit_code == 1
    assert "a lone client waits 80.0 ms at best" in done.stderr
    assert not out.exists()
