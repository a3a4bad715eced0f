"""LitServe: https://lightning.ai/docs/litserve/features/batching and .../features/request-response-format.

Dynamic batching in the one inference worker of the CPU; decoding happens in `decode_request`, where the
documentation puts it (in that worker, in its own threads when there is batching).
"""

import sys
from typing import Any

import job
import litserve
import torch
from fastapi import Request


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = job.network()

    def decode_request(self, request: Request) -> torch.Tensor:
        return job.pixels(request["file"].file.read())

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(inputs)

    def predict(self, batch: torch.Tensor) -> list[Any]:
        return job.classify(self.model, batch)

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: list[Any]) -> dict[str, Any]:
        return {"predictions": output}


if __name__ == "__main__":
    api = Classifier(max_batch_size=job.BATCH, batch_timeout=job.WAIT)
    server = litserve.LitServer(api, accelerator="cpu", timeout=60)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
