"""Each compatible contract, by the requests and answers of its own documents, over a fake model."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import numpy as np
import pytest

from service.api.app import create_api
from service.options.platforms import CONTRACTS
from service.settings import Settings
from tests.api.site import CLASSES, logits_of, site
from tests.loops import on_a_loop, until
from tests.uploads import png

ONE, TWO = png(1), png(2)


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def probabilities(data: bytes) -> list[float]:
    logits = logits_of(data).astype(np.float64)
    powers = np.exp(logits - logits.max())
    found: list[float] = (powers / powers.sum()).tolist()
    return found


def best(data: bytes, k: int = 5) -> list[tuple[str, Any]]:
    values = probabilities(data)
    order = sorted(range(10), key=lambda index: (-values[index], index))[:k]
    return [(CLASSES[index].label, pytest.approx(values[index], abs=1e-9)) for index in order]


def on(*contracts: str, **settings: Any) -> dict[str, Any]:
    return {"compat": ",".join(contracts), **settings}


# ---- off, unless it is asked for -------------------------------------------------------------------------------------


@on_a_loop
async def test_none_of_it_is_there_unless_it_is_asked_for() -> None:
    async with site() as here:
        for method, path in [
            ("GET", "/ping"),
            ("PUT", "/predictions/densenet121"),
            ("POST", "/v1/models/densenet121:predict"),
            ("POST", "/invocations"),
            ("GET", "/health"),
        ]:
            answer = await here.http.request(method, path, content=ONE)
            assert answer.status_code == 404, path
            assert answer.headers["content-type"] == "application/problem+json"
        assert (await here.http.post("/", content=ONE)).status_code == 405


@pytest.mark.parametrize("contract", CONTRACTS)
def test_the_schema_has_a_contract_only_when_it_is_served(contract: str) -> None:
    plain = create_api(Settings()).openapi()["paths"]
    with_it = create_api(Settings(compat=contract)).openapi()["paths"]
    assert plain.keys() <= with_it.keys()
    assert plain != with_it


def test_all_of_them_together_make_a_schema() -> None:
    for v1 in ("tfserving", "kserve-v1"):
        chosen = [name for name in CONTRACTS if name == v1 or name not in ("tfserving", "kserve-v1")]
        assert create_api(Settings(compat=",".join(chosen))).openapi()["paths"]


# ---- TorchServe ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/predictions/densenet121", "/predictions/densenet121/1.0"])
@on_a_loop
async def test_torchserve_predictions(path: str) -> None:
    async with site(settings=on("torchserve")) as here:
        raw = [
            await here.http.put(path, content=ONE),  # curl -T kitten.jpg
            await here.http.post(path, content=ONE, headers={"content-type": "text/plain"}),
            await here.http.post(path, files={"data": ("kitten.jpg", ONE)}),  # curl -F "data=@kitten.jpg"
            await here.http.post(path, files={"body": ONE}),
            await here.http.post(path, json={"data": text(ONE)}),
        ]
        for answer in raw:
            assert answer.status_code == 200, answer.text
            assert list(answer.json().items()) == best(ONE)
        await until(lambda: here.free == here.engine.arena.geometry.slots)


@on_a_loop
async def test_torchserve_explanations_and_ping() -> None:
    async with site(settings=on("torchserve")) as here:
        map_ = await here.http.post("/explanations/densenet121", content=ONE)
        ours = await here.http.post("/explain", content=ONE)
        assert map_.json() == ours.json()["grid"]
        other = await here.http.post("/explanations/other", content=ONE)
        assert other.json()["type"] == "ModelNotFoundException"
        assert (await here.http.get("/ping")).json() == {"status": "Healthy"}
        here.context.status = type(here.context.status)("draining")
        unhealthy = await here.http.get("/ping")
        assert (unhealthy.status_code, unhealthy.json()) == (503, {"status": "Unhealthy"})


@pytest.mark.parametrize(
    ("path", "request_", "status", "kind"),
    [
        ("/predictions/resnet18", {"content": ONE}, 404, "ModelNotFoundException"),
        ("/predictions/densenet121/3", {"content": ONE}, 404, "ModelNotFoundException"),
        ("/predictions/densenet121", {"content": b""}, 400, "BadRequestException"),
        ("/predictions/densenet121", {"content": b"no picture"}, 415, "BadRequestException"),
        ("/predictions/densenet121", {"files": {"file": ONE}}, 400, "BadRequestException"),
        ("/predictions/densenet121", {"json": {"data": 1}}, 422, "BadRequestException"),
        ("/predictions/densenet121", {"json": {"image": text(ONE)}}, 422, "BadRequestException"),
        ("/predictions/densenet121", {"json": [1]}, 422, "BadRequestException"),
    ],
)
@on_a_loop
async def test_torchserve_errors(path: str, request_: dict[str, Any], status: int, kind: str) -> None:
    async with site(settings=on("torchserve")) as here:
        answer = await here.http.post(path, **request_)
        assert answer.status_code == status, answer.text
        assert answer.json().keys() == {"code", "type", "message"}
        assert (answer.json()["code"], answer.json()["type"]) == (status, kind)
        await until(lambda: here.free == here.engine.arena.geometry.slots)


# ---- TF-Serving and KServe V1 ----------------------------------------------------------------------------------------

INSTANCES = {"instances": [{"b64": text(ONE)}, {"image_bytes": {"b64": text(TWO)}}, text(ONE)]}


@pytest.mark.parametrize("contract", ["tfserving", "kserve-v1"])
@on_a_loop
async def test_v1_predict(contract: str) -> None:
    async with site(settings=on(contract)) as here:
        for path in ("/v1/models/densenet121:predict", "/v1/models/densenet121/versions/1:predict"):
            answer = await here.http.post(path, json=INSTANCES)
            assert answer.json() == {
                "predictions": [pytest.approx(probabilities(data), abs=1e-9) for data in (ONE, TWO, ONE)]
            }
    async with site(settings=on(contract, v1_predictions="classes", top_k=2)) as here:
        answer = await here.http.post("/v1/models/densenet121:predict", json=INSTANCES)
        first, second, third = answer.json()["predictions"]
        assert [(entry["label"], entry["probability"]) for entry in first] == best(ONE, 2)
        assert [(entry["label"], entry["probability"]) for entry in second] == best(TWO, 2)
        assert third == first
        assert first[0].keys() == {"class_id", "wnid", "label", "probability"}


@on_a_loop
async def test_v1_status() -> None:
    async with site(settings=on("tfserving")) as here:
        status = await here.http.get("/v1/models/densenet121")
        (version,) = status.json()["model_version_status"]
        assert version == {
            "version": "1",
            "state": "AVAILABLE",
            "status": {"error_code": "OK", "error_message": ""},
        }
        metadata = (await here.http.get("/v1/models/densenet121/metadata")).json()
        assert metadata["model_spec"]["name"] == "densenet121"
        assert (await here.http.get("/v1/models")).status_code == 404
    async with site(settings=on("kserve-v1")) as here:
        assert (await here.http.get("/v1/models")).json() == {"models": ["densenet121"]}
        ready = await here.http.get("/v1/models/densenet121")
        assert ready.json() == {"name": "densenet121", "ready": True}
        here.context.status = type(here.context.status)("draining")
        assert (await here.http.get("/v1/models/densenet121")).status_code == 503


@pytest.mark.parametrize(
    ("document", "status"),
    [
        ({}, 400),
        ({"instances": []}, 400),
        ({"instances": {"b64": text(ONE)}}, 400),
        ({"instances": [1]}, 422),
        ({"instances": [{"a": text(ONE), "b": text(ONE)}]}, 422),
        ({"instances": [{"b64": "@"}]}, 422),
        ({"instances": [{"b64": text(b"no picture")}]}, 415),
        ({"instances": [{"b64": text(ONE)}, {"b64": text(ONE[: len(ONE) // 2])}]}, 422),
        ({"instances": [{"b64": text(ONE)}] * 65}, 413),
        ([1], 422),
        ("x", 422),
    ],
)
@on_a_loop
async def test_v1_errors(document: Any, status: int) -> None:
    async with site(settings=on("kserve-v1")) as here:
        answer = await here.http.post("/v1/models/densenet121:predict", json=document)
        assert answer.status_code == status, answer.text
        assert answer.json().keys() == {"error"}
        missing = await here.http.post("/v1/models/other:predict", json=INSTANCES)
        assert (missing.status_code, missing.json().keys()) == (404, {"error"})
        broken = await here.http.post("/v1/models/densenet121:predict", content=b"{")
        assert (broken.status_code, broken.json().keys()) == (400, {"error"})
        await until(lambda: here.free == here.engine.arena.geometry.slots)


# ---- platforms -------------------------------------------------------------------------------------------------------


@on_a_loop
async def test_sagemaker() -> None:
    async with site(settings=on("sagemaker")) as here:
        ping = await here.http.get("/ping")
        assert (ping.status_code, ping.content) == (200, b"")
        for request in (
            {"content": ONE, "headers": {"content-type": "application/x-image"}},
            {"content": ONE, "headers": {"content-type": "image/png"}},
            {"content": ONE},
            {"json": {"image": text(ONE)}},
        ):
            answer = await here.http.post("/invocations", **request)
            assert answer.status_code == 200, answer.text
            found = answer.json()["predictions"]
            assert [(entry["label"], entry["probability"]) for entry in found] == best(ONE)
        here.context.status = type(here.context.status)("loading")
        ping = await here.http.get("/ping")
        assert (ping.status_code, ping.content) == (503, b"")


@pytest.mark.parametrize("route", ["/predict", "/v1/endpoints/1/deployedModels/2:predict"])
@on_a_loop
async def test_vertex(route: str) -> None:
    settings = on("vertex", vertex_predict_route=route, vertex_health_route="/ready-or-not")
    async with site(settings=settings) as here:
        assert (await here.http.get("/ready-or-not")).status_code == 200
        everything = await here.http.post(route, json={"instances": [{"b64": text(ONE)}]})
        assert everything.json() == {"predictions": [pytest.approx(probabilities(ONE), abs=1e-9)]}
        two = await here.http.post(
            route, json={"instances": [{"b64": text(ONE)}, text(TWO)], "parameters": {"top_k": 2}}
        )
        found = [
            [(entry["label"], entry["probability"]) for entry in item] for item in two.json()["predictions"]
        ]
        assert found == [best(ONE, 2), best(TWO, 2)]
        raw = await here.http.post(route, content=ONE, headers={"content-type": "image/png"})
        assert raw.json() == everything.json()
        for parameters in ({"top_k": 0}, {"top_k": 11}, {"top_k": True}, {"top_k": "2"}, [2]):
            document = {"instances": [text(ONE)], "parameters": parameters}
            answer = await here.http.post(route, json=document)
            assert (answer.status_code, answer.json().keys()) == (422, {"error"})


@on_a_loop
async def test_huggingface() -> None:
    async with site(settings=on("huggingface")) as here:
        assert (await here.http.get("/health")).status_code == 200
        page = await here.http.get("/")
        assert page.headers["content-type"].startswith("text/html")
        asked = await here.http.post("/", json={"inputs": text(ONE), "parameters": {"top_k": 3}})
        assert [(entry["label"], entry["score"]) for entry in asked.json()] == best(ONE, 3)
        raw = await here.http.post("/", content=ONE, headers={"content-type": "image/png"})
        assert [(entry["label"], entry["score"]) for entry in raw.json()] == best(ONE)
        wrong = await here.http.post("/", json={"inputs": 1})
        assert (wrong.status_code, wrong.json().keys()) == (400, {"error"})


# ---- what holds for all ----------------------------------------------------------------------------------------------

DOORS = {
    "torchserve": ("/predictions/densenet121", {"content": ONE}),
    "tfserving": ("/v1/models/densenet121:predict", {"json": {"instances": [{"b64": text(ONE)}]}}),
    "kserve-v1": ("/v1/models/densenet121:predict", {"json": {"instances": [{"b64": text(ONE)}]}}),
    "sagemaker": ("/invocations", {"content": ONE}),
    "vertex": ("/predict", {"json": {"instances": [{"b64": text(ONE)}]}}),
    "huggingface": ("/", {"json": {"inputs": text(ONE)}}),
}


def test_every_contract_is_tried() -> None:
    assert DOORS.keys() == set(CONTRACTS)


@pytest.mark.parametrize("contract", CONTRACTS)
@on_a_loop
async def test_overload_and_deadlines_are_the_services_own(contract: str) -> None:
    path, request = DOORS[contract]
    async with site(settings=on(contract)) as here:
        slots = [here.client.acquire() for _ in range(here.free)]
        full = await here.http.post(path, **request)  # type: ignore[arg-type]
        assert full.status_code == 429
        assert int(full.headers["retry-after"]) >= 1
        for slot in slots:
            slot.__exit__(None, None, None)
        late = await here.http.post(path, headers={"x-request-timeout-ms": "0.001"}, **request)  # type: ignore[arg-type]
        assert late.status_code in (429, 504)
        await until(lambda: here.free == here.engine.arena.geometry.slots)


@pytest.mark.parametrize("contract", CONTRACTS)
@on_a_loop
async def test_the_upload_limit_holds_behind_every_door(contract: str) -> None:
    path, request = DOORS[contract]
    async with site(settings=on(contract, max_upload_bytes=len(ONE) - 1)) as here:
        answer = await here.http.post(path, **request)  # type: ignore[arg-type]
        assert answer.status_code == 413, answer.text


@on_a_loop
async def test_probes_of_platforms_need_no_key() -> None:
    class Closed:
        def admit(self, offered: bytes) -> bool:
            return False

    probes = {"torchserve": "/ping", "sagemaker": "/ping", "vertex": "/health", "huggingface": "/health"}
    for contract, path in probes.items():
        async with site(settings=on(contract), keys=Closed()) as here:  # type: ignore[arg-type]
            assert (await here.http.get(path)).status_code == 200
            door, request = DOORS[contract]
            answer: httpx.Response = await here.http.post(door, **request)  # type: ignore[arg-type]
            assert answer.status_code == 401
