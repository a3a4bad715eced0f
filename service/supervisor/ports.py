"""The ports that the service listens on: bound once, by the supervisor, and shared by all front-ends."""

from __future__ import annotations

import socket
from pathlib import Path

from service.frontend import credentials, listener
from service.settings import Settings


class Ports:
    """Construct, `bind`, `close`."""

    def __init__(self) -> None:
        self.http: socket.socket | None = None
        self._grpc: socket.socket | None = None
        """Holds the port that the front-ends share for gRPC."""
        self._uds: Path | None = None

    def bind(self, settings: Settings) -> Settings:
        """Takes the ports, if they were not yet. Returns the settings with the gRPC port that was found.

        Raises `ConfigurationError` when a port cannot be had, or a file that a front-end wants is no good.
        """
        if self.http is not None:
            return settings
        credentials.check(settings)
        self._uds = settings.uds
        self.http = (
            listener.bind_unix(settings.uds) if settings.uds else listener.bind(settings.host, settings.port)
        )
        if settings.grpc_port is None:
            return settings
        self._grpc = listener.reserve(settings.host, settings.grpc_port)
        return settings.model_copy(update={"grpc_port": self._grpc.getsockname()[1]})

    def close(self) -> None:
        """Lets go of them; a socket file that nobody answers is removed."""
        if self.http is not None:
            self.http.close()
        if self._grpc is not None:
            self._grpc.close()
        if self._uds is not None:
            listener.remove_unanswered(self._uds)
