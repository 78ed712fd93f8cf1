"""`jubal keys`: make, list and change API keys. A secret is shown once, when it is made."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import typer

from jubal import config
from jubal.cli.common import (
    CommandError,
    ConfigOption,
    JsonOption,
    is_served,
    now_us,
    open_store,
    operator,
    print_json,
    print_table,
    printable,
    short,
    table,
    when,
)
from jubal.cli.times import moment_us, stretch_us

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from jubal.accounts.keys import Key

KEYS_MAX: Final = 100_000
PREFIX_CHARS_MIN: Final = 4
"""Shorter beginnings of an id are not taken: one typed character must not delete a key."""
MATCHES_SHOWN: Final = 5
NO_LIMIT: Final = "none"
MODEL_ACL: Final = "api-key:model:"

KeyArgument: TypeAlias = Annotated[
    str, typer.Argument(metavar="ID", help="The key's id, at least four characters of its beginning, or its name.")
]

app = typer.Typer(no_args_is_help=True, help="API keys: make, list and change them.")


@app.command("create")
def create(
    name: Annotated[str, typer.Option("--name", metavar="N", help="What the key is for.")],
    team: Annotated[
        str | None, typer.Option("--team", metavar="T", help="Its team, by name or id. Default: the default team.")
    ] = None,
    acl: Annotated[
        list[str] | None,
        typer.Option(
            "--acl",
            metavar="A",
            help="What it may do: api-key:model:NAME and api-key:endpoint:NAME, * for any. Both kinds are needed; "
            "may be given often. Default: everything.",
            show_default=False,
        ),
    ] = None,
    rps: Annotated[
        int | None, typer.Option("--rps", metavar="N", min=1, help="Requests per second. Default: no limit.")
    ] = None,
    rpm: Annotated[
        int | None, typer.Option("--rpm", metavar="N", min=1, help="Requests per minute. Default: no limit.")
    ] = None,
    tpm: Annotated[
        int | None, typer.Option("--tpm", metavar="N", min=1, help="Tokens per minute. Default: no limit.")
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option("--expires", metavar="WHEN", help="30d, or a date such as 2026-12-31. Default: never."),
    ] = None,
    management: Annotated[
        bool, typer.Option("--management", help="A key for the management API; it can't be used for inference.")
    ] = False,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """Make a key and show its secret, this once."""
    wanted: dict[str, Any] = {"name": name, "rps": rps, "rpm": rpm, "tpm": tpm, "management": management}
    wanted["acls"] = tuple(acl) if acl else None
    wanted["expires_us"] = None if expires is None else moment_us(expires, "--expires", now_us(), sign=1)
    settings = config.load(config_file)
    with open_store(settings) as store:
        key, secret = store.transact(_create, team, wanted)
    _show_secret(key, secret, as_json)
    _warn_of_idle(key, settings)


def _create(conn: Connection, team: str | None, wanted: dict[str, Any]) -> tuple[Key, str]:
    from jubal.accounts import teams
    from jubal.admin import keys

    owner = teams.default(conn) if team is None else teams.by_name_or_id(conn, team)
    return keys.create(conn, operator(conn), team_id=owner.id, now_us=now_us(), **wanted)


def _warn_of_idle(key: Key, settings: config.Settings) -> None:
    """An endpoint and a model ACL must both match, which is easily forgotten; and a model is easily misspelt."""
    if key.management:
        return
    for kind in ("model", "endpoint"):
        if not any(acl.startswith(f"api-key:{kind}:") for acl in key.acls):
            print(f"jubal: without an ACL such as api-key:{kind}:* this key can do nothing.", file=sys.stderr)
    for acl in key.acls:
        if acl.startswith(MODEL_ACL) and not is_served(settings, acl.removeprefix(MODEL_ACL)):
            model = acl.removeprefix(MODEL_ACL)
            print(
                f"jubal: no model has the name `{model}` now; `jubal models list` shows those that there are.",
                file=sys.stderr,
            )


@app.command("list")
def list_(
    team: Annotated[str | None, typer.Option("--team", metavar="T", help="Of this team: its name or id.")] = None,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """List the keys, oldest first."""
    with open_store(config.load(config_file)) as store:
        found = store.read(_listing, team)
    if as_json:
        print_json([view(key) for key in found])
    elif found:
        _print(found)
    else:
        print("No keys yet. `jubal keys create --name NAME` makes one.")


def _listing(conn: Connection, team: str | None) -> list[Key]:
    from jubal.accounts import teams
    from jubal.admin import keys

    team_id = None if team is None else teams.by_name_or_id(conn, team).id
    return keys.listing(conn, operator(conn), team_id=team_id, limit=KEYS_MAX)


@app.command("show")
def show(key_id: KeyArgument, as_json: JsonOption = False, config_file: ConfigOption = None) -> None:
    """Show a key: what it may do, its limits, when it was used."""
    with open_store(config.load(config_file)) as store:
        key, until_us = store.read(_with_old_secrets, key_id)
    if as_json:
        print_json({**view(key), "old_secrets_until": [us // 1_000_000 for us in until_us]})
        return
    lines = {
        "name": key.name,
        "id": key.id,
        "key": key.redacted,
        "team": key.team_id,
        "state": _state(key),
        "may": " ".join(key.acls) or "nothing",
        "requests per second": "no limit" if key.rps is None else f"{key.rps:,}",
        "requests per minute": "no limit" if key.rpm is None else f"{key.rpm:,}",
        "tokens per minute": "no limit" if key.tpm is None else f"{key.tpm:,}",
        "created": when(key.created_us),
        "changed": when(key.modified_us),
        "expires": when(key.expires_us) or "never",
        "last used": when(key.last_used_us) or "never",
        "old secret works until": when(until_us[0]) if until_us else "",
    }
    for name, value in lines.items():
        if value:
            print(f"{name:24}{printable(value)}")


def _with_old_secrets(conn: Connection, text: str) -> tuple[Key, list[int]]:
    from jubal.accounts import keys

    key = find(conn, text)
    return key, keys.old_secrets_until(conn, key.id, now_us())


def _print(keys: list[Key]) -> None:
    print_table(
        table(
            *("name", "id", "key", "may", "rps", "rpm", "tpm", "state", "created", "last used"),
            right=("rps", "rpm", "tpm"),
        ),
        [
            (
                key.name,
                short(key.id),
                key.redacted,
                _may(key),
                *("" if limit is None else f"{limit:,}" for limit in (key.rps, key.rpm, key.tpm)),
                _state(key),
                when(key.created_us),
                when(key.last_used_us) or "never",
            )
            for key in keys
        ],
    )


def _may(key: Key) -> str:
    from jubal.accounts.acl import EVERYTHING

    if key.management:
        return "management"
    return "everything" if key.acls == EVERYTHING else " ".join(acl.removeprefix("api-key:") for acl in key.acls)


def _state(key: Key) -> str:
    if key.blocked:
        return "blocked"
    if key.disabled:
        return "disabled"
    return "expired" if key.expires_us is not None and key.expires_us <= now_us() else "active"


@app.command("update")
def update(
    key_id: KeyArgument,
    name: Annotated[str | None, typer.Option("--name", metavar="N", help="Another name.")] = None,
    acl: Annotated[
        list[str] | None, typer.Option("--acl", metavar="A", help="In the place of all it had; may be given often.")
    ] = None,
    rps: Annotated[str | None, typer.Option("--rps", metavar="N", help="Requests per second, or none.")] = None,
    rpm: Annotated[str | None, typer.Option("--rpm", metavar="N", help="Requests per minute, or none.")] = None,
    tpm: Annotated[str | None, typer.Option("--tpm", metavar="N", help="Tokens per minute, or none.")] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="WHEN", help="30d, a date such as 2026-12-31, or never.")
    ] = None,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """Change a key: its name, what it may do, its limits, when it expires. In force within two seconds."""
    changes: dict[str, Any] = {}
    if name is not None:
        changes["name"] = name
    if acl is not None:
        changes["acls"] = tuple(acl)
    for flag, text in (("rps", rps), ("rpm", rpm), ("tpm", tpm)):
        if text is not None:
            changes[flag] = _limit(flag, text)
    if expires is not None:
        changes["expires_us"] = None if expires == "never" else moment_us(expires, "--expires", now_us(), sign=1)
    if not changes:
        raise CommandError("Nothing to change: give --name, --acl, --rps, --rpm, --tpm or --expires.")
    settings = config.load(config_file)
    with open_store(settings) as store:
        key = store.transact(_act, "update", key_id, changes=changes)
    if as_json:
        print_json(view(key))
    else:
        print(f"Changed the key {key.name} ({key.id}).")
    if acl is not None:
        _warn_of_idle(key, settings)


def _limit(flag: str, text: str) -> int | None:
    if text == NO_LIMIT:
        return None
    if not (text.isascii() and text.isdigit()):
        raise CommandError(f"--{flag}: expected a number, or {NO_LIMIT}; got `{text}`.")
    return int(text)


@app.command("rotate")
def rotate(
    key_id: KeyArgument,
    overlap: Annotated[
        str | None,
        typer.Option(
            "--overlap",
            metavar="TIME",
            help="How long the old secret goes on working, such as 24h; at most 7d. Default: not at all.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """Give a key a new secret; the old one stops, at once or after the overlap."""
    overlap_us = 0 if overlap is None else stretch_us(overlap, "--overlap")
    with open_store(config.load(config_file)) as store:
        key, secret = store.transact(_rotate, key_id, overlap_us)
    _show_secret(key, secret, as_json)


def _rotate(conn: Connection, text: str, overlap_us: int) -> tuple[Key, str]:
    from jubal.admin import keys

    return keys.rotate(conn, operator(conn), find(conn, text).id, overlap_us=overlap_us, now_us=now_us())


@app.command("disable")
def disable(key_id: KeyArgument, as_json: JsonOption = False, config_file: ConfigOption = None) -> None:
    """Stop a key until it is enabled again."""
    _switch("disable", key_id, as_json, config_file)


@app.command("enable")
def enable(key_id: KeyArgument, as_json: JsonOption = False, config_file: ConfigOption = None) -> None:
    """Let a disabled key work again."""
    _switch("enable", key_id, as_json, config_file)


@app.command("block")
def block(key_id: KeyArgument, as_json: JsonOption = False, config_file: ConfigOption = None) -> None:
    """Stop a key; its team can't undo that by the management API."""
    _switch("block", key_id, as_json, config_file)


@app.command("unblock")
def unblock(key_id: KeyArgument, as_json: JsonOption = False, config_file: ConfigOption = None) -> None:
    """Let a blocked key work again."""
    _switch("unblock", key_id, as_json, config_file)


def _switch(act: str, text: str, as_json: bool, config_file: Path | None) -> None:
    with open_store(config.load(config_file)) as store:
        key = store.transact(_act, act, text)
    if as_json:
        print_json(view(key))
    else:
        print(f"The key {key.name} ({key.id}) is {_state(key)}.")


def _act(conn: Connection, /, act: str, text: str, **arguments: Any) -> Key:
    """One of admin.keys' acts on one key."""
    from jubal.admin import keys

    acts: dict[str, Callable[..., Key]] = {
        "update": keys.update,
        "disable": keys.disable,
        "enable": keys.enable,
        "block": keys.block,
        "unblock": keys.unblock,
        "delete": keys.delete,
    }
    return acts[act](conn, operator(conn), find(conn, text).id, now_us=now_us(), **arguments)


@app.command("delete")
def delete(
    key_id: KeyArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """Remove a key for good; what it used stays on record."""
    with open_store(config.load(config_file)) as store:
        key = store.read(find, key_id)
        if not yes and sys.stdin.isatty() and not typer.confirm(f"Delete the key {key.name} ({key.id})?", err=True):
            raise CommandError("Not deleted.")
        store.transact(_act, "delete", key.id)
    if as_json:
        print_json({"id": key.id, "deleted": True})
    else:
        print(f"Deleted the key {key.name} ({key.id}).")


def find(conn: Connection, text: str) -> Key:
    """The key with this id; else the only one with this name, or whose id begins so.

    Raises `NotFound`, `CommandError` where several fit.
    """
    from jubal.accounts import keys
    from jubal.core.errors import NotFound

    fitting = []
    for key in keys.listing(conn, limit=KEYS_MAX):
        if key.id == text:
            return key
        if key.name == text or (len(text) >= PREFIX_CHARS_MIN and key.id.startswith(text)):
            fitting.append(key)
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise NotFound(f"There is no key with the id or name `{text}`. `jubal keys list` shows them.")
    some = ", ".join(f"{key.id} ({key.name})" for key in fitting[:MATCHES_SHOWN])
    more = f" and {len(fitting) - MATCHES_SHOWN} more" if len(fitting) > MATCHES_SHOWN else ""
    raise CommandError(f"`{text}` fits {len(fitting)} keys; give the id: {some}{more}")


def view(key: Key) -> dict[str, object]:
    """As JSON shows it, without the secret. Times: Unix seconds."""
    return {
        "id": key.id,
        "team_id": key.team_id,
        "name": key.name,
        "acls": list(key.acls),
        "rps": key.rps,
        "rpm": key.rpm,
        "tpm": key.tpm,
        "management": key.management,
        "redacted": key.redacted,
        "disabled": key.disabled,
        "blocked": key.blocked,
        "created": _seconds(key.created_us),
        "modified": _seconds(key.modified_us),
        "expires": _seconds(key.expires_us),
        "last_used": _seconds(key.last_used_us),
    }


def _seconds(us: int | None) -> int | None:
    return None if us is None else us // 1_000_000


def _show_secret(key: Key, secret: str, as_json: bool) -> None:
    if as_json:
        print_json({"key": secret, **view(key)})
    else:
        print(f"{secret}\n\nThis is the secret of {key.name} ({key.id}). It is shown only now: keep it safe.")
