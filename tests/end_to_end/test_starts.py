"""A start that cannot be: one sentence to the supervisor, which says it and ends."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from service.engine.process import CANNOT_START, main
from service.settings import Settings
from service.shared.transport import Channel, socket_pair
from tests import tiny


def refusal(settings: Settings) -> str:
    """What an engine with these settings says to the supervisor before it ends."""
    ours, theirs = socket_pair()
    handlers = logging.root.handlers[:]
    try:
        with pytest.raises(SystemExit) as ended:
            main(settings, Channel(theirs))
        assert ended.value.code == CANNOT_START
        channel = Channel(ours)
        while (received := channel.receive()) is not None:
            if received[0]["kind"] == "failed":
                return str(received[0]["message"])
        raise AssertionError("it said nothing")
    finally:
        logging.root.handlers[:] = handlers
        ours.close()
        theirs.close()


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def tamper_with_the_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[0] ^= 0xFF
    path.write_bytes(data)


def exchange_a_tensor_for_code(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00exit\x85R.")


def claim_another_network(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"growth_rate": 8', '"growth_rate": 9'))


def lose_the_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"format": ')


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        tamper_with_the_header,
        exchange_a_tensor_for_code,
        claim_another_network,
        lose_the_config,
    ],
)
def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = tiny.directory(tmp_path)
    before = [path.read_bytes() for path in sorted(folder.iterdir())]
    damage(folder)
    assert [path.read_bytes() for path in sorted(folder.iterdir())] != before
    sentence = refusal(Settings(weights=str(folder), device="cpu", runtime="eager"))
    assert "\n" not in sentence
    assert 20 < len(sentence) < 400
    assert str(tmp_path) not in sentence


def test_labels_of_another_number_are_one_sentence(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\n")
    settings = Settings(weights=str(tiny.directory(tmp_path)), device="cpu", runtime="eager", labels=labels)
    assert "2 labels and the model 10 classes" in refusal(settings)


def test_the_tiny_config_is_what_the_damages_expect(tmp_path: Path) -> None:
    assert '"growth_rate": 8' in (tiny.directory(tmp_path) / "config.json").read_text()
    assert json.loads((tmp_path / "tiny" / "config.json").read_text())
