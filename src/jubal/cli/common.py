"""What the command groups share: settings, the store, output, errors."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer

from jubal import config

if TYPE_CHECKING:
    import ssl

    from rich.table import Table
    from sqlalchemy.engine import Connection

    from jubal.accounts.store import Store
    from jubal.admin.actor import Actor

FIRST_KEY: Final = "first-key"
"""The file in the home folder that holds the key made at the very first start."""
ANY_HOST: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104
"""Addresses to listen on, and where they are reached from this machine."""
WIDE_COLUMNS: Final = 140
"""Terminals from this width on show tables with whole ids on one line."""
LINE_CHARS_MAX: Final = 10_000
LOOPBACK: Final = frozenset({"localhost", "::1"})

ConfigOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="Configuration file. Default: $JUBAL_CONFIG, else no file.", show_default=False
    ),
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]


TeamOption: TypeAlias = Annotated[str, typer.Option("--team", metavar="T", help="The team: its name or id.")]


class CommandError(Exception):
    """The command can't do it. The message is one line and says how to mend it. Exit code 1."""


def complain(message: str, *, code: int = 1) -> typer.Exit:
    """Prints one line on stderr, and returns the exit to raise."""
    print(f"jubal: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return typer.Exit(code)


# ------------------------------------------------------------------------------------------------- settings and store


def make_home(settings: config.Settings) -> None:
    """The home folder, closed to others where it is made here. One that exists stays as its owner wants it.

    Raises `CommandError`.
    """
    if settings.home.is_dir():
        return
    try:
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(
            f"The folder {settings.home} can't be made: {error.strerror}. Set $JUBAL_HOME to one that you can write."
        ) from None


@contextmanager
def open_store(settings: config.Settings) -> Iterator[Store]:
    """Raises `StoreUnavailable`."""
    from jubal.accounts.store import Store
    from jubal.cli.logs import configure

    configure("warning")
    make_home(settings)
    with Store.open(settings.store_url) as store:
        yield store


def operator(conn: Connection) -> Actor:
    """Whoever runs this command, for the audit log."""
    import getpass

    from jubal.admin.actor import operator

    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as containers have them
        name = ""
    return operator(conn, name)


def now_us() -> int:
    return time.time_ns() // 1000


def first_key(settings: config.Settings) -> str | None:
    """The secret in the first-key file, or None where there is none that can be read."""
    try:
        return (settings.home / FIRST_KEY).read_text("utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def is_served(settings: config.Settings, model: str) -> bool:
    """Whether a model has this name or alias; * means all of them."""
    try:
        public_name(settings, model)
    except CommandError:
        return False
    return True


def public_name(settings: config.Settings, model: str) -> str:
    """The name of the model that was typed, by name or alias; * stays. Raises `CommandError` for one that is not there."""
    from jubal import catalogue
    from jubal.core.errors import UnknownModel

    if model == "*":
        return model
    for models in (catalogue.build(settings), catalogue.embedding_models(settings)):
        try:
            return models.find(model).name
        except UnknownModel:
            continue
    raise CommandError(f"There is no model `{model}`. `jubal models list` shows them.")


def base_url(server: config.Server, port: int | None = None) -> str:
    """Where a server with these settings is reached from this machine, up to and with /v1. port: the real one, where known."""
    host = ANY_HOST.get(server.host, server.host)
    scheme = "http" if server.tls_cert is None else "https"
    port = server.port if port is None else port
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/v1"


def trusting_own(settings: config.Settings) -> ssl.SSLContext | None:
    """To reach the server of these settings: its certificate is trusted whoever signed it and under whatever name.

    None where it speaks plain HTTP. Raises `CommandError`.
    """
    if settings.tls_files is None:
        return None
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(settings.tls_files[0])
    except OSError as error:
        raise CommandError(f"{settings.tls_files[0]}: can't be used as certificate: {error.strerror}.") from None
    return context


def is_loopback(host: str) -> bool:
    return host in LOOPBACK or host.startswith("127.")


# ------------------------------------------------------------------------------------------------------------ output


def print_json(value: object) -> None:
    """An object on one line; a list with one element a line, so that line tools can work with it."""
    if isinstance(value, list):
        lines = ",\n".join(json.dumps(one) for one in value)
        print(f"[\n{lines}\n]" if value else "[]")
    else:
        print(json.dumps(value))


def table(*headings: str, right: Iterable[str] = ()) -> Table:
    """An empty table; columns named in `right` are aligned to the right."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    rights = set(right)
    for heading in headings:
        made.add_column(heading, justify="right" if heading in rights else "left")
    return made


def print_table(made: Table, rows: Sequence[Sequence[str]]) -> None:
    """Prints each row on one line whatever its length: cells folded to a narrow window can't be read or copied."""
    from rich.console import Console
    from rich.text import Text

    for row in rows:
        made.add_row(*(Text(printable(cell)) for cell in row))  # names come from users: no markup
    Console(width=LINE_CHARS_MAX).print(made)


def short(ident: str) -> str:
    """An id as a table shows it: on a narrow terminal its beginning, which every command takes as well."""
    narrow = sys.stdout.isatty() and shutil.get_terminal_size().columns < WIDE_COLUMNS
    return ident[:8] if narrow else ident


def when(us: int | None) -> str:
    """Microseconds since 1970 as local time."""
    return "" if us is None else datetime.fromtimestamp(us / 1e6).astimezone().strftime("%Y-%m-%d %H:%M")


def ticks_of(usd: str) -> int:
    """What a user wrote as an amount of USD. Raises `CommandError`."""
    from jubal.core.money import exact_ticks

    try:
        return exact_ticks(usd)
    except ValueError as error:
        raise CommandError(str(error)) from None


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def printable(text: str) -> str:
    """Without control characters, which a terminal would obey; line ends and tabs stay."""
    return "".join(char for char in text if char in "\n\t" or (char >= " " and not "\x7f" <= char <= "\x9f"))


def drop_stdout() -> None:
    """Nobody reads our output any more: what is still to be printed goes nowhere, without errors."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell(line: str) -> None:
    """One line on stderr, in one piece: `print` writes its end by itself, and a Ctrl-C between the two leaves half a line."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def write(text: str) -> None:
    """To stdout at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
