"""The way through: whoever reads what a `POST /predict` passes has few files and lines to read."""

from __future__ import annotations

from tests.path_of_predict import count, trace

#: What a reader may expect to meet, in this order.
LANDMARKS = [
    "RequestMiddleware.__call__",
    "ShortCut.__call__",
    "_predict",
    "Admission.receive",
    "_receive",
    "Admission.infer",
    "Slot.fill",
    "Threads.begin",
    "ThreadWriting.__call__",
    "Slot.answer",
    "Connection.submit",
    "EngineCore._receive_messages",
    "EngineCore._run",
    "DeviceThread.submit",
    "DeviceThread._finish",
    "EngineCore._answer",
    "EngineCore._return_slots",
    "Connection._receive_messages",
]


def test_a_request_passes_few_files_and_lines_in_the_order_of_its_life() -> None:
    found = trace()
    names = [function.name for function in found.path]
    assert [name for name in names if name in LANDMARKS] == LANDMARKS
    assert len(found.files) <= 12, found.files
    assert count(found.own) <= 900
    assert count(found.elsewhere) <= 700


def test_every_request_takes_the_same_way() -> None:
    assert list(trace().path) == list(trace().path)
