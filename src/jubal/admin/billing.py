"""What a team has used in a month, has paid and may spend: the ledger, as the management API tells it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jubal.accounts import invoices as ledger_invoices
from jubal.accounts import ledger, teams
from jubal.accounts.tables import billing_info
from jubal.accounts.tiers import Tiers
from jubal.accounts.upserts import upsert
from jubal.admin.actor import Actor, note
from jubal.core.errors import BadRequest, NotFound
from jubal.core.money import exact_usd

ChangeKind: TypeAlias = Literal["purchase", "spend", "refund", "manual"]
KINDS: Final[dict[str, ChangeKind]] = {"purchase": "purchase", "refund": "refund"}
CHANGES_MAX: Final = 1_000
SPENT_MONTHS: Final = 24
INFO_CHARS_MAX: Final = 500
"""Of each text of what invoices are addressed to."""


@dataclass(frozen=True, slots=True)
class Line:
    """quantity: of `unit`, such as tokens. ticks: what they cost together."""

    description: str
    unit: str
    quantity: int
    ticks: int


@dataclass(frozen=True, slots=True)
class Bill:
    """One UTC month of a team, over or not. month: as 202611. from_free, from_prepaid: ticks that credit paid; the rest is due.
    open: what of that is not paid yet.
    """

    team_id: str
    month: int
    lines: tuple[Line, ...]
    total: int
    from_free: int = 0
    from_prepaid: int = 0
    open: int = 0

    @property
    def due(self) -> int:
        return self.total - self.from_free - self.from_prepaid


@dataclass(frozen=True, slots=True)
class Change:
    """What moved prepaid credit. ticks: below zero where it was used or paid back. month: in which requests used it, as 202611."""

    id: str
    kind: ChangeKind
    ticks: int
    created_us: int
    month: int | None = None


@dataclass(frozen=True, slots=True)
class Prepaid:
    """left: ticks of prepaid credit. changes: the newest first."""

    left: int
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class SpendingLimit:
    """Ticks that a team may owe; None: no limit. hard: by its tier. soft: what it set itself. effective: the lower of the two."""

    hard: int | None
    soft: int | None
    effective: int | None


class Books:
    """Reads the ledger, and changes nothing. tiers: how far teams may go."""

    def __init__(self, tiers: Tiers) -> None:
        self._tiers = tiers

    def bill(self, conn: Connection, team_id: str, month: int) -> Bill:
        found = ledger_invoices.build(conn, team_id, month)
        lines = tuple(
            Line(f"{line.model} {line.what}".strip(), line.what.rpartition(" ")[2], line.quantity, line.ticks)
            for line in found.lines
        )
        return Bill(team_id, month, lines, found.total, found.from_grant, found.from_prepaid, found.open)

    def months(self, conn: Connection, team_id: str) -> list[int]:
        """Months in which anything was used or paid, oldest first."""
        return ledger_invoices.months(conn, team_id)

    def prepaid(self, conn: Connection, team_id: str, now_us: int) -> Prepaid:
        """What requests used is one change for each month, dated at its end, or now."""
        changes = [
            Change(
                one.id,
                KINDS.get(one.kind, "manual"),
                one.ticks if one.credit == "prepaid" else -one.ticks,
                one.created_us,
            )
            for one in ledger.history(conn, team_id, limit=CHANGES_MAX, usage=False)
            if "prepaid" in (one.credit, one.debit)
        ]
        for month in self.months(conn, team_id)[-SPENT_MONTHS:]:
            end_us = ledger.first_us(ledger.next_month(month))
            spent = ledger.sums(conn, team_id, ledger.first_us(month), end_us).get(("usage", "prepaid"), 0)
            if spent:
                changes.append(Change(f"spend:{team_id}:{month}", "spend", -spent, min(end_us, now_us), month))
        changes.sort(key=lambda change: change.created_us, reverse=True)
        return Prepaid(ledger.read(conn, team_id).prepaid, tuple(changes))

    def limit(self, conn: Connection, team_id: str) -> SpendingLimit:
        """How far a team may go. Where its tier is not configured its limit is 0: then nothing is answered."""
        team = teams.get(conn, team_id)
        tier, soft = self._tiers.get(team.tier), team.spending_limit_ticks
        if tier is None:
            return SpendingLimit(0, soft, 0)
        terms = tier.terms(team.prepaid, soft)
        return SpendingLimit(tier.cap(team.prepaid), soft, None if terms is None else terms.cap)


# -------------------------------------------------------------------------------------------------------------- acts


def preview(conn: Connection, actor: Actor, books: Books, team_id: str, *, now_us: int) -> tuple[Bill, SpendingLimit]:
    """The bill of this month so far, and the limit. Raises `NotAllowed`, `NotFound`."""
    _allow(conn, actor, "GetAmountToPay", team_id)
    return books.bill(conn, team_id, ledger.month_of(now_us)), books.limit(conn, team_id)


def invoices(
    conn: Connection, actor: Actor, books: Books, team_id: str, *, since: int = 0, only: int | None = None, now_us: int
) -> list[Bill]:
    """The bills of the months that are over, newest first. since: months from this one on; only: this one."""
    _allow(conn, actor, "ListInvoices", team_id)
    months = [month for month in books.months(conn, team_id) if since <= month < ledger.month_of(now_us)]
    return [books.bill(conn, team_id, month) for month in reversed(months) if only in (None, month)]


def limit(conn: Connection, actor: Actor, books: Books, team_id: str) -> SpendingLimit:
    _allow(conn, actor, "GetSpendingLimits", team_id)
    return books.limit(conn, team_id)


def limit_spending(conn: Connection, actor: Actor, team_id: str, ticks: int | None, *, now_us: int) -> None:
    """Sets what a team lets itself owe at most (`SpendingLimit.soft`); in force on every gateway within 2 s. None: no limit of its
    own. What it owes already stays owed. Raises `NotAllowed`, `NotFound`, `BadRequest` for an amount out of range.
    """
    _allow(conn, actor, "SetSoftSpendingLimit", team_id)
    if ticks is not None and not 0 <= ticks <= ledger.TICKS_MAX:
        raise BadRequest(
            f"A spending limit is 0 to {exact_usd(ledger.TICKS_MAX)} USD.",
            param="spending_limit",
            code="out_of_range",
        )
    before = teams.locked(conn, team_id).spending_limit_ticks
    teams.limit_spending(conn, team_id, ticks)
    note(
        conn,
        actor,
        "billing.limit_spending",
        "team",
        team_id,
        team_id=team_id,
        before={"spending_limit_ticks": before},
        after={"spending_limit_ticks": ticks},
        now_us=now_us,
    )


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
    """Replaces what invoices are addressed to. Raises `NotAllowed`, `NotFound`, `BadRequest` naming what is no address."""
    _allow(conn, actor, "SetBillingInfo", team_id)
    _check_info(info, "billingInfo")
    teams.locked(conn, team_id)
    found = conn.scalar(sa.select(billing_info.c.info).where(billing_info.c.team_id == team_id))
    upsert(conn, billing_info, {"team_id": team_id}, {"info": json.dumps(dict(info)), "modified_us": now_us})
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


def _check_info(info: Mapping[str, Any], where: str) -> None:
    """Each text is on a line of its own, and the audit log keeps all that ever were."""
    for name, value in info.items():
        if isinstance(value, Mapping):
            _check_info(value, f"{where}.{name}")
        elif len(value) > INFO_CHARS_MAX or not value.isprintable():
            raise BadRequest(
                f"`{where}.{name}` has at most {INFO_CHARS_MAX} characters, all printable.",
                param=f"{where}.{name}",
                code="invalid_value",
            )


def _allow(conn: Connection, actor: Actor, call: str, team_id: str) -> None:
    actor.demand(call)
    actor.demand_team(team_id)
    teams.get(conn, team_id)


def no_payment(conn: Connection, actor: Actor, call: str, team_id: str) -> NotFound:
    """Why a payment can't be taken here. Raises as the other acts."""
    _allow(conn, actor, call, team_id)
    return NotFound(
        "This server takes no payments: its operator books what a team has paid.",
        param="paymentMethodId" if call == "SetDefaultPaymentMethod" else "amount",
        code="no_payment_method",
    )
