"""One bit of a weight flipped in the engine's memory, while the service is busy or idle: the canary has to find it.

The real model that comes along, on the processor. A weight is found where OpenVINO has packed it for its kernels:
some output channels of one tap side by side. Bits are the sign, the exponent's and the mantissa's upper ones. Each way
to run the model has its own copy of the weights, so a flip makes the answers of one way wrong. What is promised is the
number of that way's passes: those with a wrong answer, which the access log tells by their numbers. A flip after which
neither a canary nor any photo is answered otherwise was of a weight that meets only zeros there, or of a copy that no
pass reads.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import threading
import time
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from service.host import samples
from tests.drills.memory import Place, find
from tests.drills.report import Report, spread
from tests.server import Server

#: Output channels that a kernel has side by side, with AVX-512 and with less.
_BLOCKS = (16, 8)
_BITS = (31, 30, 29, 26, 24, 23, 22, 21, 20)
#: Flips for each service: an engine that dies young too often ends it, on purpose.
_A_SERVICE = 4
#: Seconds in which an idle service has to find a flip, and for anything else. Each of up to three ways is looked at
#: every 1.5 s then, and two images find nearly all.
_IDLE, _PATIENCE = 4.0, 120.0
#: Passes of the damaged way within which the flip is to be found, and those that were under way then.
_PASSES, _UNDER_WAY = 64, 2
_QUERY, _KIND = "/predict?activation=none&top_k=200", {"content-type": "image/jpeg"}


@dataclass(frozen=True)
class Seen:
    """What followed a flip: if and after how many seconds it was found, the passes of the device until then, and those
    that gave a wrong answer."""

    found: bool
    seconds: float
    passes: float
    wrong: int


def flips(times: int) -> Report:
    """Flips bits of random weights, every other time under load."""
    report = Report("flips", f"{times} times one bit of a weight flipped in the engine's memory")
    seconds: dict[str, list[float]] = {"idle": [], "busy": []}
    passes: list[float] = []
    wrong: list[float] = []
    harmless = missed = wrong_after = false_alarms = 0
    rng = random.Random(4)
    weights = _weights()
    done = 0
    while done < times:
        with Server(weights="demo", frontends=1, device="cpu") as server:
            right = _answers(server)
            for _ in range(min(_A_SERVICE, times - done)):
                mode = ("idle", "busy")[done % 2]
                done += 1
                told = server.metrics()
                alarms, restarts = (
                    told[f"imagenet_{name}_total"] for name in ("canary_mismatch", "engine_restarts")
                )
                false_alarms += alarms != 2 * restarts
                seen = _flip(server, weights, rng, mode, right)
                if not seen.found:
                    if seen.wrong or _differ(_answers(server), right):
                        missed += 1
                    else:
                        harmless += 1
                    break  # with a new service: this one's memory is not what it was
                seconds[mode].append(seen.seconds)
                if mode == "busy":
                    passes.append(seen.passes)
                    wrong.append(seen.wrong)
                server.wait_ready()
                wrong_after += _differ(_answers(server), right)
    found = times - harmless - missed
    report.promise(
        "every flip that changes an answer is found", missed == 0, f"{found} found, {missed} missed"
    )
    report.promise(
        f"no more than {_PASSES} passes with a wrong answer while busy",
        max(wrong, default=0) <= _PASSES + _UNDER_WAY,
        f"passes: {spread(wrong, 1, 0)}",
    )
    slowest = max(seconds["idle"], default=0)
    report.promise("within some seconds while idle", slowest <= _IDLE, f"s: {spread(seconds['idle'], 1, 2)}")
    report.promise("no alarm before a bit was flipped", false_alarms == 0, false_alarms)
    report.promise("the engine after it answers rightly", wrong_after == 0, f"{wrong_after} wrong of {found}")
    report.figure("flips of weights that no photo's answer depends on", harmless)
    report.figure("seconds until the service said so while busy", spread(seconds["busy"], 1, 2))
    report.figure("passes of all ways until then", spread(passes, 1, 0))
    return report


def _weights() -> list[NDArray[np.float32]]:
    """Convolutions that no norm is folded into, float32 ``[O, I, h, w]``: their numbers are the checkpoint's."""
    from service.models.checkpoints import resolve

    state = resolve("demo", "densenet121").state_dict
    names = [name for name in state if name.endswith((".conv2.weight", "transition1.conv.weight"))]
    return [state[name].float().numpy() for name in names]


def _flip(
    server: Server, weights: list[NDArray[np.float32]], rng: random.Random, mode: str, right: list[Any]
) -> Seen:
    """Flips a bit and waits until the service has found it."""
    place = _somewhere(server.children()["engine"], weights, rng)
    stop, load = threading.Event(), _Load(server.url)
    clients = [threading.Thread(target=load.run, args=(stop,)) for _ in range(4 * (mode == "busy"))]
    for client in clients:
        client.start()
    try:
        if mode == "busy":
            _until(lambda: server.metrics()["imagenet_images_total"] > 40, _PATIENCE)
        before = server.metrics()
        place.flip(rng.choice(_BITS))
        began = time.monotonic()
        patience = _PATIENCE / 4 if mode == "busy" else 3 * _IDLE
        wrong = before["imagenet_canary_mismatch_total"]
        restarted = _until(lambda: server.metrics()["imagenet_canary_mismatch_total"] > wrong, patience)
        took = time.monotonic() - began
        after = server.metrics()
    finally:
        stop.set()
        for client in clients:
            client.join()
    ran = after["imagenet_batches_total"] - before["imagenet_batches_total"]
    restarts = before["imagenet_engine_restarts_total"]
    if restarted:
        _until(lambda: server.metrics()["imagenet_engine_restarts_total"] > restarts, _PATIENCE)
    return Seen(restarted, took, ran, _passes(server, load.wrong(right)))


def _somewhere(pid: int, weights: list[NDArray[np.float32]], rng: random.Random) -> Place:
    """A random weight's place in the engine."""
    for _ in range(50):
        tensor = rng.choice(weights)
        outputs, inputs, height, width = tensor.shape
        for block in _BLOCKS:
            first = rng.randrange(max(1, outputs // block)) * block
            tap = rng.randrange(inputs), rng.randrange(height), rng.randrange(width)
            pattern = tensor[(slice(first, first + block), *tap)]
            places = find(pid, pattern) if len(pattern) >= _BLOCKS[-1] else []
            if places:
                place = rng.choice(places)
                return Place(pid, place.address + 4 * rng.randrange(len(pattern)))
    raise RuntimeError(
        "no weight was found in the engine's memory: it packs them otherwise on this processor"
    )


class _Load:
    """Clients that ask for one photo after the other, and what they were told."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._told: list[tuple[str, int, Any]] = []
        """Of each answer its request's id, the photo's number and the predictions."""

    def run(self, stop: threading.Event) -> None:
        photos = _photos()
        with httpx.Client(timeout=60) as client:
            for number in itertools.cycle(range(len(photos))):
                if stop.is_set():
                    return
                answer = client.post(self._url + _QUERY, content=photos[number], headers=_KIND)
                if answer.status_code == 200:
                    told = answer.headers["x-request-id"], number, answer.json()["predictions"]
                    self._told.append(told)
                else:
                    time.sleep(0.05)

    def wrong(self, right: list[Any]) -> set[str]:
        """The ids of the requests that were answered otherwise than by ``right``."""
        return {told for told, photo, answer in self._told if _differ([answer], [right[photo]])}


def _passes(server: Server, requests: set[str]) -> int:
    """The number of passes that these requests rode in, by the access log."""
    batches: dict[str, int] = {}

    def told() -> bool:
        for line in list(server.lines):
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if entry.get("request_id") in requests and "batch" in entry:
                    batches[entry["request_id"]] = entry["batch"]
        return batches.keys() >= requests

    if not _until(told, _PATIENCE):
        raise RuntimeError("the access log lacks requests that were answered")
    return len(set(batches.values()))


def _answers(server: Server) -> list[Any]:
    """Every logit of every photo."""
    with httpx.Client(timeout=60) as client:
        answers = [client.post(server.url + _QUERY, content=photo, headers=_KIND) for photo in _photos()]
    return [answer.json()["predictions"] for answer in answers]


def _differ(one: list[Any], other: list[Any]) -> bool:
    """Whether any logit is another one, but for the last bits that another way to run a batch may round otherwise."""

    def logits(predictions: list[Any]) -> NDArray[np.float64]:
        return np.array(
            [line["logit"] for line in sorted(predictions, key=lambda line: int(line["class_id"]))]
        )

    return any(
        not np.allclose(logits(a), logits(b), rtol=1e-4, atol=1e-4) for a, b in zip(one, other, strict=True)
    )


def _photos() -> list[bytes]:
    return [sample.path.read_bytes() for sample in samples.samples()]


def _until(condition: Any, seconds: float) -> bool:
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if condition():
            return True
        time.sleep(0.02)
    return False
