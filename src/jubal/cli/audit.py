"""`jubal audit`: who changed what."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from jubal import config
from jubal.cli.common import (
    ConfigOption,
    JsonOption,
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

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from jubal.accounts.audit import Act

SHOWN: Final = 50
JSON_MAX: Final = 100_000


def audit(
    since: Annotated[
        str | None, typer.Option("--since", metavar="WHEN", help="From 2026-11-01, 2026-11-01T12:00Z, or 7d ago.")
    ] = None,
    team: Annotated[str | None, typer.Option("--team", metavar="T", help="On this team: its name or id.")] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            metavar="N",
            min=1,
            max=JSON_MAX,
            help=f"The newest N. Default: {SHOWN}, or {JSON_MAX:,} with --json.",
        ),
    ] = None,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """Show the management acts, by the command line and by the management API, newest last."""
    begin_us = 0 if since is None else moment_us(since, "--since", now_us(), sign=-1)
    with open_store(config.load(config_file)) as store:
        acts = store.read(_acts, team, begin_us, limit or (JSON_MAX if as_json else SHOWN))
    if as_json:
        print_json([view(act) for act in acts])
    elif acts:
        _print(acts)
    else:
        print("No management acts yet.")


def _acts(conn: Connection, team: str | None, begin_us: int, limit: int) -> list[Act]:
    from jubal.accounts import teams
    from jubal.admin import log

    team_id = None if team is None else teams.by_name_or_id(conn, team).id
    return log.listing(conn, operator(conn), team_id=team_id, begin_us=begin_us, limit=limit)[::-1]


def view(act: Act) -> dict[str, Any]:
    """As JSON shows it. time: RFC 3339, UTC."""
    return {
        "id": act.id,
        "time": datetime.fromtimestamp(act.created_us / 1e6, UTC).isoformat().replace("+00:00", "Z"),
        "actor": {"kind": act.actor_kind, "id": act.actor_id, "name": act.actor_name},
        "action": act.action,
        "resource": {"kind": act.resource, "id": act.resource_id},
        "team_id": act.team_id,
        "before": act.before,
        "after": act.after,
        "request_id": act.request_id,
        "address": act.address,
    }


def _print(acts: list[Act]) -> None:
    print_table(
        table("when", "who", "did", "to", "change", "from"),
        [
            (
                when(act.created_us),
                act.actor_name or short(act.actor_id),
                act.action,
                short(act.resource_id) if act.resource == "key" else act.resource_id,
                _change(act),
                act.address or "",
            )
            for act in acts
        ],
    )


def _change(act: Act) -> str:
    before, after = dict(act.before or {}), dict(act.after or {})
    if not before or not after:
        facts = after or before
        if (name := facts.get("name")) is not None:
            return str(name)
        return ", ".join(f"{name}: {value}" for name, value in sorted(facts.items()) if value is not None)
    return ", ".join(f"{name}: {before.get(name)} -> {after.get(name)}" for name in sorted(before | after))
