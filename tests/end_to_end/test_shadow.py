"""A second model that is shown a share of the images, and answers nobody."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.shared.shadow_tally import ShadowTally
from tests.drills.crowd import options
from tests.drills.hostile import MISSING
from tests.end_to_end.test_switching import Asking, engines, health, load, until
from tests.server import HTTP, Server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="parts are processes there")

reports = st.lists(
    st.tuples(st.integers(0, 300), st.floats(0, 1), st.floats(0, 1), st.floats(0, 9), st.integers(0, 9)),
    max_size=8,
)


@given(reports)
def test_what_front_ends_report_bit_by_bit_is_what_there_is_in_all(found: list[tuple[Any, ...]]) -> None:
    whole, here = ShadowTally(), ShadowTally()
    for compared, share, difference, seconds, missed in found:
        agreed = int(share * compared)
        here.add(compared, agreed, difference, seconds, seconds / 2, missed)
        whole.add(*here.take())  # type: ignore[arg-type]
        assert not any(here.take()), "reported twice"
    assert whole.compared == sum(one[0] for one in found)
    assert whole.missed == sum(one[4] for one in found)
    told = whole.to_json()
    if whole.compared < 100:
        assert told["verdict"] == "collecting"
    else:
        assert (told["verdict"] == "agrees") == (told["agreement"] >= 0.99)
        assert (told["verdict"] == "differs") == (told["agreement"] < 0.95)


def shown(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = health(server)["shadow"]
    return found


def test_a_shadow_is_compared_and_nobody_waits_for_it_or_notices_its_death() -> None:
    settings = options(IMAGE_MS=1, frontends=2, weights="random:1", shadow="random:2", shadow_share=1)
    with Server(**settings, queue_capacity=64) as server, Asking(server) as asking:
        until(lambda: shown(server)["compared"] > 100)
        told = shown(server)
        assert (told["verdict"], told["agreement"], told["state"]) == ("differs", 0.0, "serving")
        assert told["mean_difference"] > 0.9
        metrics = server.metrics()
        assert metrics['imagenet_shadow_images_total{outcome="differed"}'] > 0
        assert metrics["imagenet_shadow_probability_difference_count"] > 0
        assert 'weights="random:2"' not in HTTP.get(server.url + "/metrics").text
        assert HTTP.get(server.url + "/v2/models/random:2").status_code == 404
        usual = os.getpriority(os.PRIO_PROCESS, server.pid)  # not 0 where the tests themselves are nice
        (shadow,) = [pid for pid in engines(server) if os.getpriority(os.PRIO_PROCESS, pid) > usual]
        before = told["compared"]
        os.kill(shadow, signal.SIGKILL)
        until(lambda: shown(server)["compared"] > before + 20 and shadow not in engines(server))
        assert health(server)["state"] == "ready"
    assert set(asking.statuses) == {200}
    assert set(asking.weights) == {"random:1"}
    assert not asking.wrong


def test_a_shadow_of_the_same_weights_agrees_and_may_answer_after_a_switch() -> None:
    settings = options(
        frontends=1, weights="random:1", shadow="random:1", shadow_share=0.5, model_control="open"
    )
    with Server(**settings) as server, Asking(server, 2) as asking:
        until(lambda: shown(server)["compared"] > 100)
        assert shown(server)["verdict"] == "agrees"
        assert shown(server)["mean_difference"] == 0
        assert load(server, 3).status_code == 200
        until(lambda: shown(server)["agreement"] < 1)  # it is the new model that it is compared with now
    assert set(asking.statuses) == {200}


def test_a_shadow_that_cannot_be_loaded_keeps_nobody_from_being_served() -> None:
    with Server(**options(frontends=1, shadow=f"random:{MISSING}")) as server:
        until(lambda: shown(server)["state"] == "given up")
        assert "there are no such weights" in shown(server)["reason"]
        assert health(server)["state"] == "ready"
        assert HTTP.get(server.url + "/readyz").status_code == 200
        assert server.terminate() == 0
