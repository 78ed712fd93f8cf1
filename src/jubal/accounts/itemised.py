"""What invoices need of usage rows, kept where rows are deleted: how much of what each model gave in a month, and what it cost.

Retention adds to these lines what the rows that it deletes say, in the same transaction. So an invoice has the same lines
before and after, and may be half from rows and half from here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jubal.accounts import driver, ledger
from jubal.accounts.tables import invoice_lines

if TYPE_CHECKING:
    from jubal.accounts.usage import UsageRow

INPUT: Final = "input tokens"
CACHED: Final = "cached input tokens"
OUTPUT: Final = "output tokens"
REASONING: Final = "reasoning tokens"
REQUESTS: Final = "requests"
"""Those that have a price of their own."""
CHARGED: Final = "charged requests"
"""All that cost something, whatever for. Their ticks are in the other lines: here they are 0."""
_COLUMNS: Final = ("team_id", "month", "model", "what", "quantity", "ticks")
_KEY: Final = _COLUMNS[:4]


class Line(NamedTuple):
    """quantity: tokens, requests or calls. ticks: what they cost together; rates may have changed within the month."""

    model: str
    what: str
    quantity: int
    ticks: int


def calls_of(tool: str) -> str:
    """`Line.what` of a server-side tool's calls."""
    return f"{tool} calls"


def lines_of(row: UsageRow) -> Iterator[Line]:
    """What one request that cost something adds to its team's month."""
    yield Line(row.model, CHARGED, 1, 0)
    if row.input_ticks is not None:
        cached = row.cached_tokens or 0
        yield Line(row.model, INPUT, row.prompt_tokens - cached, row.input_ticks)
        yield Line(row.model, CACHED, cached, row.cached_input_ticks or 0)
        yield Line(row.model, OUTPUT, row.completion_tokens, row.output_ticks or 0)
        yield Line(row.model, REASONING, row.reasoning_tokens, row.reasoning_ticks or 0)
        if row.request_ticks:
            yield Line(row.model, REQUESTS, 1, row.request_ticks)
    if row.tools is not None:
        for tool, (calls, ticks) in json.loads(row.tools).items():
            yield Line(row.model, calls_of(tool), calls, ticks)


def keep(conn: Connection, rows: Iterable[UsageRow]) -> None:
    """Adds what rows say that are deleted in this transaction."""
    sums: dict[tuple[str, int, str, str], tuple[int, int]] = {}
    for row in rows:
        if row.cost_in_usd_ticks <= 0:
            continue
        for line in lines_of(row):
            if line.quantity:
                place = (row.team_id, ledger.month_of(row.created_us), line.model, line.what)
                quantity, ticks = sums.get(place, (0, 0))
                sums[place] = quantity + line.quantity, ticks + line.ticks
    if sums:
        driver.insert(
            conn,
            "invoice_lines",
            _COLUMNS,
            # in one order everywhere, so that two gateways never wait for each other in a circle
            [(*place, *sums[place]) for place in sorted(sums)],
            f"ON CONFLICT ({', '.join(_KEY)}) DO UPDATE SET quantity = invoice_lines.quantity + excluded.quantity, "
            "ticks = invoice_lines.ticks + excluded.ticks",
        )


def kept(conn: Connection, team_id: str, month: int) -> list[Line]:
    """What deleted rows of a month said."""
    mine = (invoice_lines.c.team_id == team_id, invoice_lines.c.month == month)
    columns = (invoice_lines.c[name] for name in Line._fields)
    return [Line(*row) for row in conn.execute(sa.select(*columns).where(*mine))]
