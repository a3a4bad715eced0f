"""One device or several: what the setting may say, and who gets which cores."""

from __future__ import annotations

import contextlib
import os
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import settings
from service.errors import ConfigurationError
from service.host import machine as host
from service.models.placement import place
from service.options.devices import ALL, MAX_DEVICES, EngineDevice, _counted, cores_of, gpus, listed, resolve

SLICE = "MIG-8f6a1c2e-0d5f-5a52-9e3f-6a2b6f0f9d11"
ITEMS = ("cpu", "cuda", "cuda:0", "cuda:7", SLICE, "GPU-1f")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("auto", ["auto"]),
        ("cpu", ["cpu"]),
        ("cuda:0,1", ["cuda:0", "cuda:1"]),
        ("cuda:0, 2 ,3", ["cuda:0", "cuda:2", "cuda:3"]),
        ("cpu,cpu", ["cpu", "cpu"]),
        ("cuda:1,cuda:0", ["cuda:1", "cuda:0"]),
        (f"{SLICE},GPU-1f", [SLICE, "GPU-1f"]),
        (ALL, [ALL]),
    ],
)
def test_devices_are_listed(text: str, found: list[str]) -> None:
    assert listed(text) == found
    assert settings.load(device=text).device == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "cpu,",
        "0",
        "0,1",
        "cpu,1",
        "cuda:",
        "cuda:0,x",
        "auto,cpu",
        f"{ALL},cpu",
        "cuda:0,²",
        "tpu",
    ],
)
def test_what_is_no_device_is_refused_in_words(text: str) -> None:
    with pytest.raises(ConfigurationError, match="must be"):
        settings.load(device=text)


@given(st.lists(st.sampled_from(ITEMS), min_size=1, max_size=MAX_DEVICES))
def test_every_list_of_devices_is_one_engine_each_and_shares_of_the_cores_are_even(names: list[str]) -> None:
    devices = resolve(",".join(names), list)
    assert [device.name for device in devices] == names
    shares = [device.share for device in devices if device.name == "cpu"]
    assert shares == [(part, len(shares)) for part in range(len(shares))]
    for device in devices:
        assert device.setting in ("cpu", "cuda") or device.setting.startswith("cuda:")
        assert bool(device.visible) == device.name.startswith(("MIG-", "GPU-"))


@given(st.text(max_size=20))
def test_no_text_is_more_than_a_refusal(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert resolve(text, lambda: ["0"])


@given(st.sets(st.integers(0, 300), min_size=1, max_size=130), st.integers(1, 40))
def test_shares_are_even_disjoint_and_all_there_is(cores: set[int], parts: int) -> None:
    found = [cores_of((part, parts), list(cores)) for part in range(parts)]
    assert all(found)
    sizes = {len(one) for one in found}
    assert max(sizes) - min(sizes) <= 1
    assert set().union(*found) == cores or parts > len(cores)
    if parts <= len(cores):
        assert all(not set(one) & set(other) for one, other in pairwise(found))


def test_every_gpu_is_what_the_process_may_use() -> None:
    listing = "GPU 0: NVIDIA H100 (UUID: GPU-1)\nGPU 1: NVIDIA H100 (UUID: GPU-2)\n"
    assert _counted(listing) == ["0", "1"]
    assert _counted(listing + f"  MIG 1g.10gb EngineDevice 0: (UUID: {SLICE})\n") == [SLICE]
    assert _counted("") == []
    assert gpus({"CUDA_VISIBLE_DEVICES": "3,5"}) == ["0", "1"]
    assert gpus({"CUDA_VISIBLE_DEVICES": f"{SLICE}"}) == [SLICE]
    assert gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
    assert resolve(ALL, lambda: ["0", SLICE]) == [
        EngineDevice("cuda:0", "cuda:0"),
        EngineDevice(SLICE, "cuda", visible=SLICE),
    ]
    with pytest.raises(ConfigurationError, match="no GPU"):
        resolve(ALL, list)


@pytest.mark.parametrize("device", ["cpu,cpu", "cuda:0,1", ALL, SLICE])
def test_commands_with_a_model_of_their_own_take_one_device(device: str) -> None:
    with pytest.raises(ConfigurationError, match="only serve takes several"):
        place(device, "auto", "auto")


def test_a_quota_is_shared(monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]) -> None:
    monkeypatch.setattr(host, "_sharers", 1)
    (file := tmp_path / "cpu.max").write_text("400000 100000")  # type: ignore[operator]
    assert host.cpu_quota(file.parent) == 4
    host.share_quota(2)
    assert host.cpu_quota(file.parent) == 2
