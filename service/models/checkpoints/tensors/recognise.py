"""Recognises a file's kind by its bytes, since names and suffixes are unreliable.

A kind that cannot be served is refused with a command that turns it into a usable file.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from service.errors import CheckpointError

Kind = Literal["torch", "safetensors", "hdf5", "keras"]

_HEAD = 512

#: First bytes of `torch.save` before 1.6: the pickle of a number (``torch.serialization.MAGIC_NUMBER``).
_TORCHS_NUMBER = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."

#: First bytes of files that are no checkpoint, and advice.
_STRANGERS: tuple[tuple[bytes, str], ...] = (
    (b"GGUF", "is a GGUF file, the format of language models; no VGG or DenseNet is published in it, so give "
     "the original weights, such as hf://timm/densenet121.tv_in1k"),
    (b"version https://git-lfs", "is a Git LFS pointer and not the file itself; fetch that with: git lfs pull"),
    (b"\x1f\x8b", "is compressed with gzip; unpack it first, with gunzip or tar -xzf, and give what was in it"),
    (b"BZh", "is compressed with bzip2; unpack it first and give what was in it"),
    (b"\xfd7zXZ", "is compressed with xz; unpack it first and give what was in it"),
    (b"\x28\xb5\x2f\xfd", "is compressed with Zstandard; unpack it first and give what was in it"),
    (b"7z\xbc\xaf", "is a 7z archive; unpack it first and give what was in it"),
    (b"Rar!", "is a RAR archive; unpack it first and give what was in it"),
    (b"\x93NUMPY", "is one NumPy array; a network's weights are many, by name: save model.state_dict()"),
    (b"\xff\xd8\xff", "is a picture and no weights; the pictures are the arguments without a flag"),
    (b"\x89PNG", "is a picture and no weights; the pictures are the arguments without a flag"),
)  # fmt: skip

_TEXTS = (
    (b"<!doctype", "is a web page and not the file itself; download it anew with the link of its raw file"),
    (b"<html", "is a web page and not the file itself; download it anew with the link of its raw file"),
    (b"<?xml", "is XML, as OpenVINO's models are; give the weights that it was made of"),
    (b"{", "is JSON text and holds no weights; give the file of the weights, or the folder with both"),
)


def kind(path: Path) -> Kind:
    """Returns the kind of a file that can be read. Raises `CheckpointError`, with advice, for any other."""
    head = _first_bytes(path)
    if not head:
        raise CheckpointError(f"'{path.name}' is empty; fetch it again")
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    if _is_safetensors(head, path):
        return "safetensors"
    if head.startswith(b"\x80"):
        return _pickle(head, path)
    raise CheckpointError(f"'{path.name}' {_stranger(head)}")


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except PermissionError as error:
        raise CheckpointError(
            f"there is no permission to read '{path.name}'; give it with: chmod a+r {path.name}"
        ) from error
    except OSError as error:
        raise CheckpointError(f"'{path.name}' cannot be read: {error.strerror or error}") from error


def _is_safetensors(head: bytes, path: Path) -> bool:
    """Returns True for eight bytes with the length of a JSON object, followed by that object."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size


def _zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise CheckpointError(
            f"'{path.name}' is a damaged archive, or half of one; fetch it again"
        ) from error
    ends = {name.partition("/")[2] or name for name in names} | set(names)
    if {"config.json", "model.weights.h5"} <= ends:
        return "keras"
    if advice := _archive_advice(names, ends, path.name):
        raise CheckpointError(f"'{path.name}' {advice}")
    if "data.pkl" in ends:
        return "torch"
    raise CheckpointError(
        f"'{path.name}' is an archive of {len(names)} files and no file of torch.save's or Keras's; unpack it "
        "and give the weights that are in it"
    )


def _archive_advice(names: list[str], ends: set[str], name: str) -> str | None:
    if "constants.pkl" in ends or any("/code/" in f"/{entry}" for entry in names):
        return _to_weights("a TorchScript program", f"torch.jit.load('{name}').state_dict()")
    exported = ("serialized_exported_program.json", "archive_format", "models/model.json")
    if any(entry in ends for entry in exported):
        return _to_weights("a program of torch.export's", f"dict(torch.export.load('{name}').state_dict)")
    if any(entry.endswith("saved_model.pb") for entry in names):
        return f"holds a SavedModel; {SAVED_MODEL}"
    if "MAR-INF/MANIFEST.json" in ends:
        return "is a TorchServe archive; unpack it with unzip and give the .pth or .pt file that is in it"
    if names and all(entry.endswith(".npy") for entry in names):
        arrays = f"{{k: torch.from_numpy(v) for k, v in numpy.load('{name}').items()}}"
        return _to_weights("a NumPy archive", arrays, "numpy, torch")
    return None


#: Advice for a TensorFlow directory, which holds a program.
SAVED_MODEL = (
    "load it where it was made and save it as a Keras file, which is read here: "
    "tf.keras.models.load_model('saved_model').save('model.keras')"
)


#: Advice for a directory of ``torch.distributed.checkpoint``, as FSDP writes it.
DISTRIBUTED = (
    "is a distributed checkpoint; make one file of it, and give that: python -m "
    "torch.distributed.checkpoint.format_utils dcp_to_torch DIRECTORY weights.pth"
)


def _pickle(head: bytes, path: Path) -> Kind:
    if head[2:].startswith(_TORCHS_NUMBER):
        return "torch"
    values = f"pickle.load(open('{path.name}', 'rb'))"
    advice = _to_weights("a pickle that torch.save did not write", values, "pickle, torch")
    raise CheckpointError(f"'{path.name}' {advice}")


def _to_weights(what: str, expression: str, modules: str = "torch") -> str:
    """Returns advice with the command that makes a file of weights."""
    return (
        f"is {what}; make a file of weights of it where you trust it, and give that: "
        f"python -c \"import {modules}; torch.save({expression}, 'weights.pth')\""
    )


def _stranger(head: bytes) -> str:
    for beginning, advice in _STRANGERS:
        if head.startswith(beginning):
            return advice
    if head[257:262] == b"ustar":
        return "is a tar archive; unpack it first, with tar -xf, and give what was in it"
    if head[4:8] == b"TFL3":
        return "is a TensorFlow Lite model; give the Keras file that it was made of"
    if _is_onnx(head):
        arrays = (
            "{t.name: torch.tensor(onnx.numpy_helper.to_array(t)) "
            "for t in onnx.load('model.onnx').graph.initializer}"
        )
        return _to_weights("an ONNX program", arrays, "onnx, onnx.numpy_helper, torch") + (
            " (if the names have not survived, save model.state_dict() at the origin)"
        )
    text = head.lstrip().lower()
    for beginning, advice in _TEXTS:
        if text.startswith(beginning):
            return advice
    return "is of no kind known here, or damaged; give a file of torch.save's, a .safetensors or a Keras file"


def _is_onnx(head: bytes) -> bool:
    """Returns True for a protocol buffer with a small version number first and then the producer's name."""
    return head[:1] == b"\x08" and len(head) > 4 and head[1] < 32 and head[2:3] in (b"\x12", b"\x3a")
