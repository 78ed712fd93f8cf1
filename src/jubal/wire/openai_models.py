"""GET /v1/models and /v1/models/{id} (seed, "Models List"; xai-api.md 5.1), and which weights really answer."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from jubal.core.model import Model, Weights


def _body(model: Model, weights: Weights) -> dict[str, object]:
    context = real_context(model, weights)
    body: dict[str, object] = {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
        "aliases": model.aliases,
        "input_modalities": [kind for kind in model.input if kind in weights.input],
        "output_modalities": ["text"],
        "prompt_text_token_price": model.price.input,
        "cached_prompt_text_token_price": model.price.cached_input,
        "completion_text_token_price": model.price.output,
        "capabilities": {"reasoning": model.reasoning},
        "engine": model.engine,
        "weights": {"name": weights.name, "fingerprint": weights.fingerprint},
        "deprecated": model.deprecated,
    }
    if context is not None:
        body["context_length"] = context
    if model.description:
        body["description"] = model.description
    return body


def real_context(model: Model, weights: Weights) -> int | None:
    """Never more than the engine behind the name can hold, whatever is advertised elsewhere."""
    if weights.context is None or model.context is None:
        return weights.context or model.context
    return min(model.context, weights.context)


def listing(models: Iterable[tuple[Model, Weights]]) -> bytes:
    return msgspec.json.encode({"object": "list", "data": [_body(model, weights) for model, weights in models]})


def single(model: Model, weights: Weights) -> bytes:
    return msgspec.json.encode(_body(model, weights))
