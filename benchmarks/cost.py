"""The cost of the server alone: CPU per request of the whole process tree, with a null model and no decoding.

    python -m benchmarks.cost [--seconds 6] [--clients 16] [--front-ends 1 2] [--grpc]

What is left is HTTP, admission, the hand-over to a decoding thread and to the engine and back, top-k, JSON, metrics
and the access log (on, as by default, into a file). The load generator is not part of the tree; it runs on the same
cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
import urllib.request
from typing import Any

from benchmarks import processes, report
from service.cli.bench import loadgen
from service.cli.bench import run as bench
from service.settings import available_cores


def measure(form: bool, clients: int, seconds: float, **settings: Any) -> dict[str, Any]:
    """Returns one row. ``settings`` are the service's."""
    photo = bench.synthetic_photo(500, 375)
    with processes.serve(null=True, decode=False, **settings) as server:
        upload = bench.Upload(form=form)
        loadgen.generate(bench.plan(server.url, [photo], upload, duration=1.0, clients=clients))
        before = server.cpu_seconds()
        tally = loadgen.generate(bench.plan(server.url, [photo], upload, duration=seconds, clients=clients))
        spent = server.cpu_seconds() - before
        memory = server.memory_mib()
    assert len(tally.latencies) == tally.sent, tally
    latency = bench.percentiles(tally.latencies)
    return {
        "body": "form" if form else "raw",
        **settings,
        "clients": clients,
        "CPU ms/request": round(1000 * spent / tally.sent, 3),
        "requests/s": round(tally.throughput),
        "p50 ms": latency["p50"],
        "p99 ms": latency["p99"],
        "generator CPU us/request": round(1e6 * tally.cpu / tally.cpu_requests, 1),
        "memory MiB": round(memory),
    }


def measure_grpc(clients: int, seconds: float, **settings: Any) -> dict[str, Any]:
    """Returns the row of `ModelInfer` with the same photo, asking for the five best classes."""
    photo = bench.synthetic_photo(500, 375)
    port = processes.free_port()
    with processes.serve(null=True, decode=False, grpc_port=port, **settings) as server:
        with urllib.request.urlopen(f"{server.url}/model") as answer:
            name = json.load(answer)["name"]
        asyncio.run(_call_for(port, name, photo, clients, 1.0))
        before, began = server.cpu_seconds(), time.monotonic()
        latencies = asyncio.run(_call_for(port, name, photo, clients, seconds))
        spent, took = server.cpu_seconds() - before, time.monotonic() - began
        memory = server.memory_mib()
    latency = bench.percentiles(latencies)
    return {
        "body": "gRPC",
        **settings,
        "clients": clients,
        "CPU ms/request": round(1000 * spent / len(latencies), 3),
        "requests/s": round(len(latencies) / took),
        "p50 ms": latency["p50"],
        "p99 ms": latency["p99"],
        "memory MiB": round(memory),
    }


async def _call_for(port: int, name: str, photo: bytes, clients: int, seconds: float) -> list[float]:
    """Returns latencies in seconds of ``clients`` connections that call repeatedly for ``seconds``."""
    import grpc.aio

    from service.api.grpc import schema

    request = schema.message("ModelInferRequest")(
        model_name=name,
        inputs=[{"name": "image", "datatype": "BYTES", "shape": [1]}],
        outputs=[{"name": "probabilities", "parameters": {"classification": {"int64_param": 5}}}],
        raw_input_contents=[len(photo).to_bytes(4, "little") + photo],
    )
    until, latencies = time.monotonic() + seconds, []

    async def client() -> None:
        own = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=own) as channel:
            infer = channel.unary_unary(
                f"/{schema.SERVICE}/ModelInfer",
                request_serializer=schema.message("ModelInferRequest").SerializeToString,
                response_deserializer=schema.message("ModelInferResponse").FromString,
            )
            while (began := time.monotonic()) < until:
                await infer(request)
                latencies.append(time.monotonic() - began)

    await asyncio.gather(*(client() for _ in range(clients)))
    return latencies


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = available_cores()
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--front-ends", type=int, nargs="+", default=sorted({1, 2, cores}))
    parser.add_argument("--grpc", action="store_true", help="the same through gRPC as well (extra grpc)")
    arguments = parser.parse_args()
    processes.end_with_servers()
    rows = [
        measure(form, arguments.clients, arguments.seconds, frontends=count)
        for count in arguments.front_ends
        for form in (False, True)
    ]
    if arguments.grpc:
        rows += [
            measure_grpc(arguments.clients, arguments.seconds, frontends=count)
            for count in arguments.front_ends
        ]
    notes = ["A JPEG of 500 x 375 pixels travels; nobody decodes it. Closed loop, connections kept."]
    report.publish("cost", "The server alone: CPU per request", {"null model, no decoding": rows}, notes)


if __name__ == "__main__":
    main()
