"""The errors of the client.

ClientError
├── ApiError            an error status; ``status``, ``code`` and ``detail`` are the service's
│   ├── Refused         4xx: the request is at fault and would be refused again
│   └── Unavailable     429, 502, 503 or 504 until the patience was over
├── Unreachable         nobody answers at the address
├── Broken              the connection broke, or no answer came in time
└── Unexpected          an answer that this service does not give
"""

from __future__ import annotations


class ClientError(Exception):
    """The base of all errors that the client raises."""


class ApiError(ClientError):
    """An answer with an error status. ``code`` is for programs, ``detail`` for people; see docs/API.md."""

    def __init__(self, status: int, code: str, detail: str, request_id: str | None) -> None:
        super().__init__(f"{status} {code}: {detail}" if code else f"{status}: {detail}")
        self.status, self.code, self.detail, self.request_id = status, code, detail, request_id


class Refused(ApiError):
    """The request is at fault; the same one would be refused again."""


class Unavailable(ApiError):
    """The request was fine; the service could not answer it in time."""


class Unreachable(ClientError):
    """The address does not answer."""


class Broken(ClientError):
    """The connection broke several times for the same request, or no answer came in time."""


class Unexpected(ClientError):
    """An answer that this service does not give: something else answers at the address."""
