"""Invoices: a team's month, line by line, equal to the ledger to the tick."""

from __future__ import annotations

import csv
import html
import io
import json
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jubal.accounts import ledger, teams
from jubal.accounts.tables import transfers, usage
from jubal.core.errors import BadRequest
from jubal.core.money import exact_usd

TOKEN_KINDS: Final[tuple[tuple[str, sa.ColumnElement[int], sa.Column[int]], ...]] = (
    ("input tokens", usage.c.prompt_tokens - sa.func.coalesce(usage.c.cached_tokens, 0), usage.c.input_ticks),
    ("cached input tokens", sa.func.coalesce(usage.c.cached_tokens, 0), usage.c.cached_input_ticks),
    ("output tokens", usage.c.completion_tokens, usage.c.output_ticks),
    ("reasoning tokens", usage.c.reasoning_tokens, usage.c.reasoning_ticks),
)


@dataclass(frozen=True, slots=True)
class Line:
    """quantity: tokens, requests or calls. ticks: what they cost together; rates may have changed within the month."""

    model: str
    what: str
    quantity: int
    ticks: int


@dataclass(frozen=True, slots=True)
class Invoice:
    """One team's UTC month. month: as 202611. total: of all lines, and of the ledger's usage.

    from_grant, from_prepaid, on_account: how it was paid; the last is due. requests: how many cost something.
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
    lines = [*_token_lines(conn, team_id, month), *_tool_lines(conn, team_id, month)]
    if rest := total - sum(line.ticks for line in lines):
        # Requests of releases that did not itemise, and those whose usage rows are deleted by now.
        lines.append(Line("", "requests that are not itemised", 0, rest))

    def of(kind: str, debit: str) -> int:
        return moved.get((kind, debit), 0)

    return Invoice(
        team.id,
        team.name,
        month,
        _requests(conn, team_id, month),
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
    )


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
        lines.append(Line(model, "requests", int(requests or 0), int(request_ticks or 0)))
    return [line for line in lines if line.quantity and (line.ticks or line.what != "requests")]


def _tool_lines(conn: Connection, team_id: str, month: int) -> list[Line]:
    query = sa.select(usage.c.model, usage.c.tools).where(
        usage.c.team_id == team_id,
        usage.c.tools.is_not(None),
        usage.c.cost_in_usd_ticks > 0,
        *_within(usage.c.created_us, month),
    )
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for row in conn.execute(query):
        for tool, (calls, ticks) in json.loads(row.tools).items():
            before = found.get((row.model, tool), (0, 0))
            found[row.model, tool] = before[0] + calls, before[1] + ticks
    return [Line(model, f"{tool} calls", calls, ticks) for (model, tool), (calls, ticks) in sorted(found.items())]


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
    }
    return {
        "team_id": invoice.team_id,
        "team": invoice.team,
        "month": invoice.name,
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
    )
    facts = "".join(f"<dt>{what}</dt><dd>{exact_usd(ticks)} USD</dd>" for what, ticks in paid)
    title = f"Invoice {invoice.name}, {html.escape(invoice.team)}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head>\n'
        f"<body><h1>Invoice {invoice.name}</h1><p>{html.escape(invoice.team)}<br>Team {html.escape(invoice.team_id)}<br>"
        f"{invoice.requests:,} requests, in UTC months</p>\n"
        '<table><thead><tr><th>Model</th><th>Description</th><th class="n">Quantity</th><th class="n">USD</th></tr></thead>\n'
        f'<tbody>{rows}</tbody>\n<tfoot><tr><td>Total</td><td></td><td></td><td class="n">{exact_usd(invoice.total)}</td></tr>'
        f"</tfoot></table>\n<h2>Paid from</h2><dl>{facts}</dl></body></html>\n"
    )
