"""Money as integers. One tick is 1e-10 USD, so a price in ticks per token is also the integer that the xAI models list
prints (xai-api.md 5.4), and a cost is an exact sum of products."""

from __future__ import annotations

from dataclasses import dataclass

from jubal.core.usage import Usage

TICKS_PER_USD = 10_000_000_000
TICKS_PER_TOKEN_AT_1_USD_PER_MILLION = TICKS_PER_USD // 1_000_000


def ticks_of_usd(usd: float) -> int:
    """The nearest whole number of ticks."""
    return round(usd * TICKS_PER_USD)


def usd_of_ticks(ticks: int) -> float:
    return ticks / TICKS_PER_USD


@dataclass(frozen=True, slots=True)
class Price:
    """Ticks per token."""

    input: int = 0
    cached_input: int = 0
    output: int = 0

    @classmethod
    def from_usd_per_million(cls, input: float, cached_input: float, output: float) -> Price:
        """Prices as price lists print them: USD per million tokens."""
        scale = TICKS_PER_TOKEN_AT_1_USD_PER_MILLION
        return cls(round(input * scale), round(cached_input * scale), round(output * scale))

    def cost_ticks(self, usage: Usage) -> int:
        """What `usage` costs; reasoning is charged as output (xai-api.md 5.4)."""
        cached = usage.cached or 0
        return (
            (usage.prompt - cached) * self.input
            + cached * self.cached_input
            + (usage.completion + usage.reasoning) * self.output
        )


FREE = Price()
