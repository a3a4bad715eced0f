"""The bodies of requests and answers, as the schema and /docs show them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Prediction(BaseModel):
    """One class, with a ``probability``, or with ``activation=none`` a ``logit``."""

    class_id: int = Field(examples=[285])
    wnid: str | None = Field(
        examples=["n02124075"], description="WordNet id; null for a model's own classes."
    )
    label: str = Field(examples=["Egyptian cat"])
    probability: float | None = Field(None, examples=[0.8312])
    logit: float | None = None


class Timings(BaseModel):
    """The time of each stage in milliseconds, as in `Server-Timing`."""

    decode: float = Field(examples=[2.1])
    queue: float = Field(examples=[0.4])
    inference: float = Field(examples=[5.2])
    total: float = Field(examples=[8.3])


class ModelResponse(BaseModel):
    """The first fields of every answer of a model."""

    request_id: str
    model: str = Field(examples=["densenet121"])
    weights: str = Field(examples=["IMAGENET1K_V1"])


class PredictResponse(ModelResponse):
    """The best classes of one image, best first."""

    predictions: list[Prediction]
    timings_ms: Timings


class FeaturesResponse(ModelResponse):
    """The backbone's output for one image, as nested lists of the given ``shape``."""

    pooling: Literal["avg", "max", "none"]
    shape: list[int] = Field(examples=[[1024]])
    features: list[float] | list[list[list[float]]]


class ExplainResponse(ModelResponse):
    """The contribution of each part of a photo to one class."""

    class_id: int = Field(examples=[285])
    wnid: str | None = Field(examples=["n02124075"])
    label: str = Field(examples=["Egyptian cat"])
    probability: float = Field(examples=[0.8312])
    method: Literal["cam", "grad-cam"] = Field(
        description="cam (Zhou et al. 2016) is exact: its mean plus the class's bias is the logit. "
        "grad-cam (Selvaraju et al. 2017) is so to first order."
    )
    grid: list[list[float]] = Field(
        description="Rows of cells from the top, in units of the logit; negative ones speak against the class."
    )
    box: tuple[float, float, float, float] = Field(
        examples=[[0.0, 0.125, 1.0, 0.875]],
        description="The part of the upright photo that the grid covers: left, top, right, bottom as fractions of its "
        "sides; outside 0 to 1 if a border was added.",
    )
    timings_ms: Timings


class Problem(BaseModel):
    """A problem document (RFC 9457). ``code`` is for programs, ``detail`` for people."""

    type: str
    title: str
    status: int
    detail: str
    code: str = Field(examples=["invalid_image"])
    request_id: str


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem documents of a route, for the schema."""
    return {status: {"model": Problem, "content": {"application/problem+json": {}}} for status in statuses}


class BatchItem(BaseModel):
    """The result for one image of a batch: ``predictions`` if ``status`` is 200, else ``error``."""

    filename: str
    status: int = Field(examples=[200])
    predictions: list[Prediction] | None = None
    error: Problem | None = None


class BatchResponse(ModelResponse):
    """One result for each image, in order."""

    results: list[BatchItem]


class Label(BaseModel):
    """One class of the model."""

    model_config = ConfigDict(from_attributes=True)

    class_id: int
    wnid: str | None
    label: str


class Accuracy(BaseModel):
    """Published accuracy on ImageNet's validation set, in percent."""

    model_config = ConfigDict(from_attributes=True)

    top1: float
    top5: float


class FallbackInfo(BaseModel):
    """An optional feature that the service goes on without, and the reason."""

    what: str
    why: str


class ModelInfo(BaseModel):
    """The card of a loaded model."""

    name: str
    family: str
    parameters: int
    weights: str
    source: str
    sha256: str | None
    trained: bool
    input_size: tuple[int, int]
    preprocessing: dict[str, object]
    activation: str
    classes: int
    precision: str
    device: str
    runtime: str
    max_batch_size: int
    fallbacks: list[FallbackInfo]
    accuracy: Accuracy | None


class VariantInfo(BaseModel):
    """One of the variants that the setting ``model`` takes."""

    name: str
    family: str
    parameters: int
    gflops: float = Field(description="10^9 multiply-adds for one image.")
    top1: float = Field(description="Published accuracy in percent.")
    top5: float
    download_mb: float
    loaded: bool


class Health(BaseModel):
    """The state in words. ``phases`` are the seconds of each phase of the start."""

    state: Literal["starting", "loading", "warming", "ready", "draining", "failed"]
    detail: str
    phases: dict[str, float]
    progress: dict[str, int | None] | None
    restarts: int
    frontend_restarts: int
    engines: list[EngineInfo]
    switch: SwitchInfo | None
    shadow: ShadowInfo | None
    switches: dict[str, int] = Field(description="The number of ended changes of a model, by outcome.")


class EngineInfo(BaseModel):
    """One engine.

    Roles: `current` answers, `coming` is being loaded, `kept` is for a rollback, `leaving` finishes its requests,
    `shadow` is only compared.
    """

    model: str
    weights: str
    version: int
    role: Literal["current", "coming", "kept", "leaving", "shadow"]
    device: str
    state: Literal["waiting", "loading", "serving", "standby", "ending", "ended", "given up"]


class ShadowInfo(BaseModel):
    """The comparison of a second model with the one that answers, on a share of the images."""

    weights: str
    state: Literal["waiting", "loading", "serving", "ending", "ended", "given up"]
    reason: str = Field(description="The reason why it was given up, if it was.")
    verdict: Literal["collecting", "agrees", "mostly agrees", "differs"]
    compared: int
    missed: int = Field(description="Images for which it had no free slot, or gave no answer.")
    agreement: float | None = Field(description="The share of images to which both give the same top class.")
    mean_difference: float | None = Field(
        description="The mean, over images, of the largest difference of any class's probability."
    )
    times_slower: float | None = Field(
        description="The time of its batches divided by that of the model that answers."
    )


class SwitchInfo(BaseModel):
    """The present change of a model, or the outcome of the last one."""

    stage: Literal["making room", "loading", "checking", "switched", "failed", "rolled_back"]
    model: str
    weights: str
    detail: str
    progress: dict[str, int | None] | None
    seconds: float | None = None
    agreement: float | None = None


class ModelRequest(BaseModel):
    """A change of one of the served models."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str | None = Field(
        None, description="The name of one of several models; the default one unless given."
    )


class RollbackRequest(ModelRequest):
    """The model that goes back to its previous version."""


class LoadRequest(ModelRequest):
    """The model to load. Settings that are not given stay as they are; without any, the same weights are read again."""

    model: str | None = Field(None, description="One of the twelve variants.", examples=["densenet121"])
    weights: str | None = Field(None, min_length=1, max_length=4096, examples=["/models/new.safetensors"])
    labels: str | None = Field(None, description="A file of labels; null means the labels of the weights.")
    precision: Literal["auto", "fp32", "fp16", "bf16"] | None = None
    runtime: str | None = None
    max_batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] | None = None
    other_classes: bool = Field(False, description="Allow a new model with other classes.")
    least_agreement: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="The least share of known images to which both models must give the same top class."
    )
    wait: bool = Field(True, description="Answer after the switch, not at once.")

    def settings(self) -> dict[str, Any]:
        """The service's settings that were given, by name."""
        beside = {"name", "other_classes", "least_agreement", "wait"}
        given = self.model_dump(exclude=beside, exclude_unset=True)
        return {name: value for name, value in given.items() if value is not None or name == "labels"}


class Named(BaseModel):
    model: str
    weights: str


class SwitchResponse(Named):
    """The model that answers now, and the one before."""

    previous: Named
    seconds: float | None = Field(None, description="The time from the request to the switch.")
    agreement: float | None = Field(
        None, description="The share of the known images that both models give the same top class."
    )


class Version(BaseModel):
    """The running version. ``revision`` is empty unless the image's build set it."""

    version: str = Field(examples=["0.1.0"])
    revision: str
    python: str = Field(examples=["3.12.1"])


class Live(BaseModel):
    """This front-end answers."""

    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    """The service takes new traffic."""

    status: Literal["ready"] = "ready"
