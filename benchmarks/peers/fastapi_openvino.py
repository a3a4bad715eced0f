"""FastAPI with OpenVINO, this service's default runtime, compiled for latency: one image at a time on all cores."""

from __future__ import annotations

import sys
from threading import Lock
from typing import Any

import job
import openvino
import torch
import uvicorn
from fastapi import FastAPI, UploadFile

app = FastAPI()
example = torch.zeros(1, 3, 224, 224)
converted = openvino.convert_model(job.network(), example_input=example, input=[1, 3, 224, 224])
#: fp32 like all the others: OpenVINO would take bf16 if the processor has it.
options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
request = openvino.compile_model(converted, "CPU", options).create_infer_request()
one_at_a_time = Lock()


@app.get("/health")
def health() -> str:
    return "ok"


@app.post("/predict")
def predict(file: UploadFile) -> dict[str, Any]:
    """Runs in FastAPI's thread pool, so photos are decoded at the same time."""
    pixels = job.pixels(file.file.read()).unsqueeze(0).numpy()
    with one_at_a_time:
        logits = torch.from_numpy(request.infer([pixels])[0].copy())
    return {"predictions": job.best(logits)[0]}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
