"""Make checkpoints with the original libraries, and write down what these compute with them.

    python -m tests.models.originals FOLDER NAME...    # in an environment that has the library

The small ones lie in tests/fixtures; the rest is made and compared by test_originals.py, where the libraries
are. Weights are random, with batch-norm statistics and biases that are not their initial ones. Every folder
gets an ``expected.npz``: normalised inputs, the backbone's features, the model's outputs (all NCHW), and for
those that preprocess an image and what came of it.
"""

from __future__ import annotations

import os
import sys
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
import torch
from PIL import Image

SCALE = [1 / 255 / s for s in (0.229, 0.224, 0.225)]
OFFSET = [-m / s for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]


def _library(name: str) -> Any:
    """A module that most environments lack."""
    return import_module(name)


def _image(rng: Any) -> Any:
    return rng.integers(0, 256, (61, 83, 3), dtype=np.uint8)


def _first(array: Any) -> Any:
    """NHWC → NCHW."""
    array = np.asarray(array)
    return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array


def _shake_keras(model: Any, rng: Any) -> None:
    """Every weight as large as keeps activations of order one, biases and statistics away from 0 and 1."""
    for weight in model.weights:
        shape = tuple(weight.shape)
        if "seed" in weight.path or not shape:
            continue
        if weight.path.endswith(("gamma", "moving_variance")):
            value = rng.uniform(0.5, 1.5, shape)
        elif len(shape) == 1:
            value = rng.normal(0, 0.1, shape)
        else:
            value = rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
        weight.assign(value.astype("float32"))


def _keras_hub(
    kind: str,
    backbone: dict[str, Any],
    task: dict[str, Any],
    inputs: tuple[int, ...],
    *,
    converter: dict[str, Any] | None = None,
    save: dict[str, Any] | None = None,
    dtype: str = "float32",
) -> Callable[[Path, Any], None]:
    def make(folder: Path, rng: Any) -> None:
        keras, keras_hub = _library("keras"), _library("keras_hub")
        models, layers = keras_hub.models, keras_hub.layers

        def build(policy: str) -> tuple[Any, Any, Any]:
            keras.config.set_dtype_policy(policy)
            model = getattr(models, f"{kind}Backbone")(**backbone)
            preprocessor = None
            if converter is not None:
                layer = getattr(layers, f"{kind}ImageConverter")(scale=SCALE, offset=OFFSET, **converter)
                preprocessor = getattr(models, f"{kind}ImageClassifierPreprocessor")(image_converter=layer)
            task_class = getattr(models, f"{kind}ImageClassifier")
            return model, preprocessor, task_class(backbone=model, preprocessor=preprocessor, **task)

        model, preprocessor, classifier = build(dtype)
        _shake_keras(classifier, rng)
        # KerasHub 0.17 stumbles over a missing preprocessor when everything else is written.
        with suppress(AttributeError):
            classifier.save_to_preset(str(folder), **(save or {}))
        if dtype != "float32":
            # What is stored in half is computed in full here, as the service does it on a CPU.
            stored = [_numpy(weight.value) for weight in classifier.weights]
            model, preprocessor, classifier = build("float32")
            for weight, value in zip(classifier.weights, stored, strict=True):
                weight.assign(value)
        x = rng.normal(0, 1, inputs).astype("float32")
        expected = {
            "inputs": _first(x),
            "features": _first(_numpy(model(x))),
            "scores": _numpy(classifier(x)),
            "activation": np.asarray(task.get("activation") or "none"),
        }
        if preprocessor is not None:
            image = _image(rng)
            pre = _numpy(preprocessor(image[None]))
            expected |= {"image": image, "pre": _first(pre), "pre_scores": _numpy(classifier(pre))}
        np.savez_compressed(folder / "expected.npz", **expected)

    return make


def _numpy(value: Any) -> Any:
    return value.detach().cpu().float().numpy() if hasattr(value, "detach") else np.asarray(value, "float32")


def _keras_cv(arguments: dict[str, Any], inputs: tuple[int, ...]) -> Callable[[Path, Any], None]:
    def make(folder: Path, rng: Any) -> None:
        module = _library("keras_cv.src.models.backbones.vgg16.vgg16_backbone")
        model = module.VGG16Backbone(**arguments)
        _shake_keras(model, rng)
        for name in ("model.keras", "model.weights.h5", "model.h5"):
            (model.save_weights if "weights" in name else model.save)(str(folder / name))
        x = rng.integers(0, 256, inputs, dtype=np.uint8)
        np.savez_compressed(
            folder / "expected.npz", pixels=x, outputs=_first(_numpy(model(x.astype("float32"))))
        )

    return make


def _applications(
    build: Callable[[Any], Any],
    size: tuple[int, int],
    files: dict[str, str],
    mode: str | None,
    *,
    packed: bool = False,
) -> Callable[[Path, Any], None]:
    """A model around `keras.applications`, in several files, each with the options that it needs.

    ``packed``: Keras stores what is in a .keras file as it is; here it is compressed, byte for byte the same inside.
    """

    def make(folder: Path, rng: Any) -> None:
        keras = _library("keras")
        keras.config.set_dtype_policy("float32")
        model = build(keras)
        _shake_keras(model, rng)
        for weight in model.weights:
            # So that logits are of order one, whatever the pixels are.
            if weight.path.endswith("kernel") and len(weight.shape) == 2:
                weight.assign(_numpy(weight.value) * 0.05)
        for name in files:
            (model.save_weights if "weights" in name else model.save)(str(folder / name))
            if packed:
                _pack(folder / name)
        pixels = rng.integers(0, 256, (2, *size, 3), dtype=np.uint8)
        given = pixels.astype("float32")
        if mode is not None:
            given = keras.applications.imagenet_utils.preprocess_input(given.copy(), mode=mode)
        options = np.asarray([f"{name}{option}" for name, option in files.items()])
        np.savez_compressed(
            folder / "expected.npz",
            pixels=pixels,
            outputs=_numpy(model(given, training=False)),
            files=options,
        )

    return make


def _pack(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def _small_vgg(keras: Any) -> Any:
    """A VGG16's layers with few filters, by Keras's own."""
    layers = keras.layers
    body = [layers.Input((64, 64, 3))]
    for stage, (count, filters) in enumerate(((2, 2), (2, 3), (3, 3), (3, 4), (3, 5)), start=1):
        body += [
            layers.Conv2D(filters, 3, padding="same", activation="relu", name=f"block{stage}_conv{number}")
            for number in range(1, count + 1)
        ]
        body.append(layers.MaxPooling2D(2, strides=2, name=f"block{stage}_pool"))
    return keras.Sequential(body, name="vgg16")


def _flattened(keras: Any) -> Any:
    layers = keras.layers
    head = [
        layers.Flatten(),
        layers.Dense(6, activation="relu"),
        layers.Dropout(0.5),
        layers.Dense(3, activation="softmax"),
    ]
    return keras.Sequential([layers.Input((64, 64, 3)), _small_vgg(keras), *head])


def _pooled(keras: Any) -> Any:
    """With augmentation, a Rescaling, a norm and a nonlinearity as layers of their own."""
    layers, inputs = keras.layers, keras.Input((64, 64, 3))
    x = keras.Sequential([layers.RandomFlip("horizontal")])(inputs)
    x = layers.Rescaling(1 / 127.5, offset=-1)(x)
    x = layers.GlobalMaxPooling2D()(_small_vgg(keras)(x))
    x = layers.LeakyReLU()(layers.BatchNormalization()(layers.Dense(6)(x)))
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))


def _of_applications(name: str, **arguments: Any) -> Callable[[Any], Any]:
    return lambda keras: getattr(keras.applications, name)(weights=None, **arguments)


def _small_densenet(keras: Any) -> Any:
    module = _library("keras.src.applications.densenet")
    return module.DenseNet([1, 1, 1, 1], weights=None, classes=3, input_shape=(48, 40, 3))


def _narrow_densenet(keras: Any) -> Any:
    """Keras's own DenseNet but for its growth rate, which no argument sets: 4 for 32, so that the file is small."""
    module = _library("keras.src.applications.densenet")
    plain = module.conv_block
    module.conv_block = lambda x, growth_rate, name: plain(x, 4, name)
    try:
        return module.DenseNet([1, 2, 1, 1], weights=None, classes=3, input_shape=(48, 40, 3))
    finally:
        module.conv_block = plain


def _shake_torch(model: Any, rng: Any) -> None:
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith("running_var") or (tensor.ndim == 1 and key.endswith("weight")):
                value = rng.uniform(0.5, 1.5, tuple(tensor.shape))
            elif tensor.ndim == 1:
                value = rng.normal(0, 0.1, tuple(tensor.shape))
            elif tensor.ndim == 0:
                continue
            else:
                fan_in = int(np.prod(tensor.shape[1:]))
                value = rng.normal(0, np.sqrt(2 / fan_in), tuple(tensor.shape))
            tensor.copy_(torch.from_numpy(np.asarray(value, "float32")))


def _write_torch(
    folder: Path, rng: Any, model: Any, features: Any, inputs: tuple[int, ...], **more: Any
) -> None:
    x = rng.normal(0, 1, inputs).astype("float32")
    with torch.inference_mode():
        pixels = torch.from_numpy(x)
        more |= {"features": features(pixels).numpy(), "scores": model(pixels).numpy()}
    np.savez_compressed(folder / "expected.npz", inputs=x, activation=np.asarray("none"), **more)


def _timm(
    name: str, inputs: tuple[int, ...], data: dict[str, Any] | None = None, **arguments: Any
) -> Callable[[Path, Any], None]:
    def make(folder: Path, rng: Any) -> None:

        timm = _library("timm")
        if "cfg" in arguments:
            norm = torch.nn.BatchNorm2d if name.endswith("_bn") else None
            model = timm.models.vgg.VGG(**arguments, norm_layer=norm)
            model.pretrained_cfg = timm.models.get_pretrained_cfg(name)
        else:
            model = timm.create_model(name, pretrained=False, **arguments)
        model = model.eval()
        _shake_torch(model, rng)
        pretrained = {**_plain(model.pretrained_cfg), "num_classes": model.num_classes, **(data or {})}
        model.pretrained_cfg = pretrained
        kept = {key: value for key, value in arguments.items() if key != "cfg"}
        config = {"architecture": name, "num_classes": model.num_classes}
        timm.models.save_for_hf(
            model, str(folder), model_config=config, model_args=kept, safe_serialization=True
        )
        image = _image(rng)
        settings = timm.data.resolve_data_config({}, pretrained_cfg=pretrained)
        pre = timm.data.create_transform(**settings)(Image.fromarray(image))[None]
        with torch.inference_mode():
            more = {"image": image, "pre": pre.numpy(), "pre_scores": model(pre).numpy()}
        _write_torch(folder, rng, model, model.forward_features, inputs, **more)

    return make


def _plain(settings: Any) -> dict[str, Any]:
    return dict(settings) if isinstance(settings, dict) else dict(settings.to_dict())


def _of_torchvision(name: str, inputs: tuple[int, ...], **arguments: Any) -> Callable[[Path, Any], None]:
    def make(folder: Path, rng: Any) -> None:
        models = _library("torchvision.models")
        model = models.get_model(name, **arguments).eval()
        _shake_torch(model, rng)
        torch.save(model.state_dict(), folder / "model.pth")

        def features(x: Any) -> Any:
            last = model.features(x)
            return torch.relu(last) if name.startswith("densenet") else last

        _write_torch(folder, rng, model, features, inputs)

    return make


_VGG = {"stackwise_num_repeats": [1, 2], "stackwise_num_filters": [4, 6]}
_VGG16 = {"stackwise_num_repeats": [2, 2, 3, 3, 3], "stackwise_num_filters": [64, 128, 256, 512, 512]}
_ANY = (None, None, 3)

_ALL_FILES = {"model.keras": "", "model.h5": ""}
_SAID = "?image_size=64x64&head_activation=relu"

#: Small ones that lie in tests/fixtures.
SMALL: dict[str, Callable[[Path, Any], None]] = {
    "keras_vgg_flatten": _applications(
        _flattened, (64, 64), {**_ALL_FILES, "model.weights.h5": _SAID}, "caffe"
    ),
    "keras_vgg_pooled": _applications(_pooled, (64, 64), _ALL_FILES, None),
    "keras_densenet_g4": _applications(_narrow_densenet, (48, 40), {"model.keras": ""}, "torch", packed=True),
    "khub_vgg_max_sigmoid": _keras_hub(
        "VGG",
        {**_VGG, "image_shape": _ANY},
        {
            "num_classes": 3,
            "pooling": "max",
            "activation": "sigmoid",
            "pooling_hidden_dim": 8,
            "dropout": 0.3,
        },
        (2, 33, 40, 3),
        converter={"image_size": (40, 36), "pad_to_aspect_ratio": True, "crop_to_aspect_ratio": False},
    ),
    "khub_vgg_flatten_softmax": _keras_hub(
        "VGG",
        {**_VGG, "image_shape": (20, 28, 3)},
        {"num_classes": 4, "pooling": "flatten", "activation": "softmax", "pooling_hidden_dim": 8},
        (2, 20, 28, 3),
        converter={"image_size": (20, 28), "crop_to_aspect_ratio": False, "interpolation": "bicubic"},
    ),
    "khub_densenet_sharded": _keras_hub(
        "DenseNet",
        {"stackwise_num_repeats": [2, 6, 1], "growth_rate": 4, "compression_ratio": 0.7, "image_shape": _ANY},
        {"num_classes": 3, "pooling": "max"},
        (2, 47, 66, 3),
        converter={"image_size": (34, 33), "antialias": True, "interpolation": "bicubic"},
        save={"max_shard_size": 0.00005},
    ),
    "khub_densenet_grey_bf16": _keras_hub(
        "DenseNet",
        {"stackwise_num_repeats": [1, 1], "growth_rate": 4, "image_shape": (None, None, 1)},
        {"num_classes": 2},
        (2, 32, 31, 1),
        dtype="bfloat16",
    ),
    "timm_densenetblur": _timm(
        "densenetblur121d",
        (2, 3, 40, 47),
        {"input_size": (3, 44, 40), "crop_mode": "squash", "interpolation": "lanczos"},
        growth_rate=4,
        block_config=(1, 2),
        num_classes=3,
        global_pool="max",
    ),
    "timm_vgg_bn_headless": _timm(
        "vgg11_bn",
        (2, 3, 31, 40),
        {"input_size": (3, 40, 40), "crop_pct": 1.0},
        cfg=[4, "M", 6, 6, "M"],
        num_classes=0,
        mlp_ratio=0.001,
    ),
}

#: The rest: full size, or as large as their heads must be.
LARGE: dict[str, Callable[[Path, Any], None]] = {
    "keras_vgg16": _applications(
        _of_applications("VGG16", classes=5), (224, 224), {**_ALL_FILES, "model.weights.h5": ""}, "caffe"
    ),
    "keras_vgg19": _applications(_of_applications("VGG19", classes=5), (224, 224), _ALL_FILES, "caffe"),
    "keras_vgg16_notop": _applications(
        _of_applications("VGG16", include_top=False, pooling="avg"),
        (96, 64),
        {"model.weights.h5": ""},
        "caffe",
    ),
    "keras_densenet": _applications(_small_densenet, (48, 40), {"model.keras": ""}, "torch"),
    "keras_densenet121": _applications(
        _of_applications("DenseNet121", classes=5),
        (224, 224),
        {**_ALL_FILES, "model.weights.h5": ""},
        "torch",
    ),
    "keras_densenet169": _applications(
        _of_applications("DenseNet169", classes=5), (224, 224), {"model.keras": ""}, "torch"
    ),
    "keras_densenet201": _applications(
        _of_applications("DenseNet201", include_top=False, pooling="max"), (96, 97), _ALL_FILES, "torch"
    ),
    "khub_densenet121": _keras_hub(
        "DenseNet",
        {"stackwise_num_repeats": [6, 12, 24, 16]},
        {"num_classes": 1000},
        (1, 224, 224, 3),
        converter={"image_size": (224, 224), "interpolation": "bicubic"},
    ),
    "khub_densenet201": _keras_hub(
        "DenseNet", {"stackwise_num_repeats": [6, 12, 48, 32]}, {"num_classes": 7}, (1, 225, 230, 3)
    ),
    "khub_vgg16": _keras_hub(
        "VGG", _VGG16, {"num_classes": 1000}, (1, 256, 224, 3), converter={"image_size": (224, 224)}
    ),
    "khub_vgg11_flatten": _keras_hub(
        "VGG",
        {**_VGG16, "stackwise_num_repeats": [1, 1, 2, 2, 2], "image_shape": (64, 96, 3)},
        {"num_classes": 10, "pooling": "flatten", "activation": "softmax", "pooling_hidden_dim": 256},
        (1, 64, 96, 3),
    ),
    "khub_vgg_4096_avg": _keras_hub("VGG", _VGG, {"num_classes": 3, "activation": "sigmoid"}, (2, 33, 40, 3)),
    "khub_vgg_4096_flatten": _keras_hub(
        "VGG",
        {**_VGG, "image_shape": (8, 12, 3)},
        {"num_classes": 3, "pooling": "flatten", "activation": "softmax", "pooling_hidden_dim": 16},
        (2, 8, 12, 3),
    ),
    "kcv_top": _keras_cv(
        {"include_rescaling": True, "include_top": True, "num_classes": 5, "input_shape": (32, 64, 3)},
        (2, 32, 64, 3),
    ),
    "kcv_avg": _keras_cv(
        {"include_rescaling": False, "include_top": False, "pooling": "avg", "input_shape": (48, 64, 3)},
        (2, 48, 64, 3),
    ),
    "kcv_map": _keras_cv(
        {"include_rescaling": True, "include_top": False, "input_shape": (None, None, 3)}, (1, 224, 224, 3)
    ),
    "timm_densenet121": _timm("densenet121", (1, 3, 225, 224)),
    "timm_densenet161": _timm("densenet161", (1, 3, 97, 130), num_classes=11, global_pool="max"),
    "timm_densenetblur121d": _timm("densenetblur121d", (1, 3, 224, 224)),
    "timm_densenet264d": _timm("densenet264d", (1, 3, 64, 64), num_classes=4),
    "timm_vgg11": _timm("vgg11", (1, 3, 256, 320)),
    "timm_vgg16_bn": _timm("vgg16_bn", (1, 3, 97, 130), num_classes=12, global_pool="max"),
    "tv_vgg13": _of_torchvision("vgg13", (1, 3, 256, 320)),
    "tv_vgg11_bn": _of_torchvision("vgg11_bn", (1, 3, 64, 97), num_classes=12),
    "tv_densenet121": _of_torchvision("densenet121", (1, 3, 224, 224)),
    "tv_densenet161": _of_torchvision("densenet161", (1, 3, 97, 64), num_classes=12),
}


#: What KerasHub 0.17 can make too: it had no shards, no antialiasing and no padding to the aspect ratio.
OF_2024 = {"khub_densenet_grey_bf16", "khub_vgg_4096_avg", "khub_vgg_4096_flatten"}


def make(name: str, folder: Path) -> None:
    """Write the checkpoint ``name`` and its ``expected.npz``. Raises ImportError without the library."""
    folder.mkdir(parents=True, exist_ok=True)
    # A seed of its own for each, the same in every run.
    (SMALL | LARGE)[name](folder, np.random.default_rng(zlib.crc32(name.encode())))


if __name__ == "__main__":
    for wanted in sys.argv[2:] or list(SMALL):
        make(wanted, Path(sys.argv[1]) / wanted)
