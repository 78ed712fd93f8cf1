"""What a request costs whom: its price, and the credit that is held for it before it begins.

Most teams may owe as much as they like; for them nothing is held, and all this comes to one look into a dictionary.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeAlias, TypedDict

from jubal.accounts import prices
from jubal.accounts.credits import Terms
from jubal.accounts.holds import Credit, Hold
from jubal.accounts.keys import Caller
from jubal.accounts.prices import Ceiling, TeamPrices
from jubal.accounts.tiers import Tiers
from jubal.core.embedding import EmbeddingRequest
from jubal.core.errors import OutOfCredit
from jubal.core.generation import Generation
from jubal.core.model import Model
from jubal.core.money import Charge, Price
from jubal.core.usage import Usage

LEARNT_MAX = 10_000
BYTES_PER_TOKEN_MAX: Final = 8
"""Prompts with longer tokens on average are rare: credit that would need one is not worth an engine's count."""
Count: TypeAlias = Callable[[Model, Generation], Awaitable[int | None]]
"""Prompt tokens as the engine counts them, the most that any engine does that may answer; None where one can't tell."""


@dataclass(slots=True)
class Held:
    """What is set aside for a request: nothing where `hold` is None. ceiling: what it was reckoned from."""

    hold: Hold | None = None
    ceiling: Ceiling | None = None


class Charging:
    """credit: where holds come from; None where nobody can hold, as in tests without a store: then no team needs to."""

    def __init__(self, credit: Credit | None = None, tiers: Tiers | None = None) -> None:
        self._credit = credit
        self._tiers = tiers or Tiers()
        self._more_prompt: dict[str, int] = {}  # tokens that a model counted beyond its bound, the most ever
        self._more_answer: dict[str, int] = {}

    def price(self, caller: Caller, model: Model) -> Price:
        """What `model` costs this caller now. Raises `NotAllowed`."""
        self._tiers.of(caller)  # which refuses a tier that nobody configured
        return self.price_of_team(caller.tier, caller.prices, model)

    def price_of_team(self, tier: str, own: TeamPrices | None, model: Model) -> Price:
        """As `price`, for whoever asks what a team would pay; the list price where its tier is not configured."""
        found = self._tiers.get(tier)
        price = model.price if found is None else found.priced(model.price)
        return price if own is None else own.on(model.name, price)

    def priced(self, caller: Caller, model: Model) -> Model:
        """A model with the price that it has for this caller, to be shown."""
        price = self.price_of_team(caller.tier, caller.prices, model)
        return model if price is model.price else replace(model, price=price)

    def terms(self, caller: Caller) -> Terms | None:
        """How far the caller's team may go; None: any way. Raises `NotAllowed`."""
        return self._tiers.of(caller).terms(caller.prepaid, caller.spending_limit)

    def must_hold(self, caller: Caller) -> bool:
        """Whether `hold` may have anything to do. Raises `NotAllowed`."""
        return self._credit is not None and self.terms(caller) is not None

    async def hold(
        self,
        caller: Caller,
        model: Model,
        price: Price,
        generation: Generation,
        window: Callable[[Model], int | None],
        request_id: str,
        count: Count | None = None,
    ) -> tuple[Held, Generation]:
        """Sets aside the most that a generation may cost. Returns it with its answer bounded to what that pays for.

        window: tokens that no request for a model can exceed. Where the caller set no bound, the answer's is the tier's, or what
        credit is left for. count: what the engine counts of the prompt, at a price: only asked where credit is short, as the
        bound that costs nothing takes each byte for a token.

        Raises `OutOfCredit`, `NotAllowed`, `StoreUnavailable`.
        """
        tier = self._tiers.of(caller)
        terms = tier.terms(caller.prepaid, caller.spending_limit)
        if terms is None or self._credit is None:
            return Held(), generation
        facts: Bounding = {
            "window": window(model),
            "answer_tokens_max": tier.answer_tokens_max,
            "more_prompt": self._more_prompt.get(model.name, 0),
            "more_answer": self._more_answer.get(model.name, 0),
        }
        ceiling = prices.ceiling(generation, price, **facts)
        ticks = ceiling.ticks
        if not ticks:
            return Held(), generation
        hold = self._credit.try_hold(caller.team_id, ticks, request_id)
        if hold is None:
            bound = partial(prices.ceiling, generation, price, **facts)
            hold_of = partial(self._hold_of, self._credit, caller.team_id, terms, request_id)
            if count is None or not prices.countable(generation):
                hold = await hold_of(ceiling)
            else:
                hold, ceiling = await _hold_counted(hold_of, ceiling, bound, partial(count, model, generation))
        if not ceiling.bounded:
            tokens = ceiling.tokens_for(hold.ticks)
            generation = replace(generation, bounds=replace(generation.bounds, tokens_max=tokens))
        return Held(hold, ceiling), generation

    async def _hold_of(
        self, credit: Credit, team_id: str, terms: Terms, request_id: str, ceiling: Ceiling, *, patient: bool = True
    ) -> Hold:
        """Raises `OutOfCredit`, `StoreUnavailable`."""
        return await credit.hold(team_id, terms, ceiling.ticks, request_id, least=ceiling.least, patient=patient)

    async def hold_embedding(self, caller: Caller, price: Price, request: EmbeddingRequest, request_id: str) -> Held:
        """As `hold`: a text has a token per byte of it at most, and a few around it."""
        terms = self.terms(caller)
        if terms is None or self._credit is None:
            return Held()
        tokens = prices.utf8_bytes(request.texts) + sum(map(len, request.tokens))
        tokens += prices.TOKENS_PER_MESSAGE * request.count
        ticks = tokens * price.highest_input() + price.request
        if not ticks:
            return Held()
        hold = self._credit.try_hold(caller.team_id, ticks, request_id)
        return Held(hold or await self._credit.hold(caller.team_id, terms, ticks, request_id))

    def settled(self, held: Held, cost_ticks: int, *, certain: bool = True) -> None:
        """A request is charged. certain: False where nobody knows whether it was. Only the first call counts."""
        if held.hold is not None and self._credit is not None:
            self._credit.settled(held.hold, cost_ticks, certain=certain)

    def learn(self, model: Model, held: Held, usage: Usage) -> None:
        """Remembers where a model counts more tokens than can be seen from here, such as a hidden system prompt."""
        ceiling = held.ceiling
        if ceiling is None:
            return
        prompt = usage.prompt - ceiling.prompt_tokens
        answer = usage.completion + usage.reasoning - ceiling.answer_tokens
        for over, known in ((prompt, self._more_prompt), (answer, self._more_answer)):
            if over > 0 and len(known) < LEARNT_MAX:
                known[model.name] = known.get(model.name, 0) + over


class Bounding(TypedDict):
    """What `prices.ceiling` has to know beside the request and its price."""

    window: int | None
    answer_tokens_max: int
    more_prompt: int
    more_answer: int


class Costs(TypedDict):
    """The columns of `UsageRow` that say what a request costs, and where that was held."""

    cost_in_usd_ticks: int
    input_ticks: int
    cached_input_ticks: int
    output_ticks: int
    reasoning_ticks: int
    request_ticks: int
    tools: str | None
    reserve_id: str | None
    drawn_ticks: int | None


def costs(charge: Charge, tools: str | None, held: Held) -> Costs:
    """tools: as `UsageRow.tools`."""
    hold, total = held.hold, charge.total
    return {
        "cost_in_usd_ticks": total,
        "input_ticks": charge.input,
        "cached_input_ticks": charge.cached_input,
        "output_ticks": charge.output,
        "reasoning_ticks": charge.reasoning,
        "request_ticks": charge.request,
        "tools": tools,
        "reserve_id": None if hold is None else hold.reserve_id,
        "drawn_ticks": None if hold is None else hold.drawn(total),
    }


async def _hold_counted(
    hold_of: Callable[..., Awaitable[Hold]],
    ceiling: Ceiling,
    bound: Callable[..., Ceiling],
    count: Callable[[], Awaitable[int | None]],
) -> tuple[Hold, Ceiling]:
    """A hold by the bound that costs nothing, or, where credit is too short for that, by the engine's own count.

    What could not be paid however few tokens the prompt had is refused without asking the engine. Raises `OutOfCredit`, ….
    """
    try:
        return await hold_of(ceiling, patient=False), ceiling
    except OutOfCredit as error:
        available = error.available_ticks
    if available is not None and available >= bound(counted=ceiling.prompt_tokens // BYTES_PER_TOKEN_MAX).least:
        counted = await count()
        if counted is not None and counted < ceiling.prompt_tokens:
            ceiling = min(ceiling, bound(counted=counted), key=lambda one: one.ticks)
    return await hold_of(ceiling), ceiling
