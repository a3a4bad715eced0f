"""The setting ``device``: one device, or several that share the work, each with an engine of its own.

cuda:0,1          two GPUs                        cuda:all        every GPU that this process may use
cpu,cpu           two engines, each with half of the cores
MIG-…,MIG-…       slices of a GPU by their UUIDs (nvidia-smi -L); GPU-… works alike
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from service.errors import ConfigurationError
from service.host.machine import output
from service.options.nearest import did_you_mean, one_of

ALL = "cuda:all"
#: The values for one device that error messages name.
WORDS = ("auto", "cpu", "cuda", "cuda:N")
#: The largest number of engines in one service; more are taken for a typing error.
MAX_DEVICES = 64

_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z/-]+")
_ONE = re.compile(rf"cpu|cuda(:\d{{1,3}})?|{_UUID.pattern}")
_LISTED = re.compile(r"UUID: ((?:GPU|MIG)-[0-9A-Za-z/-]+)")


@dataclass(frozen=True)
class EngineDevice:
    """The device of one engine. ``name`` is for people, ``setting`` is the engine's own setting ``device``.

    ``visible`` is the engine's ``CUDA_VISIBLE_DEVICES``; empty leaves it as it is. ``share`` (i, n) is the i-th of n
    equal parts of the cores.
    """

    name: str
    setting: str
    visible: str = ""
    share: tuple[int, int] = (0, 1)


def listed(text: str) -> list[str]:
    """Splits the setting into its devices; ``auto`` and ``cuda:all`` are returned as they are.

    Raises `ValueError` for anything else.
    """
    if text in ("auto", ALL):
        return [text]
    found: list[str] = []
    for item in text.split(","):
        item = item.strip()
        if item.isascii() and item.isdigit() and found and found[-1].startswith("cuda:"):
            item = f"cuda:{item}"
        if not _ONE.fullmatch(item):
            raise ValueError(_unfit(item, several="," in text))
        found.append(item)
    if len(found) > MAX_DEVICES:
        raise ValueError(f"names {len(found)} devices; {MAX_DEVICES} are allowed")
    return found


def _unfit(item: str, several: bool) -> str:
    if several:
        return (
            f"{item!r}: each of several devices must be cpu, cuda:N, or the UUID of a GPU or of a MIG slice"
        )
    meant = "cuda" if item.lower().startswith(("gpu", "nvidia")) else item
    return f"must be {one_of(WORDS)}{did_you_mean(meant, (*WORDS, ALL))}"


def resolve(text: str, every: Callable[[], Sequence[str]]) -> list[EngineDevice]:
    """The device of each engine. ``every`` returns the devices of ``cuda:all``: numbers, or UUIDs.

    Raises `ConfigurationError` for ``cuda:all`` without a GPU.
    """
    names = listed(text)
    if names == [ALL]:
        names = [name if _UUID.fullmatch(name) else f"cuda:{name}" for name in every()]
        if not names:
            raise ConfigurationError(f"device={ALL}: nvidia-smi lists no GPU here; use device=cpu or auto")
    processors = names.count("cpu")
    found: list[EngineDevice] = []
    for name in names:
        if _UUID.fullmatch(name):
            found.append(EngineDevice(name, "cuda", visible=name))
        elif name == "cpu":
            found.append(
                EngineDevice(name, name, share=(sum(one.name == "cpu" for one in found), processors))
            )
        else:
            found.append(EngineDevice(name, name))
    return found


def gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """All GPUs that this process may use: CUDA's numbers, or the UUIDs of MIG slices."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        entries = [
            entry.strip() for entry in visible.split(",") if entry.strip() not in ("", "-1", "NoDevFiles")
        ]
        return [entry if entry.startswith("MIG-") else str(number) for number, entry in enumerate(entries)]
    return _counted(output("nvidia-smi", "-L"))


def _counted(listing: str) -> list[str]:
    """The GPUs in the output of ``nvidia-smi -L``; the MIG slices if any, since their GPU is not usable whole."""
    uuids = _LISTED.findall(listing)
    slices = [uuid for uuid in uuids if uuid.startswith("MIG-")]
    return slices or [str(number) for number, _ in enumerate(uuids)]


def cores_of(share: tuple[int, int], cores: Sequence[int]) -> list[int]:
    """The cores of one share. At least one core, so with more shares than cores a core has several."""
    part, parts = share
    ordered = sorted(cores)
    begin, end = part * len(ordered) // parts, (part + 1) * len(ordered) // parts
    return ordered[begin:end] or [ordered[part % len(ordered)]]


def confine(device: EngineDevice) -> None:
    """Restricts this process to the GPUs and the cores of ``device``."""
    from service.host import machine as host

    if device.visible:
        os.environ["CUDA_VISIBLE_DEVICES"] = device.visible
    part, parts = device.share
    if parts > 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores_of((part, parts), list(os.sched_getaffinity(0))))
        host.share_quota(parts)
