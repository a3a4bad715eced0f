"""Plain FastAPI: https://fastapi.tiangolo.com/tutorial/request-files/, the way most people begin.

A ``def`` route runs in a thread, one image in a forward pass. Started with uvicorn, one worker.
"""

from __future__ import annotations

import sys
from typing import Any

import job
import uvicorn
from fastapi import FastAPI, UploadFile

app = FastAPI()
model = job.network()


@app.get("/health")
def health() -> str:
    return "ok"


@app.post("/predict")
def predict(file: UploadFile) -> dict[str, Any]:
    batch = job.pixels(file.file.read()).unsqueeze(0)
    return {"predictions": job.classify(model, batch)[0]}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
