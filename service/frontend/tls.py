"""HTTPS by two files, read again when they change: certificates live for weeks, services for longer."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from service.errors import ConfigurationError
from service.settings import Settings

log = logging.getLogger(__name__)

_Version = tuple[int, ...]


class Certificate:
    """The certificate and its key. Raises `ConfigurationError` if they are no pair that can be used."""

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
        """The settings' certificate; None serves plain HTTP."""
        if settings.tls_certificate_file is None or settings.tls_key_file is None:
            return None
        return cls(settings.tls_certificate_file, settings.tls_key_file)

    def refresh(self) -> None:
        """Takes a new pair, for new connections. While there is none that works, the one before it stays."""
        version = _version(self._files)
        if version in ((), self._version):
            return
        self._version = version
        try:
            _context(self._files)  # a half-written pair must not end up in the one that serves
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
    """Instead of a question on the terminal, which nobody would answer."""
    raise ValueError("the key has a passphrase")


def _version(files: tuple[Path, Path]) -> _Version:
    try:
        stats = [path.stat() for path in files]
    except OSError:
        return ()
    return tuple(number for stat in stats for number in (stat.st_mtime_ns, stat.st_size, stat.st_ino))


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error) or "unreadable"
