"""GET /v1/language-models on the wire."""

from __future__ import annotations

import json
from dataclasses import replace

from jubal.core.model import Model, Weights
from jubal.core.money import LongContext, Price
from jubal.wire import rich_models

MODEL = Model(
    "grok-4",
    "local",
    "grok-4",
    aliases=("grok-4-0709", "grok-4-latest"),
    context=256_000,
    input=("text", "image"),
    reasoning=True,
    price=Price.from_usd_per_million(3.00, 0.75, 15.00),
    created=1_752_019_200,
)
SEEING = Weights("w", "fp_1f7c0b93de", 8_192, ("text", "image"))
BLIND = Weights("w", "fp_1f7c0b93de")


def test_a_model() -> None:
    assert json.loads(rich_models.language_single(MODEL, SEEING)) == {
        "id": "grok-4",
        "fingerprint": "fp_1f7c0b93de",
        "created": 1_752_019_200,
        "object": "model",
        "owned_by": "xai",
        "version": "1.0.0",
        "input_modalities": ["text", "image"],
        "output_modalities": ["text"],
        "prompt_text_token_price": 30_000,
        "cached_prompt_text_token_price": 7_500,
        "prompt_text_token_price_long_context": 0,
        "cached_prompt_text_token_price_long_context": 0,
        "completion_text_token_price_long_context": 0,
        "long_context_threshold": 0,
        "prompt_image_token_price": 30_000,
        "completion_text_token_price": 150_000,
        "search_price": 250_000_000,
        "aliases": ["grok-4-0709", "grok-4-latest"],
        "context_length": 8_192,
        "capabilities": {
            "reasoning_effort": ["none", "low", "medium", "high"],
            "default_reasoning_effort": "none",
        },
    }


def test_no_more_is_promised_than_the_weights_can() -> None:
    told = json.loads(rich_models.language_single(MODEL, BLIND))
    assert told["input_modalities"] == ["text"]
    assert told["prompt_image_token_price"] == 0
    assert told["context_length"] == 256_000


def test_images_and_long_contexts_have_prices_of_their_own() -> None:
    price = replace(MODEL.price, image=1, long_context=LongContext(200_000, 2, 3, 4))
    told = json.loads(rich_models.language_single(replace(MODEL, price=price), SEEING))
    assert told["prompt_image_token_price"] == 1
    assert told["prompt_text_token_price_long_context"] == 2
    assert told["cached_prompt_text_token_price_long_context"] == 3
    assert told["completion_text_token_price_long_context"] == 4
    assert told["long_context_threshold"] == 200_000


def test_what_is_unknown_or_does_not_apply_is_left_out() -> None:
    plain = json.loads(rich_models.language_single(replace(MODEL, context=None, reasoning=False), BLIND))
    assert not {"context_length", "capabilities"} & plain.keys()


def test_the_default_effort() -> None:
    told = json.loads(rich_models.language_single(replace(MODEL, effort="low"), SEEING))
    assert told["capabilities"]["default_reasoning_effort"] == "low"


def test_the_list() -> None:
    other = replace(MODEL, name="grok-3", aliases=())
    listed = json.loads(rich_models.language_listing([(MODEL, SEEING), (other, BLIND)]))
    assert listed.keys() == {"models"}
    assert [model["id"] for model in listed["models"]] == ["grok-4", "grok-3"]
    assert listed["models"][0] == json.loads(rich_models.language_single(MODEL, SEEING))
    assert json.loads(rich_models.language_listing([])) == {"models": []}
