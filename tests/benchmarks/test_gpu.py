"""`benchmarks.gpu` without a GPU: what it checks, with networks that are right, off, and mixed up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import gpu, gpu_checks, gpu_steps, report
from service.cli.bench import run as bench
from service.models import fused, loader
from service.models.catalog import VARIANTS
from service.models.checkpoints import Checkpoint
from service.models.cuda import jpegs
from service.models.cuda.pipeline import CudaRunner
from service.models.cuda.program import Choice, Program
from service.preprocess import Preprocessing
from tests import tiny
from tests.models.cuda.fake_device import FakeDevice
from tests.models.cuda.test_jpegs import by_pillow


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small only lose by sharing their work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def runner(checkpoint: Checkpoint, fault: str = "", largest: int = 8) -> CudaRunner:
    network = fused.fuse(loader.load(checkpoint), fused.TORCH, torch.device("cpu"), torch.float32)

    def forward(pixels: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = network(pixels)
        if fault == "off at four":
            return features, logits * (1.001 if len(pixels) == 4 else 1)
        if fault == "padding" and len(pixels) > 1:
            return features, logits + pixels.float().mean() * 1e-7
        return features, logits

    made = CudaRunner(
        [Choice("all", lambda: Program("cudagraph", "fp32", forward, True))],
        FakeDevice(),
        (32, 32, 3),
        largest,
    )
    made.warm_up()
    return made


@pytest.mark.parametrize(("fault", "passes"), [("", True), ("off at four", False), ("padding", False)])
def test_a_bucket_that_is_off_and_padding_that_shows_fail(fault: str, passes: bool) -> None:
    checkpoint = tiny.checkpoint()
    pixels = gpu_checks.photos(8, (32, 32, 3))
    assert len({image.tobytes() for image in pixels}) == 8
    found = gpu_checks.check(runner(checkpoint, fault), pixels, gpu_checks.reference(checkpoint, pixels))
    assert found.passed("fp32") is passes
    assert found.clear > 0
    if fault == "off at four":
        assert found.worst_bucket == 4
        assert found.agree == found.clear  # a thousandth changes no class whose margin exceeds it
    if fault == "padding":
        assert not found.padding


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_rates_stand_beside_what_this_gpu_should_do() -> None:
    made = runner(tiny.checkpoint(), largest=8)
    rows = gpu_steps.rates(made, "densenet121", "NVIDIA H100 80GB HBM3", 0.01)
    assert [row["batch"] for row in rows] == [1, 8]
    assert all(
        row["images/s"] > 0 and row["forward alone, images/s"] > 0 and row["expected"] > 0 for row in rows
    )
    assert rows[-1]["goal"] == gpu_steps.GOALS["densenet121"]
    assert rows[0]["arena"] == "not registered"
    assert "expected" not in gpu_steps.rates(made, "densenet121", "A GPU of tomorrow", 0.01)[0]


def steps(ran: list[str], broken: set[str]) -> list[gpu.Step]:
    def step(name: str, needs: float) -> gpu.Step:
        def run(plan: gpu.Plan, before: dict[str, gpu.Outcome]) -> gpu.Outcome:
            assert name != "b" or "a" in before
            ran.append(name)
            if name in broken:
                raise RuntimeError(f"{name} broke\nand more")
            return gpu.Outcome("passed", f"{name} is well", [{"check": "passed", "of": name}])

        return gpu.Step(name, "about", needs, run)

    return [step("a", 1), step("b", 1), step("c", 1e6), step("d", 1)]


def test_a_run_goes_on_where_it_was_cut_off_and_a_failure_keeps_nothing_from_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    file, ran, broken = tmp_path / "state" / "gpu.json", list[str](), {"b"}
    plan = gpu.Plan(["vgg16"], "random:0", time.monotonic() + 1000)
    for expected_to_run, again in (
        (["a", "b", "d"], []),
        (["b"], []),
        (["a"], ["a"]),
        (["a", "b", "d"], ["all"]),
    ):
        ran.clear()
        state = gpu.State(file, "H100")
        gpu.go(steps(ran, broken), plan, state, again)
        assert ran == expected_to_run
        verdicts = {name: outcome.verdict for name, outcome in state.outcomes.items()}
        assert verdicts == {
            "a": "passed",
            "b": "FAILED" if broken else "passed",
            "c": "left out",
            "d": "passed",
        }
        if broken:
            assert "RuntimeError: b broke" in "".join(state.outcomes["b"].story)
            gpu.publish(steps(ran, broken), state, "random:0")
        broken = set[str]()
    assert gpu.State(file, "another GPU").outcomes == {}
    printed = capsys.readouterr()
    assert "b broke" in printed.err
    last = printed.out.splitlines()[-6:]
    assert last[0].startswith("| step")
    assert "left out" in last[4]
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"gpu.json", "gpu.md"}


def test_every_step_says_what_it_is_and_the_last_table_is_short() -> None:
    names = [step.name for step in gpu_steps.STEPS]
    assert len(set(names)) == len(names)
    outcomes = {name: gpu.Outcome("passed") for name in names}
    assert len(report.table(gpu.summary(gpu_steps.STEPS, outcomes))) <= 40
    assert all(step.run.__doc__ for step in gpu_steps.STEPS)


def test_expected_figures_show_their_arithmetic() -> None:
    pytest.importorskip("triton")
    from benchmarks.paper import expected
    from benchmarks.paper.trace import Paper

    trace = Paper(VARIANTS["densenet121"].configuration, "fp16", fuse=True).run(256, (224, 224, 3))
    h100, h200 = (expected.gpu_of(f"NVIDIA {name} 80GB") for name in ("H100", "H200"))
    assert h100 is not None
    assert h200 is not None
    rates = [expected.images_a_second(trace, gpu, "fp16") for gpu in (h100, h200)]
    assert 20_000 < rates[0] < rates[1]
    head, *parts = expected.arithmetic(trace, h100, "fp16")
    assert f"{rates[0]:,.0f} images/s" in head
    assert sum(int(part.split("%")[0]) for part in parts) in range(95, 105)
    assert expected.images_a_second(trace, h100, "fp32") < rates[0]


@pytest.mark.parametrize(("flags", "code"), [([], 1), (["--allow-no-gpu"], 0)])
def test_without_a_gpu_it_says_so(
    flags: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu", *flags])
    assert gpu.main() == code
    assert "no CUDA device" in capsys.readouterr().err


def test_the_lane_that_decodes_says_how_fast_and_how_right_it_is() -> None:
    photos = [bench.synthetic_photo(60, 40, seed) for seed in range(3)]
    decoder = jpegs.JpegDecoder(by_pillow, Preprocessing(), torch.device("cpu"))
    outcome = gpu_steps.lane_rate(decoder, photos, 0.01)
    assert outcome.verdict == "passed"
    assert outcome.rows[0]["photos/s"] > 0
    assert outcome.rows[0]["grey levels away"] == 0
    broken = jpegs.JpegDecoder(
        lambda files: [None, *by_pillow(files[1:])], Preprocessing(), torch.device("cpu")
    )
    assert gpu_steps.lane_rate(broken, photos, 0.01).verdict == "FAILED"
