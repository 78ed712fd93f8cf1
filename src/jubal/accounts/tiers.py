"""Tiers: what a team gets and how far it may go without paying first (seed, "Pricing Tiers")."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from sqlalchemy.engine import Connection

from jubal.accounts import teams
from jubal.accounts.credits import Terms
from jubal.accounts.keys import Caller
from jubal.core.errors import NotAllowed
from jubal.core.money import Price, ticks_of_usd

ANSWER_TOKENS_MAX: Final = 8192


@dataclass(frozen=True, slots=True)
class Tier:
    """monthly_credit: ticks that each month begins with, gone at its end; None: none, and no limit by it.
    postpaid_cap: ticks that a team may owe; None: no limit. request: ticks of each request in place of its tokens; None: by token.
    rps, rpm, tpm: requests per second, requests and tokens per minute, of each team; None: no limit.
    answer_tokens_max: the longest answer where the caller sets no bound and its cost has to be held.
    """

    name: str
    monthly_credit: int | None = None
    postpaid_cap: int | None = None
    request: int | None = None
    rpm: int | None = None
    tpm: int | None = None
    answer_tokens_max: int = ANSWER_TOKENS_MAX
    rps: int | None = None

    def terms(self, prepaid: bool, spending_limit: int | None = None) -> Terms | None:
        """How far a team of this tier may go; None: any way, and nothing has to be held.

        prepaid: its credit must cover it. spending_limit: ticks that it lets itself owe at most, which only narrows.
        """
        cap = self.cap(prepaid)
        if spending_limit is not None:
            cap = spending_limit if cap is None else min(cap, spending_limit)
        return None if cap is None else Terms(self.monthly_credit or 0, cap)

    def cap(self, prepaid: bool) -> int | None:
        """Ticks that a team of this tier may owe, whatever it wants itself; None: no limit."""
        if prepaid:
            return 0
        if self.monthly_credit is None and self.postpaid_cap is None:
            return None
        return self.postpaid_cap or 0

    def priced(self, price: Price) -> Price:
        """What a model of this price costs here."""
        if self.request is None:
            return price
        return Price(request=self.request, tools=price.tools)


STANDARD: Final = Tier("standard")
BUILT_IN: Final = (
    Tier("public-beta", monthly_credit=ticks_of_usd(25)),
    STANDARD,
    Tier("enterprise", postpaid_cap=ticks_of_usd(10_000)),
)


class Configured(Protocol):
    """A tier as a configuration file has it: [tiers.NAME]."""

    @property
    def monthly_credit_usd(self) -> float | None: ...
    @property
    def postpaid_cap_usd(self) -> float | None: ...
    @property
    def request_usd(self) -> float | None: ...
    @property
    def rps(self) -> int | None: ...
    @property
    def rpm(self) -> int | None: ...
    @property
    def tpm(self) -> int | None: ...
    @property
    def answer_tokens_max(self) -> int: ...


class Tiers:
    """The tiers of a configuration: the built-in ones, and those on top of them or in their place."""

    def __init__(self, changed: Iterable[Tier] = ()) -> None:
        self._by_name = {tier.name: tier for tier in (*BUILT_IN, *changed)}

    @classmethod
    def configured(cls, tables: Mapping[str, Configured]) -> Tiers:
        """The tiers of a configuration."""
        return cls(
            Tier(
                name,
                monthly_credit=_ticks(table.monthly_credit_usd),
                postpaid_cap=_ticks(table.postpaid_cap_usd),
                request=_ticks(table.request_usd),
                rps=table.rps,
                rpm=table.rpm,
                tpm=table.tpm,
                answer_tokens_max=table.answer_tokens_max,
            )
            for name, table in tables.items()
        )

    @property
    def names(self) -> list[str]:
        return sorted(self._by_name)

    def missing(self, conn: Connection) -> dict[str, int]:
        """Tiers that teams are of and that nobody configured, and how many teams: all they ask for is refused."""
        return {name: count for name, count in teams.by_tier(conn).items() if name not in self._by_name}

    def get(self, name: str) -> Tier | None:
        return self._by_name.get(name)

    def of(self, caller: Caller) -> Tier:
        """Raises `NotAllowed` where nobody configured the team's tier: what it may do is then not known."""
        tier = self._by_name.get(caller.tier)
        if tier is None:
            raise NotAllowed(
                f"Your team is of the tier `{caller.tier}`, which this server's configuration does not have.",
                code="tier_unknown",
            )
        return tier


def _ticks(usd: float | None) -> int | None:
    return None if usd is None else ticks_of_usd(usd)
