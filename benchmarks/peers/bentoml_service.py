"""BentoML: https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html, both of its services.

A front service decodes and asks the batching service for one image at a time; that one forms batches.

BentoML learns how long a batch takes from the first batches that it forms, and its first guess is a share of
``max_latency_ms``: with the default of a minute it waits for ten seconds before each of them, and the learning
takes longer than a measurement. Five seconds is far above what any request here takes.

On two cores this one is not good yet: at 24 clients the front service answers some requests 500, since the
connection to the other one was closed in its hands. Decoding in threads makes it far slower there.
"""

from __future__ import annotations

from typing import Any

import bentoml
import job
import numpy as np
import torch
from PIL.Image import Image


@bentoml.service(traffic={"timeout": 60})
class Network:
    def __init__(self) -> None:
        self.model = job.network()

    @bentoml.api(batchable=True, max_batch_size=job.BATCH, max_latency_ms=5_000)
    def classify(self, batch: np.ndarray) -> list[list[dict[str, Any]]]:
        return job.classify(self.model, torch.from_numpy(batch))


@bentoml.service(traffic={"timeout": 60})
class Classifier:
    network = bentoml.depends(Network)

    @bentoml.api
    async def predict(self, file: Image) -> dict[str, Any]:
        pixels = job.TRANSFORM(file.convert("RGB")).unsqueeze(0).numpy()
        answer = await self.network.to_async.classify(pixels)
        return {"predictions": answer[0]}
