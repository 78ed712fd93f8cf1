"""The models a server offers: the seed's catalogue, changed and extended by the configuration."""

from __future__ import annotations

from typing import Final

from jubal import config
from jubal.core.model import Catalogue, Model
from jubal.core.money import FREE, TOOL_FEES, LongContext, Price, ticks_of_usd, ticks_per_token

LOCAL: Final = "local"
"""The embedded engine, which is there without being configured."""
WORDS: Final = "words"
"""The embedded embedder, likewise."""

LOCAL_DEFAULT: Final = config.Engine(kind="llama", model="smollm2-135m")
WORDS_DEFAULT: Final = config.Engine(kind="wordllama")

EMBEDDING: Final = ("embedding",)

_FAST: Final = Price.from_usd_per_million(0.20, 0.05, 0.50)

DEFAULT: Final = (
    Model(
        "grok-4",
        LOCAL,
        "grok-4",
        aliases=("grok-4-0709", "grok-4-latest"),
        context=256_000,
        input=("text", "image"),
        reasoning=True,
        price=Price.from_usd_per_million(3.00, 0.75, 15.00),
        created=1752019200,
        description="Complex reasoning, mathematics, multimodal tasks",
    ),
    Model(
        "grok-4-fast-reasoning",
        LOCAL,
        "grok-4-fast-reasoning",
        aliases=("grok-4-fast", "grok-4-fast-reasoning-latest"),
        context=2_000_000,
        input=("text", "image"),
        reasoning=True,
        effort="low",
        price=_FAST,
        created=1757894400,
        description="Cost-efficient, thinks before it answers",
    ),
    Model(
        "grok-4-fast-non-reasoning",
        LOCAL,
        "grok-4-fast-non-reasoning",
        aliases=("grok-4-fast-non-reasoning-latest",),
        context=2_000_000,
        input=("text", "image"),
        price=_FAST,
        created=1757894400,
        description="Cost-efficient, answers at once",
    ),
    Model(
        "grok-beta",
        LOCAL,
        "grok-beta",
        context=2_000_000,
        input=("text", "image"),
        price=_FAST,
        created=1757894400,
        description="The seed's other name of Grok 4 Fast",
    ),
    Model(
        "grok-2-1212",
        LOCAL,
        "grok-2-1212",
        aliases=("grok-2", "grok-2-latest"),
        context=131_072,
        price=Price.from_usd_per_million(2.00, 2.00, 10.00),
        created=1733961600,
        description="The name in the seed's examples",
    ),
    Model(
        "grok-1",
        LOCAL,
        "grok-1",
        context=8_192,
        price=Price.from_usd_per_million(2.00, 2.00, 10.00),
        created=1699228800,
        deprecated=True,
        description="Earlier generation",
    ),
)
"""The seed's "Available Models"; prices from the seed, else from xai-api.md 25.1, else those of the nearest model there.

The window is the advertised one; what is shown is never more than the engine behind it holds.
"""


DEFAULT_EMBEDDING: Final = (
    Model(
        "grok-embedding-small",
        WORDS,
        "grok-embedding-small",
        aliases=("v1", "wordllama"),
        output=EMBEDDING,
        price=Price.from_usd_per_million(0.02, 0.02, 0),
        description="Text embeddings, 256 dimensions or fewer",
    ),
)


def embedding_models(settings: config.Settings) -> Catalogue:
    """The embedding models of these settings, by the same rules as `build`."""
    models = {model.name: model for model in DEFAULT_EMBEDDING}
    for name, changed in settings.models.items():
        if changed.kind == "embedding":
            base = models.get(name) or Model(name, WORDS, name, output=EMBEDDING, price=FREE)
            models[name] = _changed(base, name, changed)
    if settings.engines and LOCAL not in settings.engines:
        models = {name: model for name, model in models.items() if model.engine != WORDS or name in settings.models}
    return Catalogue.of(models.values())


def build(settings: config.Settings) -> Catalogue:
    """The catalogue of these settings.

    A configuration that names engines, none of them `local`, serves only what it configures: it must not load an embedded
    model behind names that nobody asked for.
    """
    models = {model.name: model for model in DEFAULT}
    for name, changed in settings.models.items():
        if changed.kind == "language":
            models[name] = _changed(models.get(name), name, changed)
    if settings.engines and LOCAL not in settings.engines:
        models = {name: model for name, model in models.items() if model.engine != LOCAL or name in settings.models}
    return Catalogue.of(models.values())


def engine_settings(settings: config.Settings, models: Catalogue) -> dict[str, config.Engine]:
    """Every engine that a model or a fallback needs, the embedded one included where it is used unconfigured."""
    needed = {model.engine for model in models} | {name for model in models for name in model.fallback}
    known = {LOCAL: LOCAL_DEFAULT, WORDS: WORDS_DEFAULT, **settings.engines}
    in_order = [*settings.engines, *(name for name in known if name not in settings.engines)]
    return {name: known[name] for name in in_order if name in needed}


def _changed(base: Model | None, name: str, changed: config.Model) -> Model:
    engine = changed.engine or (base.engine if base else LOCAL)
    if base is None:
        base = Model(name, engine, name, input=("text", "image"), price=FREE)
    return Model(
        name=name,
        engine=engine,
        upstream=changed.upstream or base.upstream,
        aliases=base.aliases if changed.aliases is None else changed.aliases,
        context=changed.context or base.context,
        input=base.input if changed.input is None else changed.input,
        output=base.output,
        reasoning=base.reasoning if changed.reasoning is None else changed.reasoning,
        effort=base.effort,
        fallback=base.fallback if changed.fallback is None else changed.fallback,
        price=base.price if changed.price is None else _price(name, changed.price),
        created=base.created,
        owned_by=base.owned_by if base.created else "jubal",
        deprecated=base.deprecated,
        description=base.description,
    )


def _price(model: str, price: config.ModelPrice) -> Price:
    """Raises `ConfigError` for a price of what is no tool: it would be asked of nobody."""
    for tool in price.tools or {}:
        if tool not in dict(TOOL_FEES):
            raise config.ConfigError(
                f'models."{model}".price.tools: there is no tool `{tool}` that has a price. Tools: {", ".join(dict(TOOL_FEES))}.'
            )
    long = price.long_context
    return Price(
        ticks_per_token(price.input),
        ticks_per_token(price.cached_input),
        ticks_per_token(price.output),
        image=None if price.image is None else ticks_per_token(price.image),
        reasoning=None if price.reasoning is None else ticks_per_token(price.reasoning),
        tools=None if price.tools is None else tuple((tool, ticks_of_usd(fee)) for tool, fee in price.tools.items()),
        long_context=None
        if long is None
        else LongContext(
            long.threshold,
            ticks_per_token(long.input),
            ticks_per_token(long.cached_input),
            ticks_per_token(long.output),
        ),
        request=ticks_of_usd(price.request),
    )
