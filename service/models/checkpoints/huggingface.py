"""``hf://owner/repo[@revision]``: files of a repository on the Hugging Face Hub, by its own client.

The client is an extra because of its many dependencies. Its cache (HF_HOME, HF_HUB_CACHE), tokens (HF_TOKEN), offline
mode (HF_HUB_OFFLINE) and endpoint (HF_ENDPOINT) work as usual.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from service.errors import CheckpointError, NotCached
from service.host.extras import install_command
from service.models.checkpoints.download import Progress
from service.models.checkpoints.folder import Folder

SCHEME = "hf://"

_ADDRESS = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)(/(?P<file>[\w.-]+(/[\w.-]+)*))?(@(?P<revision>[\w./-]+))?"
)


def file_in(address: str) -> str | None:
    """Returns the path in the repository of the one file that an address names; None for a whole repository."""
    match = _ADDRESS.fullmatch(address)
    return match["file"] if match else None


def open_repository(address: str, progress: Progress | None = None, *, cached_only: bool = False) -> Folder:
    """Returns the files of ``hf://owner/repo[/file][@revision]``; without a revision, of its main branch.

    With ``cached_only`` the hub is not asked, and a file that is not in the cache raises `NotCached`. Raises
    `CheckpointError` for a malformed address, or without the extra.
    """
    repository = _repository(address, progress, cached_only)
    name = address.removeprefix(SCHEME)
    return Folder(name, f"Hugging Face {name}", repository.locate)


def check(address: str) -> str:
    """Asks the hub about the address without downloading, and returns the hub's URL.

    Raises `CheckpointError` where a start could not download it: no such repository, no permission, no network.
    """
    repository = _repository(address, None, cached_only=False)
    wanted = file_in(address) or "config.json"
    if not repository.offers(wanted):
        raise CheckpointError(f"{address} has no {wanted}, so it is no checkpoint that can be read")
    return str(repository.hub.constants.ENDPOINT)


def _repository(address: str, progress: Progress | None, cached_only: bool) -> _Repository:
    match = parse(address)
    try:
        # Imported one by one: newer clients set a submodule as an attribute only after its import.
        hub, errors, bars = map(
            import_module, ("huggingface_hub", "huggingface_hub.errors", "huggingface_hub.utils")
        )
    except ImportError as error:
        raise CheckpointError(f"hf:// needs an extra; run: {install_command('hub')}") from error
    bar = _reporting_bar(bars.tqdm, progress) if progress else None
    return _Repository(hub, errors, match["repo"], match["revision"] or "main", bar, cached_only)


def parse(address: str) -> re.Match[str]:
    """Returns the parts ``repo``, ``file`` and ``revision`` of an address. Raises `CheckpointError`."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise CheckpointError(
            f"'{address}' is no hf:// address; write hf://owner/repo or hf://owner/repo/file, and @revision behind it"
        )
    return match


def fetch_file(address: str, progress: Progress | None = None, *, cached_only: bool = False) -> Path:
    """Returns the one file that an address names, from the cache or downloaded. Raises `CheckpointError`."""
    name = file_in(address)
    assert name is not None
    path = open_repository(address, progress, cached_only=cached_only).locate(name)
    if path is None:
        raise CheckpointError(f"{address}: the repository has no such file; check its name")
    return path


class _Repository:
    """One repository at one commit: the first file fixes the commit, so all files are of the same."""

    def __init__(
        self, hub: Any, errors: Any, repo: str, revision: str, bar: type[Any] | None, cached_only: bool
    ) -> None:
        self.hub, self.errors, self.repo, self.revision, self.bar = hub, errors, repo, revision, bar
        self.cached_only = cached_only

    def locate(self, name: str) -> Path | None:
        """Returns the file in the cache, downloaded if need be; None if this commit has no such file."""
        path = self._answer(name, self._download)
        if path is not None:
            self.revision = path.parent.name
        return path

    def offers(self, name: str) -> bool:
        """Returns True if the hub has the file and permits its download."""
        return self._answer(name, self._locate) is not None

    def _answer(self, name: str, ask: Callable[[str], Path]) -> Path | None:
        """Returns the result of ``ask`` for a file; None if this commit has no such file. Raises `CheckpointError`."""
        errors = self.errors
        # The base class of a lost connection's error, whichever HTTP library this version of the client uses.
        transport_error = errors.HfHubHTTPError.__mro__[1]
        try:
            return ask(name)
        except errors.LocalEntryNotFoundError as error:
            if self._known_absent(name):
                return None
            if self.cached_only:
                raise NotCached(f"hf://{self.repo}: the cache has no {name}") from error
            raise self._error(
                f"the hub cannot be reached and the cache has no {name}", _NO_NETWORK
            ) from error
        except errors.EntryNotFoundError:
            return None
        except errors.GatedRepoError as error:
            raise self._error("it is gated", _GATED) from error
        except errors.RepositoryNotFoundError as error:
            raise self._error("there is no such repository, or it is private", _PRIVATE) from error
        except errors.RevisionNotFoundError as error:
            raise self._error(
                f"it has no revision {self.revision}", "name a branch, a tag or a commit"
            ) from error
        except (transport_error, OSError, ValueError) as error:
            raise self._error(f"{name} could not be fetched ({type(error).__name__})", _NO_NETWORK) from error

    def _download(self, name: str) -> Path:
        bar = {} if self.bar is None else {"tqdm_class": self.bar}
        here = {"local_files_only": True} if self.cached_only else {}
        return Path(self.hub.hf_hub_download(self.repo, name, revision=self.revision, **bar, **here))

    def _locate(self, name: str) -> Path:
        url = self.hub.hf_hub_url(self.repo, name, revision=self.revision)
        return Path(self.hub.get_hf_file_metadata(url).location)

    def _known_absent(self, name: str) -> bool:
        """Returns True if an earlier start found that this commit has no such file."""
        return not isinstance(
            self.hub.try_to_load_from_cache(self.repo, name, revision=self.revision), str | None
        )

    def _error(self, what: str, way_out: str) -> CheckpointError:
        return CheckpointError(f"hf://{self.repo}: {what}; {way_out}")


_NO_NETWORK = "check the network and HF_ENDPOINT, or fill the cache beforehand (it follows HF_HOME)"
_GATED = "accept its terms on its page, then set HF_TOKEN"
_PRIVATE = "check the name, and set HF_TOKEN if it is private"


def _reporting_bar(bar: type[Any], progress: Progress) -> type[Any]:
    """Returns a subclass of the client's progress bar that also calls ``progress``."""

    class ReportingBar(bar):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.done = int(kwargs.get("initial") or 0)
            progress(self.done, self._whole())

        def update(self, n: float | None = 1) -> bool | None:
            # Counted here, since a bar that is not drawn does not count.
            self.done += int(n or 0)
            progress(self.done, self._whole())
            drawn: bool | None = super().update(n)
            return drawn

        def _whole(self) -> int | None:
            return None if self.total is None else int(self.total)

    return ReportingBar
