"""mosec: https://mosecorg.github.io/mosec/examples/pytorch.html (its image classification example).

Two stages as in the example: processes that decode, one that runs batches. The body is the JPEG itself,
through ``deserialize``, as its sentiment example reads raw bytes.
"""

from __future__ import annotations

import json
import os
from typing import Any

import job
import torch
from mosec import Server, Worker


class Preprocess(Worker):
    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> torch.Tensor:
        torch.set_num_threads(1)
        return job.pixels(data)


class Inference(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.model = job.network()

    def forward(self, data: list[torch.Tensor]) -> list[Any]:
        return job.classify(self.model, torch.stack(data))

    def serialize(self, data: Any) -> bytes:
        return json.dumps({"predictions": data}).encode()


if __name__ == "__main__":  # mosec reads --port itself
    server = Server()
    server.append_worker(Preprocess, num=os.cpu_count() or 1)
    server.append_worker(
        Inference, num=1, max_batch_size=job.BATCH, max_wait_time=round(1000 * job.WAIT), timeout=60
    )
    server.run()
