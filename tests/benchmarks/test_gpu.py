"""`benchmarks.gpu` without a GPU: what it checks, with networks that are right, off, and mixed up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import gpu, gpu_checks, report
from service.models import fused, loader
from service.models.checkpoints import Checkpoint
from service.models.cuda.pipeline import StreamRunner
from service.models.cuda.program import Choice, Program
from tests import tiny
from tests.models.cuda.fake_device import FakeDevice

RAW = gpu.raw


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small only lose by sharing their work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def runner(checkpoint: Checkpoint, fault: str = "", largest: int = 8) -> StreamRunner:
    network = fused.fuse(loader.load(checkpoint), fused.TORCH, torch.device("cpu"), torch.float32)

    def forward(pixels: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = network(pixels)
        if fault == "off at four":
            return features, logits * (1.001 if len(pixels) == 4 else 1)
        if fault == "padding" and len(pixels) > 1:
            return features, logits + pixels.float().mean() * 1e-7
        return features, logits

    made = StreamRunner(
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


def test_every_variant_precision_and_runtime_has_its_line_and_what_is_served_comes_first() -> None:
    wanted = list(gpu.cases(["densenet121", "vgg11"]))
    assert wanted[:2] == [("densenet121", "fp16", "cudagraph"), ("vgg11", "fp16", "cudagraph")]
    assert len(set(wanted)) == len(wanted) == 2 * 3 * 2 + 1
    assert ("densenet121", "fp16", "compile") in wanted


def test_what_fails_is_a_line_and_what_there_is_no_time_for_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "resolve", lambda *_: tiny.checkpoint())
    monkeypatch.setattr(gpu, "_PHOTOS", 4)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu, "raw", lambda made, model: RAW(made, model, 0.01))
    now = iter(np.arange(0, 1000, 1.0))

    def make(checkpoint: Checkpoint, precision: str, runtime: str) -> StreamRunner:
        if precision == "bf16":
            raise ValueError("no bf16 here")
        made = runner(checkpoint, largest=2)
        made.runtime = replace(made.runtime, precision="fp32", name=runtime)
        return made

    checks, raws, left_out = gpu.numbers(["vgg16"], "random:0", make, 10.0, lambda: float(next(now)))
    assert [row["check"] for row in checks] == [
        "passed",
        "passed",
        "FAILED: ValueError: no bf16 here",
        "passed",
    ]
    assert left_out == ["vgg16 fp32 eager", "vgg16 bf16 eager", "vgg16 fp16 compile"]
    assert len(raws) == 1
    assert raws[0]["forward alone, images/s"] > 0
    over_http: list[dict[str, Any]] = [{"model": "vgg16", "decode": "exact", "served, requests/s": 7}]
    gpu.publish(checks, raws, over_http, left_out, "random:0")
    last = capsys.readouterr().out.splitlines()[-1]
    assert "3 of 4 passed" in last
    assert {path.name for path in tmp_path.iterdir()} == {"gpu.json", "gpu.md"}


@pytest.mark.parametrize(("flags", "code"), [([], 1), (["--allow-no-gpu"], 0)])
def test_without_a_gpu_it_says_so(
    flags: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu", *flags])
    assert gpu.main() == code
    assert "no CUDA device" in capsys.readouterr().err
