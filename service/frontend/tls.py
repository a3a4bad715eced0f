"""HTTPS with a certificate and a key from two files, which are read again when they change."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from service.errors import ConfigurationError
from service.settings import Settings

log = logging.getLogger(__name__)

_Version = tuple[int, ...]


class Certificate:
    """A certificate and its key, PEM. Raises `ConfigurationError` if they cannot be used together."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._version = _version(self._files)
        try:
            self.context = _context(self._files)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                "tls_certificate_file and tls_key_file cannot be used together: "
                f"{_reason(error)}; both are PEM files, and the key has no passphrase"
            ) from error

    @classmethod
    def of(cls, settings: Settings) -> Certificate | None:
        """The settings' certificate; None for plain HTTP."""
        if settings.tls_certificate_file is None or settings.tls_key_file is None:
            return None
        return cls(settings.tls_certificate_file, settings.tls_key_file)

    def refresh(self) -> None:
        """Loads changed files, for new connections. If the new pair cannot be used, the old one stays."""
        version = _version(self._files)
        if version in ((), self._version):
            return
        self._version = version
        try:
            _context(self._files)  # fails for half-written files, before the context that serves is touched
            self.context.load_cert_chain(*self._files, password=_no_passphrase)
        except (OSError, ValueError) as error:
            log.error("the new TLS certificate cannot be used, the old one stays: %s", _reason(error))
        else:
            log.info("a new TLS certificate is in use")


def _context(files: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(*files, password=_no_passphrase)
    return context


def _no_passphrase() -> str:
    """Refuses a key with a passphrase. Without it OpenSSL would ask on the terminal and wait."""
    raise ValueError("the key has a passphrase")


def _version(files: tuple[Path, Path]) -> _Version:
    try:
        stats = [path.stat() for path in files]
    except OSError:
        return ()
    return tuple(number for stat in stats for number in (stat.st_mtime_ns, stat.st_size, stat.st_ino))


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error) or "unreadable"
