"""``runtime=compile`` and `imagenet-serve export`: what they say, and what is refused."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.cli.export import run as export
from service.errors import ConfigurationError
from service.models import loader, placement, serving
from service.models.catalog import VARIANTS
from service.models.checkpoints import Checkpoint
from service.models.loader import Uint8Model
from service.models.network import build
from service.models.placement import place
from service.models.runtimes import compiled, manifest, package
from service.models.runtimes.whole import whole
from service.preprocess import IMAGENET_MEAN, IMAGENET_STD
from service.settings import Settings, load
from service.shared.outputs import OutputKind
from tests import tiny

CPU = torch.device("cpu")
compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")


def artifact(folder: Path, checkpoint: Checkpoint, **more: Any) -> Path:
    """An artifact whose machine code is none: whoever loads it has trusted it."""
    code = folder / "code"
    code.write_bytes(b"not machine code")
    package.write(folder / "made", code, checkpoint, "fp32", CPU, most=4, **more)
    return folder / "made"


def test_an_artifact_is_known_by_what_it_says_and_has_its_own_precision(tmp_path: Path) -> None:
    made = artifact(tmp_path, tiny.checkpoint())
    assert place("cpu", "auto", str(made)).runtime == "package"
    with pytest.raises(ConfigurationError, match="has its own"):
        place("cpu", "bf16", str(made))
    assert manifest.format_of(tmp_path) is None
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        package.open_artifact(made, tiny.checkpoint(), CPU)


@pytest.mark.parametrize(
    ("name", "value"), [("torch", "2.0.0"), ("capability", "9.0"), ("device", "cuda"), ("machine", "vax")]
)
def test_an_artifact_of_another_platform_is_refused_before_it_is_loaded(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = artifact(tmp_path, tiny.checkpoint())
    about = json.loads((made / "about.json").read_text())
    about["platform"][name] = value
    (made / "about.json").write_text(json.dumps(about))
    monkeypatch.setattr(package, "load", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(ConfigurationError, match=f"compiled for {name} {value}"):
        package.open_artifact(made, tiny.checkpoint(), CPU)


def test_an_artifact_of_other_weights_or_a_damaged_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "load", lambda *_: pytest.fail("it was loaded"))
    made = artifact(tmp_path, tiny.checkpoint())
    other = tiny.checkpoint()
    other.state_dict["classifier.bias"] = other.state_dict["classifier.bias"] + 1
    with pytest.raises(ConfigurationError, match="or export these"):
        package.open_artifact(made, other, CPU)
    (made / "model.pt2").write_bytes(b"other machine code")
    with pytest.raises(ConfigurationError, match="damaged"):
        package.open_artifact(made, tiny.checkpoint(), CPU)


@pytest.mark.parametrize(
    ("runtime", "says"), [("cudagraph", "needs a CUDA device"), ("fast", "not available")]
)
def test_a_runtime_that_this_host_has_not_is_one_sentence(runtime: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        place("cpu", "auto", runtime)


def test_on_cuda_auto_is_what_starts_and_serves_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_has_cuda", lambda: True)
    monkeypatch.setattr(placement, "_device_count", lambda: 2)
    assert place("auto", "auto", "auto").runtime == "cudagraph"
    assert place("cuda:1", "auto", "compile").precision == "fp16"
    assert place("cuda", "bf16", "auto").chosen
    with pytest.raises(ConfigurationError, match="runs on the CPU"):
        place("cuda", "auto", "openvino")


def test_without_a_compiler_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: Any, **__: Any) -> Any:
        raise CompilerError("InvalidCxxCompiler: none found\nand pages more")

    class CompilerError(RuntimeError):
        inner_exception = ValueError("No working C++ compiler found\nand pages more")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: cannot)
    with pytest.raises(ConfigurationError, match=r"\(No working C\+\+ compiler found\)"):
        compiled.compiled(torch.nn.Identity(), (4, 4, 3), CPU)


def test_a_compiled_model_that_is_off_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lying(*_: Any) -> Any:
        plain = loader.load(tiny.checkpoint())
        return lambda pixels: (None, plain(pixels) * 1.01)

    monkeypatch.setattr(package, "build", lambda *_: None)
    monkeypatch.setattr(package, "load", lying)
    out = tmp_path / "out"
    assert export.run(settings(tmp_path), out) == 1
    assert not out.exists()
    assert "nothing was written" in capsys.readouterr().err


def settings(folder: Path, **more: Any) -> Settings:
    return load(weights=str(tiny.directory(folder)), device="cpu", **more)


@compiler
@pytest.mark.slow
def test_compiled_and_exported_models_say_what_the_plain_one_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache/inductor"))
    assert export.run(settings(tmp_path, max_batch_size=8), tmp_path / "out") == 0
    pixels = np.random.default_rng(0).integers(0, 256, (5, tiny.SIDE, tiny.SIDE, 3), np.uint8)
    wanted = loader.load(tiny.checkpoint())(torch.from_numpy(pixels)).numpy()
    for runtime in (str(tmp_path / "out"), "compile"):
        loaded = serving.load(settings(tmp_path, runtime=runtime), lambda *_: None)
        runner = loaded.runner
        runner.warm_up()
        results = np.zeros((5, runner.results), np.float32)
        for count in (1, min(5, runner.max_batch_size)):
            runner.run(pixels, list(range(count)), [OutputKind.CLASSIFY] * count, results)
            assert np.abs(results[:count, : tiny.CLASSES] - wanted[:count]).max() < 1e-4
    assert loaded.card().runtime == "compile"


def test_a_package_is_loaded_as_the_installed_torch_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA without a pool of its own: asking its events would break the capture of a graph."""
    signature = inspect.signature(torch._inductor.aoti_load_package)
    given: list[dict[str, object]] = []

    def loads(*arguments: object, **options: object) -> object:
        given.append(signature.bind(*arguments, **options).arguments)
        return None

    monkeypatch.setattr(torch._inductor, "aoti_load_package", loads)
    for device, single, index in (("cpu", False, -1), ("cuda", True, 0), ("cuda:3", True, 3)):
        package.load(Path("model.pt2"), torch.device(device))
        assert given[-1]["run_single_threaded"] is single
        assert given[-1]["device_index"] == index


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_network_can_be_exported_for_any_number_of_images(name: str) -> None:
    with torch.device("meta"):
        network = build(VARIANTS[name].configuration)
    model = Uint8Model(network, 3, IMAGENET_MEAN, IMAGENET_STD).to("meta").eval().requires_grad_(False)
    exported = package.exported(
        whole(model, torch.device("meta"), "fp16", has_head=True),
        torch.zeros((64, 224, 224, 3), dtype=torch.uint8, device="meta"),
        256,
    )
    (batch,) = exported.range_constraints.values()
    assert (batch.lower, batch.upper) == (1, 256)


def test_what_an_export_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert "cuda.h" in compiled.find_cuda()
    (tmp_path / "include").mkdir()
    (tmp_path / "include/cuda.h").touch()
    assert compiled.find_cuda() == ""
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)  # type: ignore[attr-defined]
    assert "C++ compiler" in compiled.compiler()
    monkeypatch.setattr(compiled.shutil, "which", lambda name: "/usr/bin/" + name)  # type: ignore[attr-defined]
    monkeypatch.setattr(compiled.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})  # type: ignore[attr-defined]
    assert "Python's headers" in compiled.compiler()
