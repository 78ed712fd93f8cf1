"""GET /v1/language-models and /v1/language-models/{id}: xAI's rich list (xai-api.md 5.2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from jubal.core.model import Model, Weights
from jubal.wire.openai_models import real_context

VERSION: Final = "1.0.0"
SEARCH_PRICE: Final = 250_000_000
"""Ticks per source: $25 per 1,000 (xai-api.md 5.4)."""
EFFORTS: Final = ("none", "low", "medium", "high")


def _body(model: Model, weights: Weights) -> dict[str, object]:
    """Prices in ticks per token, which are xAI's integers too (xai-api.md 5.4). There is no long-context tier."""
    seen = [kind for kind in model.input if kind in weights.input]
    context = real_context(model, weights)
    body: dict[str, object] = {
        "id": model.name,
        "fingerprint": weights.fingerprint,
        "created": model.created,
        "object": "model",
        "owned_by": model.owned_by,
        "version": VERSION,
        "input_modalities": seen,
        "output_modalities": ["text"],
        "prompt_text_token_price": model.price.input,
        "cached_prompt_text_token_price": model.price.cached_input,
        "prompt_image_token_price": model.price.input if "image" in seen else 0,
        "completion_text_token_price": model.price.output,
        "search_price": SEARCH_PRICE,
        "aliases": model.aliases,
    }
    if context is not None:
        body["context_length"] = context
    if model.reasoning:
        body["capabilities"] = {"reasoning_effort": EFFORTS, "default_reasoning_effort": model.effort or "none"}
    return body


def listing(models: Iterable[tuple[Model, Weights]]) -> bytes:
    return msgspec.json.encode({"models": [_body(model, weights) for model, weights in models]})


def single(model: Model, weights: Weights) -> bytes:
    """The bare object."""
    return msgspec.json.encode(_body(model, weights))
