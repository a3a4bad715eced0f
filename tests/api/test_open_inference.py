"""`/v2` in front of a fake engine: the protocol's two encodings, its extensions, its errors."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.api.keys import Keys
from service.shared.ranking import activate
from service.shared.status import Status
from tests.api.site import CARD, Site, logits_of, site
from tests.engine.harness import IMAGE
from tests.fakes import fingerprint
from tests.loops import on_a_loop, until
from tests.uploads import png

INFER = "/v2/models/densenet121/infer"


def pictures(*images: bytes, **more: Any) -> dict[str, Any]:
    data = [base64.b64encode(image).decode() for image in images]
    return {"name": "image", "datatype": "BYTES", "shape": [len(images)], "data": data, **more}


def binary(document: dict[str, Any], *tensors: bytes) -> tuple[bytes, dict[str, str]]:
    head = json.dumps(document).encode()
    return b"".join([head, *tensors]), {"inference-header-content-length": str(len(head))}


def elements(*images: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(image)) + image for image in images)


async def infer(here: Site, *inputs: dict[str, Any], **more: Any) -> httpx.Response:
    return await here.http.post(INFER, json={"inputs": inputs, **more})


def refused(answer: httpx.Response, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    document = answer.json()
    assert list(document) == ["error"]
    for word in words:
        assert word in document["error"]


@on_a_loop
async def test_json_in_json_out() -> None:
    images = [png(n) for n in range(3)]
    expected = [logits_of(image) for image in images]
    async with site() as here:
        answer = await infer(here, pictures(*images), id="mine")
        assert answer.status_code == 200, answer.text
        document = answer.json()
        assert (document["model_name"], document["model_version"], document["id"]) == (
            "densenet121",
            "1",
            "mine",
        )
        probabilities, logits = document["outputs"]
        assert (probabilities["name"], probabilities["datatype"], probabilities["shape"]) == (
            "probabilities",
            "FP32",
            [3, 10],
        )
        assert logits["name"] == "logits"
        assert np.reshape(logits["data"], (3, 10)).tolist() == np.stack(expected).tolist()
        wanted = np.stack([activate(row, "softmax") for row in expected])
        np.testing.assert_allclose(np.reshape(probabilities["data"], (3, 10)), wanted, rtol=1e-6, atol=1e-9)
        assert "inference;dur=" in answer.headers["server-timing"]
        assert answer.headers["x-request-id"]
        assert here.free == 16


@on_a_loop
async def test_binary_in_binary_out() -> None:
    images = [png(n) for n in range(2)]
    data = elements(*images)
    entry = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [2, 1],
        "parameters": {"binary_data_size": len(data)},
    }
    document = {
        "inputs": [entry],
        "outputs": [
            {"name": "logits", "parameters": {"binary_data": True}},
            {"name": "probabilities", "parameters": {"binary_data": True, "classification": 2}},
            {"name": "logits", "parameters": {"binary_data": False}},
        ],
    }
    async with site() as here:
        body, headers = binary(document, data)
        answer = await here.http.post(INFER, content=body, headers=headers)
        assert answer.headers["content-type"] == "application/octet-stream"
        length = int(answer.headers["inference-header-content-length"])
        logits, classes, plain = json.loads(answer.content[:length])["outputs"]
        raw = answer.content[length:]
        size = logits["parameters"]["binary_data_size"]
        values = np.frombuffer(raw[:size], "<f4").reshape(2, 10)
        assert values.tolist() == np.reshape(plain["data"], (2, 10)).tolist()
        assert values.tolist() == [logits_of(image).tolist() for image in images]
        assert (classes["datatype"], classes["shape"]) == ("BYTES", [2, 2])
        rest = raw[size:]
        assert len(rest) == classes["parameters"]["binary_data_size"]
        first = rest[4 : 4 + struct.unpack_from("<I", rest)[0]].decode()
        best = int(values[0].argmax())
        assert first == f"{activate(values[0], 'softmax').max():.6f}:{best}:thing {best}"


@on_a_loop
async def test_pixels_are_taken_as_they_are() -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, *IMAGE), np.uint8)
    expected = [fingerprint(image, 10).tolist() for image in images]
    entry = {"name": "pixels", "datatype": "UINT8", "shape": list(images.shape)}
    outputs = [{"name": "logits"}]
    async with site() as here:
        for data in (images.tolist(), images.ravel().tolist()):
            answer = await infer(here, {**entry, "data": data}, outputs=outputs)
            assert answer.status_code == 200, answer.text
            assert np.reshape(answer.json()["outputs"][0]["data"], (3, 10)).tolist() == expected
        raw = images.tobytes()
        document = {
            "inputs": [{**entry, "parameters": {"binary_data_size": len(raw)}}],
            "outputs": outputs,
        }
        body, headers = binary(document, raw)
        for encoding, sent in (
            ("identity", body),
            ("gzip", gzip.compress(body)),
            ("deflate", zlib.compress(body)),
        ):
            answer = await here.http.post(
                INFER, content=sent, headers={**headers, "content-encoding": encoding}
            )
            assert answer.status_code == 200, answer.text
            assert np.reshape(answer.json()["outputs"][0]["data"], (3, 10)).tolist() == expected


@on_a_loop
async def test_health_and_metadata() -> None:
    async with site() as here:
        assert (await here.http.get("/v2/health/live")).json() == {"live": True}
        assert (await here.http.get("/v2/health/ready")).json() == {"ready": True}
        server = (await here.http.get("/v2")).json()
        assert server["name"] == "imagenet-serve"
        assert "binary_tensor_data" in server["extensions"]
        for path in ("/v2/models/densenet121", "/v2/models/densenet121/versions/1"):
            model = (await here.http.get(path)).json()
            assert model["inputs"][1] == {"name": "pixels", "datatype": "UINT8", "shape": [-1, *IMAGE]}
            assert model["outputs"][0] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}
            assert (await here.http.get(f"{path}/ready")).json()["ready"] is True
            assert (
                await here.http.post(f"{path}/infer", json={"inputs": [pictures(png(1))]})
            ).status_code == 200
        for path in ("/v2/models/vgg16", "/v2/models/densenet121/versions/2", "/v2/models/vgg16/ready"):
            refused(await here.http.get(path), 404, "densenet121")
        refused(await here.http.get("/v2/nothing"), 404)
        refused(await here.http.get(INFER), 405)
        here.context.status = Status("draining")
        for path in ("/v2/health/ready", "/v2/models/densenet121/ready"):
            refused(await here.http.get(path), 503, "draining")
        assert (await here.http.get("/v2/health/live")).status_code == 200
        # What is already on its way is answered, as everywhere.
        assert (await infer(here, pictures(png(1)))).status_code == 200


@on_a_loop
async def test_a_model_without_a_head_does_not_infer() -> None:
    async with site() as here:
        here.become(replace(CARD, classes=()))
        refused(await infer(here, pictures(png(1))), 404, "no classifier")


PIXELS = {"name": "pixels", "datatype": "UINT8", "shape": [1, *IMAGE]}


@pytest.mark.parametrize(
    ("document", "status", "words"),
    [
        ("no JSON", 422, ["JSON"]),
        ("[" * 100_000, 422, []),
        ("{}", 422, ["inputs"]),
        ({"inputs": []}, 400, ["'image'", "'pixels'"]),
        ({"inputs": [pictures(png(1)), {**PIXELS, "data": [0] * 90}]}, 400, ["one input"]),
        ({"inputs": [pictures(png(1)), pictures(png(1))]}, 422, ["twice"]),
        ({"inputs": [{**pictures(png(1)), "name": "photo"}]}, 400, ["'image'"]),
        ({"inputs": [pictures()]}, 400, ["no image"]),
        ({"inputs": [{**pictures(png(1)), "shape": [2]}]}, 422, ["2 elements"]),
        ({"inputs": [{**pictures(png(1)), "shape": [1, 2]}]}, 422, ["[-1, 1]"]),
        ({"inputs": [{**pictures(png(1)), "shape": [-1]}]}, 422, ["shape"]),
        ({"inputs": [{**pictures(png(1)), "datatype": "FP32"}]}, 422, ["BYTES"]),
        ({"inputs": [{**pictures(png(1)), "data": ["no base64!"]}]}, 422, ["base64"]),
        ({"inputs": [{**pictures(png(1)), "data": [7]}]}, 422, ["base64"]),
        ({"inputs": [{**pictures(png(1)), "data": None}]}, 422, ["data"]),
        ({"inputs": [pictures(png(1), parameters={"shared_memory_region": "x"})]}, 422, ["shared memory"]),
        ({"inputs": [pictures(b"no picture")]}, 415, ["formats"]),
        ({"inputs": [pictures(png(1), png(2)[:80])]}, 422, ["image 1", "damaged"]),
        ({"inputs": [pictures(*[png(1)] * 5)]}, 413, ["max_images_per_request"]),
        ({"inputs": [{**PIXELS, "shape": [1, 9, 9, 3], "data": [0]}]}, 422, ["[-1, 6, 5, 3]"]),
        ({"inputs": [{**PIXELS, "data": [0] * 89}]}, 422, ["0 to 255"]),
        ({"inputs": [{**PIXELS, "data": [256] * 90}]}, 422, ["0 to 255"]),
        ({"inputs": [{**PIXELS, "data": [-1] * 90}]}, 422, ["0 to 255"]),
        ({"inputs": [{**PIXELS, "data": [0.5] * 90}]}, 422, ["0 to 255"]),
        ({"inputs": [{**PIXELS, "data": [True] * 90}]}, 422, ["0 to 255"]),
        ({"inputs": [{**PIXELS, "data": [[1], [2, 3]]}]}, 422, ["0 to 255"]),
        ({"inputs": [{**PIXELS, "data": ["a"] * 90}]}, 422, ["0 to 255"]),
        ({"inputs": [pictures(png(1))], "outputs": [{"name": "labels"}]}, 422, ["probabilities"]),
        (
            {
                "inputs": [pictures(png(1))],
                "outputs": [{"name": "logits", "parameters": {"classification": 11}}],
            },
            422,
            ["10 classes"],
        ),
    ],
)
def test_what_is_wrong_is_said(document: Any, status: int, words: list[str]) -> None:
    @on_a_loop
    async def run() -> None:
        async with site(settings={"max_images_per_request": 4}) as here:
            content = document if isinstance(document, str) else json.dumps(document)
            refused(await here.http.post(INFER, content=content), status, *words)
            await until(lambda: here.free == 16)  # a neighbour may still be with the engine
            assert (await infer(here, pictures(png(1)))).status_code == 200

    run()


@on_a_loop
async def test_binary_bodies_that_do_not_add_up() -> None:
    async with site() as here:
        data = elements(png(1))

        def entry(size: int) -> dict[str, Any]:
            parameters = {"binary_data_size": size}
            return {"inputs": [{**pictures(png(1)), "data": None, "parameters": parameters}]}

        for size, sent in (
            (len(data) + 1, data),
            (len(data), data + b"x"),
            (len(data) - 1, data[:-1]),
            (2, data[:2]),
        ):
            body, headers = binary(entry(size), sent)
            refused(await here.http.post(INFER, content=body, headers=headers), 422)
        for length in ("x", "-1", "99999999", "٣"):
            headers = {"inference-header-content-length": length.encode()}  # type: ignore[dict-item]
            refused(await here.http.post(INFER, content=body, headers=headers), 422, "Content-Length")
        for encoding, status in (("gzip", 422), ("br", 415)):
            answer = await here.http.post(INFER, content=b"x" * 99, headers={"content-encoding": encoding})
            refused(answer, status)
        cut = gzip.compress(json.dumps({"inputs": [pictures(png(1))]}).encode())[:-9]
        refused(
            await here.http.post(INFER, content=cut, headers={"content-encoding": "gzip"}), 422, "cut off"
        )


@on_a_loop
async def test_limits_are_those_of_every_route() -> None:
    async with site(settings={"max_upload_bytes": 1000}) as here:
        refused(await infer(here, pictures(b"x" * 100_000)), 413, "max_upload_bytes")
        bomb = gzip.compress(b" " * 10_000_000)
        answer = await here.http.post(INFER, content=bomb, headers={"content-encoding": "gzip"})
        refused(answer, 413, "inflated")
    async with site(slots=2) as here:
        here.engine.runner.may_run.clear()
        waiting = [asyncio.create_task(infer(here, pictures(png(n)))) for n in range(2)]
        await until(lambda: here.free == 0)
        full = await infer(here, pictures(png(9)))
        refused(full, 429, "queue_capacity")
        assert int(full.headers["retry-after"]) >= 1
        here.engine.runner.may_run.set()
        assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [200, 200]
        # More pictures than there are places: as many at a time as there is room for.
        many = await infer(here, pictures(*[png(n) for n in range(7)]))
        logits = np.reshape(many.json()["outputs"][1]["data"], (7, 10)).tolist()
        assert logits == [logits_of(png(n)).tolist() for n in range(7)]


@on_a_loop
async def test_a_deadline_in_the_header_or_as_triton_has_it() -> None:
    async with site() as here:
        here.engine.runner.may_run.clear()
        headers = {"x-request-timeout-ms": "100"}
        document = {"inputs": [pictures(png(1))]}
        refused(await here.http.post(INFER, json=document, headers=headers), 504, "deadline")
        refused(await infer(here, pictures(png(1)), parameters={"timeout": 100_000}), 504, "deadline")
        here.engine.runner.may_run.set()
        await until(lambda: here.free == 16)


@on_a_loop
async def test_metrics_call_the_route_by_its_pattern() -> None:
    async with site() as here:
        await infer(here, pictures(png(1)))
        await here.http.post("/v2/models/somebody-elses/infer", json={})
        text = (await here.http.get("/metrics")).text
        assert 'route="/v2/models/{model_name}/infer",status="200"' in text
        assert 'route="/v2/models/{model_name}/infer",status="404"' in text
        assert "somebody-elses" not in text


@on_a_loop
async def test_keys_are_asked_for_in_the_protocols_own_words(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("first-key\n")
    async with site(keys=Keys(file)) as here:
        for path in ("/v2", "/v2/health/ready", "/v2/models/densenet121"):
            refused(await here.http.get(path), 401, "API key")
            answer = await here.http.get(path, headers={"authorization": "Bearer first-key"})
            assert answer.status_code == 200
        assert "error" not in (await here.http.get("/v2x")).json()  # another path's errors are problems


@on_a_loop
async def test_the_schema_leads_nowhere_else() -> None:
    async with site() as here:
        schema = (await here.http.get("/openapi.json")).json()
    components = schema["components"]["schemas"]

    def references(node: Any) -> Iterator[str]:
        for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            yield from references(value)
        if isinstance(node, dict) and isinstance(node.get("$ref"), str):
            yield node["$ref"]

    assert {found.removeprefix("#/components/schemas/") for found in references(schema)} <= components.keys()
    body = schema["paths"]["/v2/models/{model_name}/infer"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "application/octet-stream"}
