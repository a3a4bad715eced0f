"""The gRPC door over a fake model: answers equal `/v2`'s, errors have gRPC's codes, nothing is lost."""

from __future__ import annotations

import asyncio
import gc
import shutil
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from service.api.grpc import schema
from service.api.grpc.server import GrpcServer
from service.api.keys import Keys
from service.shared.status import Status
from tests.api.site import CLASSES, Site, logits_of, site
from tests.frontend import test_tls
from tests.loops import on_a_loop, until
from tests.uploads import png

ONE, TWO = png(1), png(2)
INFER = f"/{schema.SERVICE}/ModelInfer"


@pytest.fixture(autouse=True)
def closed_channels() -> Iterator[None]:
    yield
    gc.collect()


class Client:
    """The service's methods by name, over our own messages."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    async def call(self, method: str, *, patience: float = 60, metadata: Any = (), **fields: Any) -> Any:
        invoke = self.channel.unary_unary(
            f"/{schema.SERVICE}/{method}",
            request_serializer=schema.message(f"{method}Request").SerializeToString,
            response_deserializer=schema.message(f"{method}Response").FromString,
        )
        return await invoke(schema.message(f"{method}Request")(**fields), timeout=patience, metadata=metadata)

    async def infer(self, *images: bytes, raw: bool = False, **more: Any) -> Any:
        tensor = {"name": "image", "datatype": "BYTES", "shape": [len(images)]}
        if raw:
            packed = b"".join(len(image).to_bytes(4, "little") + image for image in images)
            return await self.call(
                "ModelInfer", model_name="densenet121", inputs=[tensor], raw_input_contents=[packed], **more
            )
        tensor["contents"] = {"bytes_contents": images}  # type: ignore[assignment]
        return await self.call("ModelInfer", model_name="densenet121", inputs=[tensor], **more)


@asynccontextmanager
async def grpc_site(
    keys: Keys | None = None, settings: dict[str, Any] | None = None, **engine: Any
) -> AsyncIterator[tuple[Site, Client]]:
    async with site(settings=settings, **engine) as here:
        server = GrpcServer(here.context, keys, 0)
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                yield here, Client(channel)
        finally:
            await server.stop(5)


def whole(here: Site) -> bool:
    return here.free == here.engine.arena.geometry.slots


def softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(powers / powers.sum())


@on_a_loop
async def test_tensors_come_back_as_they_were_sent() -> None:
    async with grpc_site() as (here, client):
        wanted = np.stack([logits_of(ONE), logits_of(TWO)])
        typed = await client.infer(ONE, TWO, id="mine")
        raw = await client.infer(ONE, TWO, raw=True)
        assert (typed.id, typed.model_name, typed.model_version) == ("mine", "densenet121", "1")
        assert [(out.name, out.datatype, list(out.shape)) for out in typed.outputs] == [
            ("probabilities", "FP32", [2, 10]),
            ("logits", "FP32", [2, 10]),
        ]
        assert list(typed.raw_output_contents) == []
        assert np.array_equal(np.float32(typed.outputs[1].contents.fp32_contents).reshape(2, 10), wanted)
        assert np.array_equal(np.frombuffer(raw.raw_output_contents[1], "<f4").reshape(2, 10), wanted)
        probabilities = np.frombuffer(raw.raw_output_contents[0], "<f4").reshape(2, 10)
        np.testing.assert_allclose(probabilities, [softmax(row) for row in wanted], atol=1e-7)
        await until(lambda: whole(here))


@on_a_loop
async def test_the_classification_extension() -> None:
    output = {"name": "probabilities", "parameters": {"classification": {"int64_param": 2}}}
    async with grpc_site() as (_, client):
        answer = await client.infer(ONE, outputs=[output])
        (tensor,) = answer.outputs
        assert (tensor.datatype, list(tensor.shape)) == ("BYTES", [1, 2])
        best = int(np.argmax(logits_of(ONE)))
        score, index, label = tensor.contents.bytes_contents[0].decode().split(":")
        assert (int(index), label) == (best, CLASSES[best].label)
        assert float(score) == pytest.approx(softmax(logits_of(ONE))[best], abs=1e-6)


@on_a_loop
async def test_pixels_are_taken_as_they_are() -> None:
    pixels = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(1, 6, 5, 3)
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": pixels.shape}
    async with grpc_site() as (_, client):
        raw = await client.call(
            "ModelInfer",
            model_name="densenet121",
            inputs=[tensor],
            raw_input_contents=[pixels.tobytes()],
            outputs=[{"name": "logits"}],
        )
        typed = await client.call(
            "ModelInfer",
            model_name="densenet121",
            inputs=[{**tensor, "contents": {"uint_contents": pixels.ravel().tolist()}}],
            outputs=[{"name": "logits"}],
        )
        first = np.frombuffer(raw.raw_output_contents[0], "<f4")
        assert np.array_equal(first, np.float32(typed.outputs[0].contents.fp32_contents))


@on_a_loop
async def test_metadata_and_health() -> None:
    async with grpc_site() as (here, client):
        assert (await client.call("ServerLive")).live
        assert (await client.call("ServerReady")).ready
        assert (await client.call("ModelReady", name="densenet121")).ready
        described = await client.call("ModelMetadata", name="densenet121")
        assert [tensor.name for tensor in described.inputs] == ["image", "pixels"]
        assert (await client.call("ServerMetadata")).name == "imagenet-serve"

        check = client.channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        states = health_pb2.HealthCheckResponse
        assert (await check(health_pb2.HealthCheckRequest())).status == states.SERVING
        here.context.status = Status("draining")
        draining = await check(health_pb2.HealthCheckRequest(service=schema.SERVICE))
        assert draining.status == states.NOT_SERVING
        assert not (await client.call("ServerReady")).ready
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(health_pb2.HealthCheckRequest(service="other"))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


@on_a_loop
async def test_watching_the_health_tells_each_change_once() -> None:
    async with grpc_site() as (here, client):
        watch = client.channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        call = watch(health_pb2.HealthCheckRequest())
        assert (await call.read()).status == health_pb2.HealthCheckResponse.SERVING
        here.context.status = Status("draining")
        assert (await call.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        call.cancel()


@on_a_loop
async def test_reflection_knows_the_services_and_their_messages() -> None:
    async with grpc_site() as (_, client):
        ask = client.channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=schema.SERVICE),
        ]
        answers = [answer async for answer in ask(iter(requests))]
        listed = {service.name for service in answers[0].list_services_response.service}
        assert {schema.SERVICE, "grpc.health.v1.Health"} <= listed
        assert b"ModelInferRequest" in answers[1].file_descriptor_response.file_descriptor_proto[0]


CODES = grpc.StatusCode
WRONG: list[tuple[dict[str, Any], grpc.StatusCode, str]] = [
    ({"model_name": "other"}, CODES.NOT_FOUND, "no such model"),
    ({"model_version": "7"}, CODES.NOT_FOUND, "no such model"),
    ({"inputs": []}, CODES.INVALID_ARGUMENT, "one input"),
    ({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [0]}]}, CODES.INVALID_ARGUMENT, "no image"),
    (
        {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}]},
        CODES.INVALID_ARGUMENT,
        "negative",
    ),
    ({"inputs": [{"name": "image", "datatype": "FP32", "shape": [1]}]}, CODES.INVALID_ARGUMENT, "BYTES"),
    ({"raw_input_contents": [b"", b""]}, CODES.INVALID_ARGUMENT, "raw_input_contents"),
    ({"raw_input_contents": [b"\xff\xff\xff\xff"]}, CODES.INVALID_ARGUMENT, "image"),
    ({"outputs": [{"name": "boxes"}]}, CODES.INVALID_ARGUMENT, "no output"),
    (
        {"outputs": [{"name": "logits", "parameters": {"classification": {"int64_param": 11}}}]},
        CODES.INVALID_ARGUMENT,
        "classification",
    ),
    (
        {"outputs": [{"name": "logits", "parameters": {"classification": {"double_param": 1e300}}}]},
        CODES.INVALID_ARGUMENT,
        "whole number",
    ),
    ({"parameters": {"timeout": {"string_param": "²"}}}, CODES.INVALID_ARGUMENT, "timeout"),
    ({"parameters": {"timeout": {"int64_param": -1}}}, CODES.INVALID_ARGUMENT, "timeout"),
    ({"parameters": {"timeout": {}}}, CODES.INVALID_ARGUMENT, "timeout"),
]


@pytest.mark.parametrize(("fields", "code", "words"), WRONG)
@on_a_loop
async def test_what_is_wrong_has_its_code(fields: dict[str, Any], code: grpc.StatusCode, words: str) -> None:
    async with grpc_site() as (here, client):
        image = {"name": "image", "datatype": "BYTES", "shape": [1]}
        if "raw_input_contents" not in fields:
            image["contents"] = {"bytes_contents": [ONE]}  # type: ignore[assignment]
        with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
            await client.call("ModelInfer", **{"model_name": "densenet121", "inputs": [image], **fields})
        assert caught.value.code() == code
        await until(lambda: whole(here))


@pytest.mark.parametrize("image", [b"", b"no picture", ONE[: len(ONE) // 2]])
@on_a_loop
async def test_a_bad_picture_is_an_invalid_argument(image: bytes) -> None:
    async with grpc_site() as (here, client):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.infer(ONE, image)
        assert caught.value.code() == CODES.INVALID_ARGUMENT
        assert "image 1" in (caught.value.details() or "")
        await until(lambda: whole(here))


@on_a_loop
async def test_overload_says_when_to_come_again() -> None:
    async with grpc_site() as (here, client):
        slots = [here.client.acquire() for _ in range(here.free)]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.infer(ONE)
        assert caught.value.code() == CODES.RESOURCE_EXHAUSTED
        trailing = dict(caught.value.trailing_metadata() or ())
        assert int(trailing["grpc-retry-pushback-ms"]) >= 1000
        assert int(trailing["retry-after"]) >= 1
        for slot in slots:
            slot.__exit__(None, None, None)
        assert (await client.infer(ONE)).outputs


@on_a_loop
async def test_the_deadline_is_the_calls_own_and_a_cancelled_call_leaves_nothing() -> None:
    async with grpc_site(delay=0.2) as (here, client):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.infer(ONE, patience=0.1)
        assert caught.value.code() in (CODES.DEADLINE_EXCEEDED, CODES.RESOURCE_EXHAUSTED)
        task = asyncio.create_task(client.infer(TWO))
        await until(lambda: not whole(here))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: whole(here))


@on_a_loop
async def test_priorities_are_those_of_http() -> None:
    async with grpc_site(delay=0.2) as (here, client):
        arena = here.engine.arena
        task = asyncio.create_task(client.infer(ONE, metadata=(("x-priority", "Bulk"),)))
        await until(lambda: not whole(here))
        assert arena.records["bulk"][arena.owners != 0].all()
        assert (await task).outputs
        with pytest.raises(grpc.aio.AioRpcError, match="X-Priority") as caught:
            await client.infer(ONE, metadata=(("x-priority", "urgent"),))
        assert caught.value.code() == CODES.INVALID_ARGUMENT


@on_a_loop
async def test_before_the_model_is_there_it_is_unavailable() -> None:
    async with grpc_site() as (here, client):
        here.become(None)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.infer(ONE)
        assert caught.value.code() == CODES.UNAVAILABLE


@on_a_loop
async def test_keys_guard_every_method_but_liveness_and_readiness() -> None:
    class OneKey:
        def admit(self, offered: bytes) -> bool:
            return offered == b"secret"

        def is_bulk(self, offered: bytes) -> bool:
            return False

    async with grpc_site(keys=OneKey()) as (_, client):  # type: ignore[arg-type]
        assert (await client.call("ServerLive")).live
        assert (await client.call("ServerReady")).ready
        for metadata in ((), (("authorization", "Bearer wrong"),), (("authorization", "secret"),)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.infer(ONE, metadata=metadata)
            assert caught.value.code() == CODES.UNAUTHENTICATED
        for metadata in ((("authorization", "Bearer secret"),), (("x-api-key", "secret"),)):
            assert (await client.infer(ONE, metadata=metadata)).outputs


@on_a_loop
async def test_calls_are_counted_with_the_other_door() -> None:
    async with grpc_site() as (here, client):

        async def counted(status: str) -> float:
            found = 0.0
            for line in (await here.http.get("/metrics")).text.splitlines():
                if line.startswith("imagenet_requests_total") and INFER in line and f'"{status}"' in line:
                    found = float(line.rpartition(" ")[2])
            return found

        good, bad = await counted("200"), await counted("422")
        await client.infer(ONE)
        with pytest.raises(grpc.aio.AioRpcError):
            await client.infer(ONE[: len(ONE) // 2])
        assert (await counted("200"), await counted("422")) == (good + 1, bad + 1)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
@on_a_loop
async def test_tls_with_the_services_own_certificate(tmp_path: Path) -> None:
    certificate, key = test_tls.make(tmp_path, "localhost")
    files = {"tls_certificate_file": certificate, "tls_key_file": key}
    async with site(settings=files) as here:
        server = GrpcServer(here.context, None, 0)
        await server.start()
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        options = (("grpc.ssl_target_name_override", "localhost"),)
        async with grpc.aio.secure_channel(f"127.0.0.1:{server.port}", credentials, options) as channel:
            assert (await Client(channel).infer(ONE)).outputs
        await server.stop(5)


def test_the_messages_are_the_ones_that_clients_have() -> None:
    """Every field of ours has the number and type that tritonclient's generated code has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tritonclient.grpc import service_pb2

    def fields(descriptor: Any) -> dict[str, tuple[int, int, bool]]:
        return {field.name: (field.number, field.type, field.is_repeated) for field in descriptor.fields}

    compared = 0
    theirs = service_pb2.DESCRIPTOR.message_types_by_name
    for path in schema._MESSAGES:
        ours = schema.POOL.FindMessageTypeByName(f"{schema.PACKAGE}.{path}")
        first, *nested = path.split(".")
        their = theirs[first]
        for name in nested:
            their = their.nested_types_by_name[name]
        assert fields(ours).items() <= fields(their).items(), path
        compared += len(ours.fields)
    assert compared > 40


def test_nothing_imports_grpc_before_it_is_wanted() -> None:
    code = "import sys, service.frontend.process, service.supervisor.supervisor; print('grpc' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
