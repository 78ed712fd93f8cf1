"""The ledger: who has what, who owes what, and why. Append-only, in whole ticks.

A transfer moves ticks from one account (its debit) to another (its credit), so nothing can come in or go out on one side only.
Each team has six accounts of its own; a balance is credits less debits:

    grant        left of the month's free credit; never below zero
    prepaid      left of what the team paid in advance; never below zero
    receivable   what the team owes, as a negative number
    revenue      what its requests cost
    cash         what it paid, as a negative number
    promo        free credit that it got and that did not expire, as a negative number

All accounts are kept per team, those of the platform too: a single account for all revenue would be one row that every gateway
waits for. `balances` holds them beside the transfers, is changed in the same transaction, and `reconcile` proves the two equal.

Every function takes a connection, and belongs into a transaction of whoever calls it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, NamedTuple, TypeAlias

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jubal.accounts import driver
from jubal.accounts.tables import balances, transfers
from jubal.accounts.upserts import insert_into
from jubal.core.errors import BadRequest
from jubal.core.money import exact_usd

Account: TypeAlias = Literal["grant", "prepaid", "receivable", "revenue", "cash", "promo"]
Kind: TypeAlias = Literal["usage", "grant", "expiry", "purchase", "refund", "payment", "adjustment"]

ACCOUNTS: Final[tuple[Account, ...]] = ("grant", "prepaid", "receivable", "revenue", "cash", "promo")
PAYS: Final[tuple[Account, ...]] = ("grant", "prepaid", "receivable")
"""Which account pays first (xai-api.md 21.3, "Credit order"). The last one takes any amount."""
TICKS_MAX: Final = 2**62
"""Of one transfer, and of an account before requests are charged to it: the store's integers have 63 bits."""


class Transfer(NamedTuple):
    """`ticks` from `debit` to `credit`. id: no second transfer has it, so one that is posted again changes nothing."""

    id: str
    team_id: str
    debit: Account
    credit: Account
    ticks: int
    kind: Kind
    created_us: int
    note: str | None = None


class Used(NamedTuple):
    """What a request cost. ticks > 0. created_us: when it ended."""

    request_id: str
    team_id: str
    ticks: int
    created_us: int


@dataclass(frozen=True, slots=True)
class Balance:
    """A team's accounts. month: the UTC month they are in, as 202611. spent: usage of that month. All in ticks."""

    team_id: str
    grant: int = 0
    prepaid: int = 0
    receivable: int = 0
    revenue: int = 0
    cash: int = 0
    promo: int = 0
    month: int = 0
    monthly_grant: int = 0
    spent: int = 0

    @property
    def credit(self) -> int:
        """What is left to use before anything is owed; below zero: what is owed."""
        return self.grant + self.prepaid + self.receivable


# ------------------------------------------------------------------------------------------------------------ posting


def post(conn: Connection, transfer: Transfer) -> bool:
    """Adds a transfer. False where there is one with its id already: then nothing changes.

    Raises `BadRequest` where its ticks are not 1..2**62, or an account would come to more.
    """
    if not 0 < transfer.ticks <= TICKS_MAX:
        raise _too_much(f"An amount must be more than 0 and at most {exact_usd(TICKS_MAX)} USD")
    before = locked(conn, transfer.team_id)
    adding = insert_into(conn, transfers).values(transfer._asdict()).on_conflict_do_nothing().returning(transfers.c.id)
    if conn.execute(adding).first() is None:
        return False
    if max(-getattr(before, transfer.debit), getattr(before, transfer.credit)) + transfer.ticks > TICKS_MAX:
        raise _too_much(f"A team's account holds at most {exact_usd(TICKS_MAX)} USD")
    debit, credit = _column(transfer.debit), _column(transfer.credit)
    conn.execute(
        balances.update()
        .where(balances.c.team_id == transfer.team_id)
        .values({debit: debit - transfer.ticks, credit: credit + transfer.ticks})
    )
    return True


def _too_much(rule: str) -> BadRequest:
    return BadRequest(f"{rule}.", param="amount")


def post_usage(conn: Connection, used: Sequence[Used]) -> None:
    """Charges requests, none of which was charged before, to what their teams have: first what expires, last what is owed.

    The hot path: one row of balances is changed per team and one list of transfers inserted, whatever the number of requests.
    """
    by_team: dict[str, list[Used]] = {}
    for one in used:
        by_team.setdefault(one.team_id, []).append(one)
    posted: list[Transfer] = []
    for team_id in sorted(by_team):  # in one order everywhere: two gateways never wait for each other in a circle
        posted += _charge(conn, team_id, by_team[team_id])
    driver.insert(conn, "transfers", Transfer._fields, posted)


def _charge(conn: Connection, team_id: str, used: list[Used]) -> list[Transfer]:
    """The transfers of one team's requests, whose sum is taken off its accounts already."""
    total = sum(one.ticks for one in used)
    month = month_of(max(one.created_us for one in used))
    for account in reversed(PAYS):  # most teams have no credit, and owe
        if _pays_alone(conn, account, team_id, month, total):
            return [
                Transfer(one.request_id, team_id, account, "revenue", one.ticks, "usage", one.created_us)
                for one in used
            ]
    balance = turn_month(conn, locked(conn, team_id), month)
    left = {"grant": balance.grant, "prepaid": balance.prepaid}
    posted = [piece for one in used for piece in _pieces(one, left)]
    paid = {account: sum(piece.ticks for piece in posted if piece.debit == account) for account in PAYS}
    changed = {_column(account): _column(account) - ticks for account, ticks in paid.items()}
    conn.execute(
        balances.update()
        .where(balances.c.team_id == team_id)
        .values(
            changed
            | {
                balances.c.revenue_ticks: balances.c.revenue_ticks + total,
                balances.c.spent_ticks: balances.c.spent_ticks + total,
            }
        )
    )
    return posted


PAYS_ALONE: Final[dict[Account, str]] = {
    "grant": "grant_ticks >= {mark}",
    "prepaid": "grant_ticks <= 0 AND prepaid_ticks >= {mark}",
    "receivable": "grant_ticks <= 0 AND prepaid_ticks <= 0",
}
"""When one account pays for all of so many ticks: no two of these fit the same team."""


def _pays_alone(conn: Connection, account: Account, team_id: str, month: int, total: int) -> bool:
    """Takes all of `total` off one account where that is the one to pay, in the month that the team's accounts are in. So it nearly
    always is; only where an account is used up in the middle, or a month begins, has more to be known."""
    mark = driver.marks(conn, 1)
    statement = (
        f"UPDATE balances SET {account}_ticks = {account}_ticks - {mark}, revenue_ticks = revenue_ticks + {mark}, "  # noqa: S608
        f"spent_ticks = spent_ticks + {mark} WHERE team_id = {mark} AND month >= {mark} AND {PAYS_ALONE[account]}"
    )
    statement = statement.format(mark=mark)
    parameters = (total, total, total, team_id, month, total)[: statement.count(mark)]
    return driver.execute(conn, statement, parameters) > 0


def _pieces(one: Used, left: dict[str, int]) -> list[Transfer]:
    """One request's transfers. left: what the accounts that can be used up hold; it is less afterwards.

    The first has the request's id, further ones that with /2 and /3.
    """
    pieces: list[Transfer] = []
    open_ticks = one.ticks
    for account in PAYS:
        ticks = min(open_ticks, max(0, left[account])) if account in left else open_ticks
        if not ticks:
            continue
        if account in left:
            left[account] -= ticks
        open_ticks -= ticks
        name = f"{one.request_id}/{len(pieces) + 1}" if pieces else one.request_id
        pieces.append(Transfer(name, one.team_id, account, "revenue", ticks, "usage", one.created_us))
    return pieces


def make_room(conn: Connection, team_id: str) -> None:
    """A team's row of balances, where there is none."""
    conn.execute(insert_into(conn, balances).values(team_id=team_id).on_conflict_do_nothing())


def locked(conn: Connection, team_id: str) -> Balance:
    """A team's balance, which nobody else changes before the end of the transaction."""
    query = sa.select(balances).where(balances.c.team_id == team_id).with_for_update()
    row = conn.execute(query).one_or_none()
    if row is None:
        make_room(conn, team_id)
        row = conn.execute(query).one()
    return _balance(row)


def read(conn: Connection, team_id: str) -> Balance:
    """A team's balance as it was when something changed it last: a month that has ended since is not turned."""
    row = conn.execute(sa.select(balances).where(balances.c.team_id == team_id)).one_or_none()
    return Balance(team_id) if row is None else _balance(row)


def _balance(row: sa.Row[tuple[object, ...]]) -> Balance:
    return Balance(
        row.team_id,
        **{account: getattr(row, f"{account}_ticks") for account in ACCOUNTS},
        month=row.month,
        monthly_grant=row.monthly_grant_ticks,
        spent=row.spent_ticks,
    )


# ------------------------------------------------------------------------------------------------------------- months


def turn_month(conn: Connection, balance: Balance, month: int, monthly_grant: int | None = None) -> Balance:
    """Brings a locked balance into `month`: what is left of the old grant expires, and the new one is given.

    monthly_grant: ticks that the team gets each month from now on; None: as before. Once a month, whoever comes first; a month
    that is over never comes back, so a request that ended just before its end is charged to the next one.
    """
    wanted = balance.monthly_grant if monthly_grant is None else monthly_grant
    turns = month > balance.month
    if not turns and wanted == balance.monthly_grant:
        return balance
    month = max(month, balance.month)
    now_us = first_us(month)
    conn.execute(
        balances.update()
        .where(balances.c.team_id == balance.team_id)
        .values(month=month, monthly_grant_ticks=wanted, **({"spent_ticks": 0} if turns else {}))
    )
    if turns and balance.grant > 0:
        ended = f"expiry:{balance.team_id}:{balance.month}"
        post(conn, Transfer(ended, balance.team_id, "grant", "promo", balance.grant, "expiry", now_us))
    if wanted > 0:
        given = f"grant:{balance.team_id}:{month}"
        post(conn, Transfer(given, balance.team_id, "promo", "grant", wanted, "grant", now_us))
    return locked(conn, balance.team_id)


def month_of(us: int) -> int:
    """The UTC month of microseconds since 1970, as 202611."""
    moment = datetime.fromtimestamp(us // 1_000_000, UTC)
    return moment.year * 100 + moment.month


def first_us(month: int) -> int:
    """When a UTC month begins, in microseconds since 1970."""
    return int(datetime(month // 100, month % 100, 1, tzinfo=UTC).timestamp()) * 1_000_000


def next_month(month: int) -> int:
    """The one after, as 202701."""
    return month + 1 if month % 100 < 12 else month + 89


# ------------------------------------------------------------------------------------------------------------ reading


def history(conn: Connection, team_id: str, *, limit: int = 1000, usage: bool = True) -> list[Transfer]:
    """The newest `limit` transfers of a team, newest last. usage: those of requests too."""
    query = sa.select(transfers).where(transfers.c.team_id == team_id)
    if not usage:
        query = query.where(transfers.c.kind != "usage")
    newest = query.order_by(transfers.c.created_us.desc(), transfers.c.id.desc()).limit(limit)
    return [Transfer(**row) for row in conn.execute(newest).mappings()][::-1]


def sums(conn: Connection, team_id: str, begin_us: int, end_us: int) -> dict[tuple[str, str], int]:
    """Ticks of a team's transfers from `begin_us` on and before `end_us`, by kind and the account that they were taken from."""
    query = (
        sa.select(transfers.c.kind, transfers.c.debit, sa.func.sum(transfers.c.ticks))
        .where(transfers.c.team_id == team_id, transfers.c.created_us >= begin_us, transfers.c.created_us < end_us)
        .group_by(transfers.c.kind, transfers.c.debit)
    )
    return {(kind, debit): int(ticks) for kind, debit, ticks in conn.execute(query)}


def find(conn: Connection, transfer_id: str) -> Transfer | None:
    """The transfer of this id, of whatever team."""
    row = conn.execute(sa.select(transfers).where(transfers.c.id == transfer_id)).mappings().one_or_none()
    return None if row is None else Transfer(**row)


def _column(account: str) -> sa.Column[int]:
    found: sa.Column[int] = balances.c[f"{account}_ticks"]
    return found


# -------------------------------------------------------------------------------------------------------- reconciling


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Two figures that should be equal and are not. what: in words. team_id: whose; "" for all."""

    what: str
    team_id: str
    expected: int
    found: int


def mismatches(conn: Connection) -> list[Mismatch]:
    """What the books do not agree on; nothing is the right answer. Only reads.

    1. the accounts of each team sum to zero; 2. each is the sum of its transfers; 3. no credit is below zero.
    """
    moved: dict[str, dict[str, int]] = {}
    for side, sign in ((transfers.c.debit, -1), (transfers.c.credit, 1)):
        for team_id, account, ticks in conn.execute(
            sa.select(transfers.c.team_id, side, sa.func.sum(transfers.c.ticks)).group_by(transfers.c.team_id, side)
        ):
            accounts = moved.setdefault(team_id, {})
            accounts[account] = accounts.get(account, 0) + sign * int(ticks)
    kept = {row.team_id: _balance(row) for row in conn.execute(sa.select(balances))}
    return [one for team_id in sorted(moved.keys() | kept.keys()) for one in _of_team(team_id, moved, kept)]


def _of_team(team_id: str, moved: dict[str, dict[str, int]], kept: dict[str, Balance]) -> Iterable[Mismatch]:
    balance = kept.get(team_id, Balance(team_id))
    accounts: dict[str, int] = {account: getattr(balance, account) for account in ACCOUNTS}
    if sum(accounts.values()):
        yield Mismatch("the accounts of a team sum to zero", team_id, 0, sum(accounts.values()))
    of_transfers = moved.get(team_id, {})
    for account in sorted(accounts.keys() | of_transfers.keys()):
        expected, found = of_transfers.get(account, 0), accounts.get(account, 0)
        if expected != found:
            yield Mismatch(f"the balance of {account} is the sum of its transfers", team_id, expected, found)
    for account in ("grant", "prepaid"):
        if accounts[account] < 0:
            yield Mismatch(f"the balance of {account} is not below zero", team_id, 0, accounts[account])
