"""A few files of the drill's grammar of containers; `make drill` has hundreds, beside normal traffic."""

from __future__ import annotations

import pytest

from service.errors import DeadlineExceeded, RequestError
from service.images.decoders.cost import largest
from tests.drills import grammar
from tests.images.decoders import misbehaving as pools
from tests.loops import on_a_loop

#: Seconds, of which a decode may not take much more of CPU.
_PATIENCE = 1.0


def test_the_grammar_makes_the_same_file_again_and_none_too_large() -> None:
    for seed in range(12):
        name, data = grammar.file(seed)
        assert (name, data) == grammar.file(seed)
        assert len(data) <= grammar.LARGEST


@on_a_loop
async def test_any_file_is_an_image_a_refusal_or_killed_at_its_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pools, "ROOM", grammar.LARGEST)
    killed: list[tuple[str, str]] = []
    async with pools.pool(monkeypatch, killed=lambda kind, reason: killed.append((kind, reason))) as decoders:
        for seed in range(12):
            name, data = grammar.file(seed)
            try:
                await pools.decode(decoders, data, _PATIENCE)
            except (RequestError, DeadlineExceeded):
                continue
            finally:
                assert not decoders.stuck, name
        assert not [reason for _, reason in killed if reason not in ("deadline", "effort")]
        assert (await pools.decode(decoders, pools.GOOD) == pools.expected(pools.GOOD)).all()


def test_the_worst_picture_ends_before_a_drain_does() -> None:
    assert largest(50_000_000, grammar.LARGEST).seconds < 25
