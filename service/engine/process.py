"""The engine's life: finds the weights, loads the model, warms it up and serves.

The modules of the models are imported inside `main`, so that the supervisor, which forks from here, stays small.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from service.engine.arena import Arena, Gauge, Geometry
from service.engine.batcher import Batcher
from service.engine.core import EngineCore
from service.engine.device import Batch, DeviceThread
from service.engine.file_process import FileProcess
from service.engine.files import FileDecoding
from service.engine.owner import Owner
from service.engine.spare import Seen, SpareTime
from service.errors import StartError
from service.host.collector import resting
from service.host.machine import memory_for_pictures
from service.observability import logs
from service.observability.card import ModelCard
from service.observability.metrics import Metrics
from service.options.devices import EngineDevice, confine
from service.settings import Settings
from service.shared.batches import BatchReport, DeviceFailed, Remeasurable
from service.shared.buckets import bucket_of
from service.shared.fallback import Fallback, Fallbacks
from service.shared.transport import Channel, Link, blob

if TYPE_CHECKING:
    from service.models.cuda.pipeline import CudaRunner
    from service.models.runner import ModelRunner

log = logging.getLogger(__name__)

#: The exit code of an engine that reported why it cannot start; another start would not help.
CANNOT_START = 3
#: The exit code of an engine whose device failed. A new engine has a new context and loads the weights again.
DEVICE_FAILED = 4
#: A batch hangs if it takes more than this many seconds, and more than this many times the largest batch of warm-up:
#: longer than under swapping or throttling, shorter than an operator's patience.
MIN_BATCH_LIMIT, _TIMES_WARM = 30.0, 20.0
#: Seconds between two reports of a download's progress.
_REPORT_EVERY = 0.2
#: The least number of slots, and the least number of full batches that they hold, under queue_capacity=auto.
_MIN_SLOTS, _BATCHES_OF_SLOTS = 256, 8

#: The niceness of a shadow, which runs after all other processes.
_LAST = 10
#: The largest batch divided by this is the largest batch of bulk images, for whose end other requests may have to wait.
_BULK_SHARE = 4


def main(
    settings: Settings,
    channel: Channel,
    given_up: Sequence[str] = (),
    name: str = "engine",
    device: EngineDevice | None = None,
    standby: bool = False,
    shadow: bool = False,
) -> None:
    """Runs an engine until the supervisor orders its end or dies. If it cannot start, it reports the reason and exits
    with `CANNOT_START`; if its device fails, with `DEVICE_FAILED`.

    ``given_up`` has a sentence for each earlier engine whose device failed during the start; as many ways to run the
    model are skipped. ``name`` is for the log. ``device`` is the one of several to which this process is confined. A
    ``standby`` does no work in spare time. A ``shadow`` runs at a low priority, and its batches are not counted.
    """
    if device is not None:
        confine(device)
    if shadow and threading.current_thread() is threading.main_thread():  # in a process of its own
        os.nice(_LAST)
    logs.configure(settings, name)
    # Forked before this process has a thread.
    process = _file_process() if settings.decode == "gpu" else None
    owner = Owner("device")
    try:
        runner, card, arena, files = owner.call(lambda: _prepare(settings, channel, given_up, process))
    except StartError as error:
        channel.send("failed", message=str(error))
        raise SystemExit(CANNOT_START) from None
    except DeviceFailed as error:
        _end(channel, error)
    core = EngineCore(
        runner,
        arena,
        Batcher(
            runner.max_batch_size,
            settings.max_queue_delay_ms / 1000,
            max(1, runner.max_batch_size // _BULK_SHARE),
        ),
        capacity=runner.capacity,
        batch_ran=_counter(Metrics.declare()) if not shadow else lambda batch: None,
        device=DeviceThread(runner, arena, owner=owner),
        files=files,
    )
    core.watch(channel, lambda: handle_message(core, channel))
    description = blob(card.to_bytes())
    channel.send("ready", geometry=arena.geometry.to_json(), descriptors=[arena.descriptor, description])
    core.every_second(partial(_send_heartbeat, channel))
    work = runner.measure_again() if isinstance(runner, Remeasurable) and not standby else iter(())
    spare = SpareTime(work, partial(_seen, arena))
    spare.start()
    core.when_overdue(longest_batch(runner.max_batch_size, runner.capacity), partial(_report_hang, channel))
    try:
        core.serve()
    except DeviceFailed as error:
        _end(channel, error)
    finally:
        spare.stop()


def _seen(arena: Arena) -> Seen:
    """The arrivals so far, and True while the engine has work; for `SpareTime`."""
    busy = arena.gauges[Gauge.RUNNING] or arena.gauges[Gauge.QUEUE_DEPTH]
    return int(arena.arrivals.sum()), bool(busy)


def _end(channel: Channel, error: DeviceFailed) -> NoReturn:
    # Reported before anything is closed, since closing may hang on a broken device.
    channel.send("distrusted", message=str(error))
    log.critical("the device is not to be trusted, so this engine ends: %s", error)
    raise SystemExit(DEVICE_FAILED) from None


def _file_process() -> FileProcess | Fallback:
    try:
        return FileProcess()
    except OSError as error:
        return Fallbacks().add("decode=gpu", error)


def _prepare(
    settings: Settings, channel: Channel, given_up: Sequence[str], process: FileProcess | Fallback | None
) -> tuple[ModelRunner | CudaRunner, ModelCard, Arena, FileDecoding | None]:
    """Loads and warms up the model. Returns it with its card, the arena of its images, and the file decoder, if any."""
    runner, card = _load(settings, channel, given_up)
    if card.untrained:
        log.warning("weights=%s: this model is UNTRAINED and its answers mean nothing", card.weights)
    arena = Arena.create(_geometry(settings, runner, card))
    told = runner.adopt(arena.pixels)
    arena.gauges[Gauge.DECODE_MEMORY] = memory_for_pictures()
    fallbacks, files = [*card.fallbacks, *told], None
    if process is not None:
        files, missing = _file_decoding(process, card, arena)
        fallbacks += missing
    return runner, replace(card, fallbacks=tuple(fallbacks)), arena, files


def _file_decoding(
    process: FileProcess | Fallback, card: ModelCard, arena: Arena
) -> tuple[FileDecoding | None, list[Fallback]]:
    """The decoder of plain JPEGs on the GPU, or None and a fallback: the service can do without it."""
    if isinstance(process, Fallback):
        return None, [process]
    try:
        if card.device == "cpu":
            process.close()
            raise ValueError("the model runs on the CPU, and so do the decoders")
        found = process.open(arena, card.preprocessing, card.device)
    except ValueError as error:
        return None, [Fallbacks().add("decode=gpu", error)]
    log.info(
        "plain JPEGs of up to %d bytes are decoded on %s while no core is free",
        arena.pixels[0].size,
        card.device,
    )
    return found, []


def _load(
    settings: Settings, channel: Channel, given_up: Sequence[str]
) -> tuple[ModelRunner | CudaRunner, ModelCard]:
    def report(state: str, detail: str) -> None:
        channel.send("phase", state=state, detail=detail)

    with resting():
        from service.models import preparing, serving

    progress = _Progress(channel)
    preparing.prepare(settings, report, progress)
    loaded = serving.load(settings, report, progress, given_up)
    report("warming", f"first batches on {loaded.device}")
    loaded.runner.warm_up()
    return loaded.runner, loaded.card()


def longest_batch(size: int, capacity: float) -> float:
    """Seconds after which a batch counts as hung. ``capacity`` is in images a second at the largest ``size``."""
    return max(MIN_BATCH_LIMIT, _TIMES_WARM * size / capacity if capacity else 0.0)


def _send_heartbeat(channel: Channel) -> None:
    channel.send("alive")
    logs.flush()


def _report_hang(channel: Channel, seconds: float) -> None:
    log.error("a batch has been running for %.0f s: the model hangs", seconds)
    channel.send("hung", seconds=seconds)


def _geometry(settings: Settings, runner: ModelRunner | CudaRunner, card: ModelCard) -> Geometry:
    capacity = settings.queue_capacity
    slots = max(_MIN_SLOTS, _BATCHES_OF_SLOTS * runner.max_batch_size) if capacity == "auto" else capacity
    height, width, channels = card.image
    return Geometry(slots, height, width, channels, runner.results)


def handle_message(core: EngineCore, channel: Channel) -> None:
    """Executes an order of the supervisor: connect a front-end, measure free memory, or stop."""
    received = channel.receive()
    if received is None:
        log.error("the supervisor has gone")
        core.stop()
        return
    message, descriptors = received
    if message["kind"] == "front-end":
        core.attach(message["number"], Link.of(descriptors[0]))
    elif message["kind"] == "measure":
        core.allow_pictures(memory_for_pictures())
    elif message["kind"] == "stop":
        core.stop()


def _counter(metrics: Metrics) -> Callable[[Batch], None]:
    """A function that counts every finished batch, and the canary's answers."""

    def batch_ran(batch: Batch) -> None:
        told = batch.ran or batch.error
        if isinstance(told, (BatchReport, DeviceFailed)) and told.mismatches:
            metrics.canary_mismatch.inc(told.mismatches)
        if batch.ran is not None and batch.ran.canaries:
            metrics.canary_checks.inc(batch.ran.canaries)
        if batch.is_canary:
            return
        size = len(batch.requests) - len(batch.late)
        metrics.batch_size.observe(size)
        metrics.batches.inc()
        metrics.images.inc(size)
        if batch.ran is not None:
            bucket = str(bucket_of(batch.ran.rows))
            metrics.batch_duration.labels(bucket).observe(batch.finished - batch.started)
            if batch.ran.rows > size:
                metrics.padding_rows.inc(batch.ran.rows - size)
        late = sum(
            request.deadline <= batch.started and request.slot not in batch.late for request in batch.requests
        )
        if late:
            metrics.late_work.inc(late)

    return batch_ran


class _Progress:
    """Reports the progress of a download to the supervisor, a few times a second."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._told_at = 0.0

    def __call__(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now - self._told_at >= _REPORT_EVERY or done == total:
            self._told_at = now
            self._channel.send("progress", done=done, total=total)
