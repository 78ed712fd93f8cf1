"""What a team may still use, and how gateways set parts of it aside.

A reserve is credit that one gateway has taken from a team's for the requests it is about to answer. Taking it locks the team's
row of balances (on SQLite: the store), so the sum of open reserves never exceeds what the team has, however many gateways there
are. Each request draws its real cost from the reserve in the transaction that charges it. A reserve is a lease: its gateway
renews it while it lives, and one that ran out counts for nothing and is swept.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jubal.accounts import driver, ledger, rollups
from jubal.accounts.ledger import Account, Balance, Kind, Mismatch, Transfer, Used
from jubal.accounts.tables import balances, reserves, transfers, usage
from jubal.core.errors import BadRequest
from jubal.core.money import exact_usd

if TYPE_CHECKING:
    from jubal.accounts.usage import UsageRow

CHUNK: Final = 8
"""A gateway takes one part in so many of what is there: few transactions while there is much, no hoarding near the end."""
ID_CHARS_MAX: Final = 100
OWN_IDS: Final = ("grant:", "expiry:")
"""How ids begin that the ledger makes up beforehand: a payment with one of them would keep a team from its month's credit."""
STUCK_AFTER_US: Final = 600 * 1_000_000
"""Gateways sweep what ran out every half a minute; what is there so long after is stuck."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How far a team may go. monthly_grant: ticks of free credit each month. cap: ticks that it may owe."""

    monthly_grant: int = 0
    cap: int = 0


@dataclass(frozen=True, slots=True)
class Taken:
    """What a gateway got. ticks: 0 where the credit doesn't cover the least it wanted. available: what there was before.

    lost: the reserve that was to be enlarged is not there any more.
    """

    ticks: int
    available: int
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """A team's accounts now. reserved: ticks that gateways have set aside, so at most that much is in use."""

    balance: Balance
    reserved: int


# ----------------------------------------------------------------------------------------------------------- reserves


def take(
    conn: Connection,
    *,
    reserve_id: str,
    team_id: str,
    gateway: str,
    fresh: bool,
    least: int,
    wanted: int,
    terms: Terms,
    now_us: int,
    lease_us: int,
) -> Taken:
    """Enlarges a gateway's reserve, or makes it (`fresh`): by `wanted` ticks or a good deal more, near the end by what is left,
    and by nothing where that is less than `least`."""
    balance = ledger.turn_month(conn, ledger.locked(conn, team_id), ledger.month_of(now_us), terms.monthly_grant)
    conn.execute(reserves.delete().where(reserves.c.team_id == team_id, reserves.c.expires_us <= now_us))
    reserved = _reserved(conn, team_id, now_us)
    available = balance.credit + terms.cap - reserved
    if available < least:
        return Taken(0, available)
    ticks = min(available, max(wanted, available // CHUNK))
    until_us = now_us + lease_us
    if fresh:
        conn.execute(
            reserves.insert().values(id=reserve_id, team_id=team_id, gateway=gateway, ticks=ticks, expires_us=until_us)
        )
    elif not conn.execute(
        reserves.update().where(reserves.c.id == reserve_id).values(ticks=reserves.c.ticks + ticks, expires_us=until_us)
    ).rowcount:
        return Taken(0, available, lost=True)
    return Taken(ticks, available)


def draw(conn: Connection, rows: Iterable[UsageRow]) -> None:
    """Takes what requests cost off the reserves that it was held in. One that ran out meanwhile is not there any more."""
    drawn: dict[str, int] = {}
    for row in rows:
        if row.reserve_id is not None and row.drawn_ticks:
            drawn[row.reserve_id] = drawn.get(row.reserve_id, 0) + row.drawn_ticks
    if drawn:  # in one order everywhere: two gateways never wait for each other in a circle
        mark = driver.marks(conn, 1)
        statement = f"UPDATE reserves SET ticks = ticks - {mark} WHERE id = {mark}"  # noqa: S608  no value of anybody's
        driver.execute(conn, statement, [(drawn[reserve_id], reserve_id) for reserve_id in sorted(drawn)])


def give_back(conn: Connection, reserve_id: str, ticks: int) -> None:
    """Makes a reserve smaller by what no request needs."""
    conn.execute(reserves.update().where(reserves.c.id == reserve_id).values(ticks=reserves.c.ticks - ticks))


def close(conn: Connection, reserve_ids: list[str]) -> None:
    """Ends reserves: all that is left in them goes back."""
    if reserve_ids:
        conn.execute(reserves.delete().where(reserves.c.id.in_(reserve_ids)))


def close_gateway(conn: Connection, gateway: str) -> None:
    """Ends all reserves of a gateway that is dead. A transaction of its last moment may still be on its way, on PostgreSQL: it has
    its reserves' rows locked by the time that it can commit, so this waits, and what it draws is never free meanwhile."""
    conn.execute(reserves.delete().where(reserves.c.gateway == gateway))


def renew(conn: Connection, reserve_ids: list[str], *, now_us: int, lease_us: int) -> set[str]:
    """Holds reserves for longer, and returns those that were not lost meanwhile."""
    renewed = set()
    for reserve_id in sorted(reserve_ids):
        if conn.execute(
            reserves.update()
            .where(reserves.c.id == reserve_id, reserves.c.expires_us > now_us)
            .values(expires_us=now_us + lease_us)
        ).rowcount:
            renewed.add(reserve_id)
    return renewed


def sweep(conn: Connection, now_us: int) -> int:
    """Deletes reserves of gateways that died, and returns how many."""
    return conn.execute(reserves.delete().where(reserves.c.expires_us <= now_us)).rowcount


def _reserved(conn: Connection, team_id: str, now_us: int) -> int:
    open_ = sa.select(sa.func.sum(reserves.c.ticks)).where(
        reserves.c.team_id == team_id, reserves.c.expires_us > now_us
    )
    return int(conn.scalar(open_) or 0)


# -------------------------------------------------------------------------------------------------------------- credit


Booking: TypeAlias = Literal["add", "pay", "refund"]
"""A team pays in advance, pays what it owes, or gets prepaid credit back."""
_BOOKED: Final[dict[Booking, tuple[Kind, Account, Account]]] = {
    "add": ("purchase", "cash", "prepaid"),
    "pay": ("payment", "cash", "receivable"),
    "refund": ("refund", "prepaid", "cash"),
}


def book(
    conn: Connection,
    booking: Booking,
    *,
    team_id: str,
    ticks: int,
    now_us: int,
    note: str | None = None,
    id: str | None = None,
) -> tuple[Transfer, bool]:
    """Moves a team's credit by hand; and whether this call did it.

    id: an idempotency key of the caller's; a second call with it changes nothing, and returns the first.

    Raises `BadRequest` for an amount that is none, for an id that is another transfer's, and for a refund of more than is left
    and not set aside for requests.
    """
    if id is not None and (not 0 < len(id) <= ID_CHARS_MAX or id.startswith(OWN_IDS)):
        raise BadRequest(
            f"The id of a payment has 1 to {ID_CHARS_MAX} characters, and does not begin with {' or '.join(OWN_IDS)}.",
            param="id",
        )
    kind, debit, credit = _BOOKED[booking]
    # Turned first: what is left of last month's grant covers no reserve any more, so prepaid credit must.
    left = ledger.turn_month(conn, ledger.locked(conn, team_id), ledger.month_of(now_us))
    made = Transfer(id or f"{kind}:{uuid.uuid4()}", team_id, debit, credit, ticks, kind, now_us, note)
    found = None if id is None else ledger.find(conn, id)
    if found is not None:
        if (found.team_id, found.kind, found.ticks) != (team_id, kind, ticks):
            raise BadRequest(f"The id `{id}` is that of another payment already.", param="id", code="id_taken")
        return found, False
    if booking == "refund" and ticks > (free := min(left.prepaid, left.credit - _reserved(conn, team_id, now_us))):
        raise BadRequest(f"Only {exact_usd(max(0, free))} USD of prepaid credit can be refunded.", param="amount")
    if not ledger.post(conn, made):  # of another team, at the same moment
        raise BadRequest(f"The id `{id}` is that of another payment already.", param="id", code="id_taken")
    return made, True


def standing(conn: Connection, team_id: str, *, now_us: int, monthly_grant: int | None = None) -> Standing:
    """Where a team stands, its month turned where that is due."""
    month = ledger.month_of(now_us)
    balance = ledger.turn_month(conn, ledger.locked(conn, team_id), month, monthly_grant)
    return Standing(balance, _reserved(conn, team_id, now_us))


# --------------------------------------------------------------------------------------------------------- reconciling


def charge_missing(conn: Connection, *, limit: int = 10_000) -> int:
    """Charges up to `limit` usage rows that were not, and returns how many: a gateway of before the ledger wrote them."""
    posted = sa.exists().where(transfers.c.id == usage.c.request_id)
    rows = conn.execute(
        sa.select(usage.c.request_id, usage.c.team_id, usage.c.cost_in_usd_ticks, usage.c.created_us)
        .where(usage.c.cost_in_usd_ticks > 0, ~posted)
        .limit(limit)
    ).all()
    if rows:
        ledger.post_usage(conn, [Used(*row) for row in rows])
    return len(rows)


def reconcile(conn: Connection, now_us: int) -> list[Mismatch]:
    """Everything that the books, the usage rows and the reserves do not agree on; nothing is the right answer. Only reads.

    Usage rows may be deleted after a while, the ledger never is: what is older than the oldest row is not compared, nor what
    retention got to. Belongs into `Store.read`, whose statements all see the same moment.
    """
    return [*ledger.mismatches(conn), *_of_usage(conn), *_of_months(conn), *_of_reserves(conn, now_us)]


def _of_usage(conn: Connection) -> Iterable[Mismatch]:
    deleted_us = rollups.deleted_before(conn)
    since_us = max(deleted_us, conn.scalar(sa.select(sa.func.min(usage.c.created_us))) or 0)
    charged = _by_team(
        conn, transfers.c.team_id, transfers.c.ticks, transfers.c.kind == "usage", transfers.c.created_us >= since_us
    )
    cost = _by_team(conn, usage.c.team_id, usage.c.cost_in_usd_ticks, usage.c.created_us >= since_us)
    for team_id in sorted(charged.keys() | cost.keys()):
        expected, found = cost.get(team_id, 0), charged.get(team_id, 0)
        if expected != found:
            yield Mismatch("what was charged is what the usage rows cost", team_id, expected, found)
    posted = sa.exists().where(transfers.c.id == usage.c.request_id)
    missing = conn.scalar(sa.select(sa.func.count()).select_from(usage).where(usage.c.cost_in_usd_ticks > 0, ~posted))
    if missing:
        yield Mismatch("every usage row that costs something was charged", "", 0, missing)


def _of_months(conn: Connection) -> Iterable[Mismatch]:
    revenue = _by_team(conn, transfers.c.team_id, transfers.c.ticks, transfers.c.kind == "usage")
    for row in conn.execute(sa.select(balances.c.team_id, balances.c.revenue_ticks)):
        if row.revenue_ticks != revenue.get(row.team_id, 0):
            yield Mismatch("revenue is what usage cost", row.team_id, revenue.get(row.team_id, 0), row.revenue_ticks)


def _of_reserves(conn: Connection, now_us: int) -> Iterable[Mismatch]:
    for row in conn.execute(sa.select(reserves).order_by(reserves.c.id)):
        if row.ticks < 0:
            yield Mismatch("no reserve is below zero", row.team_id, 0, row.ticks)
        if row.expires_us + STUCK_AFTER_US < now_us:
            yield Mismatch("no credit is stuck in a reserve that ran out", row.team_id, 0, row.ticks)


def _by_team(
    conn: Connection, team: sa.Column[str], ticks: sa.Column[int], *which: sa.ColumnElement[bool]
) -> dict[str, int]:
    query = sa.select(team, sa.func.sum(ticks)).where(*which).group_by(team)
    return {team_id: int(total) for team_id, total in conn.execute(query) if total}
