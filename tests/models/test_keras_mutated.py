"""Keras's files with anything in them changed: a network whose numbers can be computed, or one sentence."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.errors import CheckpointError
from service.models.checkpoints import resolve
from service.models.loader import load
from tests.models.parity import FIXTURES

FILES = [
    *(FIXTURES / "keras_vgg_flatten" / name for name in ("model.keras", "model.h5", "model.weights.h5")),
    *(FIXTURES / "keras_vgg_pooled" / name for name in ("model.keras", "model.h5")),
    FIXTURES / "keras_densenet_g4" / "model.keras",
    FIXTURES / "khub_densenet_g8" / "model.weights.h5",
]

_LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 300), st.floats(), st.text(max_size=4), st.just([]), st.just({}),
    st.lists(st.integers(-1, 9), max_size=4),
    st.sampled_from(["Dense", "Conv2D", "Flatten", "Functional", "Normalization", "Resizing", "softmax", "same"]),
)  # fmt: skip


def _places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON document below its top."""
    if isinstance(document, dict):
        pairs: list[tuple[Any, Any]] = list(document.items())
    elif isinstance(document, list):
        pairs = list(enumerate(document))
    else:
        return []
    return [found for key, value in pairs for found in [(*path, key), *_places(value, (*path, key))]]


def _mutate_document(draw: st.DrawFn, text: str) -> str:
    document = json.loads(text)
    for _ in range(draw(st.integers(0, 4))):
        places = _places(document)
        if not places:
            break
        *way, last = draw(st.sampled_from(places))
        parent = document
        for key in way:
            parent = parent[key]
        change = draw(st.integers(0, 3))
        if change == 0:
            del parent[last]
        elif change == 1 and isinstance(parent, dict):
            parent[draw(st.sampled_from(["name", "config", "scale", "x"]))] = parent.pop(last)
        elif change == 2 and isinstance(parent, list):
            parent.insert(0, copy.deepcopy(parent[last]))
        else:
            parent[last] = draw(_LEAVES)
    return json.dumps(document)


def _mutate_arrays(draw: st.DrawFn, file: h5py.File) -> None:
    for _ in range(draw(st.integers(0, 3))):
        names: list[str] = []
        file.visit(names.append)
        if not names:
            return
        name = draw(st.sampled_from(names))
        change = draw(st.integers(0, 4))
        if change == 0:
            del file[name]
        elif change == 1:
            parts = name.split("/")
            parts[draw(st.integers(0, len(parts) - 1))] = draw(
                st.sampled_from(["0", "1", "vars", "dense_1", "layers"])
            )
            if "/".join(parts) not in file and not "/".join(parts).startswith(f"{name}/"):
                _move(file, name, "/".join(parts))
        elif change == 2 and isinstance(file[name], h5py.Dataset):
            del file[name]
            shape = draw(st.lists(st.integers(0, 5), max_size=5))
            file[name] = np.ones(shape, draw(st.sampled_from(["f4", "f2", "i4"])))
        elif change == 3:
            for key in list(file[name].attrs):
                file[name].attrs[key] = draw(st.sampled_from(["", "x", "dense"]))
        else:
            for key in list(file.attrs):
                if key != "model_config":
                    del file.attrs[key]


def _move(file: h5py.File, old: str, new: str) -> None:
    with contextlib.suppress(
        ValueError, KeyError, RuntimeError
    ):  # a name below an array, which HDF5 does not have
        file.move(old, new)


@dataclass(repr=False)
class Changed:
    """A file; too large to be printed."""

    name: str
    data: bytes


@st.composite
def mutated(draw: st.DrawFn) -> Changed:
    source = draw(st.sampled_from(FILES))
    if source.suffix == ".keras":
        with zipfile.ZipFile(source) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        parts["config.json"] = _mutate_document(draw, parts["config.json"].decode()).encode()
        weights = io.BytesIO(parts["model.weights.h5"])
        with h5py.File(weights, "r+") as file:
            _mutate_arrays(draw, file)
        parts["model.weights.h5"] = weights.getvalue()
        if draw(st.integers(0, 9)) == 0:
            del parts[draw(st.sampled_from(sorted(parts)))]
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as archive:
            for name, data in parts.items():
                archive.writestr(name, data)
        return Changed(source.name, made.getvalue())
    whole = io.BytesIO(source.read_bytes())
    with h5py.File(whole, "r+") as file:
        if "model_config" in file.attrs:
            text = _mutate_document(draw, str(file.attrs["model_config"]))
            file.attrs["model_config"] = text
        _mutate_arrays(draw, file)
    return Changed(source.name, whole.getvalue())


_QUERIES = [
    "",
    "?image_size=32x32",
    "?pooling=avg",
    "?head_activation=relu&image_size=37x41",
    "?preprocessing=raw",
]


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(file=mutated(), query=st.sampled_from(_QUERIES))
def test_any_file_of_kerass_is_a_network_or_a_sentence(tmp_path: Path, file: Changed, query: str) -> None:
    name = file.name
    (tmp_path / name).write_bytes(file.data)
    logging.disable(logging.WARNING)
    try:
        checkpoint = resolve(f"{tmp_path / name}{query}", None)
        model = load(checkpoint)
    except CheckpointError as refused:
        checkpoint, sentence = None, str(refused)
    finally:
        logging.disable(logging.NOTSET)
    if checkpoint is None:
        assert sentence
        assert "\n" not in sentence
        return
    height, width, channels = checkpoint.preprocessing.shape
    pixels = torch.zeros(2, height, width, channels, dtype=torch.uint8)
    if checkpoint.classes is not None and channels == 3 and height * width < 256**2:
        try:
            with torch.inference_mode():
                assert model(pixels).shape == (2, len(checkpoint.classes))
        except RuntimeError as error:
            pytest.fail(f"{name}{query} is served and cannot be computed: {error}")
