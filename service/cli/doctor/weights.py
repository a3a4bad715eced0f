"""Checks of the weights, the caches and the API keys. The network is asked only for weights that are not here."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from service.cli.doctor import machine
from service.cli.doctor.finding import Finding, failed, passed, warned
from service.errors import NotCached, StartError
from service.models.catalog import VARIANTS
from service.options import wording
from service.settings import Settings

#: Seconds for a request to the server that has the weights.
_TIMEOUT = 10.0


def weights(settings: Settings) -> Finding:
    """Checks that a start would find the weights, with the code that a start runs.

    Weights on this host are read. Of others a hub is asked whether it has them; nothing is downloaded.
    """
    if settings.weights == "pretrained":
        return _pretrained(settings.model)
    from service.models import loader, serving
    from service.models.checkpoints import places, resolve

    if (converted := serving.converted_weights(settings.weights, settings.model)) is not None:
        return passed("weights", f"{converted}: a converted model, which needs nothing else")

    try:
        checkpoint = resolve(settings.weights, settings.named_model, labels=settings.labels, cached_only=True)
        loader.load(checkpoint)
    except NotCached as missing:
        return _at_the_hub(settings.weights, missing, places.ask)
    except StartError as error:
        return failed("weights", f"{settings.weights} cannot be used", str(error))
    classes = len(checkpoint.classes) if checkpoint.classes else 0
    found = f"{checkpoint.name}: {checkpoint.configuration.family}, {classes:,} classes; read here, no network used"
    if settings.weights.startswith("random"):
        return warned(
            "weights", found, "untrained: for capacity work; --weights pretrained or demo answers sensibly"
        )
    return passed("weights", found)


def _at_the_hub(weights: str, missing: NotCached, ask: Callable[[str], str]) -> Finding:
    try:
        asked = ask(weights)
    except StartError as error:
        return failed("weights", str(missing), f"{error}; --weights demo or a path needs no network")
    return passed("weights", f"{missing}; {asked} has it and gives it: the first start downloads it")


def _pretrained(model: str) -> Finding:
    from service.models.checkpoints.places import published
    from service.models.checkpoints.torch_hub import cached, url

    found, path = cached(VARIANTS[model]), published(VARIANTS[model])
    if found is not None:
        return passed("weights", f"{found[0]} is there and whole; no network used")
    if path.is_file():
        return warned("weights", f"{path} is damaged", "the next start fetches it again; or remove it")
    if problem := machine.unwritable(path.parent):
        return failed(
            "weights",
            f"{path} is not there and cannot be written: {problem}",
            "mount a volume, or set TORCH_HOME",
        )
    return _reachable("weights", url(VARIANTS[model]), f"{path.name} is not in {path.parent}")


def _reachable(check: str, address: str, what: str) -> Finding:
    tried = f"{what}; tried HEAD {address}"
    ways_out = "--weights demo or a path needs none"
    try:
        answer = httpx.head(address, timeout=_TIMEOUT, follow_redirects=True)
    except (httpx.HTTPError, OSError) as error:
        return failed(
            check,
            f"{tried}: {type(error).__name__}",
            f"no way to {urlsplit(address).hostname} from here: a proxy (HTTPS_PROXY), a firewall? {ways_out}",
        )
    if answer.status_code >= 500 or answer.status_code == 404:
        return failed(check, f"{tried}: {answer.status_code}", f"the server does not give it now; {ways_out}")
    size = answer.headers.get("content-length", "")
    told = f", {wording.size(int(size))}" if size.isdigit() and int(size) > 1e6 else ""
    return passed(check, f"{tried}: {answer.status_code}{told}; the first start downloads it")


def caches(settings: Settings) -> list[Finding]:
    """Checks the folders that keep downloads and conversions."""
    from service.models.checkpoints.places import published

    variant, findings = VARIANTS[settings.model], []
    if settings.weights == "pretrained":
        folder = published(variant).parent
        findings.append(
            machine.cache("weights' cache", folder, "TORCH_HOME", room_mib=int(variant.download_mb))
        )
    if settings.weights.startswith("hf://"):
        home = os.environ.get("HF_HOME", "~/.cache/huggingface")
        findings.append(machine.cache("weights' cache", Path(home).expanduser(), "HF_HOME"))
    if (
        settings.device in ("auto", "cpu")
        and settings.runtime in ("auto", "openvino")
        and find_spec("openvino")
    ):
        from service.models.runtimes.artifact import cache_directory

        room = round(variant.parameters * 4 / 2**20)
        findings.append(machine.cache("conversion cache", cache_directory(), "XDG_CACHE_HOME", room_mib=room))
    return findings


def keys(settings: Settings) -> Finding | None:
    """Checks the file of API keys; None where none is set."""
    from service.api.keys import Keys

    if settings.api_keys_file is None:
        return None
    try:
        Keys(settings.api_keys_file)
    except StartError as error:
        return failed("API keys", str(error), "one key a line, readable for the user that runs the service")
    return passed("API keys", f"{settings.api_keys_file} holds at least one key")
