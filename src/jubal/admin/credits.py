"""What is booked for teams by hand: payments, refunds, prices of their own. All of it is for the operator."""

from __future__ import annotations

import json

from sqlalchemy.engine import Connection

from jubal.accounts import credits, prices, teams
from jubal.accounts.credits import Booking
from jubal.accounts.ledger import Transfer
from jubal.accounts.prices import PriceTerms
from jubal.admin.actor import Actor, note


def move(
    conn: Connection,
    actor: Actor,
    kind: Booking,
    team_id: str,
    ticks: int,
    *,
    text: str | None = None,
    id: str | None = None,
    now_us: int,
) -> Transfer:
    """A team pays in advance (add), pays what it owes (pay), or gets prepaid credit back (refund). text: what for.

    id: an idempotency key: what was booked before is told again, and written down once.

    Raises `NotAllowed`, `NotFound`, `BadRequest` for an amount that is none or too much.
    """
    actor.demand_operator("book payments")
    teams.get(conn, team_id)
    made, new = credits.book(conn, kind, team_id=team_id, ticks=ticks, now_us=now_us, note=text, id=id)
    if not new:
        return made
    after = {"ticks": ticks, "note": text}
    note(conn, actor, f"credits.{kind}", "transfer", made.id, team_id=team_id, after=after, now_us=now_us)
    return made


def charge_missing(conn: Connection, actor: Actor, *, now_us: int) -> int:
    """Charges requests that an older release's gateway did not, and returns how many. Raises `NotAllowed`."""
    actor.demand_operator("charge requests")
    charged = credits.charge_missing(conn)
    if charged:
        after = {"requests": charged}
        note(conn, actor, "credits.charge_missing", "usage", "", team_id=None, after=after, now_us=now_us)
    return charged


def set_price(conn: Connection, actor: Actor, team_id: str, model: str, terms: PriceTerms, *, now_us: int) -> None:
    """What a team pays for a model in place of the list price. Raises `NotAllowed`, `NotFound`, `BadRequest`."""
    actor.demand_operator("set prices")
    teams.locked(conn, team_id)
    before = _price(conn, team_id, model)
    prices.put(conn, team_id, model, terms, now_us=now_us)
    after = json.loads(prices.encode(terms))
    note(conn, actor, "prices.set", "price", model, team_id=team_id, before=before, after=after, now_us=now_us)


def remove_price(conn: Connection, actor: Actor, team_id: str, model: str, *, now_us: int) -> None:
    """The list price holds again. Raises `NotAllowed`, `NotFound`."""
    actor.demand_operator("set prices")
    before = _price(conn, team_id, model)
    prices.remove(conn, team_id, model)
    note(conn, actor, "prices.remove", "price", model, team_id=team_id, before=before, now_us=now_us)


def _price(conn: Connection, team_id: str, model: str) -> dict[str, object] | None:
    teams.get(conn, team_id)
    for _, name, terms in prices.listing(conn, team_id):
        if name == model:
            return dict(json.loads(prices.encode(terms)))
    return None
