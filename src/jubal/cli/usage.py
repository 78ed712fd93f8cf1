"""`jubal usage`: what was asked and what it cost, request by request or in sums."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import typer

from jubal import config
from jubal.cli.common import (
    CommandError,
    ConfigOption,
    JsonOption,
    counted,
    now_us,
    open_store,
    operator,
    print_json,
    print_table,
    short,
    table,
    when,
)
from jubal.cli.times import moment_us
from jubal.core.errors import NotFound
from jubal.core.money import usd_of_ticks

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from jubal.accounts.rollups import Total
    from jubal.accounts.usage import UsageRow

ROWS_SHOWN: Final = 50
JSON_ROWS_MAX: Final = 1_000_000
"""Programs want every row; they are all held in memory at once, so there is a bound."""


SUMMED_DAYS: Final = 30
GROUPS: Final = ("hour", "day", "key", "model", "team")

KeyOption: TypeAlias = Annotated[
    str | None, typer.Option("--key", metavar="ID", help="Of this key: its id, the beginning of it, or its name.")
]
TeamOption: TypeAlias = Annotated[str | None, typer.Option("--team", metavar="T", help="Of this team: its name or id.")]
SinceOption: TypeAlias = Annotated[
    str | None, typer.Option("--since", metavar="WHEN", help="From 2026-11-01, 2026-11-01T12:00Z, or 7d ago.")
]
UntilOption: TypeAlias = Annotated[
    str | None, typer.Option("--until", metavar="WHEN", help="Up to then. Default: now.")
]

app = typer.Typer(help="Show the requests, their tokens and what they cost, newest last; or sums of them with --by.")


class Format(StrEnum):
    jsonl = "jsonl"
    csv = "csv"


@dataclass(frozen=True, slots=True)
class _Scope:
    """Which usage is meant. Ids; None for any."""

    key_id: str | None
    team_id: str | None
    begin_us: int
    end_us: int


@app.callback(invoke_without_command=True)
def usage(
    context: typer.Context,
    key: KeyOption = None,
    team: TeamOption = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", metavar="G", help=f"Sums by {', '.join(GROUPS)}; may be given twice, as day and model."),
    ] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            metavar="N",
            min=1,
            max=JSON_ROWS_MAX,
            help=f"The newest N requests. Default: {ROWS_SHOWN}, or {JSON_ROWS_MAX:,} with --json.",
            show_default=False,
        ),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """Show the requests, their tokens and what they cost, newest last; or sums of them with --by."""
    if context.invoked_subcommand is not None:
        return
    if by:
        if limit is not None:
            raise CommandError("--limit goes with single requests, not with --by.")
        _sums(by, key, team, since, until, as_json, as_csv, config.load(config_file))
        return
    if since is not None or until is not None or as_csv:
        raise CommandError("--since, --until and --csv go with --by. For single requests: `jubal usage export`.")
    rows_max = limit or (JSON_ROWS_MAX if as_json else ROWS_SHOWN)
    with open_store(config.load(config_file)) as store:
        rows = store.read(_rows, key, team, rows_max)
    if as_json:
        print_json([view(row) for row in rows])
    elif rows:
        _print(rows)
    else:
        print("No requests yet.")


@app.command("export")
def export(
    since: SinceOption = None,
    until: UntilOption = None,
    key: KeyOption = None,
    team: TeamOption = None,
    format: Annotated[Format, typer.Option("--format", help="One JSON object a line, or CSV.")] = Format.jsonl,
    config_file: ConfigOption = None,
) -> None:
    """Print all requests, oldest first, for other programs. Default: everything there is."""
    with open_store(config.load(config_file)) as store:
        store.read(_export, key, team, since, until, format)


def _export(
    conn: Connection, key: str | None, team: str | None, since: str | None, until: str | None, format: Format
) -> None:
    from jubal.accounts.usage import UsageRow
    from jubal.admin import usage

    scope = _scope(conn, key, team, since, until, default_us=0)
    rows = usage.export(
        conn,
        operator(conn),
        scope.begin_us,
        scope.end_us,
        team_id=scope.team_id,
        key_ids=None if scope.key_id is None else [scope.key_id],
    )
    if format is Format.jsonl:
        for row in rows:
            print(json.dumps(view(row)))
        return
    nothing = UsageRow(*([0] * len(UsageRow._fields)))  # type: ignore[arg-type]
    _csv(list(_flat(nothing)), (_flat(row).values() for row in rows))


def _flat(row: UsageRow) -> dict[str, object]:
    """As a line of CSV: what has parts itself is JSON."""
    return {name: json.dumps(value) if isinstance(value, dict) else value for name, value in view(row).items()}


@app.command("recount")
def recount(
    since: SinceOption = None,
    until: UntilOption = None,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """Count the sums anew from the requests: after an older release served beside this one."""
    with open_store(config.load(config_file)) as store:
        sums = store.transact(_recount, since, until)
    if as_json:
        print_json({"sums": sums})
    else:
        print(f"Counted {counted(sums, 'sum')} anew.")


def _recount(conn: Connection, since: str | None, until: str | None) -> int:
    from jubal.admin import usage

    scope = _scope(conn, None, None, since, until, default_us=0)
    return usage.recount(conn, operator(conn), scope.begin_us, scope.end_us, now_us=now_us())


def _scope(
    conn: Connection, key: str | None, team: str | None, since: str | None, until: str | None, *, default_us: int
) -> _Scope:
    """default_us: where it begins unless told."""
    from jubal.accounts import teams

    now = now_us()
    return _Scope(
        None if key is None else _key_id(conn, key),
        None if team is None else teams.by_name_or_id(conn, team).id,
        default_us if since is None else moment_us(since, "--since", now, sign=-1),
        now + 1 if until is None else moment_us(until, "--until", now, sign=-1),
    )


# ------------------------------------------------------------------------------------------------------------- sums


def _sums(
    by: list[str],
    key: str | None,
    team: str | None,
    since: str | None,
    until: str | None,
    as_json: bool,
    as_csv: bool,
    settings: config.Settings,
) -> None:
    wrong = [one for one in by if one not in GROUPS]
    if wrong or len(set(by)) < len(by) or {"hour", "day"} <= set(by):
        raise CommandError(f"--by: expected different ones of {', '.join(GROUPS)}, and not hour and day; got {by}.")
    with open_store(settings) as store:
        totals = store.read(_totals, by, key, team, since, until)
    rows = [_total_view(total, by) for total in totals]
    if as_json:
        print_json(rows)
    elif as_csv:
        _csv([*by, *SUMS_SHOWN], (row.values() for row in rows))
    elif rows:
        _print_sums(rows, by)
    else:
        print("Nothing was used in that time.")


def _totals(
    conn: Connection, by: list[Any], key: str | None, team: str | None, since: str | None, until: str | None
) -> list[Total]:
    from jubal.accounts.rollups import HOUR_US
    from jubal.admin import usage

    begin_us = now_us() - SUMMED_DAYS * 24 * HOUR_US
    scope = _scope(conn, key, team, since, until, default_us=begin_us)
    return usage.totals(
        conn,
        operator(conn),
        by,
        scope.begin_us - scope.begin_us % HOUR_US,
        scope.end_us,
        team_id=scope.team_id,
        key_ids=None if scope.key_id is None else [scope.key_id],
    )


SUMS_SHOWN: Final = (
    "requests",
    "failed",
    "cancelled",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "tool_calls",
    "cost_in_usd_ticks",
)


PARTS: Final = ("input_ticks", "cached_input_ticks", "output_ticks", "reasoning_ticks", "request_ticks")


def _total_view(total: Total, by: list[str]) -> dict[str, object]:
    """As JSON shows it. hour, day: when it began, in UTC."""
    groups: dict[str, object] = {"key": total.key_id, "model": total.model, "team": total.team_id}
    if total.begin_us is not None:
        begin = datetime.fromtimestamp(total.begin_us / 1e6, UTC)
        groups |= {"hour": begin.strftime("%Y-%m-%dT%H:00:00Z"), "day": begin.strftime("%Y-%m-%d")}
    return {**{one: groups[one] for one in by}, **{name: getattr(total, name) for name in SUMS_SHOWN}}


def _print_sums(rows: list[dict[str, object]], by: list[str]) -> None:
    numbers = ("requests", "failed", "prompt", "cached", "answer", "thinking", "USD")
    names = ("requests", "failed", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
    print_table(
        table(*by, *numbers, right=numbers),
        [
            (
                *(str(row[one]) for one in by),
                *(f"{row[name]:,}" for name in names),
                usd(int(str(row["cost_in_usd_ticks"]))),
            )
            for row in rows
        ],
    )


def _csv(columns: list[str], rows: Iterable[Iterable[object]]) -> None:
    """With a heading. Names come from users: what a spreadsheet would take for a formula is marked as text."""
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(columns)
    for row in rows:
        out.writerow([f"'{one}" if isinstance(one, str) and one[:1] in "=+-@\t\r" and one else one for one in row])


# ---------------------------------------------------------------------------------------------------------- requests


def _rows(conn: Connection, key: str | None, team: str | None, rows_max: int) -> list[UsageRow]:
    from jubal.accounts import teams, usage

    key_id = None if key is None else _key_id(conn, key)
    team_id = None if team is None else teams.by_name_or_id(conn, team).id
    return usage.listing(conn, key_id=key_id, team_id=team_id, limit=rows_max)


def _key_id(conn: Connection, key: str) -> str:
    """Also of a deleted key: usage outlives it. Raises `NotFound`."""
    from jubal.accounts import usage
    from jubal.cli.keys import find

    try:
        return find(conn, key).id
    except NotFound:
        if not usage.listing(conn, key_id=key, limit=1):
            raise
        return key


def view(row: UsageRow) -> dict[str, object]:
    """As JSON shows it. created: Unix seconds, when the request ended. tools: of server-side tools that went well, calls and fees.

    *_ticks: what the cost is the sum of, with those fees; None in rows of releases that did not tell.
    """
    tools = {} if not row.tools else json.loads(row.tools)
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
        "service_tier": row.service_tier or "default",
        "tool_calls": sum(calls for calls, _ in tools.values()),
        "tools": {tool: {"calls": calls, "ticks": ticks} for tool, (calls, ticks) in tools.items()},
        **{name: getattr(row, name) for name in PARTS},
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
                row.request_id,  # whole: those of a minute begin alike
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
