"""The Python client of a running imagenet-serve, synchronous and asynchronous, with the same methods and answers.

    with Client("http://localhost:8000") as client:
        print(client.predict("cat.jpg").best.label)

clients    Client, AsyncClient: send and wait ──▶ calls    each request as data, and the reader of its answer
                                              ──▶ photos   the kinds of photo, and their bytes
                                              ──▶ retry    the decision to send a request again
                                              ──▶ answers  the results  ·  errors  the exceptions
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
