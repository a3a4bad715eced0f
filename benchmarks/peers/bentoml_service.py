"""BentoML: https://docs.bentoml.com/en/latest/get-started/hello-world.html, one service, one image a call.

Its adaptive batching wants a second service, which the first asks over HTTP: on two cores the connection between
them was closed in the front one's hands at 24 clients, and some requests were answered 500. torch gains little from a
batch on a processor, and much from not being called by several threads at once: one thread runs the model.
"""

from __future__ import annotations

from typing import Any

import bentoml
import job
from PIL.Image import Image


@bentoml.service(threads=1, traffic={"timeout": 60})
class Classifier:
    def __init__(self) -> None:
        self.model = job.network()

    @bentoml.api
    def predict(self, file: Image) -> dict[str, Any]:
        pixels = job.TRANSFORM(file.convert("RGB")).unsqueeze(0)
        return {"predictions": job.classify(self.model, pixels)[0]}
