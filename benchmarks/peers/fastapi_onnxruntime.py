"""FastAPI with ONNX Runtime, as one writes it for a quick start: no torch, a model exported before, image by image.

python fastapi_onnxruntime.py PORT MODEL.onnx
"""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request
from PIL import Image

app = FastAPI()
session = onnxruntime.InferenceSession(sys.argv[2], providers=["CPUExecutionProvider"])
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def pixels(jpeg: bytes) -> np.ndarray[Any, Any]:
    """Returns float32 ``[1, 3, 224, 224]``: the short side to 256, the centre, torchvision's mean and deviation."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    values = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) / 255
    return ((values - MEAN) / STD).transpose(2, 0, 1)[None]


@app.post("/predict")
async def predict(request: Request) -> dict[str, Any]:
    (logits,) = session.run(None, {"x": pixels(await request.body())})
    powers = np.exp(logits[0] - logits[0].max())
    best = np.argsort(-powers)[:5]
    share = powers / powers.sum()
    return {"predictions": [{"class_id": int(i), "probability": float(share[i])} for i in best]}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
