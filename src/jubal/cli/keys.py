"""`jubal keys`: make, list and change API keys. A secret is shown once, when it is made."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer

from jubal import config
from jubal.cli.common import (
    CommandError,
    ConfigOption,
    JsonOption,
    open_store,
    print_json,
    print_table,
    short,
    table,
    when,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from jubal.accounts.keys import Key

KEYS_MAX: Final = 100_000
PREFIX_CHARS_MIN: Final = 4
"""Shorter beginnings of an id are not taken: one typed character must not delete a key."""
MATCHES_SHOWN: Final = 5

KeyArgument: TypeAlias = Annotated[
    str, typer.Argument(metavar="ID", help="The key's id, at least four characters of its beginning, or its name.")
]

app = typer.Typer(no_args_is_help=True, help="API keys: make, list and change them.")


@app.command("create")
def create(
    name: Annotated[str, typer.Option("--name", help="What the key is for.")],
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
    rpm: Annotated[int | None, typer.Option("--rpm", min=1, help="Requests per minute. Default: no limit.")] = None,
    tpm: Annotated[int | None, typer.Option("--tpm", min=1, help="Tokens per minute. Default: no limit.")] = None,
    management: Annotated[
        bool, typer.Option("--management", help="A key for the management API; it can't be used for inference.")
    ] = False,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """Make a key and show its secret, this once."""
    acls = tuple(acl) if acl else None
    with open_store(config.load(config_file)) as store:
        key, secret = store.transact(_create, name, team, acls, rpm, tpm, management)
    _show_secret(key, secret, as_json)
    _warn_of_idle(key)


def _create(
    conn: Connection,
    name: str,
    team: str | None,
    acls: tuple[str, ...] | None,
    rpm: int | None,
    tpm: int | None,
    management: bool,
) -> tuple[Key, str]:
    from jubal.accounts import acl, keys, teams

    owner = teams.default(conn) if team is None else teams.by_name_or_id(conn, team)
    return keys.create(
        conn,
        team_id=owner.id,
        name=name,
        acls=acl.EVERYTHING if acls is None else acls,
        rpm=rpm,
        tpm=tpm,
        management=management,
        now_us=_now_us(),
    )


def _warn_of_idle(key: Key) -> None:
    """An endpoint and a model ACL must both match, which is easily forgotten."""
    for kind in ("model", "endpoint"):
        if not any(acl.startswith(f"api-key:{kind}:") for acl in key.acls):
            print(f"jubal: without an ACL such as api-key:{kind}:* this key can do nothing.", file=sys.stderr)


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
    from jubal.accounts import keys, teams

    team_id = None if team is None else teams.by_name_or_id(conn, team).id
    return keys.listing(conn, team_id, limit=KEYS_MAX)


def _print(keys: list[Key]) -> None:
    print_table(
        table("name", "id", "key", "may", "rpm", "tpm", "state", "created", "last used", right=("rpm", "tpm")),
        [
            (
                key.name,
                short(key.id),
                key.redacted,
                _may(key),
                "" if key.rpm is None else f"{key.rpm:,}",
                "" if key.tpm is None else f"{key.tpm:,}",
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
    return "expired" if key.expires_us is not None and key.expires_us <= _now_us() else "active"


@app.command("rotate")
def rotate(key_id: KeyArgument, as_json: JsonOption = False, config_file: ConfigOption = None) -> None:
    """Give a key a new secret; the old one stops."""
    with open_store(config.load(config_file)) as store:
        key, secret = store.transact(_rotate, key_id)
    _show_secret(key, secret, as_json)


def _rotate(conn: Connection, text: str) -> tuple[Key, str]:
    from jubal.accounts import keys

    key_id = find(conn, text).id
    secret = keys.rotate(conn, key_id, now_us=_now_us())
    return keys.get(conn, key_id), secret


@app.command("disable")
def disable(key_id: KeyArgument, as_json: JsonOption = False, config_file: ConfigOption = None) -> None:
    """Stop a key until it is enabled again."""
    _switch(key_id, False, as_json, config_file)


@app.command("enable")
def enable(key_id: KeyArgument, as_json: JsonOption = False, config_file: ConfigOption = None) -> None:
    """Let a disabled key work again."""
    _switch(key_id, True, as_json, config_file)


def _switch(text: str, on: bool, as_json: bool, config_file: Path | None) -> None:
    with open_store(config.load(config_file)) as store:
        key = store.transact(_set_enabled, text, on)
    if as_json:
        print_json(view(key))
    else:
        print(f"The key {key.name} ({key.id}) is {_state(key)}.")


def _set_enabled(conn: Connection, text: str, on: bool) -> Key:
    from jubal.accounts import keys

    return (keys.enable if on else keys.disable)(conn, find(conn, text).id, now_us=_now_us())


@app.command("delete")
def delete(
    key_id: KeyArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """Remove a key for good; what it used stays on record."""
    from jubal.accounts import keys

    with open_store(config.load(config_file)) as store:
        key = store.read(find, key_id)
        if not yes and sys.stdin.isatty() and not typer.confirm(f"Delete the key {key.name} ({key.id})?", err=True):
            raise CommandError("Not deleted.")
        store.transact(keys.delete, key.id)
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
        "rpm": key.rpm,
        "tpm": key.tpm,
        "management": key.management,
        "redacted": key.redacted,
        "disabled": key.disabled,
        "blocked": key.blocked,
        "created": _seconds(key.created_us),
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


def _now_us() -> int:
    return time.time_ns() // 1000
