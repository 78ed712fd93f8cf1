"""GET /v1/language-models, /v1/embedding-models, and one of either by id: xAI's rich lists (xai-api.md 5.2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

import msgspec

from jubal.core.model import Model, Weights
from jubal.wire.openai_models import real_context

Offers: TypeAlias = Iterable[tuple[Model, Weights]]
VERSION: Final = "1.0.0"
SEARCH_PRICE: Final = 250_000_000
"""Ticks per source: $25 per 1,000 (xai-api.md 5.4)."""
EFFORTS: Final = ("none", "low", "medium", "high")


def _common(model: Model, weights: Weights) -> dict[str, object]:
    """Prices in ticks per token, which are xAI's integers too (xai-api.md 5.4)."""
    seen = [kind for kind in model.input if kind in weights.input]
    return {
        "id": model.name,
        "fingerprint": weights.fingerprint,
        "created": model.created,
        "object": "model",
        "owned_by": model.owned_by,
        "version": VERSION,
        "input_modalities": seen,
        "prompt_text_token_price": model.price.input,
        "prompt_image_token_price": model.price.input if "image" in seen else 0,
        "aliases": model.aliases,
    }


def _language(model: Model, weights: Weights) -> dict[str, object]:
    """There is no long-context tier."""
    context = real_context(model, weights)
    body = {
        **_common(model, weights),
        "output_modalities": ["text"],
        "cached_prompt_text_token_price": model.price.cached_input,
        "completion_text_token_price": model.price.output,
        "search_price": SEARCH_PRICE,
    }
    if context is not None:
        body["context_length"] = context
    if model.reasoning:
        body["capabilities"] = {"reasoning_effort": EFFORTS, "default_reasoning_effort": model.effort or "none"}
    return body


def _embedding(model: Model, weights: Weights) -> dict[str, object]:
    return {**_common(model, weights), "output_modalities": ["embedding"]}


def language_listing(models: Offers) -> bytes:
    return msgspec.json.encode({"models": [_language(model, weights) for model, weights in models]})


def language_single(model: Model, weights: Weights) -> bytes:
    """The bare object."""
    return msgspec.json.encode(_language(model, weights))


def embedding_listing(models: Offers) -> bytes:
    return msgspec.json.encode({"models": [_embedding(model, weights) for model, weights in models]})


def embedding_single(model: Model, weights: Weights) -> bytes:
    return msgspec.json.encode(_embedding(model, weights))
