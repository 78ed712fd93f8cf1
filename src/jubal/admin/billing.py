"""What a team has used in a month, has paid and may spend, as far as this server knows.

`Books` is the seam: what keeps accounts answers it. `UsageBooks` knows only what was used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jubal.accounts import rollups, teams
from jubal.accounts.tables import billing_info
from jubal.admin.actor import Actor, note
from jubal.core.errors import BadRequest, NotFound


@dataclass(frozen=True, slots=True)
class Line:
    """quantity: of `unit`, such as tokens. ticks: what they cost together."""

    description: str
    unit: str
    quantity: int
    ticks: int


@dataclass(frozen=True, slots=True)
class Bill:
    """One UTC month of a team, over or not. month: as 202611. from_free, from_prepaid: ticks that credit paid; the rest is due."""

    team_id: str
    month: int
    lines: tuple[Line, ...]
    total: int
    from_free: int = 0
    from_prepaid: int = 0

    @property
    def due(self) -> int:
        return self.total - self.from_free - self.from_prepaid


@dataclass(frozen=True, slots=True)
class Change:
    """What moved prepaid credit. ticks: below zero where it was used or paid back."""

    id: str
    kind: Literal["purchase", "spend", "refund", "manual"]
    ticks: int
    created_us: int


@dataclass(frozen=True, slots=True)
class Prepaid:
    """left: ticks of prepaid credit. changes: the newest first."""

    left: int
    changes: tuple[Change, ...] = ()


class Books(Protocol):
    """Reads accounts. None of its methods changes anything."""

    def bill(self, conn: Connection, team_id: str, month: int) -> Bill: ...

    def months(self, conn: Connection, team_id: str) -> list[int]:
        """Months in which anything was used or paid, oldest first."""
        ...

    def prepaid(self, conn: Connection, team_id: str, now_us: int) -> Prepaid: ...

    def limit(self, conn: Connection, team_id: str, now_us: int) -> int | None:
        """Ticks that the team may use in a month beyond its credit; None for no limit."""
        ...


class UsageBooks:
    """`Books` that know what was used, and of no credit: everything is due, nothing is bounded."""

    def bill(self, conn: Connection, team_id: str, month: int) -> Bill:
        used = rollups.totals(conn, ["model"], first_us(month), first_us(next_month(month)), team_id=team_id)
        lines = tuple(
            Line(
                str(one.model),
                "tokens",
                one.prompt_tokens + one.completion_tokens + one.reasoning_tokens,
                one.cost_in_usd_ticks,
            )
            for one in used
            if one.cost_in_usd_ticks
        )
        return Bill(team_id, month, lines, sum(line.ticks for line in lines))

    def months(self, conn: Connection, team_id: str) -> list[int]:
        days = rollups.totals(conn, ["day"], 0, 2**62, team_id=team_id)
        return sorted({month_of(one.begin_us or 0) for one in days if one.cost_in_usd_ticks})

    def prepaid(self, conn: Connection, team_id: str, now_us: int) -> Prepaid:
        return Prepaid(0)

    def limit(self, conn: Connection, team_id: str, now_us: int) -> int | None:
        return None


# -------------------------------------------------------------------------------------------------------------- acts


def preview(conn: Connection, actor: Actor, books: Books, team_id: str, *, now_us: int) -> tuple[Bill, int | None]:
    """The bill of this month so far, and the limit. Raises `NotAllowed`, `NotFound`."""
    _allow(conn, actor, "GetAmountToPay", team_id)
    return books.bill(conn, team_id, month_of(now_us)), books.limit(conn, team_id, now_us)


def invoices(
    conn: Connection, actor: Actor, books: Books, team_id: str, *, since: int = 0, only: int | None = None, now_us: int
) -> list[Bill]:
    """The bills of the months that are over, newest first. since: months from this one on; only: this one."""
    _allow(conn, actor, "ListInvoices", team_id)
    months = [month for month in books.months(conn, team_id) if since <= month < month_of(now_us)]
    return [books.bill(conn, team_id, month) for month in reversed(months) if only in (None, month)]


def limit(conn: Connection, actor: Actor, books: Books, team_id: str, *, now_us: int) -> int | None:
    _allow(conn, actor, "GetSpendingLimits", team_id)
    return books.limit(conn, team_id, now_us)


def prepaid(conn: Connection, actor: Actor, books: Books, team_id: str, *, now_us: int) -> Prepaid:
    _allow(conn, actor, "ListPrepaidBalanceChanges", team_id)
    return books.prepaid(conn, team_id, now_us)


def payment_methods(conn: Connection, actor: Actor, team_id: str) -> list[Any]:
    """None: money is taken outside of this server, and its operator books it."""
    _allow(conn, actor, "ListPaymentMethods", team_id)
    return []


def info(conn: Connection, actor: Actor, team_id: str) -> dict[str, Any]:
    """What invoices are addressed to; empty where nobody said."""
    _allow(conn, actor, "GetBillingInfo", team_id)
    found = conn.scalar(sa.select(billing_info.c.info).where(billing_info.c.team_id == team_id))
    return {} if found is None else dict(json.loads(found))


def set_info(conn: Connection, actor: Actor, team_id: str, info: Mapping[str, Any], *, now_us: int) -> None:
    """Replaces what invoices are addressed to. Raises `NotAllowed`, `NotFound`."""
    _allow(conn, actor, "SetBillingInfo", team_id)
    found = conn.scalar(sa.select(billing_info.c.info).where(billing_info.c.team_id == team_id))
    values = {"info": json.dumps(dict(info)), "modified_us": now_us}
    if found is None:
        conn.execute(billing_info.insert().values(team_id=team_id, **values))
    else:
        conn.execute(billing_info.update().where(billing_info.c.team_id == team_id).values(**values))
    before = None if found is None else json.loads(found)
    note(
        conn,
        actor,
        "billing.set_info",
        "team",
        team_id,
        team_id=team_id,
        before=before,
        after=dict(info),
        now_us=now_us,
    )


def _allow(conn: Connection, actor: Actor, call: str, team_id: str) -> None:
    actor.demand(call)
    actor.demand_team(team_id)
    teams.get(conn, team_id)


# ------------------------------------------------------------------------------------------------------------ months


def month_of(us: int) -> int:
    """The UTC month of a moment, as 202611."""
    moment = datetime.fromtimestamp(us // 1_000_000, UTC)
    return moment.year * 100 + moment.month


def first_us(month: int) -> int:
    return int(datetime(month // 100, month % 100, 1, tzinfo=UTC).timestamp()) * 1_000_000


def next_month(month: int) -> int:
    return month + 1 if month % 100 < 12 else month + 89


def no_payment(conn: Connection, actor: Actor, call: str, team_id: str) -> NotFound:
    """Why a payment can't be taken here. Raises as the other acts."""
    _allow(conn, actor, call, team_id)
    return NotFound(
        "This server takes no payments: its operator books what a team has paid.",
        param="paymentMethodId" if call == "SetDefaultPaymentMethod" else "amount",
        code="no_payment_method",
    )


def no_limit(conn: Connection, actor: Actor, team_id: str) -> BadRequest:
    """Why a spending limit can't be set here. Raises as the other acts."""
    _allow(conn, actor, "SetSoftSpendingLimit", team_id)
    return BadRequest(
        "A team can't change its own limit here: it follows from its tier, which the operator sets.",
        param="desiredSoftSpendingLimit",
        code="limit_is_fixed",
    )
