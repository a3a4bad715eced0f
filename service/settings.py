"""The declarations of all settings.

An environment variable is ``IMAGENET_`` and the setting's name in capitals; a flag of ``imagenet-serve serve`` is the
name with dashes. A description says what the setting does to the user.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from service.errors import ConfigurationError
from service.host.machine import cpu_quota
from service.models.catalog import DEFAULT, VARIANTS
from service.options import devices, wording
from service.options.nearest import did_you_mean, one_of
from service.options.platforms import CONTRACTS, implied_settings, listed

Auto = Literal["auto"]
AutoInt = Auto | PositiveInt

_ORIGIN = re.compile(r"https?://[A-Za-z0-9._\[\]:-]+")
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
_ROUTE = re.compile(r"/[A-Za-z0-9._~:/-]+")
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")

#: The values of settings whose type is a free text.
_WORDS = {"model": tuple(VARIANTS), "device": devices.WORDS}
#: Variables with the prefix that are no settings: the API key that clients send.
_NO_SETTINGS = frozenset({"IMAGENET_API_KEY"})
#: The variables that Kubernetes sets in every pod for a Service whose name begins with "imagenet".
_SERVICE_LINK = re.compile(
    r"IMAGENET_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP)(_\w+)?|PORT)"
)


class Settings(BaseSettings):
    """The settings of one service, frozen. Flags override the environment, which overrides the defaults."""

    model_config = SettingsConfigDict(env_prefix="IMAGENET_", frozen=True, extra="forbid")

    model: str = Field(
        DEFAULT,
        description="The variant that is served, one of twelve. If it is not set, a file of weights decides.",
    )
    weights: str = Field(
        "pretrained",
        description="The source of the model's weights: pretrained, random[:SEED], demo, a .pth or .safetensors "
        "file, a checkpoint directory, hf://owner/repo or kaggle://owner/model/framework/variation.",
    )
    models: str | None = Field(
        None,
        description="Several models in place of one: variants, separated by commas, or a JSON file with each model's "
        "name and settings. The first is the default; requests ask for another with ?model=NAME.",
    )
    shadow: str | None = Field(
        None,
        description="Weights of a second model, the shadow, which sees a share of the images. Its answers go to no "
        "client; /metrics and /healthz show how far they agree.",
    )
    shadow_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1, description="The share of the images that the shadow sees, above 0 and up to 1."
    )
    memory_budget_mib: PositiveInt | None = Field(
        None,
        description="The memory that the engines of all models together may take. A start or a switch that would "
        "take more is refused. Unset means the free memory.",
    )
    device: str = Field(
        "auto",
        description="cpu, cuda or cuda:N; auto is CUDA if there is a GPU, else the CPU. Several devices share the "
        "work, each with its own engine: cuda:0,1, cuda:all, cpu,cpu, or UUIDs of GPUs and MIG slices.",
    )
    standby: bool = Field(
        False,
        description="Keeps a second, warm engine on the first device. It takes over when the first one dies, so that "
        "no request waits for a start. It needs as much memory again.",
    )
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field(
        "auto", description="The number format of the computation; auto is fp16 on CUDA and fp32 on the CPU."
    )
    runtime: str = Field(
        "auto",
        description="The way in which the model is executed: openvino, cudagraph, eager, compile (minutes at the "
        "first start), or a directory that quantize or export has made. auto is openvino on a CPU and cudagraph on "
        "CUDA, or eager on a CPU without OpenVINO.",
    )
    host: str = Field(
        "127.0.0.1", description="The address to listen on; 0.0.0.0 for every interface, :: for IPv6 as well."
    )
    port: Annotated[int, Field(ge=0, le=65535)] = Field(
        8000, description="The port to listen on; 0 takes a free one, which the log names."
    )
    grpc_port: Annotated[int, Field(ge=0, le=65535)] | None = Field(
        None,
        description="A port for the Open Inference Protocol over gRPC, beside HTTP; 0 takes a free one, which the log "
        "names.",
    )
    uds: Path | None = Field(
        None,
        description="A Unix socket to listen on, in place of host and port: for a proxy on the same machine.",
    )
    frontends: AutoInt = Field(
        "auto",
        description="The number of processes for HTTP and decoding in front of the engine; more of them decode more "
        "photos at the same time.",
    )
    max_batch_size: AutoInt = Field(
        "auto",
        description="The largest number of images in one forward pass; a larger one raises throughput and latency.",
    )
    max_queue_delay_ms: Annotated[float, Field(ge=0, le=10_000)] = Field(
        0,
        description="The time for which an idle engine may wait for more images before it runs a partial batch.",
    )
    queue_capacity: Auto | Annotated[int, Field(ge=1, le=65_536)] = Field(
        "auto",
        description="The largest number of images admitted and not yet answered; past it requests get 429.",
    )
    max_connections: AutoInt = Field(
        "auto",
        description="The largest number of open connections of each front-end; past it the longest idle ones are "
        "closed. auto is as many as the limit on open files (ulimit -n) allows.",
    )
    request_timeout_ms: Annotated[float, Field(gt=0, le=3_600_000)] = Field(
        30_000,
        description="The deadline of a request, after which it gets 504; X-Request-Timeout-Ms may ask for less.",
    )
    max_upload_bytes: PositiveInt = Field(
        10_485_760, description="A larger request body gets 413 before the rest of it is read."
    )
    max_image_pixels: PositiveInt = Field(
        50_000_000, description="An image with more pixels gets 413 before it is decoded."
    )
    max_images_per_request: PositiveInt = Field(64, description="A request with more images gets 413.")
    bulk_routes: str | None = Field(
        None,
        description="Paths, separated by commas, such as /predict/batch, whose requests have the lower priority that "
        "X-Priority: bulk gives.",
    )
    top_k: PositiveInt = Field(
        5, description="The number of classes in an answer unless the request asks for another."
    )
    labels: Path | None = Field(
        None, description="A text file, one label a line, for a model with classes of its own."
    )
    decode: Literal["exact", "fast", "gpu"] = Field(
        "exact",
        description="exact equals torchvision's preset to the bit. fast decodes large JPEGs at a smaller scale. gpu "
        "is exact, except that plain JPEGs go to an NVIDIA GPU while no core is free, with a mean difference of one "
        "grey level.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="A file of API keys, one a line. If it is set, requests without one of them get 401.",
    )
    model_control: Literal["keys", "open", "off"] = Field(
        "keys",
        description="The clients that may switch models over HTTP: keys means clients with an API key (none if there "
        "are no keys), open means all clients, off means none.",
    )
    watch_weights_ms: Annotated[float, Field(ge=0, le=86_400_000)] = Field(
        0,
        description="The time between two checks whether the file or folder of weights has changed. A changed one is "
        "loaded and replaces the present model. 0 means no checks.",
    )
    keep_previous_ms: Annotated[float, Field(ge=0, le=86_400_000)] = Field(
        300_000,
        description="After a switch: the time for which the previous model stays loaded, so that a rollback takes no "
        "time.",
    )
    tls_certificate_file: Path | None = Field(
        None,
        description="A PEM file with the certificate and its chain; with tls_key_file, the port speaks HTTPS only.",
    )
    tls_key_file: Path | None = Field(
        None,
        description="The certificate's key, PEM, without a passphrase. Both are read again when they change.",
    )
    cors_origins: str | None = Field(
        None,
        description="Origins, separated by commas, whose pages may use the service from a browser; * means all.",
    )
    allowed_hosts: str | None = Field(
        None,
        description="Host names, separated by commas, that the service answers to; *.example.com means all names "
        "under it. Requests for other hosts get 421. Unset means all hosts.",
    )
    compat: str | None = Field(
        None,
        description="Other servers, separated by commas, whose HTTP interface is offered as well: torchserve, "
        "tfserving, kserve-v1, sagemaker, vertex, huggingface.",
    )
    v1_predictions: Literal["probabilities", "classes"] = Field(
        "probabilities",
        description="The form of a prediction of tfserving, kserve-v1 and vertex: every class's probability, or the "
        "best classes with their labels.",
    )
    vertex_health_route: str = Field(
        "/health",
        description="With compat=vertex: the path at which Vertex AI asks whether the service is ready.",
    )
    vertex_predict_route: str = Field(
        "/predict", description="With compat=vertex: the path to which Vertex AI posts its instances."
    )
    root_path: str | None = Field(
        None,
        description="The prefix under which a proxy offers the service, such as /classify; the proxy may strip it or "
        "leave it.",
    )
    drain_delay_ms: Annotated[float, Field(ge=0, le=600_000)] = Field(
        0,
        description="After SIGTERM: the time for which the service reports that it is not ready but still serves, so "
        "that load balancers notice.",
    )
    drain_timeout_ms: Annotated[float, Field(ge=0, le=3_600_000)] = Field(
        25_000, description="After SIGTERM: the time for admitted requests to finish."
    )
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="auto is text on a terminal and json elsewhere."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least important message that is logged."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources in the order of their rank: flags, the environment, a hosting platform's own variables."""
        platform = InitSettingsSource(settings_cls, dict(implied_settings(os.environ)))
        return init_settings, env_settings, platform

    @field_validator("model")
    @classmethod
    def _known_variant(cls, name: str) -> str:
        if name not in VARIANTS:
            raise ValueError(_not_among(name, _WORDS["model"]))
        return name

    @field_validator("device")
    @classmethod
    def _known_device(cls, name: str) -> str:
        devices.listed(name)
        return name

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, text: str | None) -> str | None:
        for origin in listed(text):
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError("each must be like https://app.example.com, without a path, or be *")
        return text

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts(cls, text: str | None) -> str | None:
        for host in listed(text):
            if not _HOST.fullmatch(host):
                raise ValueError("each must be a host name without a port, or begin with *.")
        return text

    @field_validator("compat")
    @classmethod
    def _known_contracts(cls, text: str | None) -> str | None:
        names = listed(text)
        for name in names:
            if name not in CONTRACTS:
                raise ValueError(f"each must be {one_of(CONTRACTS)}{did_you_mean(name, CONTRACTS)}")
        if {"tfserving", "kserve-v1"} <= set(names):
            raise ValueError("tfserving and kserve-v1 answer the same routes: take one of them")
        return text

    @field_validator("vertex_health_route", "vertex_predict_route")
    @classmethod
    def _routes(cls, text: str) -> str:
        if not _ROUTE.fullmatch(text):
            raise ValueError("must be a path that begins with /, such as /predict")
        return text

    @field_validator("root_path")
    @classmethod
    def _root_path(cls, text: str | None) -> str | None:
        prefix = (text or "").rstrip("/")
        if prefix and not _PREFIX.fullmatch(prefix):
            raise ValueError("must be a path that begins with /, such as /classify")
        return prefix or None

    @model_validator(mode="after")
    def _pair(self) -> Settings:
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_certificate_file and tls_key_file go together: set both or neither")
        return self

    @property
    def listed_cors_origins(self) -> list[str]:
        return listed(self.cors_origins)

    @cached_property
    def listed_bulk_routes(self) -> list[str]:
        return listed(self.bulk_routes)

    @property
    def listed_compat(self) -> list[str]:
        return listed(self.compat)

    @property
    def listed_allowed_hosts(self) -> list[str]:
        return listed(self.allowed_hosts)

    @property
    def asked_connections(self) -> int | None:
        """The number of `max_connections`; None for as many as fit."""
        return None if self.max_connections == "auto" else self.max_connections

    @property
    def resolved_log_format(self) -> Literal["text", "json"]:
        """The log's format; ``auto`` depends on whether standard error is a terminal."""
        if self.log_format != "auto":
            return self.log_format
        return "text" if sys.stderr.isatty() else "json"

    @property
    def named_model(self) -> str | None:
        """`model` if it was set, which makes weights of another variant an error; None lets the weights decide."""
        return self.model if "model" in self.model_fields_set else None

    @property
    def resolved_frontends(self) -> int:
        """The number of front-ends; ``auto`` is one less than the cores, since the engine needs one."""
        if self.frontends != "auto":
            return self.frontends
        return max(1, available_cores() - 1)


def load(**given: Any) -> Settings:
    """Reads the settings from ``given`` and the environment.

    Raises `ConfigurationError` with one sentence for each invalid value, which names the setting.
    """
    return read(given, spelled=str)


def read(given: Mapping[str, Any], spelled: Callable[[str], str]) -> Settings:
    """Reads the settings as `load` does. ``spelled`` maps a setting's name to its spelling in errors: ``--top-k``."""
    try:
        return Settings(**given)
    except ValidationError as error:
        # One sentence for each setting: pydantic reports one for each type of a union.
        told: dict[str, str] = {}
        for item in error.errors():
            name = ".".join(map(str, item["loc"][:1]))
            written = spelled(name) if name in given else variable(name)
            told.setdefault(name, _sentence(item, name, written))
        raise ConfigurationError("; ".join(told.values())) from error


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"IMAGENET_{name.upper()}"


def values(name: str) -> str:
    """The allowed values of a setting, in words; empty if any text is allowed."""
    if name in _WORDS:
        return one_of(_WORDS[name])
    field = Settings.model_fields[name]
    return wording.allowed(field.annotation, field.metadata)


def strangers(environment: Mapping[str, str]) -> list[str]:
    """A sentence for each variable that looks like a setting but is none, which is most likely a typing error."""
    known = {variable(name) for name in Settings.model_fields} | _NO_SETTINGS
    return [
        f"{name} is set, and there is no such setting{did_you_mean(name, known)}"
        for name in sorted(environment)
        if name.upper().startswith("IMAGENET_")
        and name.upper() not in known
        and not _SERVICE_LINK.fullmatch(name.upper())
    ]


def _not_among(value: str, words: Sequence[str]) -> str:
    return f"must be {one_of(words)}{did_you_mean(value, words)}"


def _sentence(item: Any, name: str, written: str) -> str:
    if not name:  # an error about several settings together
        return wording.sentence_of(item["msg"])
    value = item["input"]
    if item["type"] == "extra_forbidden":
        return f"there is no setting '{name}'{did_you_mean(name, Settings.model_fields)}"
    if isinstance(value, str) and value.startswith("tcp://"):
        # Kubernetes sets such variables for every Service of the namespace: IMAGENET_PORT for a Service "imagenet".
        return f"{written} holds {value!r}, a Kubernetes service link: set enableServiceLinks: false in the pod's spec"
    field = Settings.model_fields[name]
    reason = None
    if item["type"] != "value_error":
        reason = wording.unfit(value, field.annotation, field.metadata)
    return f"{written}={value}: {reason or wording.sentence_of(item['msg'])}"


def available_cores() -> int:
    """The number of cores that this process may use, by its affinity and its cgroup's quota; at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, math.ceil(cpu_quota() or cores)))
