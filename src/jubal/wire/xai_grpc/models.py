"""The service Models (xai-api.md 5.3)."""

from __future__ import annotations

from typing import Final

from jubal.core.errors import UnknownModel
from jubal.core.model import Model, Weights
from jubal.wire.openai_models import real_context
from jubal.wire.rich_models import SEARCH_PRICE, VERSION, Offers
from jubal.wire.xai_grpc.decode import decode, wrong
from jubal.wire.xai_grpc.pb import Proto, models

_MODALITY: Final = {"text": models.TEXT, "image": models.IMAGE}


def wanted(body: bytes) -> str:
    """The name in a GetModelRequest. Raises `BadRequest`."""
    name: str = decode(models.GetModelRequest, body).name
    if not name:
        raise wrong("name", "must not be empty")
    return name


def no_image_model(name: str) -> UnknownModel:
    return UnknownModel(f"The image model `{name[:200]}` does not exist.", param="name", code="model_not_found")


def _common(message: Proto, model: Model, weights: Weights) -> None:
    """Prices in ticks per token, which are xAI's integers too (xai-api.md 5.4)."""
    seen = [kind for kind in model.input if kind in weights.input]
    message.name = model.name
    message.aliases.extend(model.aliases)
    message.version = VERSION
    message.input_modalities.extend(_MODALITY[kind] for kind in seen)
    message.prompt_text_token_price = model.price.input
    message.prompt_image_token_price = model.price.input if "image" in seen else 0
    message.created.seconds = model.created
    message.system_fingerprint = weights.fingerprint


def language(model: Model, weights: Weights) -> Proto:
    message = models.LanguageModel(
        output_modalities=[models.TEXT],
        cached_prompt_token_price=model.price.cached_input,
        completion_text_token_price=model.price.output,
        search_price=SEARCH_PRICE,
        max_prompt_length=real_context(model, weights) or 0,
    )
    _common(message, model, weights)
    return message


def embedding(model: Model, weights: Weights) -> Proto:
    message = models.EmbeddingModel(output_modalities=[models.EMBEDDING])
    _common(message, model, weights)
    return message


def language_listing(offers: Offers) -> Proto:
    return models.ListLanguageModelsResponse(models=[language(*offer) for offer in offers])


def embedding_listing(offers: Offers) -> Proto:
    return models.ListEmbeddingModelsResponse(models=[embedding(*offer) for offer in offers])


def image_listing() -> Proto:
    return models.ListImageGenerationModelsResponse()
