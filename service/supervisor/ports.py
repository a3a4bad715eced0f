"""The ports of the service, bound once by the supervisor and shared by all front-ends."""

from __future__ import annotations

import socket
from pathlib import Path

from service.frontend import credentials, listener
from service.settings import Settings


class Ports:
    """The port for HTTP, or a Unix socket, and the port for gRPC."""

    def __init__(self) -> None:
        self.http: socket.socket | None = None
        self._grpc: socket.socket | None = None
        """A socket that reserves the port for gRPC, on which each front-end listens itself."""
        self._uds: Path | None = None

    def bind(self, settings: Settings) -> Settings:
        """Binds the ports unless they are bound. Returns the settings with the actual gRPC port.

        Raises `ConfigurationError` if a port cannot be bound, or a file with keys or a certificate cannot be used.
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
        """Closes the ports, and removes the Unix socket if no other service answers there."""
        if self.http is not None:
            self.http.close()
        if self._grpc is not None:
            self._grpc.close()
        if self._uds is not None:
            listener.remove_unanswered(self._uds)
