"""State dicts in the forms in which people keep them: the module that made the file says what is right."""

from __future__ import annotations

import copy
import itertools
import json
import logging
import pickle
import zipfile
from argparse import Namespace
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from service.errors import CheckpointError
from service.models.checkpoints import resolve, write
from service.models.loader import load
from service.models.torchvision_import import torchvision

WIDTH = {"densenet": 30, "vgg": 8}
CLASSES = 5


def network(family: str, head: nn.Module | None = None, *, pool: nn.Module | None = None) -> nn.Module:
    """torchvision's own class, small, its norms and biases no trifles."""
    torch.manual_seed(1)
    if family == "densenet":
        model = torchvision.models.DenseNet(
            growth_rate=8, block_config=(2, 2), num_init_features=12, bn_size=2, num_classes=CLASSES
        )
    else:
        features = torchvision.models.vgg.make_layers([4, "M", 8, 8, "M"], batch_norm=family == "vgg_bn")
        model = torchvision.models.VGG(features, num_classes=2, init_weights=False)
        model.classifier = nn.Sequential(
            *(nn.Linear(8 * 49, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 12), nn.ReLU(), nn.Dropout()),
            nn.Linear(12, CLASSES),
        )
    if head is not None:
        model.classifier = head
    if pool is not None:
        model.avgpool = pool
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                if tensor is not None:
                    nn.init.uniform_(tensor, 0.5, 1.5)
    return model.eval()


def images(side: int = 64) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2))


def probabilities(source: Path | str) -> Tensor:
    checkpoint = resolve(str(source), "densenet121")
    with torch.inference_mode():
        logits: Tensor = load(checkpoint).network(images())
    return logits.sigmoid() if checkpoint.activation == "sigmoid" else logits.softmax(1)


def right(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        return model(images()).softmax(1)


def saved(path: Path, document: Any) -> Path:
    torch.save(document, path)
    return path


def chain(
    *widths: int, between: Callable[[], nn.Module] = nn.ReLU, last: tuple[nn.Module, ...] = ()
) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), between(), nn.Dropout(0.3)]
    return nn.Sequential(*layers[:-2], *last)


def named(**layers: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(layers))


HEADS: dict[str, Callable[[int], nn.Module]] = {
    "linear": lambda width: nn.Linear(width, CLASSES),
    "no bias": lambda width: nn.Linear(width, CLASSES, bias=False),
    "dropout, linear": lambda width: nn.Sequential(nn.Dropout(), nn.Linear(width, CLASSES)),
    "mlp": lambda width: chain(width, 9, CLASSES),
    "mlp of four": lambda width: chain(width, 9, 8, 9, CLASSES, last=(nn.LogSoftmax(1),)),
    "equal widths": lambda width: chain(width, 9, 9, 9, CLASSES),
    "nothing between": lambda width: nn.Sequential(nn.Linear(width, 9), nn.Linear(9, CLASSES)),
    "named": lambda width: named(fc1=nn.Linear(width, 9), relu=nn.ReLU(), fc2=nn.Linear(9, CLASSES)),
    "named backwards": lambda width: named(
        z=nn.Linear(width, 9), relu=nn.ReLU(), y=nn.Linear(9, 7), relu2=nn.ReLU(), a=nn.Linear(7, CLASSES)
    ),
    "nested": lambda width: named(fc=chain(width, 9, CLASSES)),
    "norm before": lambda width: nn.Sequential(nn.BatchNorm1d(width), nn.Dropout(), nn.Linear(width, CLASSES)),
    "norm, relu": lambda width: nn.Sequential(
        nn.Linear(width, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(), nn.Linear(9, CLASSES)
    ),
    "relu, norm": lambda width: nn.Sequential(
        nn.Linear(width, 9), nn.ReLU(), nn.BatchNorm1d(9), nn.Dropout(), nn.Linear(9, CLASSES)
    ),
    "norm without weights": lambda width: nn.Sequential(
        nn.Linear(width, 9), nn.BatchNorm1d(9, affine=False), nn.ReLU(), nn.Linear(9, CLASSES)
    ),
    "norm at the end": lambda width: nn.Sequential(nn.Linear(width, CLASSES), nn.BatchNorm1d(CLASSES)),
}  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", ["densenet", "vgg", "vgg_bn"])
def test_a_head_of_ones_own_gives_its_own_probabilities(tmp_path: Path, family: str, head: str) -> None:
    model = network(family, HEADS[head](30 if family == "densenet" else 8 * 49))
    pth, tensors = saved(tmp_path / "a.pth", model.state_dict()), tmp_path / "a.safetensors"
    torch.testing.assert_close(probabilities(pth), right(model))
    # In a .safetensors file the layers are sorted by their names.
    save_file(model.state_dict(), tensors)
    torch.testing.assert_close(probabilities(tensors), right(model))
    # And our own format can say all of it.
    write(resolve(str(pth), "densenet121"), tmp_path / "ours")
    torch.testing.assert_close(probabilities(tmp_path / "ours"), right(model))


@pytest.mark.parametrize("side", [1, 2, 3, 5])
def test_global_pooling_of_any_size_is_told_from_the_shapes(tmp_path: Path, side: int) -> None:
    model = network("vgg", chain(8 * side**2, 9, CLASSES), pool=nn.AdaptiveAvgPool2d(side))
    torch.testing.assert_close(probabilities(saved(tmp_path / "a.pth", model.state_dict())), right(model))


@pytest.mark.parametrize(
    ("option", "between"),
    [
        ("tanh", nn.Tanh),
        ("linear", nn.Identity),
        ("gelu", nn.GELU),
        ("leaky_relu", nn.LeakyReLU),
        ("elu", nn.ELU),
    ],
)
def test_what_stands_between_can_be_said(tmp_path: Path, option: str, between: Any) -> None:
    model = network("densenet", chain(30, 9, CLASSES, between=between))
    path = saved(tmp_path / "a.pth", model.state_dict())
    torch.testing.assert_close(probabilities(f"{path}?head_activation={option}"), right(model))
    assert not torch.allclose(probabilities(path), right(model))


def test_a_softmax_at_the_end_changes_nothing(tmp_path: Path) -> None:
    model = network("densenet", chain(30, 9, CLASSES, last=(nn.Softmax(1),)))
    with torch.inference_mode():
        own = model(images())
    torch.testing.assert_close(probabilities(saved(tmp_path / "a.pth", model.state_dict())), own)


def test_one_logit_is_a_sigmoid_and_two_names_are_two_classes(tmp_path: Path) -> None:
    model = network("densenet", chain(30, 9, 1))
    with torch.inference_mode():
        own = model(images()).sigmoid()
    path = saved(tmp_path / "a.pth", model.state_dict())
    torch.testing.assert_close(probabilities(path), own)
    two = saved(tmp_path / "b.pth", {"model": model.state_dict(), "class_to_idx": {"cat": 0, "dog": 1}})
    torch.testing.assert_close(probabilities(two), torch.cat([1 - own, own], 1))
    assert [entry.label for entry in resolve(str(two), "vgg16").classes or ()] == ["cat", "dog"]


class Concat(nn.Module):
    """fastai's ``AdaptiveConcatPool2d``."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.amax((2, 3)), x.mean((2, 3))], 1)


def test_fastais_learner(tmp_path: Path) -> None:
    body = network("densenet").get_submodule("features")
    head = nn.Sequential(
        *(Concat(), nn.Flatten(), nn.BatchNorm1d(60), nn.Dropout(), nn.Linear(60, 9, bias=False)),
        *(nn.ReLU(), nn.BatchNorm1d(9), nn.Dropout(), nn.Linear(9, CLASSES, bias=False)),
    )
    model = nn.Sequential(nn.Sequential(body, nn.ReLU()), head).eval()
    path = saved(tmp_path / "export.pth", {"model": model.state_dict(), "opt": {"hypers": [{"lr": 1e-3}]}})
    torch.testing.assert_close(probabilities(f"{path}?pooling=catmaxavg"), right(model))
    with pytest.raises(CheckpointError, match=r"add \?pooling=catavgmax .* or \?pooling=catmaxavg"):
        resolve(str(path), "densenet121")


class Own(nn.Module):
    """A class of somebody's, who kept the features and made the rest anew."""

    def __init__(self, wrap: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.encoder = wrap(network("densenet").get_submodule("features"))
        self.fc1, self.fc2 = nn.Linear(30, 9), nn.Linear(9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.relu(self.encoder(x)).mean((2, 3))
        return self.fc2(torch.relu(self.fc1(pooled)))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda features: features,
        nn.Sequential,
        lambda features: nn.Sequential(*features.children()),
        lambda features: named(backbone=features),
    ],
)
def test_a_class_of_ones_own_around_the_features(tmp_path: Path, wrap: Callable[[nn.Module], Any]) -> None:
    model = Own(wrap).eval()
    torch.testing.assert_close(probabilities(saved(tmp_path / "a.pth", model.state_dict())), right(model))


def _prefixed(prefix: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda state: {prefix + key: tensor for key, tensor in state.items()}


def _nested(*keys: str) -> Callable[[dict[str, Tensor]], Any]:
    def wrap(state: Any) -> Any:
        for key in reversed(keys):
            state = {
                "epoch": 3,
                "acc": 93.2,
                key: state,
                "optimizer": {"state": {0: {"exp_avg": torch.ones(3, 3)}}},
            }
        return state

    return wrap


WRAPPERS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    **{key: _nested(key) for key in ("net", "network", "weights", "model_state", "ema", "G", "params")},
    "nested deeply": _nested("checkpoint", "trainer", "state"),
    **{
        prefix: _prefixed(prefix)
        for prefix in ("model.", "net.", "backbone.", "module.model.", "encoder.net.", "densenet121.", "0.", "a.b.c.d.")
    },
    "the ImageNet example": lambda state: {
        key.replace("features.", "features.module.", 1): tensor for key, tensor in state.items()
    },
    "a list": lambda state: [state, {"epoch": 3}],
    "a tuple": lambda state: (state, 3),
    "numpy": lambda state: {key: tensor.numpy() for key, tensor in state.items()},
    "doubles": lambda state: {key: t.double() if t.is_floating_point() else t for key, t in state.items()},
    "criterion": lambda state: {
        **_prefixed("net.")(state), "criterion.weight": torch.ones(CLASSES), "acc.total": torch.tensor(3),
    },
    "module dictionaries": lambda state: {
        "features": {k.removeprefix("features."): t for k, t in state.items() if k.startswith("features.")},
        "classifier": {k.removeprefix("classifier."): t for k, t in state.items() if k.startswith("classifier.")},
    },
    "lightning": lambda state: {
        "state_dict": _prefixed("model.")(state),
        "hyper_parameters": {"lr": 1e-3, "path": Path("/x"), "when": datetime(2026, 1, 1)},
        "callbacks": {"best": torch.tensor(0.5)}, "loops": {"fit": defaultdict(list, a=[1])}, "epoch": 1,
    },
    "numpy beside it": lambda state: {
        "model": state, "acc": np.float64(0.9), "n": np.int32(3), "confusion": np.eye(3),
        "args": Namespace(lr=0.1, out=Path("/y")),
    },
}  # fmt: skip


@pytest.mark.parametrize("dress", WRAPPERS)
def test_wrappers_and_prefixes_come_off(tmp_path: Path, dress: str) -> None:
    for family in ("densenet", "vgg"):
        model = network(family)
        # Any suffix, or none: the bytes decide.
        path = saved(tmp_path / f"{family}.pth.tar", WRAPPERS[dress](model.state_dict()))
        torch.testing.assert_close(probabilities(path), right(model))


def test_vggs_older_numbers(tmp_path: Path) -> None:
    head = nn.Sequential(
        *(nn.Dropout(), nn.Linear(8 * 49, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 12), nn.ReLU()),
        nn.Linear(12, CLASSES),
    )
    model = network("vgg", head)
    path = saved(tmp_path / "old", model.state_dict())
    torch.testing.assert_close(probabilities(path), right(model))
    assert resolve(str(path), "vgg16").configuration.layers == ()


def shaken(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor + 1 if tensor.is_floating_point() else tensor for key, tensor in state.items()}


@pytest.mark.parametrize(
    "names", [("model", "model_ema"), ("state_dict", "state_dict_ema"), ("net", "swa_model")]
)
def test_an_average_is_taken_and_the_other_on_request(
    tmp_path: Path, names: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    raw = network("densenet").state_dict()
    path = saved(tmp_path / "a.pth", {names[0]: raw, names[1]: shaken(raw)})
    bias = resolve(str(path), "densenet121").state_dict["classifier.bias"]
    torch.testing.assert_close(bias, raw["classifier.bias"] + 1)
    assert f"?key={names[0]}" in caplog.text
    bias = resolve(f"{path}?key={names[0]}", "densenet121").state_dict["classifier.bias"]
    torch.testing.assert_close(bias, raw["classifier.bias"])


def test_torchs_averaged_model_and_half_an_average(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw = network("densenet").state_dict()
    averaged = {"n_averaged": torch.tensor(9), **_prefixed("module.")(shaken(raw))}
    path = saved(tmp_path / "a.pth", {"model": raw, "other": averaged})
    torch.testing.assert_close(
        resolve(str(path), "vgg16").state_dict["classifier.bias"], raw["classifier.bias"] + 1
    )
    half = {key: tensor for key, tensor in shaken(raw).items() if "running" not in key}
    path = saved(tmp_path / "b.pth", {"model": raw, "ema": {"shadow": half}})
    torch.testing.assert_close(
        resolve(str(path), "vgg16").state_dict["classifier.bias"], raw["classifier.bias"]
    )
    assert "the average is not whole" in caplog.text


def test_two_networks_want_a_choice(tmp_path: Path) -> None:
    raw = network("densenet").state_dict()
    both = {**_prefixed("student.")(raw), **_prefixed("teacher.")(shaken(raw))}
    path = saved(tmp_path / "a.pth", {"state_dict": both})
    with pytest.raises(
        CheckpointError, match=r"holds 2 networks: 'state_dict\.student', 'state_dict\.teacher'"
    ):
        resolve(str(path), "densenet121")
    bias = resolve(f"{path}?key=teacher", "vgg16").state_dict["classifier.bias"]
    torch.testing.assert_close(bias, raw["classifier.bias"] + 1)
    with pytest.raises(CheckpointError, match="0 networks that are called 'parent'"):
        resolve(f"{path}?key=parent", "densenet121")


@pytest.mark.parametrize("name", ["fc", "criterion"])
def test_two_heads_want_a_choice(tmp_path: Path, name: str) -> None:
    model = network("densenet")
    path = saved(tmp_path / "a.pth", {**model.state_dict(), f"{name}.weight": torch.ones(4, 30)})
    with pytest.raises(CheckpointError, match=rf"say which by adding \?head=classifier or \?head={name}"):
        resolve(str(path), "densenet121")
    torch.testing.assert_close(probabilities(f"{path}?head=classifier"), right(model))
    assert resolve(f"{path}?head={name}", "densenet121").configuration.num_classes == 4


@pytest.mark.parametrize(
    "head",
    [
        nn.Sequential(nn.Linear(8 * 49, 9), nn.LayerNorm(9), nn.Linear(9, CLASSES)),
        nn.Sequential(nn.Linear(8 * 49, 9), nn.PReLU(), nn.Linear(9, CLASSES)),
        nn.Sequential(nn.Conv2d(8, CLASSES, 1)),
        nn.Sequential(nn.Linear(8 * 50, 9), nn.ReLU(), nn.Linear(9, CLASSES)),
        nn.Sequential(nn.Linear(8 * 49, 9), nn.ReLU(), nn.Linear(10, CLASSES)),
        nn.MultiheadAttention(8, 2),
    ],
)
def test_a_head_that_cannot_be_read_is_no_network_without_classes(tmp_path: Path, head: nn.Module) -> None:
    model = network("vgg", head)
    with pytest.raises(CheckpointError, match="head"):
        resolve(str(saved(tmp_path / "a.pth", model.state_dict())), "vgg16")


def test_features_alone_say_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, state in enumerate(
        (network("vgg_bn").state_dict(), network("densenet").get_submodule("features").state_dict())
    ):
        kept = {key: tensor for key, tensor in state.items() if not key.startswith("classifier")}
        checkpoint = resolve(str(saved(tmp_path / f"{number}.pth", kept)), "vgg16")
        assert checkpoint.classes is None
        assert "it serves features only" in caplog.text
        load(checkpoint)


@pytest.mark.parametrize("key", ["class_to_idx", "classes", "idx_to_class", "id2label"])
def test_classes_come_with_the_file(tmp_path: Path, key: str) -> None:
    names = [f"kind {index}" for index in range(CLASSES)]
    forms = {
        "class_to_idx": {name: index for index, name in enumerate(names)},
        "classes": names,
        "idx_to_class": dict(enumerate(names)),
        "id2label": {str(index): name for index, name in enumerate(names)},
    }
    document = {"state_dict": network("densenet").state_dict(), "meta": {key: forms[key]}}
    path = saved(tmp_path / "a.pth", document)
    assert [entry.label for entry in resolve(str(path), "vgg16").classes or ()] == names
    (tmp_path / "labels.json").write_text(json.dumps(list("abcde")))
    checkpoint = resolve(str(path), "vgg16", labels=tmp_path / "labels.json")
    assert [entry.label for entry in checkpoint.classes or ()] == list("abcde")


def _zip(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return path


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (lambda path: torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path)), r"torch\.jit\.load\('thing'\)"),
        (lambda path: torch.save(nn.Sequential(nn.Linear(2, 2)), path), r"weights_only=False"),
        (lambda path: path.write_bytes(pickle.dumps({"a": np.ones(3)})), r"pickle\.load\(open\('thing', 'rb'\)\)"),
        (lambda path: _zip(path, "a.npy", "b.npy"), r"numpy\.load\('thing'\)"),
        (lambda path: path.write_bytes(b"GGUF\x03\0\0\0"), "GGUF"),
        (lambda path: path.write_bytes(b"\x08\x0a\x12\x07pytorch\x1a\x052.8.0"), r"onnx\.load"),
        (lambda path: _zip(path, "m/archive_format", "m/models/model.json"), r"torch\.export\.load\('thing'\)"),
        (lambda path: _zip(path, "serialized_exported_program.json"), r"torch\.export\.load"),
        (lambda path: _zip(path, "m/saved_model.pb", "m/variables/variables.index"), r"\.save\('model\.keras'\)"),
        (lambda path: _zip(path, "MAR-INF/MANIFEST.json", "model.pth"), "unzip"),
        (lambda path: _zip(path, "photo.jpg"), "unpack it"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
        (lambda path: path.write_bytes(b"\n<!DOCTYPE html><html>"), "web page"),
        (lambda path: path.write_bytes(b"\x1f\x8b\x08\0"), "gunzip"),
        (lambda path: path.write_bytes(bytes(257) + b"ustar"), "tar -xf"),
        (lambda path: path.write_bytes(b'{"a": 1}'), "JSON"),
        (lambda path: path.write_bytes(b""), "empty"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_cannot_be_served_says_what_makes_it_so(
    tmp_path: Path, make: Callable[[Path], Any], advice: str
) -> None:
    make(tmp_path / "thing")
    with pytest.raises(CheckpointError, match=advice) as refused:
        resolve(str(tmp_path / "thing"), "densenet121")
    assert "\n" not in str(refused.value)


def test_a_saved_model_is_told_how_to_become_a_keras_file(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"\.save\('model\.keras'\)"):
        resolve(str(tmp_path), "densenet121")


def test_no_permission_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.pth", network("vgg").state_dict())

    def refuse(self: Path, *args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match="no permission to read"):
        resolve(str(path), "densenet121")


STATES = {family: network(family).state_dict() for family in ("densenet", "vgg", "vgg_bn")}
_KEYS = st.sampled_from(
    ["", "0", "3", "model", "ema", "weight", "features", "classifier", "é", "a.b", "denselayer1"]
)


#: Of weights that are kept in parts, whole or half.
_ENDINGS = st.sampled_from(["_g", "_v", "_orig", "_mask", ".p"])
_IN_PARTS = st.lists(
    st.sampled_from(
        [
            "weight_g",
            "weight_v",
            "weight_orig",
            "weight_u",
            "parametrizations.weight.original",
            "_orig_mod.weight",
        ]
    ),
    min_size=1,
    max_size=3,
)

TYPES = (torch.int8, torch.bool, torch.complex64, torch.float64, torch.bfloat16)


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A state dict with keys renamed, dropped or doubled, shapes and types changed, then nested anywhere."""
    state: dict[Any, Any] = dict(STATES[draw(st.sampled_from(sorted(STATES)))])
    if draw(st.booleans()):
        state = {key: tensor for key, tensor in state.items() if not key.startswith("classifier")}
    for _ in range(draw(st.integers(0, 4))):
        key = draw(st.sampled_from(sorted(state, key=str)))
        value = state[key]
        change = draw(st.integers(0, 9))
        if change == 0:
            del state[key]
        elif change == 1:
            parts = str(key).split(".")
            parts[draw(st.integers(0, len(parts) - 1))] = draw(_KEYS)
            state[".".join(parts)] = state.pop(key)
        elif change == 2 and isinstance(value, Tensor):
            shape = draw(st.lists(st.integers(0, 5), max_size=5))
            state[key] = torch.ones(shape)
        elif change == 3 and isinstance(value, Tensor):
            state[key] = value.to(draw(st.sampled_from([*TYPES])))
        elif change == 4:
            state[key] = draw(st.one_of(st.none(), st.text(max_size=3), st.lists(st.integers()), st.just({})))
        elif change == 5 and isinstance(value, Tensor):
            state[key] = value.unsqueeze(0)
        elif change == 6:
            state[f"{draw(_KEYS)}.{key}"] = value
        elif change == 7 and isinstance(value, Tensor) and value.ndim == 2:
            state[key] = value.to_sparse()
        elif change == 8:
            state[f"{key}{draw(_ENDINGS)}"] = state.pop(key)
        elif change == 9:
            stem = str(key).rpartition(".weight")[0]
            state |= {f"{stem}.{part}": torch.ones(draw(st.integers(0, 3))) for part in draw(_IN_PARTS)}
        if not state:
            break
    for key in draw(st.lists(_KEYS, max_size=3)):
        state = {key: state, draw(st.integers(0, 3)): draw(st.sampled_from([3, None, {"classes": [1, {}]}]))}
    return state


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=mutated())
def test_any_document_is_a_network_or_a_sentence(tmp_path: Path, document: Any) -> None:
    path = saved(tmp_path / "a.pth", copy.copy(document))
    logging.disable(logging.WARNING)
    try:
        checkpoint = resolve(str(path), "densenet121")
        model = load(checkpoint)
    except CheckpointError as refused:
        sentence = str(refused)
    else:
        sentence = "served"
        pixels = images(32)[:, : checkpoint.configuration.channels]
        if checkpoint.classes is not None and pixels.shape[1] == checkpoint.configuration.channels:
            with torch.inference_mode():
                assert model.network(pixels).shape == (2, len(checkpoint.classes))
    finally:
        logging.disable(logging.NOTSET)
    assert sentence
    assert "\n" not in sentence
