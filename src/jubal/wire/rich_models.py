"""GET /v1/language-models, /v1/embedding-models, and one of either by id: xAI's rich lists (xai-api.md 5.2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

import msgspec

from jubal.core.model import Model, Weights
from jubal.wire.openai_models import efforts, modalities, other_prices, prompt_prices, real_context

Offers: TypeAlias = Iterable[tuple[Model, Weights]]
VERSION: Final = "1.0.0"
SEARCH_PRICE: Final = 250_000_000
"""Ticks per source: $25 per 1,000 (xai-api.md 5.4)."""


def _common(model: Model, weights: Weights) -> dict[str, object]:
    return {
        "id": model.name,
        "fingerprint": weights.fingerprint,
        "created": model.created,
        "object": "model",
        "owned_by": model.owned_by,
        "version": VERSION,
        "input_modalities": modalities(model, weights),
        "output_modalities": model.output,
        **prompt_prices(model, weights),
        "aliases": model.aliases,
    }


def _language(model: Model, weights: Weights) -> dict[str, object]:
    context = real_context(model, weights)
    body = {**_common(model, weights), **other_prices(model), "search_price": SEARCH_PRICE}
    if context is not None:
        body["context_length"] = context
    if model.reasoning:
        body["capabilities"] = efforts(model)
    return body


def language_listing(models: Offers) -> bytes:
    return msgspec.json.encode({"models": [_language(model, weights) for model, weights in models]})


def language_single(model: Model, weights: Weights) -> bytes:
    """The bare object."""
    return msgspec.json.encode(_language(model, weights))


def embedding_listing(models: Offers) -> bytes:
    return msgspec.json.encode({"models": [_common(model, weights) for model, weights in models]})


def embedding_single(model: Model, weights: Weights) -> bytes:
    return msgspec.json.encode(_common(model, weights))
