"""`POST /models/load` and `/models/rollback`: who may, and what is said of what cannot be."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.keys import Keys
from service.api.schemas import LoadRequest
from service.api.served import Served
from service.engine.client import EngineClient
from service.shared.orders import Orders
from service.shared.transport import Channel, socket_pair
from tests.api.site import CARD, CLASSES, Site, site
from tests.loops import on_a_loop
from tests.uploads import png

DONE = {"model": "densenet121", "weights": "new", "previous": {"model": "densenet121", "weights": "old"}}


class Supervisor:
    """The other end of the channel, which answers as it is told."""

    def __init__(self, here: Site, code: str | None = None, words: str = "because") -> None:
        ours, theirs = socket_pair()
        self.orders: list[dict[str, Any]] = []
        self._channel, self._front_end = Channel(ours), Channel(theirs)
        self._code, self._words = code, words
        here.context.orders = self._asked = Orders(self._front_end)
        asyncio.get_running_loop().add_reader(ours.fileno(), self._hear)
        self._ends = (ours, theirs)

    def _hear(self) -> None:
        received = self._channel.receive()
        assert received is not None
        order = received[0]
        self.orders.append(order)
        if self._code != "never":
            self._asked.receive_reply(
                {"number": order["number"], "code": self._code, "words": self._words, "result": DONE}
            )

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._ends[0].fileno())
        for end in self._ends:
            end.close()


@on_a_loop
async def test_without_keys_nobody_may_unless_the_setting_says_so() -> None:
    async with site() as here:
        supervisor = Supervisor(here)
        for path in ("/models/load", "/models/rollback"):
            answer = await here.http.post(path, json={})
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
            assert "model_control" in answer.json()["detail"]
        assert not supervisor.orders
        supervisor.close()
    async with site(settings={"model_control": "open"}) as here:
        supervisor = Supervisor(here)
        answer = await here.http.post("/models/load", json={"weights": "new"})
        assert answer.status_code == 200
        assert answer.json() == DONE
        (order,) = supervisor.orders
        assert (order["action"], order["name"], order["settings"]) == ("load", None, {"weights": "new"})
        supervisor.close()


@on_a_loop
async def test_where_keys_are_set_it_takes_one_and_off_is_off(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("secret\n")
    for control in ("keys", "open", "off"):
        settings = {"api_keys_file": file, "model_control": control}
        async with site(settings=settings, keys=Keys(file)) as here:
            supervisor = Supervisor(here)
            for path in ("/models/load", "/models/rollback"):
                assert (await here.http.post(path, json={})).status_code == 401
                wrong = await here.http.post(path, json={}, headers={"x-api-key": "guess"})
                assert wrong.status_code == 401
                right = await here.http.post(path, json={}, headers={"x-api-key": "secret"})
                assert right.status_code == (403 if control == "off" else 200)
            assert len(supervisor.orders) == (0 if control == "off" else 2)
            supervisor.close()


BAD = [
    (b"{", "application/json", 400, "malformed_request", "no JSON"),
    (b"[]", "application/json", 422, "invalid_parameter", "the body"),
    (b'"x"', "application/json", 422, "invalid_parameter", "the body"),
    (b"{}", "text/plain", 415, "unsupported_media_type", "application/json"),
    (b'{"weights": 5}', "application/json", 422, "invalid_parameter", "weights"),
    (b'{"weights": ""}', "application/json", 422, "invalid_parameter", "weights"),
    (b'{"wieghts": "x"}', "application/json", 422, "invalid_parameter", "did you mean 'weights'"),
    (b'{"other_classes": "yes"}', "application/json", 422, "invalid_parameter", "other_classes"),
    (b'{"least_agreement": 2}', "application/json", 422, "invalid_parameter", "least_agreement"),
    (b'{"least_agreement": NaN}', "application/json", 422, "invalid_parameter", "least_agreement"),
    (b'{"max_batch_size": 0}', "application/json", 422, "invalid_parameter", "max_batch_size"),
    (b'{"weights": "' + b"x" * 70_000 + b'"}', "application/json", 413, "payload_too_large", ""),
]


@pytest.mark.parametrize(("raw", "kind", "status", "code", "words"), BAD)
@on_a_loop
async def test_what_is_no_order_is_refused_in_words(
    raw: bytes, kind: str, status: int, code: str, words: str
) -> None:
    async with site(settings={"model_control": "open"}) as here:
        supervisor = Supervisor(here)
        answer = await here.http.post("/models/load", content=raw, headers={"content-type": kind})
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
        assert words in answer.json()["detail"]
        assert not supervisor.orders
        supervisor.close()


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("conflict", 409),
        ("draining", 503),
        ("invalid_parameter", 422),
        ("load_failed", 422),
        ("not_enough_memory", 507),
        ("not_found", 404),
        ("not_ready", 503),
    ],
)
@on_a_loop
async def test_what_the_supervisor_refuses_has_its_status(code: str, status: int) -> None:
    async with site(settings={"model_control": "open"}) as here:
        supervisor = Supervisor(here, code)
        for path, document in (
            ("/models/load", {}),
            ("/models/load", {"wait": False}),
            ("/models/rollback", {}),
        ):
            answer = await here.http.post(path, json=document)
            assert (answer.status_code, answer.json()["code"]) == (status, code)
            assert answer.json()["detail"] == "because"
        supervisor.close()


@on_a_loop
async def test_who_does_not_wait_is_told_that_it_has_begun() -> None:
    async with site(settings={"model_control": "open"}) as here:
        supervisor = Supervisor(here, "never")
        answer = await here.http.post("/models/load", json={"wait": False})
        assert (answer.status_code, answer.json()) == (202, {"status": "loading"})
        supervisor.close()


@settings(max_examples=25)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=50).map(str.encode)))
def test_no_bytes_are_more_than_a_refusal(raw: bytes) -> None:
    @on_a_loop
    async def ask() -> None:
        async with site(settings={"model_control": "open"}) as here:
            supervisor = Supervisor(here)
            headers = {"content-type": "application/json"}
            answer = await here.http.post("/models/load", content=raw, headers=headers)
            assert answer.status_code in (200, 400, 422)
            assert (answer.status_code == 200) == bool(supervisor.orders)
            supervisor.close()

    ask()


def test_settings_are_those_that_were_given() -> None:
    assert LoadRequest().settings() == {}
    assert LoadRequest(labels=None, wait=False).settings() == {"labels": None}
    asked = LoadRequest(name="a", weights="w", max_batch_size="auto", other_classes=True)
    assert asked.settings() == {"weights": "w", "max_batch_size": "auto"}


@on_a_loop
async def test_a_request_goes_on_with_the_version_that_it_began_with() -> None:
    """The board shows another version while the request is under way: nothing of it is the other's."""
    async with site() as here:
        context = here.context
        first = context.served()
        other = replace(CARD, name="vgg16", weights="new", classes=CLASSES[:3])
        client: EngineClient = here.engine.connect()
        here.engine.runner.may_run.clear()
        task = asyncio.create_task(here.http.post("/predict", files={"file": png(1)}))
        while not first.uses:
            await asyncio.sleep(0)
        context.models.add(Served(0, 1, other, client, context.recipe(other)))
        context.models._board.show(0, 1)
        assert (await here.http.get("/model")).json()["name"] == "vgg16"
        assert len((await here.http.get("/labels")).json()) == 3
        assert (await here.http.get("/v2/models/vgg16")).status_code == 200
        assert (await here.http.get("/v2/models/densenet121")).status_code == 404
        here.engine.runner.may_run.set()
        answer = (await task).json()
        assert (answer["model"], answer["weights"]) == ("densenet121", "random:0")
        assert len(answer["predictions"]) == 5  # of ten classes, and not of three
        assert first.idle
        after = (await here.http.post("/predict", files={"file": png(1)})).json()
        assert (after["model"], after["weights"], len(after["predictions"])) == ("vgg16", "new", 3)
