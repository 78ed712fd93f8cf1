"""What a request costs a team: list prices, a team's own prices and volume discounts; and what it may cost at most."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jubal.accounts.ledger import month_of
from jubal.accounts.tables import balances, prices
from jubal.accounts.upserts import upsert
from jubal.core.errors import BadRequest, NotFound
from jubal.core.generation import Generation, ImagePart, Message
from jubal.core.money import BASIS_POINTS, TICKS_PER_USD, TOOL_FEES, LongContext, Price, exact_usd
from jubal.core.server_tools import KIND
from jubal.core.values import value

ANY_MODEL: Final = "*"
RATES: Final = ("input", "cached_input", "output", "image", "reasoning", "request")


TOKEN_TICKS_MAX: Final = TICKS_PER_USD
"""Of one token: what a million of them cost at twice the rate is still far below what the store's integers hold."""
EACH_TICKS_MAX: Final = 1_000_000 * TICKS_PER_USD
"""Of one request, and of one call of a tool."""

# ---------------------------------------------------------------------------------------------------- prices of a team


@dataclass(frozen=True, slots=True)
class PriceTerms:
    """What a team pays in place of a list price, in ticks. None: the list's.

    tools: fees of single tools; those of the others are the list's. discount: hundredths of a percent off every rate.
    volume: (ticks spent this month, discount) steps; the highest that is reached holds in place of `discount` where it is more.
    """

    input: int | None = None
    cached_input: int | None = None
    output: int | None = None
    image: int | None = None
    reasoning: int | None = None
    request: int | None = None
    tools: tuple[tuple[str, int], ...] | None = None
    long_context: LongContext | None = None
    discount: int = 0
    volume: tuple[tuple[int, int], ...] = ()

    def on(self, listed: Price, spent: int) -> Price:
        """The price of a model with this list price, after `spent` ticks this month."""
        own = {name: value for name in RATES if (value := getattr(self, name)) is not None}
        if self.tools is not None:
            own["tools"] = tuple((dict(listed.tool_fees) | dict(self.tools)).items())
        if self.long_context is not None:
            own["long_context"] = self.long_context
        price = replace(listed, **own) if own else listed
        steps = [basis_points for from_ticks, basis_points in self.volume if spent >= from_ticks]
        discount = max(self.discount, *steps) if steps else self.discount
        return price.less(discount) if discount else price


@dataclass(frozen=True, slots=True)
class TeamPrices:
    """A team's own terms by model, and what it spent this month, as known when they were read."""

    by_model: tuple[tuple[str, PriceTerms], ...]
    spent: int = 0

    def on(self, model: str, listed: Price) -> Price:
        terms = dict(self.by_model)
        found = terms.get(model) or terms.get(ANY_MODEL)
        return listed if found is None else found.on(listed, self.spent)


def of_team(conn: Connection, team_id: str, now_us: int) -> TeamPrices | None:
    """A team's own prices; None for most."""
    rows = conn.execute(sa.select(prices.c.model, prices.c.terms).where(prices.c.team_id == team_id)).all()
    if not rows:
        return None
    spent = 0
    by_model = tuple((row.model, decode(row.terms)) for row in rows)
    if any(terms.volume for _, terms in by_model):
        month = month_of(now_us)
        query = sa.select(balances.c.spent_ticks).where(balances.c.team_id == team_id, balances.c.month == month)
        spent = conn.scalar(query) or 0
    return TeamPrices(by_model, spent)


def put(conn: Connection, team_id: str, model: str, terms: PriceTerms, *, now_us: int) -> None:
    """Sets a team's terms for a model, or for all others (`*`), in place of what was there. Raises `BadRequest`."""
    check(terms)
    upsert(conn, prices, {"team_id": team_id, "model": model}, {"terms": encode(terms), "modified_us": now_us})


def remove(conn: Connection, team_id: str, model: str) -> None:
    """The list price holds again. Raises `NotFound`."""
    if not conn.execute(prices.delete().where(prices.c.team_id == team_id, prices.c.model == model)).rowcount:
        raise NotFound(f"This team has no price of its own for `{model}`.", param="model", code="price_not_found")


def listing(conn: Connection, team_id: str | None = None) -> list[tuple[str, str, PriceTerms]]:
    """(team id, model, terms), of one team where that is given."""
    query = sa.select(prices).order_by(prices.c.team_id, prices.c.model)
    if team_id is not None:
        query = query.where(prices.c.team_id == team_id)
    return [(row.team_id, row.model, decode(row.terms)) for row in conn.execute(query)]


def check(terms: PriceTerms) -> None:
    """Raises `BadRequest` for what is no price."""
    for name, ticks, most in _rates(terms):
        if ticks is not None and not 0 <= ticks <= most:
            of = "a token" if most == TOKEN_TICKS_MAX else "a request or call"
            raise BadRequest(f"The price `{name}` must be 0 to {exact_usd(most)} USD of {of}.", param=name)
    for tool, _ in terms.tools or ():
        if tool not in dict(TOOL_FEES):
            raise BadRequest(
                f"There is no tool `{tool[:100]}` that has a price. There are {', '.join(dict(TOOL_FEES))}.",
                param="tools",
            )
    for basis_points in (terms.discount, *(one for _, one in terms.volume)):
        if not 0 <= basis_points <= BASIS_POINTS:
            raise BadRequest("A discount is 0 to 100 percent.", param="discount")
    if any(from_ticks < 0 for from_ticks, _ in terms.volume):
        raise BadRequest("A volume discount begins at 0 USD or more.", param="volume")


def _rates(terms: PriceTerms) -> Iterable[tuple[str, int | None, int]]:
    """Every rate: its name, its ticks, and the most that they may be."""
    for name in RATES:
        yield name, getattr(terms, name), EACH_TICKS_MAX if name == "request" else TOKEN_TICKS_MAX
    for tool, fee in terms.tools or ():
        yield f"tools.{tool}", fee, EACH_TICKS_MAX
    if (long := terms.long_context) is not None:
        for name in ("input", "cached_input", "output"):
            yield f"long_context.{name}", getattr(long, name), TOKEN_TICKS_MAX


def encode(terms: PriceTerms) -> str:
    """As the store keeps it: JSON of what is set."""
    made: dict[str, Any] = {name: value for name in RATES if (value := getattr(terms, name)) is not None}
    if terms.tools is not None:
        made["tools"] = dict(terms.tools)
    if (long := terms.long_context) is not None:
        made["long_context"] = [long.threshold, long.input, long.cached_input, long.output]
    if terms.discount:
        made["discount"] = terms.discount
    if terms.volume:
        made["volume"] = [list(step) for step in terms.volume]
    return json.dumps(made)


def decode(text: str) -> PriceTerms:
    """The inverse of `encode`."""
    stored = json.loads(text)
    if "tools" in stored:
        stored["tools"] = tuple(stored["tools"].items())
    if "long_context" in stored:
        stored["long_context"] = LongContext(*stored["long_context"])
    if "volume" in stored:
        stored["volume"] = tuple((from_ticks, basis_points) for from_ticks, basis_points in stored["volume"])
    return PriceTerms(**stored)


def tools_text(price: Price, uses: Mapping[str, int]) -> str | None:
    """`UsageRow.tools` of so many calls of each tool."""
    if not uses:
        return None
    return json.dumps({tool: [calls, calls * price.tool_fee(tool)] for tool, calls in uses.items()})


# ------------------------------------------------------------------------------------------------------------ ceilings

TOKENS_PER_REQUEST: Final = 48
"""What a chat template puts around a conversation: its system prompt where the caller has none, the start of the answer."""
TOKENS_PER_MESSAGE: Final = 8
TOKENS_PER_FUNCTION: Final = 64
TOKENS_OF_INSTRUCTIONS: Final = 512
"""How to call functions, to write JSON, or to think first, said to models that know no better way."""
TOKENS_PER_IMAGE: Final = 1792
FORCED_CALL_TOKENS: Final = 2048
"""A call that must be made is not cut by the bound on visible text."""
SERVER_STEPS: Final = 4
SERVER_CALLS: Final = 8
SERVER_OUTPUT_TOKENS: Final = 6000
"""With server tools the model is asked again after each round of calls, with all that they found. How often, nobody knows: this is
held for. An answer that takes more is charged in full, so it may leave a debt."""
THINKING_TOKENS: Final = {None: 0, "none": 0, "low": 64, "medium": 256, "high": 1024}
SENSIBLE_ANSWER_TOKENS: Final = 16
"""An answer that nobody bounded is made shorter where credit is short, but not shorter than this."""


@value(frozen=True, slots=True)
class Ceiling:
    """The most a request may cost. fixed: ticks of its prompt and whatever else its answer's length doesn't change.
    tokens: the longest answer; per_token: ticks of each of its tokens, all choices together. bounded: the caller said so.
    prompt_tokens, answer_tokens: what was counted with, thinking included.
    """

    fixed: int
    tokens: int
    per_token: int
    bounded: bool
    prompt_tokens: int
    answer_tokens: int

    @property
    def ticks(self) -> int:
        return self.fixed + self.tokens * self.per_token

    @property
    def least(self) -> int:
        """The least that is worth to begin with."""
        return self.ticks if self.bounded else self.fixed + min(self.tokens, SENSIBLE_ANSWER_TOKENS) * self.per_token

    def tokens_for(self, ticks: int) -> int:
        """How long the answer may be for so many ticks, which are at least `least`."""
        return min(self.tokens, (ticks - self.fixed) // self.per_token) if self.per_token else self.tokens


def ceiling(
    generation: Generation,
    price: Price,
    *,
    window: int | None,
    answer_tokens_max: int,
    more_prompt: int = 0,
    more_answer: int = 0,
    counted: int | None = None,
) -> Ceiling:
    """The most that a generation may cost at this price.

    window: tokens that a prompt and its answer fit in; None: not known. answer_tokens_max: where the caller sets no bound.
    more_prompt, more_answer: tokens on top, where a model is known to count more than can be seen from here.
    counted: what the engine itself counts of the prompt; None: nobody asked, and each byte may be a token.
    """
    prompt = (prompt_tokens_max(generation) if counted is None else counted + TOKENS_PER_REQUEST) + more_prompt
    wanted = generation.bounds.tokens_max
    answer = answer_tokens_max if wanted is None else wanted
    beside = THINKING_TOKENS[generation.reasoning] + more_answer
    if generation.tools.wanted and generation.tools.choice != "auto":
        beside += FORCED_CALL_TOKENS
    if window is not None:
        prompt, answer = min(prompt, window * max(1, len(generation.prompts))), min(answer, window)
    rate = price.highest_output() * generation.answers
    fixed = prompt * price.highest_input() + beside * rate + price.request
    if generation.tools.server and generation.tools.wanted:
        again = [prompt + step * SERVER_OUTPUT_TOKENS for step in range(1, SERVER_STEPS)]
        fixed += sum(tokens if window is None else min(tokens, window) for tokens in again) * price.highest_input()
        fixed += SERVER_CALLS * max(price.tool_fee(KIND[type(tool)]) for tool in generation.tools.server)
        rate *= SERVER_STEPS
    return Ceiling(fixed, answer, rate, wanted is not None, prompt, (answer + beside) * generation.answers)


def countable(generation: Generation) -> bool:
    """Whether an engine's count of the prompt is all of it that can be charged: not where it is asked several times, with what it
    said before, or sees what is no text."""
    return not (
        generation.tools.wanted
        or generation.output is not None
        or generation.reasoning not in (None, "none")
        or any(message.has_image for message in generation.messages)
    )


def ceiling_ticks(generation: Generation, price: Price, window: int | None, answer_tokens_max: int = 8192) -> int:
    """The most that a generation may cost, in ticks."""
    return ceiling(generation, price, window=window, answer_tokens_max=answer_tokens_max).ticks


def prompt_tokens_max(generation: Generation) -> int:
    """A bound on the prompt's tokens without a tokenizer: a token of text stands for one byte of UTF-8 at least.

    What templates put around it is allowed for generously, but nobody can know it: see docs/decisions/ledger.md.
    """
    tokens = TOKENS_PER_REQUEST + TOKENS_PER_MESSAGE * (len(generation.messages) + len(generation.prompts))
    for prompt in generation.prompts:
        tokens += _bytes(prompt) if isinstance(prompt, str) else len(prompt)
    for message in generation.messages:
        for part in message.parts:
            tokens += TOKENS_PER_IMAGE if isinstance(part, ImagePart) else _bytes(part.text)
        for text in (message.name, message.reasoning, message.tool_call_id, *_texts_of(message)):
            if text:
                tokens += _bytes(text)
    if generation.suffix:
        tokens += _bytes(generation.suffix)
    if generation.output is not None and generation.output.schema:
        tokens += _bytes(generation.output.schema)
    if generation.tools.wanted:
        for function in generation.tools.functions:
            tokens += TOKENS_PER_FUNCTION + utf8_bytes((function.name, function.description, function.parameters or ""))
    if generation.tools.wanted or generation.output is not None or generation.reasoning not in (None, "none"):
        tokens += TOKENS_OF_INSTRUCTIONS
    return tokens


def _texts_of(message: Message) -> Iterable[str]:
    """What its calls say."""
    return [text for call in message.calls for text in (call.id, call.name, call.arguments)] if message.calls else ()


def utf8_bytes(texts: Iterable[str]) -> int:
    """Bytes of UTF-8, without making them where the text is ASCII. A lone surrogate counts as three."""
    return sum(map(_bytes, texts))


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
