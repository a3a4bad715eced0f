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
#: What people are told that one device may be.
WORDS = ("auto", "cpu", "cuda", "cuda:N")
#: More engines than this in one service are a slip.
MOST = 64

_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z/-]+")
_ONE = re.compile(rf"cpu|cuda(:\d{{1,3}})?|{_UUID.pattern}")
_LISTED = re.compile(r"UUID: ((?:GPU|MIG)-[0-9A-Za-z/-]+)")


@dataclass(frozen=True)
class Device:
    """``name`` for people; ``setting`` for the engine, which sees ``visible`` of the GPUs, all where that is empty.

    It has a ``share`` of the cores: the first number's part of as many as the second.
    """

    name: str
    setting: str
    visible: str = ""
    share: tuple[int, int] = (0, 1)


def listed(text: str) -> list[str]:
    """The devices that the setting names, one by one; ``auto`` and ``cuda:all`` stand for themselves.

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
    if len(found) > MOST:
        raise ValueError(f"names {len(found)} devices; {MOST} are allowed")
    return found


def _unfit(item: str, several: bool) -> str:
    if several:
        return (
            f"{item!r}: each of several devices must be cpu, cuda:N, or the UUID of a GPU or of a MIG slice"
        )
    meant = "cuda" if item.lower().startswith(("gpu", "nvidia")) else item
    return f"must be {one_of(WORDS)}{did_you_mean(meant, (*WORDS, ALL))}"


def resolve(text: str, every: Callable[[], Sequence[str]]) -> list[Device]:
    """One device for each engine. ``every`` names those of ``cuda:all``: numbers, or UUIDs.

    Raises `ConfigurationError` where there is none.
    """
    names = listed(text)
    if names == [ALL]:
        names = [name if _UUID.fullmatch(name) else f"cuda:{name}" for name in every()]
        if not names:
            raise ConfigurationError(f"device={ALL}: nvidia-smi lists no GPU here; use device=cpu or auto")
    processors = names.count("cpu")
    found: list[Device] = []
    for name in names:
        if _UUID.fullmatch(name):
            found.append(Device(name, "cuda", visible=name))
        elif name == "cpu":
            found.append(Device(name, name, share=(sum(one.name == "cpu" for one in found), processors)))
        else:
            found.append(Device(name, name))
    return found


def gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Every GPU that this process may use: numbers as CUDA counts them, UUIDs for the slices of a GPU that is cut."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        entries = [
            entry.strip() for entry in visible.split(",") if entry.strip() not in ("", "-1", "NoDevFiles")
        ]
        return [entry if entry.startswith("MIG-") else str(number) for number, entry in enumerate(entries)]
    return _counted(output("nvidia-smi", "-L"))


def _counted(listing: str) -> list[str]:
    """Of what ``nvidia-smi -L`` prints: slices where there are any, since their GPU cannot be used whole."""
    uuids = _LISTED.findall(listing)
    slices = [uuid for uuid in uuids if uuid.startswith("MIG-")]
    return slices or [str(number) for number, _ in enumerate(uuids)]


def cores_of(share: tuple[int, int], cores: Sequence[int]) -> list[int]:
    """The part of ``cores`` that is one share of several; at least one, which others may have as well."""
    part, parts = share
    ordered = sorted(cores)
    begin, end = part * len(ordered) // parts, (part + 1) * len(ordered) // parts
    return ordered[begin:end] or [ordered[part % len(ordered)]]


def confine(device: Device) -> None:
    """Lets this process, which has no other purpose than ``device``, see and use no more than that."""
    from service.host import machine as host

    if device.visible:
        os.environ["CUDA_VISIBLE_DEVICES"] = device.visible
    part, parts = device.share
    if parts > 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores_of((part, parts), list(os.sched_getaffinity(0))))
        host.share_quota(parts)
