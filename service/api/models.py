"""The routes that describe models: the loaded ones, the variants, and the classes."""

from __future__ import annotations

from fastapi import APIRouter, Request

from service.api.context import context_of
from service.api.schemas import Accuracy, FallbackInfo, Label, ModelInfo, VariantInfo, problems
from service.models.catalog import VARIANTS
from service.observability.card import ModelCard

router = APIRouter(tags=["model"])


@router.get("/model")
async def model(request: Request) -> ModelInfo:
    """Returns the card of the model that answers `/predict`."""
    return _described(context_of(request).model())


def _described(card: ModelCard) -> ModelInfo:
    published = card.top1 is not None and card.top5 is not None
    return ModelInfo(
        name=card.name,
        family=card.family,
        parameters=card.parameters,
        weights=card.weights,
        source=card.source,
        sha256=card.sha256,
        trained=not card.untrained,
        input_size=(card.image[0], card.image[1]),
        preprocessing=card.preprocessing.to_json(),
        activation=card.activation,
        classes=len(card.classes),
        precision=card.precision,
        device=card.device,
        runtime=card.runtime,
        max_batch_size=card.max_batch_size,
        fallbacks=[FallbackInfo(what=told.what, why=told.why) for told in card.fallbacks],
        accuracy=Accuracy.model_validate(card) if published else None,
    )


@router.get("/models/loaded")
async def loaded_models(request: Request) -> list[ModelInfo]:
    """Returns the cards of all models that answer, the default one first."""
    return [_described(served.card) for served in context_of(request).models.answering]


@router.get("/models/loaded/{model_name}", responses=problems(404))
async def loaded_model(request: Request, model_name: str) -> ModelInfo:
    """Returns the card of one of several models."""
    return _described(context_of(request).model(model_name))


@router.get("/models/loaded/{model_name}/labels", responses=problems(404))
async def labels_of(request: Request, model_name: str) -> list[Label]:
    """Returns all classes of one of several models, in the order of its logits."""
    return _labels(context_of(request).model(model_name))


@router.get("/models")
async def models(request: Request) -> list[VariantInfo]:
    """Returns the twelve variants, the values of the setting `model`."""
    names = {served.card.name for served in context_of(request).models.answering}
    return [
        VariantInfo(
            name=variant.name,
            family=variant.configuration.family,
            parameters=variant.parameters,
            gflops=variant.gflops,
            top1=variant.top1,
            top5=variant.top5,
            download_mb=variant.download_mb,
            loaded=variant.name in names,
        )
        for variant in VARIANTS.values()
    ]


@router.get("/labels")
async def labels(request: Request) -> list[Label]:
    """Returns all classes of the model, in the order of its logits."""
    return _labels(context_of(request).model())


def _labels(card: ModelCard) -> list[Label]:
    return [Label.model_validate(entry) for entry in card.classes]
