"""GET /v1/models and /v1/models/{id} (seed, "Models List"; xai-api.md 5.1), and which weights really answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from jubal.core.model import Model, Weights

EFFORTS: Final = ("none", "low", "medium", "high")


def _body(model: Model, weights: Weights) -> dict[str, object]:
    context = real_context(model, weights)
    body: dict[str, object] = {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
        "aliases": model.aliases,
        "input_modalities": modalities(model, weights),
        "output_modalities": model.output,
        **prompt_prices(model, weights),
        **(other_prices(model) if "text" in model.output else {}),
        "capabilities": {"reasoning": model.reasoning, **(efforts(model) if model.reasoning else {})},
        "engine": model.engine,
        "weights": {"name": weights.name, "fingerprint": weights.fingerprint},
        "deprecated": model.deprecated,
    }
    if context is not None:
        body["context_length"] = context
    if model.description:
        body["description"] = model.description
    return body


def modalities(model: Model, weights: Weights) -> list[str]:
    """What a prompt may really hold."""
    return [kind for kind in model.input if kind in weights.input]


def prompt_prices(model: Model, weights: Weights) -> dict[str, int]:
    """In ticks per token, which are xAI's integers too (xai-api.md 5.4)."""
    price = model.price
    image = price.input if price.image is None else price.image
    return {
        "prompt_text_token_price": price.input,
        "prompt_image_token_price": image if "image" in modalities(model, weights) else 0,
    }


def other_prices(model: Model) -> dict[str, int]:
    """Those that a model of embeddings has not; 0 for a long context without prices of its own."""
    price, long = model.price, model.price.long_context
    return {
        "cached_prompt_text_token_price": price.cached_input,
        "completion_text_token_price": price.output,
        "prompt_text_token_price_long_context": long.input if long else 0,
        "cached_prompt_text_token_price_long_context": long.cached_input if long else 0,
        "completion_text_token_price_long_context": long.output if long else 0,
        "long_context_threshold": long.threshold if long else 0,
    }


def efforts(model: Model) -> dict[str, object]:
    """What `reasoning_effort` may be, and is where nobody says."""
    return {"reasoning_effort": EFFORTS, "default_reasoning_effort": model.effort or "none"}


def real_context(model: Model, weights: Weights) -> int | None:
    """Never more than the engine behind the name can hold, whatever is advertised elsewhere."""
    if weights.context is None or model.context is None:
        return weights.context or model.context
    return min(model.context, weights.context)


def listing(models: Iterable[tuple[Model, Weights]]) -> bytes:
    return msgspec.json.encode({"object": "list", "data": [_body(model, weights) for model, weights in models]})


def single(model: Model, weights: Weights) -> bytes:
    return msgspec.json.encode(_body(model, weights))
