"""What training loops and trainers leave: shells of modules, weights in parts, folders, names of one's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from service.errors import CheckpointError
from service.labels import ClassLabel
from service.models.catalog import VARIANTS
from service.models.checkpoints import resolve
from service.models.checkpoints.tensors import named
from service.models.loader import load
from service.models.network import build
from service.settings import Settings
from tests.models.test_forms import CLASSES, network, probabilities, right, saved

State = dict[str, Tensor]


def _within(beginning: str, shell: str) -> Callable[[State], State]:
    """With a shell behind each module whose name ends in ``beginning``."""
    return lambda state: {
        key.replace(f"{beginning}.", f"{beginning}.{shell}."): t for key, t in state.items()
    }


SHELLS: dict[str, Callable[[State], State]] = {
    "compiled, then distributed": lambda state: {f"module._orig_mod.{key}": t for key, t in state.items()},
    "distributed, then compiled": lambda state: {f"_orig_mod.module.{key}": t for key, t in state.items()},
    "compiled features": _within("features", "_orig_mod"),
    "compiled head": _within("classifier", "_orig_mod"),
    "compiled layers": _within("denselayer1", "_orig_mod"),
    "FSDP": lambda state: {
        f"_fsdp_wrapped_module.{key}": t for key, t in _within("denseblock1", "_fsdp_wrapped_module")(state).items()
    },
    "activation checkpoints": _within("denselayer2", "_checkpoint_wrapped_module"),
}  # fmt: skip


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("family", ["densenet", "vgg_bn"])
def test_shells_of_modules_come_off(tmp_path: Path, family: str, shell: str) -> None:
    model = network(family)
    path = saved(tmp_path / "a.pth", {"model": SHELLS[shell](model.state_dict())})
    torch.testing.assert_close(probabilities(path), right(model))


def _old_weight_norm(layer: nn.Module) -> None:
    nn.init.uniform_(weight_norm(layer).weight_g, 0.5, 2)  # type: ignore[arg-type]


def _new_weight_norm(layer: nn.Module) -> None:
    nn.init.uniform_(parametrizations.weight_norm(layer).parametrizations.weight.original0, 0.5, 2)


PARTS: dict[str, Callable[[nn.Module], object]] = {
    "weight norm, old": _old_weight_norm,
    "weight norm, new": _new_weight_norm,
    "spectral norm, old": spectral_norm,
    "spectral norm, new": parametrizations.spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
}


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("family", ["densenet", "vgg"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_in_parts_are_put_together(tmp_path: Path, family: str, parts: str) -> None:
    model = network(family)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer in layers:
        PARTS[parts](layer)
    model.eval()
    path = saved(tmp_path / "a.pth", model.state_dict())
    torch.testing.assert_close(probabilities(path), right(model))


def test_another_parametrisation_is_refused(tmp_path: Path) -> None:
    model = network("densenet", nn.Linear(30, 30))
    parametrizations.orthogonal(model.get_submodule("classifier"))
    path = saved(tmp_path / "a.pth", model.state_dict())
    with pytest.raises(CheckpointError, match="remove_parametrizations"):
        resolve(str(path), None)


def _named(names: dict[int, str], norms: dict[int, str]) -> Callable[[State], State]:
    """A VGG's state under names of somebody's own."""

    def rename(state: State) -> State:
        result = {}
        for key, tensor in state.items():
            kind, number, part = key.split(".")
            own = (names | norms).get(int(number), "") if kind == "features" else f"fc{6 + int(number) // 3}"
            result[f"{own}.{part}"] = tensor
        return result

    return rename


NAMES = {
    "vgg": [
        {0: "conv1_1", 3: "conv2_1", 5: "conv2_2"},
        {0: "block1.0", 3: "block2.0", 5: "block2.2"},
        {0: "stage1.conv1", 3: "stage2.conv1", 5: "stage2.conv2"},
        {0: "slice1.0", 3: "slice2.3", 5: "slice2.5"},
    ],
    "vgg_bn": [
        {0: "conv1_1", 4: "conv2_1", 7: "conv2_2", 1: "bn1_1", 5: "bn2_1", 8: "bn2_2"},
        {0: "block1.0", 4: "block2.0", 7: "block2.3", 1: "block1.1", 5: "block2.1", 8: "block2.4"},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "names"), [(family, names) for family in NAMES for names in NAMES[family]]
)
def test_a_vgg_under_names_of_ones_own(tmp_path: Path, family: str, names: dict[int, str]) -> None:
    model = network(family)
    state = {f"net.{key}": tensor for key, tensor in _named(names, {})(model.state_dict()).items()}
    torch.testing.assert_close(probabilities(saved(tmp_path / "a.pth", state)), right(model))


def test_widths_tell_the_stages_of_a_vgg_whose_names_do_not() -> None:
    with torch.device("meta"):
        state = build(VARIANTS["vgg16"].configuration).state_dict()
    places = [key for key in state if key.startswith("features.") and key.endswith(".weight")]
    own = {
        f"c{number}.{part}": state[f"{key[:-7]}.{part}"]
        for number, key in enumerate(places)
        for part in ("weight", "bias")
    }
    usual = named.with_usual_names(own)
    assert {key: t.shape for key, t in usual.items()} == {
        key: t.shape for key, t in state.items() if key.startswith("features.")
    }


STRANGERS: dict[str, tuple[str, Tensor]] = {
    "a learned pooling": ("pool.p", torch.ones(1)),
    "an attention": ("attention.weight", torch.ones(1, 30, 1, 1)),
    "a temperature": ("temperature", torch.ones(1)),
    "a layer inside": ("features.denseblock1.denselayer1.se.weight", torch.ones(8, 8)),
    "a norm of another kind": ("scale.weight", torch.ones(30)),
}


@pytest.mark.parametrize("what", STRANGERS)
def test_what_may_change_the_answer_is_not_left_out(tmp_path: Path, what: str) -> None:
    key, tensor = STRANGERS[what]
    state = network("densenet").state_dict()
    path = saved(tmp_path / "a.pth", {**state, key: tensor})
    with pytest.raises(CheckpointError, match=f"'{key}'"):
        load(resolve(str(path), None))
    if what != "a layer inside":
        resolve(f"{path}?head=classifier", None)


@pytest.mark.parametrize(
    "key", ["criterion.weight", "loss_fn.class_weights", "val_acc.correct", "best_acc1", "ema_decay"]
)
def test_losses_and_metrics_are_left_out(tmp_path: Path, key: str, caplog: pytest.LogCaptureFixture) -> None:
    model = network("densenet")
    path = saved(tmp_path / "a.pth", {**model.state_dict(), key: torch.ones(CLASSES)})
    torch.testing.assert_close(probabilities(path), right(model))
    assert "left out" in caplog.text


@pytest.mark.parametrize("scale", [1, 255])
def test_a_network_that_normalises_by_itself_gets_its_own_pixels(tmp_path: Path, scale: int) -> None:
    mean, std = torch.tensor([0.5, 0.4, 0.3]) * scale, torch.tensor([0.25, 0.2, 0.1]) * scale
    state = {f"1.{key}": t for key, t in network("densenet").state_dict().items()}
    path = saved(
        tmp_path / "a.pth", {"0.mean": mean.view(1, 3, 1, 1), "0.std": std.view(1, 3, 1, 1), **state}
    )
    pixels = resolve(str(path), None).preprocessing
    assert (pixels.mean, pixels.std) == ((0.5, 0.4, 0.3), (0.25, 0.2, 0.1))
    assert resolve(f"{path}?preprocessing=unit", None).preprocessing.std == (1, 1, 1)


def _parts(folder: Path, state: State, document: Any, suffix: str = "safetensors") -> Path:
    """A folder as Accelerate and transformers write it, in two parts."""
    name = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
    keys = list(state)
    parts: dict[str, Any] = {}
    for number in (1, 2):
        part = name.replace(".", f"-0000{number}-of-00002.")
        some = {key: state[key] for key in keys[number - 1 :: 2]}
        parts |= dict.fromkeys(some, part)
        save_file(some, folder / part) if suffix == "safetensors" else torch.save(some, folder / part)
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    if document is not None:
        (folder / "config.json").write_text(json.dumps(document))
    return folder


NAMED = {"id2label": {str(number): f"kind {number}" for number in range(CLASSES)}}
KINDS = tuple(ClassLabel(number, None, f"kind {number}") for number in range(CLASSES))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize(
    "document",
    [
        None,
        NAMED,
        {"model_type": "my-net", **NAMED},
        {"hidden": 9, "dropout": 0.3},
        {"architecture": "densenet121", "num_classes": CLASSES},
        {"architecture": "densenet121", "model_type": "timm_wrapper", "label_names": list("abcde")},
    ],
)
def test_a_folder_in_parts(tmp_path: Path, document: Any, suffix: str) -> None:
    model = network("densenet")
    state = {f"model.{key}": tensor for key, tensor in model.state_dict().items()}
    folder = _parts(tmp_path, state, document, suffix)
    torch.testing.assert_close(probabilities(folder), right(model))
    if document is not None and "id2label" in document:
        assert resolve(str(folder), None).classes == KINDS
    part = next(folder.glob("*-00001-of-00002.*"))
    with pytest.raises(CheckpointError, match="is one of 2 parts"):
        resolve(str(part), None)
    part.unlink()
    with pytest.raises(CheckpointError, match="lacks its file"):
        resolve(str(folder), None)


@pytest.mark.parametrize(
    "index", ["[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../b.safetensors"}}', "{"]
)
def test_a_folder_with_a_strange_index_is_a_sentence(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError):
        resolve(str(tmp_path), None)


def test_a_distributed_checkpoint_is_told_how_to_become_a_file(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="dcp_to_torch"):
        resolve(str(tmp_path), None)


@pytest.mark.filterwarnings("ignore")  # torch is about to part with them
def test_quantised_weights_say_so(tmp_path: Path) -> None:
    state: dict[str, Any] = {
        key: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8) if t.ndim > 1 else t
        for key, t in network("vgg").state_dict().items()
    }
    with pytest.raises(CheckpointError, match="quantised"):
        resolve(str(saved(tmp_path / "a.pth", state)), None)


def test_classes_in_the_head_of_a_safetensors_file(tmp_path: Path) -> None:
    save_file(
        network("densenet").state_dict(),
        tmp_path / "a",
        {"format": "pt", "id2label": json.dumps(NAMED["id2label"])},
    )
    assert resolve(str(tmp_path / "a"), None).classes == KINDS


def test_a_file_says_which_variant_it_is_where_nobody_has(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = build(VARIANTS["vgg11"].configuration).state_dict()
    path = saved(tmp_path / "a.pth", {key: torch.zeros(()).expand(t.shape) for key, t in shapes.items()})
    assert resolve(str(path), Settings().named_model).configuration == VARIANTS["vgg11"].configuration
    with pytest.raises(CheckpointError, match="set model to vgg11"):
        resolve(str(path), Settings(model="densenet121").named_model)
