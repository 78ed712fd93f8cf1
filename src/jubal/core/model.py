"""The models that a server offers, and which engine answers for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from jubal.core.errors import UnknownModel
from jubal.core.generation import Effort
from jubal.core.money import FREE, Price
from jubal.core.schema import Support


@dataclass(frozen=True, slots=True)
class Weights:
    """What really answers behind a model name.

    name: a file or an upstream model. context: the window in tokens that the engine can really hold, None if unknown.
    fingerprint: `fp_` and ten hex digits, the same for the same weights. input: "text", and "image" where it can see.
    tools: can call functions. json: can be held to JSON and to a JSON Schema. schema: what of a JSON Schema it obeys; None: it
    decides itself, and says so.
    token_prompts: takes prompts as token ids. fill: can write what comes before a given suffix.
    temperature, top_p: what it samples with where a request does not say; None: it does not tell.
    """

    name: str
    fingerprint: str
    context: int | None = None
    input: tuple[str, ...] = ("text",)
    tools: bool = False
    json: bool = False
    schema: Support | None = None
    token_prompts: bool = False
    fill: bool = False
    temperature: float | None = None
    top_p: float | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """One public model name.

    engine: name of the engine in the configuration. upstream: the name that the engine knows it by.
    context: the window in tokens that is advertised; None: whatever the engine reports.
    reasoning: it can think before it answers; effort: how much where the request does not say.
    input: what a prompt may hold: "text", "image". output: what an answer is: "text", or "embedding".
    created: Unix seconds of release. deprecated: still answers.
    """

    name: str
    engine: str
    upstream: str
    aliases: tuple[str, ...] = ()
    context: int | None = None
    input: tuple[str, ...] = ("text",)
    output: tuple[str, ...] = ("text",)
    reasoning: bool = False
    effort: Effort | None = None
    fallback: tuple[str, ...] = ()
    price: Price = FREE
    created: int = 0
    owned_by: str = "xai"
    deprecated: bool = False
    description: str = ""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Models by name and alias."""

    models: tuple[Model, ...]
    _by_name: dict[str, Model] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_name = {alias: model for model in self.models for alias in model.aliases}
        by_name.update({model.name: model for model in self.models})
        object.__setattr__(self, "_by_name", by_name)

    def find(self, name: str) -> Model:
        """The model with this name or alias. Raises `UnknownModel`, which names close matches."""
        model = self._by_name.get(name)
        if model is None:
            known = ", ".join(sorted(m.name for m in self.models))
            raise UnknownModel(
                f"The model `{name}` does not exist. Available models: {known}.", param="model", code="model_not_found"
            )
        return model

    def __iter__(self) -> Iterator[Model]:
        return iter(self.models)

    @classmethod
    def of(cls, models: Iterable[Model]) -> Catalogue:
        return cls(tuple(models))
