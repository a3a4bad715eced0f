"""A running imagenet-serve from Python, synchronously and asynchronously, with the same methods and answers.

    with Client("http://localhost:8000") as client:
        print(client.predict("cat.jpg").best.label)

clients    Client, AsyncClient: send and wait ──▶ calls    a request as data, and how its answer is read
                                              ──▶ photos   what may be given for a photo
                                              ──▶ retry    when a request is sent again
                                              ──▶ answers  what is given back ·  errors  what is raised
"""

from service.client.answers import (
    BatchItem,
    BatchPredictions,
    Explanation,
    Features,
    Prediction,
    Predictions,
    Timings,
)
from service.client.clients import AsyncClient, Client
from service.client.errors import (
    ApiError,
    Broken,
    ClientError,
    Refused,
    Unavailable,
    Unexpected,
    Unreachable,
)
from service.client.photos import Photo

__all__ = [
    "ApiError",
    "AsyncClient",
    "BatchItem",
    "BatchPredictions",
    "Broken",
    "Client",
    "ClientError",
    "Explanation",
    "Features",
    "Photo",
    "Prediction",
    "Predictions",
    "Refused",
    "Timings",
    "Unavailable",
    "Unexpected",
    "Unreachable",
]
