"""Money as integers. One tick is 1e-10 USD, so a price in ticks per token is also the integer that the xAI models list
prints (xai-api.md 5.4), and a cost is an exact sum of products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Context, Decimal
from typing import Final, NamedTuple

from jubal.core.usage import NOTHING, Usage

TICKS_PER_USD = 10_000_000_000
TICKS_PER_TOKEN_AT_1_USD_PER_MILLION = TICKS_PER_USD // 1_000_000
BASIS_POINTS: Final = 10_000
PRIORITY: Final = 2
"""How many times the usual price a request costs that goes before others (xai-api.md 25.3)."""
USD_CHARS_MAX: Final = 50
USD_DIGITS_MAX: Final = 12
_EXACT: Final = Context(prec=2 * USD_CHARS_MAX)
"""The usual 28 digits would round what is too long, and take it for whole ticks."""

TOOL_FEES: Final[tuple[tuple[str, int], ...]] = (
    ("web_search", 50_000_000),
    ("x_search", 50_000_000),
    ("code_execution", 50_000_000),
    ("attachment_search", 50_000_000),
    ("collections_search", 25_000_000),
    ("mcp", 0),
)
"""Ticks per call of a server-side tool (xai-api.md 25.2): $5, and $2.50, per 1,000. A tool that is not listed costs its tokens
only."""
NO_TOOL_USES: Final[Mapping[str, int]] = {}


def ticks_of_usd(usd: float) -> int:
    """The nearest whole number of ticks."""
    return round(usd * TICKS_PER_USD)


def exact_ticks(usd: str) -> int:
    """`usd`, a decimal number of at most `USD_CHARS_MAX` characters and below 1e12, in ticks.

    Raises `ValueError` where it is none, or finer than a tick.
    """
    try:
        amount = Decimal(usd[: USD_CHARS_MAX + 1])
        ticks = _EXACT.multiply(amount, Decimal(TICKS_PER_USD))
        if len(usd) > USD_CHARS_MAX or amount.adjusted() > USD_DIGITS_MAX - 1:
            raise ValueError("too large")
        whole = int(ticks)
    except (ArithmeticError, ValueError) as error:
        raise ValueError(f"`{usd[:USD_CHARS_MAX]}` is not an amount of USD.") from error
    if whole != ticks:
        raise ValueError(f"`{usd}` USD is finer than a tick, which is 1e-10 USD.")
    return whole


def exact_usd(ticks: int) -> str:
    """Ticks as a decimal number of USD, all of it, with two places at least."""
    whole, rest = divmod(abs(ticks), TICKS_PER_USD)
    places = f"{rest:010d}"
    return f"{'-' if ticks < 0 else ''}{whole}.{places[:2]}{places[2:].rstrip('0')}"


def usd_of_ticks(ticks: int) -> float:
    return ticks / TICKS_PER_USD


class Charge(NamedTuple):
    """What one request costs, in ticks, by what it is for. input: uncached prompt tokens, images included."""

    input: int = 0
    cached_input: int = 0
    output: int = 0
    reasoning: int = 0
    tools: int = 0
    request: int = 0

    @property
    def total(self) -> int:
        return self.input + self.cached_input + self.output + self.reasoning + self.tools + self.request


NO_CHARGE: Final = Charge()


@dataclass(frozen=True, slots=True)
class LongContext:
    """Ticks per token of every token of a request whose prompt has `threshold` tokens or more (xai-api.md 25.1)."""

    threshold: int
    input: int
    cached_input: int
    output: int


@dataclass(frozen=True, slots=True)
class Price:
    """Ticks per token.

    image: of uncached prompt tokens that images take; None: as `input`. reasoning: None: as `output`.
    tools: ticks per call by tool; None: the usual fees (`TOOL_FEES`).
    request: ticks for each request, beside its tokens.
    """

    input: int = 0
    cached_input: int = 0
    output: int = 0
    image: int | None = None
    reasoning: int | None = None
    tools: tuple[tuple[str, int], ...] | None = None
    long_context: LongContext | None = None
    request: int = 0

    @classmethod
    def from_usd_per_million(cls, input: float, cached_input: float, output: float) -> Price:
        """Prices as price lists print them: USD per million tokens."""
        return cls(ticks_per_token(input), ticks_per_token(cached_input), ticks_per_token(output))

    def charge(self, usage: Usage, tool_uses: Mapping[str, int] = NO_TOOL_USES) -> Charge:
        """What `usage` and so many calls of each tool cost. Nothing used costs nothing, the price per request included."""
        if usage == NOTHING and not tool_uses:
            return NO_CHARGE
        rates: Price | LongContext = self
        if self.long_context is not None and usage.prompt >= self.long_context.threshold:
            rates = self.long_context
        cached = usage.cached or 0
        image_rate, reasoning_rate = rates.input, rates.output
        if rates is self:
            image_rate = self.input if self.image is None else self.image
            reasoning_rate = self.output if self.reasoning is None else self.reasoning
        return Charge(
            (usage.prompt - cached - usage.image) * rates.input + usage.image * image_rate,
            cached * rates.cached_input,
            usage.completion * rates.output,
            usage.reasoning * reasoning_rate,
            sum(calls * self.tool_fee(tool) for tool, calls in tool_uses.items()) if tool_uses else 0,
            self.request,
        )

    def cost_ticks(self, usage: Usage, tool_uses: Mapping[str, int] = NO_TOOL_USES) -> int:
        """The sum of `charge`. Reasoning is charged as output unless it has a price of its own (xai-api.md 5.4)."""
        return self.charge(usage, tool_uses).total

    @property
    def tool_fees(self) -> tuple[tuple[str, int], ...]:
        """Ticks per call by tool; one that is not here is free."""
        return TOOL_FEES if self.tools is None else self.tools

    def tool_fee(self, tool: str) -> int:
        """Ticks of one call."""
        return dict(self.tool_fees).get(tool, 0)

    def highest_input(self) -> int:
        """Ticks that a prompt token can cost at most, whatever it is."""
        long = self.long_context
        return max(self.input, self.cached_input, self.image or 0, *((long.input, long.cached_input) if long else ()))

    def highest_output(self) -> int:
        """Ticks that a token of the answer can cost at most."""
        return max(self.output, self.reasoning or 0, self.long_context.output if self.long_context else 0)

    def for_priority(self) -> Price:
        """What a request costs that goes before others: the fees of tools are as ever (xai-api.md 5.4, 24)."""

        def more(ticks: int | None) -> int | None:
            return None if ticks is None else ticks * PRIORITY

        long = self.long_context
        return replace(
            self,
            input=self.input * PRIORITY,
            cached_input=self.cached_input * PRIORITY,
            output=self.output * PRIORITY,
            image=more(self.image),
            reasoning=more(self.reasoning),
            long_context=long
            and LongContext(
                long.threshold, long.input * PRIORITY, long.cached_input * PRIORITY, long.output * PRIORITY
            ),
            request=self.request * PRIORITY,
        )

    def less(self, basis_points: int) -> Price:
        """This price with a discount of 0..10,000 hundredths of a percent; each rate is rounded up to a whole tick."""

        def cut(ticks: int) -> int:
            return -(-ticks * (BASIS_POINTS - basis_points) // BASIS_POINTS)

        long = self.long_context
        return replace(
            self,
            input=cut(self.input),
            cached_input=cut(self.cached_input),
            output=cut(self.output),
            image=None if self.image is None else cut(self.image),
            reasoning=None if self.reasoning is None else cut(self.reasoning),
            tools=tuple((tool, cut(fee)) for tool, fee in self.tool_fees),
            long_context=long
            and LongContext(long.threshold, cut(long.input), cut(long.cached_input), cut(long.output)),
            request=cut(self.request),
        )


def ticks_per_token(usd_per_million: float) -> int:
    """USD per million tokens as ticks per token, to the nearest whole tick."""
    return round(usd_per_million * TICKS_PER_TOKEN_AT_1_USD_PER_MILLION)


FREE = Price(tools=())
