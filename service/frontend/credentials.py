"""The files and packages that the settings ask for: API keys, the certificate with its key, gRPC."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from service.errors import ConfigurationError
from service.host.extras import install_command
from service.settings import Settings

if TYPE_CHECKING:
    from service.api.keys import Keys
    from service.frontend.tls import Certificate


def check(settings: Settings) -> tuple[Keys | None, Certificate | None]:
    """Reads the API keys and the certificate; None for each that the settings do not ask for.

    Raises `ConfigurationError` for a file that cannot be used, or if gRPC's packages are missing.
    """
    if settings.grpc_port is not None and find_spec("grpc_reflection") is None:
        raise ConfigurationError(f"grpc_port needs the extra grpc: {install_command('grpc')}")
    keys = certificate = None
    if settings.api_keys_file:
        from service.api.keys import Keys

        keys = Keys(settings.api_keys_file)
    if settings.tls_certificate_file:
        from service.frontend.tls import Certificate

        certificate = Certificate.of(settings)
    return keys, certificate
