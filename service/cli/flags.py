"""The settings as command-line flags, made from `Settings`: their help, their shell completion, their validation."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin

import click
from click.shell_completion import CompletionItem

from service.errors import ConfigurationError
from service.models.catalog import VARIANTS
from service.settings import Settings, read, strangers, values


def all_settings(command: Any) -> Any:
    """Adds a flag for every setting to a click command."""
    return settings_flags(Settings.model_fields)(command)


#: Help texts for commands without a server; the settings' own descriptions speak of requests and answers.
_WITHOUT_A_SERVER = {
    "model": "The variant, one of twelve. If it is not given, a file of weights decides.",
    "top_k": "The number of classes that are shown for each image.",
    "max_image_pixels": "An image with more pixels is refused before it is decoded.",
    "runtime": "The way in which the model is executed: openvino, cudagraph, eager, compile (minutes the first time), "
    "or a directory that quantize or export has made. auto is openvino on a CPU and cudagraph on CUDA.",
}


def settings_flags(
    names: Iterable[str], *, server: bool = True, defaults: Mapping[str, str] = MappingProxyType({})
) -> Callable[[Any], Any]:
    """Returns a decorator that adds a flag for each setting of ``names`` to a click command.

    ``server`` says whether the command serves, which decides the help texts. ``defaults`` are shown in place of the
    settings' own defaults.
    """

    def decorate(command: Any) -> Any:
        for name in reversed(list(names)):
            field = Settings.model_fields[name]
            default = defaults.get(name, "none" if field.default is None else field.default)
            words = field.description if server else _WITHOUT_A_SERVER.get(name, field.description)
            fitting = values(name)
            text = " ".join(
                filter(None, [words, f"Values: {fitting}." if fitting else "", f"[default: {default}]"])
            )
            command = click.option(
                flag(name),
                name,
                metavar="VALUE",
                help=text,
                shell_complete=partial(_suggest, _values_of(name)),
            )(command)
        return command

    return decorate


def flag(name: str) -> str:
    """The flag of a setting: ``max_batch_size`` gives ``--max-batch-size``."""
    return f"--{name.replace('_', '-')}"


#: Settings whose values are paths; the shell completes file names for them.
_PATHS = {"weights", "runtime", "labels", "uds", "api_keys_file", "tls_certificate_file", "tls_key_file"}


def _values_of(name: str) -> list[str]:
    known = {
        "model": list(VARIANTS),
        "device": ["auto", "cpu", "cuda"],
        "weights": ["pretrained", "demo", "random"],
    }
    annotation = Settings.model_fields[name].annotation
    if annotation is bool:
        return ["true", "false"]
    return known.get(name) or ([*get_args(annotation)] if get_origin(annotation) is Literal else [])


def _suggest(
    values: list[str], context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    matching = [CompletionItem(value) for value in values if value.startswith(incomplete)]
    files = parameter.name in _PATHS
    return [*matching, *([CompletionItem(incomplete, type="file")] if files else [])]


form_flag = click.option(
    "--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True
)

#: The settings that decide what a model in this process answers.
MODEL_SETTINGS = (
    "model",
    "weights",
    "labels",
    "device",
    "precision",
    "runtime",
    "decode",
    "max_image_pixels",
)


def from_flags(given: dict[str, Any], *, warn: bool = True) -> Settings:
    """Reads the settings from flags (None: not given) and the environment. Raises click's usage error for a bad value.

    With ``warn``, names the ``IMAGENET_*`` variables that are no settings on standard error. Commands that serve turn
    it off, since the service names them in its log.
    """
    if warn:
        for sentence in strangers(os.environ):
            click.echo(f"imagenet-serve: {sentence}", err=True)
    try:
        return read({name: value for name, value in given.items() if value is not None}, spelled=flag)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error


def checked(settings: Settings) -> Settings:
    """Returns ``settings`` after checking the spelling of weights and labels. Raises `ConfigurationError`.

    It comes before torch is imported, which takes seconds, so that a typing error is reported at once.
    """
    from service.models.checkpoints import places
    from service.options.several import models_of

    for _, own in models_of(settings):
        places.check(own.weights, own.labels)
    return settings


url_flag = click.option(
    "--url", metavar="URL", help="Ask the server at URL instead of loading a model into this process."
)
key_flag = click.option(
    "--api-key",
    metavar="KEY",
    envvar="IMAGENET_API_KEY",
    show_envvar=True,
    help="With --url: the server's API key.",
)
concurrency_flag = click.option(
    "--concurrency",
    type=click.IntRange(1, 1024),
    default=16,
    show_default=True,
    help="With --url: requests in flight at the same time.",
)


def refuse_model_flags(given: dict[str, Any], *others: str) -> None:
    """Raises a usage error if a flag describes the model while ``--url`` names a server, which has its own."""
    flags = [flag(name) for name, value in given.items() if value is not None]
    if flags or others:
        raise click.UsageError(
            f"{[*flags, *others][0]} is for a model in this process; the server at --url has its own"
        )


#: The path of an existing file.
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


overwrite_flag = click.option(
    "--overwrite", is_flag=True, help="Overwrite an existing directory without asking."
)
