"""``hf://owner/repo[@revision]``: files of a repository on the Hugging Face Hub, by its own client.

The client is an extra, for it brings a good deal along. Its cache (HF_HOME, HF_HUB_CACHE), tokens (HF_TOKEN),
offline mode (HF_HUB_OFFLINE) and endpoint (HF_ENDPOINT) are as its users know them.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

from service.errors import CheckpointError
from service.extras import install_command
from service.models.checkpoints.download import Progress
from service.models.checkpoints.folder import Folder

SCHEME = "hf://"

_ADDRESS = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def open_repository(address: str, progress: Progress | None = None) -> Folder:
    """The files of ``hf://owner/repo[@revision]``; without a revision, of its main branch.

    Raises `CheckpointError` for another form, or without the extra.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise CheckpointError(
            f"'{address}' is no hf:// address; write hf://owner/repo or hf://owner/repo@revision"
        )
    try:
        # Each by its own name: newer clients give a submodule as an attribute only once it was imported.
        hub, errors, bars = map(
            import_module, ("huggingface_hub", "huggingface_hub.errors", "huggingface_hub.utils")
        )
    except ImportError as error:
        raise CheckpointError(f"hf:// needs an extra; run: {install_command('hub')}") from error
    bar = _reporting_bar(bars.tqdm, progress) if progress else None
    repository = _Repository(hub, errors, match["repo"], match["revision"] or "main", bar)
    return Folder(
        address.removeprefix(SCHEME), f"Hugging Face {address.removeprefix(SCHEME)}", repository.locate
    )


class _Repository:
    """One repository at one commit: that of the first file, so that all files are of the same."""

    def __init__(self, hub: Any, errors: Any, repo: str, revision: str, bar: type[Any] | None) -> None:
        self.hub, self.errors, self.repo, self.revision, self.bar = hub, errors, repo, revision, bar

    def locate(self, name: str) -> Path | None:
        """The file in the cache, fetched if need be; None where this commit has no such file."""
        errors = self.errors
        # Also what a lost connection raises, whichever HTTP library this version of the client is built on.
        transport_error = errors.HfHubHTTPError.__mro__[1]
        try:
            path = self._download(name)
        except errors.LocalEntryNotFoundError as error:
            if self._known_absent(name):
                return None
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
        self.revision = path.parent.name
        return path

    def _download(self, name: str) -> Path:
        bar = {} if self.bar is None else {"tqdm_class": self.bar}
        return Path(self.hub.hf_hub_download(self.repo, name, revision=self.revision, **bar))

    def _known_absent(self, name: str) -> bool:
        """Whether an earlier start learnt that this commit has no such file."""
        return not isinstance(
            self.hub.try_to_load_from_cache(self.repo, name, revision=self.revision), str | None
        )

    def _error(self, what: str, way_out: str) -> CheckpointError:
        return CheckpointError(f"hf://{self.repo}: {what}; {way_out}")


_NO_NETWORK = "check the network and HF_ENDPOINT, or fill the cache beforehand (it follows HF_HOME)"
_GATED = "accept its terms on its page, then set HF_TOKEN"
_PRIVATE = "check the name, and set HF_TOKEN if it is private"


def _reporting_bar(bar: type[Any], progress: Progress) -> type[Any]:
    """The client's own progress bar, telling us as well; in the form in which its functions take one."""

    class ReportingBar(bar):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.done = int(kwargs.get("initial") or 0)
            progress(self.done, self._whole())

        def update(self, n: float | None = 1) -> bool | None:
            # Counted here, for a bar that is not drawn does not count.
            self.done += int(n or 0)
            progress(self.done, self._whole())
            drawn: bool | None = super().update(n)
            return drawn

        def _whole(self) -> int | None:
            return None if self.total is None else int(self.total)

    return ReportingBar
