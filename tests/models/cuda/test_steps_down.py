"""Nothing optional keeps the service from serving: what cannot be had is left out, told once, and shown."""

from __future__ import annotations

import ctypes
import gc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from service.errors import ConfigurationError
from service.models import placement
from service.models.cuda import host_memory, start
from service.models.cuda.program import Choice
from service.models.placement import Placement
from service.observability.card import ModelCard
from service.observability.readings import Readings
from service.observability.snapshot import Snapshot
from service.shared.fallback import Fallback, Fallbacks, sentence
from tests.api.site import CARD


class FakeDriver:
    """``refusal`` is what registering returns. Knows what is registered, as CUDA does: by address."""

    def __init__(self, refusal: int = 0) -> None:
        self.refusal = refusal
        self.registered: set[int] = set()

    def cuMemHostRegister_v2(self, address: Any, size: Any, flags: int) -> int:  # noqa: N802
        assert isinstance(address, ctypes.c_void_p)
        assert isinstance(size, ctypes.c_size_t)
        if self.refusal or address.value in self.registered:
            return self.refusal or 712
        self.registered.add(address.value or 0)
        return 0

    def cuMemHostUnregister(self, address: Any) -> int:  # noqa: N802
        if address.value not in self.registered:
            return 713
        self.registered.remove(address.value)
        return 0


def test_registered_memory_is_given_back_before_its_array_goes() -> None:
    driver = FakeDriver()
    pixels = np.zeros((4, 8), np.uint8)
    assert host_memory.register(pixels, driver) == ""
    tensor = torch.from_numpy(pixels)
    del pixels
    gc.collect()
    assert driver.registered == {tensor.data_ptr()}
    del tensor
    gc.collect()
    assert driver.registered == set()


def test_a_refused_registration_is_a_sentence() -> None:
    assert "CUresult 801" in host_memory.register(np.zeros(1 << 20, np.uint8), FakeDriver(801))


@pytest.mark.parametrize(
    ("runtime", "precision", "without"),
    [
        ("cudagraph", "fp16", ["fused", "graphs", "fp16", "fp32"]),
        ("cudagraph", "fp32", ["fused", "graphs", "fp32"]),
        ("compile", "bf16", ["compile", "bf16", "fp32"]),
        ("eager", "fp32", ["fp32"]),
    ],
)
def test_every_runtime_ends_with_what_always_works(runtime: str, precision: str, without: list[str]) -> None:
    checkpoint: Any = type(
        "Checkpoint", (), {"preprocessing": type("P", (), {"shape": (8, 8, 3)}), "classes": ()}
    )
    choices = start.choices(
        checkpoint, Placement("cuda", precision, runtime), torch.device("cuda"), print, Fallbacks()
    )
    assert [choice.without for choice in choices] == without


def test_a_start_leaves_out_what_the_device_failed_with(caplog: pytest.LogCaptureFixture) -> None:
    choices = [
        Choice(name, lambda: pytest.fail("nothing is made here")) for name in ("fused", "graphs", "fp32")
    ]
    for reasons, left in ((1, ["graphs", "fp32"]), (2, ["fp32"]), (5, ["fp32"])):
        fallbacks = Fallbacks()
        found = start.leave_out(choices, ["an illegal address"] * reasons, fallbacks)
        assert [choice.without for choice in found] == left
        assert [told.what for told in fallbacks] == ["fused", "graphs"][: 3 - len(left)]
        assert all("an illegal address" in told.why for told in fallbacks)


def test_each_step_down_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    fallbacks = Fallbacks()
    for _ in range(3):
        fallbacks.add("graphs", RuntimeError("pages\n\nno graph today\n"))
    assert list(fallbacks) == [Fallback("graphs", "RuntimeError: no graph today")]
    assert caplog.text.count("no graph today") == 1
    assert sentence(KeyError()) == "KeyError"
    assert sentence(ValueError("a sentence")) == sentence(ConfigurationError("a sentence")) == "a sentence"
    assert len(sentence(ValueError("x" * 5000))) <= 160


def test_the_card_carries_them_to_the_metric() -> None:
    told = (Fallback("graphs", 'a "quoted" reason'), Fallback("fp16", "off"))
    described = ModelCard.from_bytes(replace(CARD, fallbacks=told).to_bytes())
    assert described.fallbacks == told
    families = {
        family.name: family for family in Snapshot("ready", 0, 0, True, Readings(), [described]).collect()
    }
    samples = families["imagenet_fallback_info"].samples
    assert [(s.labels["what"], s.labels["why"], s.value) for s in samples] == [(*pair, 1.0) for pair in told]


def test_a_device_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_has_cuda", lambda: True)
    monkeypatch.setattr(placement, "_device_count", lambda: 1)
    with pytest.raises(ConfigurationError, match="sees 1 CUDA device"):
        placement.place("cuda:9", "auto", "auto")
    assert placement.place("cuda:0", "auto", "auto").device == "cuda:0"
