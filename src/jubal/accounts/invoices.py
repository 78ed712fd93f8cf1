"""Invoices: a team's month, line by line, equal to the ledger to the tick."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jubal.accounts import itemised, ledger, teams
from jubal.accounts.itemised import Line
from jubal.accounts.tables import billing_info, transfers, usage
from jubal.core.errors import BadRequest
from jubal.core.money import exact_usd

TOKEN_KINDS: Final[tuple[tuple[str, sa.ColumnElement[int], sa.Column[int]], ...]] = (
    (itemised.INPUT, usage.c.prompt_tokens - sa.func.coalesce(usage.c.cached_tokens, 0), usage.c.input_ticks),
    (itemised.CACHED, sa.func.coalesce(usage.c.cached_tokens, 0), usage.c.cached_input_ticks),
    (itemised.OUTPUT, usage.c.completion_tokens, usage.c.output_ticks),
    (itemised.REASONING, usage.c.reasoning_tokens, usage.c.reasoning_ticks),
)
ORDER: Final = (*(what for what, _, _ in TOKEN_KINDS), itemised.REQUESTS)
"""Of the lines of a model. Those of tools come after all of them."""


@dataclass(frozen=True, slots=True)
class Invoice:
    """One team's UTC month. month: as 202611. total: of all lines, and of the ledger's usage.

    from_grant, from_prepaid, on_account: how it was paid; the last is due. requests: how many cost something.
    open: what of the due is not paid yet; payments are for what was due first. billed_to: as the team said (xai-api.md 21.3).
    granted, expired, purchased, refunded, paid: what else moved.
    """

    team_id: str
    team: str
    month: int
    requests: int
    lines: tuple[Line, ...]
    total: int
    from_grant: int
    from_prepaid: int
    on_account: int
    granted: int = 0
    expired: int = 0
    purchased: int = 0
    refunded: int = 0
    paid: int = 0
    open: int = 0
    billed_to: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.month // 100}-{self.month % 100:02}"


def parse_month(text: str) -> int:
    """`2026-11` as 202611. Raises `BadRequest`."""
    year, _, month = text.partition("-")
    if not (year.isascii() and year.isdigit() and len(year) == 4 and month.isascii() and month.isdigit()):
        raise _no_month(text)
    if not (1970 <= int(year) <= 9998 and 1 <= int(month) <= 12):
        raise _no_month(text)
    return int(year) * 100 + int(month)


def _no_month(text: str) -> BadRequest:
    return BadRequest(f"A month is written as in 2026-11; got `{text[:50]}`.", param="month")


def months(conn: Connection, team_id: str) -> list[int]:
    """The months in which anything moved, oldest first."""
    first, last = conn.execute(
        sa.select(sa.func.min(transfers.c.created_us), sa.func.max(transfers.c.created_us)).where(
            transfers.c.team_id == team_id
        )
    ).one()
    found: list[int] = []
    if first is None:
        return found
    month, end = ledger.month_of(first), ledger.month_of(last)
    while month <= end:
        some = sa.select(transfers.c.id).where(transfers.c.team_id == team_id, *_within(transfers.c.created_us, month))
        if conn.execute(some.limit(1)).first() is not None:
            found.append(month)
        month = ledger.next_month(month)
    return found


def build(conn: Connection, team_id: str, month: int) -> Invoice:
    """The invoice of a month, over or not. Raises `NotFound` for the team."""
    team = teams.get(conn, team_id)
    moved = ledger.sums(conn, team_id, ledger.first_us(month), ledger.first_us(ledger.next_month(month)))
    total = sum(ticks for (kind, _), ticks in moved.items() if kind == "usage")
    kept = itemised.kept(conn, team_id, month)
    lines = _merged([*_token_lines(conn, team_id, month), *_tool_lines(conn, team_id, month), *kept])
    if rest := total - sum(line.ticks for line in lines):
        # Requests of releases that did not itemise, or that deleted usage rows without keeping what they said.
        lines.append(Line("", "requests that are not itemised", 0, rest))

    def of(kind: str, debit: str) -> int:
        return moved.get((kind, debit), 0)

    return Invoice(
        team.id,
        team.name,
        month,
        _requests(conn, team_id, month) + sum(line.quantity for line in kept if line.what == itemised.CHARGED),
        tuple(lines),
        total,
        of("usage", "grant"),
        of("usage", "prepaid"),
        of("usage", "receivable"),
        of("grant", "promo"),
        of("expiry", "grant"),
        of("purchase", "cash"),
        of("refund", "prepaid"),
        of("payment", "cash"),
        _open(conn, team_id, month, of("usage", "receivable")),
        _billed_to(conn, team_id),
    )


def _open(conn: Connection, team_id: str, month: int, due: int) -> int:
    """What of a month's due is not paid: what the team owes now, less what came due after that month."""
    later = ledger.sums(conn, team_id, ledger.first_us(ledger.next_month(month)), ledger.TICKS_MAX)
    owed = -ledger.read(conn, team_id).receivable - later.get(("usage", "receivable"), 0)
    return max(0, min(due, owed))


def _billed_to(conn: Connection, team_id: str) -> dict[str, Any]:
    found = conn.scalar(sa.select(billing_info.c.info).where(billing_info.c.team_id == team_id))
    return {} if found is None else dict(json.loads(found))


def _merged(lines: list[Line]) -> list[Line]:
    """One line for each model and what it gave: tokens by model, then tools by model."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for model, what, quantity, ticks in lines:
        if what != itemised.CHARGED:
            before = found.get((model, what), (0, 0))
            found[model, what] = before[0] + quantity, before[1] + ticks

    def place(one: tuple[str, str]) -> tuple[bool, str, int, str]:
        model, what = one
        return (what not in ORDER, model, ORDER.index(what) if what in ORDER else 0, what)

    return [Line(*one, *found[one]) for one in sorted(found, key=place)]


def _token_lines(conn: Connection, team_id: str, month: int) -> list[Line]:
    sums = [sa.func.sum(column) for _, quantity, ticks in TOKEN_KINDS for column in (quantity, ticks)]
    flat = sa.func.sum(sa.case((usage.c.request_ticks > 0, 1), else_=0))
    query = (
        sa.select(usage.c.model, flat, sa.func.sum(usage.c.request_ticks), *sums)
        .where(
            usage.c.team_id == team_id,
            usage.c.cost_in_usd_ticks > 0,
            usage.c.input_ticks.is_not(None),
            *_within(usage.c.created_us, month),
        )
        .group_by(usage.c.model)
        .order_by(usage.c.model)
    )
    lines = []
    for model, requests, request_ticks, *rest in conn.execute(query):
        pairs = zip(TOKEN_KINDS, rest[::2], rest[1::2], strict=True)
        lines += [Line(model, what, int(quantity or 0), int(ticks or 0)) for (what, _, _), quantity, ticks in pairs]
        lines.append(Line(model, itemised.REQUESTS, int(requests or 0), int(request_ticks or 0)))
    return [line for line in lines if line.quantity]


def _tool_lines(conn: Connection, team_id: str, month: int) -> list[Line]:
    query = sa.select(usage.c.model, usage.c.tools).where(
        usage.c.team_id == team_id,
        usage.c.tools.is_not(None),
        usage.c.cost_in_usd_ticks > 0,
        *_within(usage.c.created_us, month),
    )
    return [
        Line(row.model, itemised.calls_of(tool), calls, ticks)
        for row in conn.execute(query)
        for tool, (calls, ticks) in json.loads(row.tools).items()
    ]


def _requests(conn: Connection, team_id: str, month: int) -> int:
    query = sa.select(sa.func.count()).where(
        usage.c.team_id == team_id, usage.c.cost_in_usd_ticks > 0, *_within(usage.c.created_us, month)
    )
    return conn.scalar(query) or 0


def _within(column: sa.Column[int], month: int) -> tuple[sa.ColumnElement[bool], ...]:
    return column >= ledger.first_us(month), column < ledger.first_us(ledger.next_month(month))


# ------------------------------------------------------------------------------------------------------------ rendering


def as_json(invoice: Invoice) -> dict[str, Any]:
    """Every amount as exact ticks, and as USD to read."""
    amounts = {
        "total": invoice.total,
        "from_grant": invoice.from_grant,
        "from_prepaid": invoice.from_prepaid,
        "due": invoice.on_account,
        "granted": invoice.granted,
        "expired": invoice.expired,
        "purchased": invoice.purchased,
        "refunded": invoice.refunded,
        "paid": invoice.paid,
        "open": invoice.open,
    }
    return {
        "team_id": invoice.team_id,
        "team": invoice.team,
        "month": invoice.name,
        "billed_to": dict(invoice.billed_to),
        "currency": "USD",
        "requests": invoice.requests,
        "lines": [
            {
                "model": line.model,
                "description": line.what,
                "quantity": line.quantity,
                "ticks": line.ticks,
                "usd": exact_usd(line.ticks),
            }
            for line in invoice.lines
        ],
        **{f"{name}_ticks": ticks for name, ticks in amounts.items()},
        **{f"{name}_usd": exact_usd(ticks) for name, ticks in amounts.items()},
    }


def as_csv(invoice: Invoice) -> str:
    """One row per line, and the total at the end."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("team", "month", "model", "description", "quantity", "usd", "ticks"))
    for line in invoice.lines:
        writer.writerow(
            (
                _cell(invoice.team),
                invoice.name,
                _cell(line.model),
                line.what,
                line.quantity,
                exact_usd(line.ticks),
                line.ticks,
            )
        )
    writer.writerow((_cell(invoice.team), invoice.name, "", "total", "", exact_usd(invoice.total), invoice.total))
    return out.getvalue()


def _cell(text: str) -> str:
    """A name that a spreadsheet does not take for a formula."""
    return f"'{text}" if text[:1] in "=+-@\t\r" else text


_STYLE: Final = (
    "body{font:14px/1.5 system-ui,sans-serif;max-width:52rem;margin:3rem auto;padding:0 1rem;color:#111}"
    "table{border-collapse:collapse;width:100%;margin:1.5rem 0}th,td{padding:.35rem .6rem;text-align:left;"
    "border-bottom:1px solid #ddd}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}"
    "tfoot td{font-weight:600;border-top:2px solid #111}dl{display:grid;grid-template-columns:max-content auto;gap:.2rem 1.5rem}"
    "dd{margin:0;text-align:right;max-width:12rem}@media print{body{margin:0;max-width:none}}"
)


def as_html(invoice: Invoice) -> str:
    """A page of its own, without scripts and without anything to load, ready to print."""
    rows = "".join(
        f"<tr><td>{html.escape(line.model)}</td><td>{html.escape(line.what)}</td>"
        f'<td class="n">{line.quantity:,}</td><td class="n">{exact_usd(line.ticks)}</td></tr>'
        for line in invoice.lines
    )
    paid = (
        ("Free monthly credit", invoice.from_grant),
        ("Prepaid credit", invoice.from_prepaid),
        ("Due", invoice.on_account),
        ("Not paid yet", invoice.open),
    )
    facts = "".join(f"<dt>{what}</dt><dd>{exact_usd(ticks)} USD</dd>" for what, ticks in paid)
    title = f"Invoice {invoice.name}, {html.escape(invoice.team)}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head>\n'
        f"<body><h1>Invoice {invoice.name}</h1>{_address(invoice.billed_to)}<p>{html.escape(invoice.team)}<br>"
        f"Team {html.escape(invoice.team_id)}<br>"
        f"{invoice.requests:,} requests, in UTC months</p>\n"
        '<table><thead><tr><th>Model</th><th>Description</th><th class="n">Quantity</th><th class="n">USD</th></tr></thead>\n'
        f'<tbody>{rows}</tbody>\n<tfoot><tr><td>Total</td><td></td><td></td><td class="n">{exact_usd(invoice.total)}</td></tr>'
        f"</tfoot></table>\n<h2>Paid from</h2><dl>{facts}</dl></body></html>\n"
    )


def _address(billed_to: Mapping[str, Any]) -> str:
    """Whom the invoice is for, line by line; nothing where nobody said."""
    place: Mapping[str, str] = billed_to.get("address", {})
    town = f"{place.get('postalCode', '')} {place.get('city', '')}".strip()
    parts = [billed_to.get("name", ""), place.get("line1", ""), place.get("line2", ""), town, place.get("state", "")]
    parts += [place.get("country", ""), billed_to.get("email", "")]
    if number := billed_to.get("taxNumber", ""):
        parts.append(f"{billed_to.get('taxIdType', '')} {number}".strip())
    shown = "<br>".join(html.escape(part) for part in parts if part)
    return f"<address>{shown}</address>" if shown else ""
