"""``kaggle://owner/model/framework/variation[/version]``: files of a model on Kaggle.

Three HTTP calls do without the client library. The cache is kagglehub's (KAGGLEHUB_CACHE, with a marker beside each
complete file), so a file that one of the two has downloaded serves the other. Credentials are found where kagglehub
finds them. Public models need none.
"""

from __future__ import annotations

import base64
import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import CheckpointError, NotCached
from service.models.checkpoints.download import DownloadError, Progress, fetch
from service.models.checkpoints.folder import Folder

SCHEME = "kaggle://"

#: KerasHub's presets, in the versions that current releases load, by their names and by those in Keras's documentation.
BUILT_IN = {
    name: f"kaggle://keras/{kind}/keras/{kind}_{depth}_imagenet/3"
    for kind, depths in (("vgg", (11, 13, 16, 19)), ("densenet", (121, 169, 201)))
    for depth in depths
    for name in (f"{kind}_{depth}_imagenet", f"{kind}{depth}_imagenet", f"{kind}{depth}")
    if name != f"densenet{depth}"
}
_ENDPOINT = "https://www.kaggle.com"

_PART = r"[A-Za-z0-9][\w.-]*"
_ADDRESS = re.compile(rf"kaggle://({_PART})/({_PART})/({_PART})/({_PART})(?:/(\d+))?")

_NO_NETWORK = "check the network, or fill the cache beforehand (it follows KAGGLEHUB_CACHE)"
_DENIED = "accept the model's terms on its page, then set KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY"


def open_model(address: str, progress: Progress | None = None, *, cached_only: bool = False) -> Folder:
    """Returns the files of a model; without a version, of its newest one, which only Kaggle knows.

    With ``cached_only`` Kaggle is not asked, and a file that is not in the cache raises `NotCached`. Raises
    `CheckpointError` for a malformed address, or if the newest version cannot be asked for.
    """
    handle, version = parse(address)
    if version is None:
        if cached_only:
            raise NotCached(f"kaggle://{handle} names no version, and only Kaggle knows the newest")
        version = _newest_version(handle)
    model = _Model(handle, version, progress, cached_only)
    return Folder(f"{handle}/{version}", f"Kaggle {handle}/{version}", model.locate)


def check(address: str) -> str:
    """Asks Kaggle about the address without downloading, and returns Kaggle's URL.

    Raises `CheckpointError` where a start could not download it: no such model or version, no permission, no network.
    """
    handle, version = parse(address)
    if version is None:
        _newest_version(handle)
        return _endpoint()
    try:
        newest = _asked_version(handle)
    except DownloadError as error:
        raise _refused(f"{handle}/{version}", error) from error
    if int(version) > newest:
        raise CheckpointError(f"kaggle://{handle} has no version {version}; its newest is {newest}")
    return _endpoint()


def parse(address: str) -> tuple[str, str | None]:
    """Returns ``owner/model/framework/variation``, and the version or None. Raises `CheckpointError`."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise CheckpointError(
            f"'{address}' is no kaggle:// address; write {SCHEME}owner/model/framework/variation"
        )
    return "/".join(match.groups()[:4]), match[5]


@dataclass(frozen=True)
class _Model:
    """One version of one model. A version never changes, so its cached files stay right."""

    handle: str
    version: str
    progress: Progress | None
    cached_only: bool

    def locate(self, name: str) -> Path | None:
        """Returns the file in the cache, downloaded if need be; None if this version has no such file."""
        folder = _cache() / "models" / self.handle
        path, markers = folder / self.version / name, folder / ".complete" / self.version
        if (markers / f"{name}.complete").exists() and path.is_file():
            return path
        # Only this program writes the marker; kagglehub does not remember absent files.
        absent = markers / f"{name}.absent"
        if absent.exists():
            return None
        if self.cached_only:
            raise NotCached(f"kaggle://{self.handle}/{self.version}: the cache has no {name}")
        try:
            fetch(
                _url(f"{self.handle}/{self.version}/download/{name}"),
                path,
                headers=_credentials(),
                progress=self.progress,
            )
        except DownloadError as error:
            if error.status != 404 or name == "config.json":
                raise _refused(f"{self.handle}/{self.version}", error) from error
            _touch(absent)
            return None
        _touch(markers / f"{name}.complete")
        return path


def _newest_version(handle: str) -> str:
    try:
        return str(_asked_version(handle))
    except DownloadError as error:
        if error.status is None:
            raise CheckpointError(
                f"kaggle://{handle} names no version and Kaggle cannot be asked for one ({error}); "
                "write the version, kaggle://…/VERSION: then the cache is enough"
            ) from error
        raise _refused(handle, error) from error


def _asked_version(handle: str) -> int:
    """Asks Kaggle for the newest version. Raises `DownloadError`, or `CheckpointError` for an answer without one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.json"
        fetch(_url(f"{handle}/get"), path, headers=_credentials(), progress=lambda done, total: None)
        try:
            return int(json.loads(path.read_bytes())["versionNumber"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"Kaggle names no version of {handle}; write one: {SCHEME}…/VERSION"
            ) from error


def _refused(handle: str, error: DownloadError) -> CheckpointError:
    if error.status in (401, 403):
        return CheckpointError(f"kaggle://{handle}: access is denied; {_DENIED}")
    if error.status == 404:
        return CheckpointError(
            f"kaggle://{handle}: there is no such model, or it holds no config.json; check its name "
            "and its version"
        )
    return CheckpointError(f"kaggle://{handle}: {error}; {_NO_NETWORK}")


def _url(path: str) -> str:
    return f"{_endpoint()}/api/v1/models/{path}"


def _endpoint() -> str:
    return os.environ.get("KAGGLE_API_ENDPOINT", _ENDPOINT).rstrip("/")


def _cache() -> Path:
    return Path(os.environ.get("KAGGLEHUB_CACHE") or Path.home() / ".cache" / "kagglehub")


def _credentials() -> dict[str, str]:
    """Returns the Authorization header: by a token first, then by name and key, each from variable or file; else
    nothing."""
    token = _token()
    if token:
        return {"Authorization": f"Bearer {token}"}
    name, key = os.environ.get("KAGGLE_USERNAME"), os.environ.get("KAGGLE_KEY")
    if not (name and key):
        stored = _stored_key()
        name, key = stored.get("username"), stored.get("key")
    if not (name and key):
        return {}
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{key}".encode()).decode()}


def _token() -> str:
    value = os.environ.get("KAGGLE_API_TOKEN", "")
    if value and not Path(value).is_file():
        return value
    for path in (Path(value), Path.home() / ".kaggle" / "access_token"):
        if path.is_file():
            return path.read_text("utf-8").strip()
    return ""


def _stored_key() -> dict[str, Any]:
    path = Path(os.environ.get("KAGGLE_CONFIG_DIR") or Path.home() / ".kaggle") / "kaggle.json"
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "kaggle.json cannot be read as JSON; fetch it anew from your account's page"
        ) from error
    return document if isinstance(document, dict) else {}


def _touch(marker: Path) -> None:
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
