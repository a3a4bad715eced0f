"""Checkpoints: reads weights from any source into configuration, tensors, preprocessing and classes.

    pretrained                    torchvision's weights, in torch hub's cache         torch_hub.py
    random[:SEED][:CONFIG]        untrained, torchvision's initialisation             untrained.py
    demo                          the small model that ships with the service         directory.py
    FILE of tensors               a state dict, whose shapes tell the network         tensors/
    FILE of Keras                 a model or its weights                              keras/
    DIRECTORY                     this project's format                               directory.py
                                  a timm repository                                   timm.py
                                  a KerasHub preset                                   keras/hub.py
    hf://owner/repo[/file][@rev]  any of these directories, or a file                 huggingface.py
    kaggle://owner/model/...      any of these directories, or a KerasHub name        kaggle.py

Each module turns its source into one `Checkpoint`; no later code depends on the source. ``?option=value`` after a
name says what a file cannot say of itself (options.py).

torch is imported only when a checkpoint is read: a start with a converted model reads none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from service.errors import CheckpointError
from service.models.catalog import DEFAULT, VARIANTS
from service.models.checkpoints import huggingface, places
from service.models.checkpoints.checkpoint import Activation, Checkpoint
from service.models.checkpoints.download import Progress
from service.models.checkpoints.folder import Folder, local
from service.models.checkpoints.label_files import read_labels, read_labels_of
from service.models.options import Options, parse

__all__ = ["Activation", "Checkpoint", "Progress", "resolve", "write"]


def resolve(
    weights: str,
    model: str | None,
    *,
    labels: Path | None = None,
    progress: Progress | None = None,
    cached_only: bool = False,
) -> Checkpoint:
    """Reads the checkpoint that the settings ``weights`` and ``model`` name, with the classes of ``labels`` if given.

    Without a ``model``, a file decides which of the twelve variants it is; `DEFAULT` is used for a source without a
    network of its own.

    With ``cached_only`` no hub is asked, and a file that is not on this host raises `NotCached` (for hubs only;
    torch.hub's cache is `torch_hub.cached`). ``progress`` is called with (bytes done, total or None) during a
    download. Raises `CheckpointError`, whose one sentence says what to do.
    """
    if model is not None and model not in VARIANTS:
        raise CheckpointError(f"there is no model '{model}'; choose one of {', '.join(VARIANTS)}")
    if labels is not None:
        read_labels(labels)  # fails before anything is downloaded
    checkpoint = _origin(weights, model, progress, cached_only)
    if labels is None:
        return checkpoint
    return replace(checkpoint, classes=read_labels_of(labels, checkpoint.configuration.num_classes))


def write(checkpoint: Checkpoint, directory: Path, *, notes: Mapping[str, Any] | None = None) -> None:
    """Writes ``checkpoint`` into ``directory``: see `service.models.checkpoints.directory.write`."""
    from service.models.checkpoints import directory as own

    own.write(checkpoint, directory, notes=notes)


def _origin(weights: str, model: str | None, progress: Progress | None, cached_only: bool) -> Checkpoint:
    """Reads the source that ``weights`` names. The cases are tried in this order; the first that fits decides."""
    from service.models.checkpoints.torch_hub import pretrained
    from service.models.checkpoints.untrained import untrained

    # 1. Reserved words.
    if weights == "pretrained":
        variant = VARIANTS[model or DEFAULT]
        return _with_file(pretrained(variant.name, progress), places.published_or_baked(variant))
    if weights == "random" or weights.startswith("random:"):
        return untrained(model or DEFAULT, *places.seed_and_configuration(weights))
    if weights == "demo":
        if not places.DEMO.is_dir():
            raise CheckpointError(
                "the demo model did not come with this installation: install imagenet-serve again, or give other "
                "weights, such as --weights pretrained"
            )
        return _from_folder(local(places.DEMO), model, Options())
    source, options = parse(weights)
    # 2. Addresses of a hub: a single file, then whole repositories.
    if huggingface.file_in(source):
        path = huggingface.fetch_file(source, progress, cached_only=cached_only)
        return _with_file(_from_file(path, model, options), path)
    if (repository := places.hub_folder(source, progress, cached_only=cached_only)) is not None:
        return _from_folder(repository, model, options)
    # 3. Paths of this host.
    path = Path(source).expanduser()
    if source and path.is_dir():
        return _from_folder(local(path), model, options)
    if source and path.exists():
        return _with_file(_from_file(path, model, options), path)
    raise places.unknown(weights)


def _from_file(path: Path, model: str | None, options: Options) -> Checkpoint:
    """Reads one file. Its kind follows from its bytes and not from its name."""
    from service.models.checkpoints.keras import model as keras_model
    from service.models.checkpoints.tensors import file, recognise

    if recognise.kind(path) in ("hdf5", "keras"):
        return keras_model.read(path, options)
    return file.read(path, model, options)


def _with_file(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    return replace(checkpoint, files={path.name: path})


def _from_folder(folder: Folder, model: str | None, options: Options) -> Checkpoint:
    """Reads a folder and records the files that were looked for."""
    looked_for: dict[str, Path | None] = {}

    def locate(name: str) -> Path | None:
        looked_for[name] = folder.locate(name)
        return looked_for[name]

    checkpoint = _of_folder(replace(folder, locate=locate), model, options)
    return replace(checkpoint, files=looked_for)


def _of_folder(folder: Folder, model: str | None, options: Options) -> Checkpoint:
    """Reads a folder in the format that its ``config.json`` names; the order of the questions is KerasHub's."""
    from service.models.checkpoints import directory, timm
    from service.models.checkpoints.keras import hub

    document = folder.json("config.json")
    if document is None:
        return _of_tensors(folder, None, model, options)
    if document.get("format") == directory.FORMAT:
        options.only()
        return directory.read(folder, document)
    if "registered_name" in document:
        return hub.read(folder, document, legacy_head=options.only("legacy_head").legacy_head)
    if "architecture" in document and document.get("model_type") in (None, _WRAPPED_TIMM):
        return timm.read(folder, document, test_size=options.only("test_size").test_size)
    if "model_type" in document and not folder.is_local:
        raise _transformers(folder, document)
    return _of_tensors(folder, document, model, options)


def _transformers(folder: Folder, document: dict[str, Any]) -> CheckpointError:
    return CheckpointError(
        f"'{folder.name}' is a transformers model ({document['model_type']}); only VGGs and DenseNets of "
        "torchvision, timm and KerasHub can be served"
    )


#: transformers' name for a timm model that it has wrapped.
_WRAPPED_TIMM = "timm_wrapper"


def _of_tensors(
    folder: Folder, document: dict[str, Any] | None, model: str | None, options: Options
) -> Checkpoint:
    """Reads a folder whose tensors tell the network.

    Its ``config.json``, if any, comes from a trainer, or from ``PyTorchModelHubMixin``, which writes the arguments
    that the model was made with.
    """
    from service.models.checkpoints import parts
    from service.models.checkpoints.tensors import file, recognise

    if folder.find("saved_model.pb") is not None:
        raise CheckpointError(f"'{folder.name}' is a SavedModel; {recognise.SAVED_MODEL}")
    if folder.find(".metadata") is not None:
        raise CheckpointError(f"'{folder.name}' {recognise.DISTRIBUTED}")
    here = any(folder.find(name) or folder.find(f"{name}.index.json") for name in parts.NAMES)
    if document and "model_type" in document and not here:
        raise _transformers(folder, document)
    if document is not None and not (here and document):
        raise CheckpointError(
            f"the config.json of '{folder.name}' is of an unknown format; give one of imagenet-serve, timm or KerasHub"
        )
    if not here:
        raise CheckpointError(
            f"'{folder.name}' is no checkpoint directory: it has no config.json, and neither "
            f"{' nor '.join(parts.NAMES)}; give the file of the weights itself"
        )
    values, sha256 = parts.read_parts(folder)
    checkpoint = file.of_values(values, folder.name, model, options, beside=document)
    return replace(checkpoint, source=folder.source, sha256=sha256)
