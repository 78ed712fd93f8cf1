"""`jubal usage`: what was asked and what it cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from jubal import config
from jubal.cli.common import ConfigOption, JsonOption, counted, open_store, print_json, print_table, short, table, when
from jubal.core.errors import NotFound
from jubal.core.money import usd_of_ticks

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from jubal.accounts.usage import UsageRow

ROWS_SHOWN: Final = 50
JSON_ROWS_MAX: Final = 1_000_000
"""Programs want every row; they are all held in memory at once, so there is a bound."""


def usage(
    key: Annotated[
        str | None, typer.Option("--key", metavar="ID", help="Of this key: its id, the beginning of it, or its name.")
    ] = None,
    team: Annotated[str | None, typer.Option("--team", metavar="T", help="Of this team: its name or id.")] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=1,
            help=f"The newest N requests. Default: {ROWS_SHOWN}, or {JSON_ROWS_MAX:,} with --json.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """Show the requests, their tokens and what they cost, newest last."""
    rows_max = limit or (JSON_ROWS_MAX if as_json else ROWS_SHOWN)
    with open_store(config.load(config_file)) as store:
        rows = store.read(_rows, key, team, rows_max)
    if as_json:
        print_json([view(row) for row in rows])
    elif rows:
        _print(rows)
    else:
        print("No requests yet.")


def _rows(conn: Connection, key: str | None, team: str | None, rows_max: int) -> list[UsageRow]:
    from jubal.accounts import teams, usage
    from jubal.cli.keys import find

    key_id = team_id = None
    if key is not None:
        try:
            key_id = find(conn, key).id
        except NotFound:
            key_id = key  # usage outlives a deleted key
            if not usage.listing(conn, key_id=key_id, limit=1):
                raise
    if team is not None:
        team_id = teams.by_name_or_id(conn, team).id
    return usage.listing(conn, key_id=key_id, team_id=team_id, limit=rows_max)


def view(row: UsageRow) -> dict[str, object]:
    """As JSON shows it. created: Unix seconds, when the request ended."""
    return {
        "request_id": row.request_id,
        "created": row.created_us // 1_000_000,
        "model": row.model,
        "status": row.status,
        "error_code": row.error_code,
        "prompt_tokens": row.prompt_tokens,
        "cached_tokens": row.cached_tokens,
        "completion_tokens": row.completion_tokens,
        "reasoning_tokens": row.reasoning_tokens,
        "cost_in_usd_ticks": row.cost_in_usd_ticks,
        "key_id": row.key_id,
        "team_id": row.team_id,
        "engine": row.engine,
        "weights": row.weights,
        "endpoint": row.endpoint,
        "stream": row.stream,
        "latency_ms": row.latency_us / 1000,
        "first_token_ms": None if row.first_token_us is None else row.first_token_us / 1000,
        "estimated": row.estimated,
    }


def _print(rows: list[UsageRow]) -> None:
    numbers = ("prompt", "cached", "answer", "thinking", "USD", "ms")
    print_table(
        table("ended", "model", "status", *numbers, "key", "request", right=numbers),
        [
            (
                when(row.created_us),
                row.model,
                row.status if row.error_code is None else f"{row.status} ({row.error_code})",
                f"{row.prompt_tokens:,}",
                "" if row.cached_tokens is None else f"{row.cached_tokens:,}",
                f"{row.completion_tokens:,}",
                f"{row.reasoning_tokens:,}",
                usd(row.cost_in_usd_ticks),
                f"{row.latency_us / 1000:,.1f}",
                short(row.key_id),
                short(row.request_id),
            )
            for row in rows
        ],
    )
    prompt = sum(row.prompt_tokens for row in rows)
    cached = sum(row.cached_tokens or 0 for row in rows)
    answer = sum(row.completion_tokens + row.reasoning_tokens for row in rows)
    cost = sum(row.cost_in_usd_ticks for row in rows)
    print(
        f"\n{counted(len(rows), 'request')}: {counted(prompt, 'prompt token')} ({cached:,} cached), "
        f"{counted(answer, 'answer token')}, {usd(cost)} USD"
    )


def usd(ticks: int) -> str:
    """To a millionth of a dollar: one short answer costs about that much."""
    return f"{usd_of_ticks(ticks):,.6f}"
