"""`jubal serve`: from settings to a running server, and what a user sees on the way."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from jubal import config
from jubal.cli import workers
from jubal.cli.common import (
    FIRST_KEY,
    CommandError,
    ConfigOption,
    base_url,
    drop_stdout,
    first_key,
    is_loopback,
    make_home,
    now_us,
    operator,
    print_table,
    printable,
    table,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from jubal.accounts.store import Store
    from jubal.app import Jubal, Orders
    from jubal.serving.places import Place

FIRST_KEY_NAME: Final = "first"
OTHER_FILES: Final = 256
"""Open files beside connections: of the store, models and sandboxes."""
CURL_TOKENS_MAX: Final = 200
"""Bounds the example's answer: the embedded model can go on for long."""


class LogLevel(StrEnum):
    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


def serve(
    config_file: ConfigOption = None,
    host: Annotated[
        str | None, typer.Option("--host", help="Address to listen on. Default: 127.0.0.1.", show_default=False)
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one. Default: 8000.", show_default=False),
    ] = None,
    grpc_port: Annotated[
        int | None,
        typer.Option(
            "--grpc-port", min=0, max=65535, help="Port for gRPC; 0 for none. Default: 50051.", show_default=False
        ),
    ] = None,
    log_level: Annotated[
        LogLevel, typer.Option("--log-level", help="What to log on standard error.")
    ] = LogLevel.warning,
) -> None:
    """Serve the API until Ctrl-C or SIGTERM.

    The first start fetches the model file and makes an API key.
    """
    began_s = time.monotonic()
    settings = _settings(config_file, host, port, grpc_port)
    several = settings.server.workers > 1
    if several:
        workers.check(settings)
    _allow_files(settings.server.connections_max)
    make_home(settings)
    listener = _bind(settings.server, several=several)
    grpc = _grpc_place(settings)
    with listener:
        if several:
            workers.supervise(settings, listener, grpc, log_level.value, began_s)
            return
        from jubal.cli import logs

        secrets = config.secrets(settings)
        logs.configure(log_level.value, secrets)
        logs.configure_libraries(secrets)
        run(settings, listener, grpc, began_s=began_s, show=_show)
    with whoever_reads():
        print("Stopped.", flush=True)


def run(
    settings: config.Settings,
    listener: socket.socket,
    grpc: Place | None,
    *,
    first: bool = True,
    began_s: float | None = None,
    show: Callable[[Shown], None],
    orders: Orders | None = None,
) -> None:
    """One gateway, from settings to its end. first: no other does for it what has to be done once for all.

    show: what to do with what a start tells, when requests are taken. orders: see `app.serve`.
    """
    from jubal import app
    from jubal.accounts.store import Store

    with Store.open(settings.store_url) as store:
        jubal = app.build(settings, store=store)
        fetched_s = _fetch_models(settings) if first else 0.0
        key = _make_first_key(store, settings) if first else None
        began_s = None if began_s is None else began_s + fetched_s
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(jubal, listener, grpc, Start(first, key, began_s), show, orders or app.by_signals))


def _settings(config_file: Path | None, host: str | None, port: int | None, grpc_port: int | None) -> config.Settings:
    """The settings, with the flags that were given in place of the file's. Raises `ConfigError`."""
    settings = config.load(config_file)
    flags = {"host": host, "port": port, "grpc_port": grpc_port}
    given = {name: value for name, value in flags.items() if value is not None}
    return msgspec.structs.replace(settings, server=msgspec.structs.replace(settings.server, **given))


def _allow_files(connections_max: int) -> None:
    """Raises this process's own limit of open files to what so many connections and their upstreams need, or as far as it may."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections_max + OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft not in (resource.RLIM_INFINITY, -1) and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _bind(server: config.Server, *, several: bool) -> socket.socket:
    """A listening socket; for several processes one that keeps the port for theirs.

    Raises `CommandError` for an address that can't be had.
    """
    from jubal.serving import places

    try:
        return (places.reserve if several else places.bind)(server.host, server.port)
    except PermissionError:
        raise CommandError(
            f"port {server.port} needs more rights than this user has: use --port with 1024 or more."
        ) from None
    except socket.gaierror as error:
        raise CommandError(f"{server.host}: {error.strerror}. --host takes an address of this machine.") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CommandError(
                f"port {server.port} is already in use on {server.host}: a Jubal may be running there already. "
                "Take another with --port; --port 0 takes any that is free."
            ) from None
        raise CommandError(f"can't listen on {server.host} port {server.port}: {error.strerror}.") from None


def _grpc_place(settings: config.Settings) -> Place | None:
    """Where to serve gRPC, without TLS yet; None for nowhere. The default port is left to whoever has it; one that was asked for
    must be free.

    Raises `CommandError`, `ConfigError`.
    """
    server = settings.server
    if server.grpc_port == 0:
        return None
    # Said before the library is loaded: it would print a line for every process that is started while it works.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    port = server.grpc_port or config.GRPC_PORT
    from jubal.serving.places import place

    try:
        return place(server.host, port, required=server.grpc_port is not None)
    except OSError as error:
        why = "is already in use" if error.errno == errno.EADDRINUSE else f"can't be had: {error.strerror}"
        if server.grpc_port is None:
            print(f"gRPC is off: port {port} {why}. Take another with --grpc-port.", file=sys.stderr)
            return None
        raise CommandError(
            f"gRPC port {port} {why} on {server.host}. Take another with --grpc-port; --grpc-port 0 serves no gRPC."
        ) from None


def _fetch_models(settings: config.Settings) -> float:
    """Fetches the weights that are missing; returns how many seconds that took."""
    from jubal.cli import fetching

    wanted = [(name, "model", model) for name, model in fetching.llama_models(settings).items()]
    wanted += [(name, "mmproj", file) for name, file in fetching.projectors(settings).items()]
    if not wanted:
        return 0.0
    from jubal.engines import weights

    began_s = time.monotonic()
    for engine, key, model in wanted:
        if weights.resolve(settings.models_home, model) is not None:
            continue
        if not fetching.can_be_fetched(model):
            raise CommandError(f"there is no model file `{model}`: {fetching.not_there(engine, key)}.")
        fetching.fetch(settings.models_home, model)
    return time.monotonic() - began_s


# ------------------------------------------------------------------------------------------------------ the first key


def _make_first_key(store: Store, settings: config.Settings) -> str | None:
    """Makes the first API key of a store that has none, puts it into its file and returns it; None where there are keys."""
    file = settings.home / FIRST_KEY

    def make(conn: Connection) -> str | None:
        from jubal.accounts import teams
        from jubal.admin import keys

        actor = operator(conn)
        if keys.listing(conn, actor, limit=1):
            return None
        team = teams.default(conn)
        _, secret = keys.create(conn, actor, team_id=team.id, name=FIRST_KEY_NAME, now_us=now_us())
        # Before the commit: a crash in between leaves a file that the next start replaces, never a key that nobody has.
        _write_secret(file, secret)
        return secret

    return store.transact(make)


def _write_secret(file: Path, secret: str) -> None:
    """A file that only its owner can read from the moment it is there. One of an earlier store is kept under another name."""
    fresh = file.with_name(f"{file.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
        out.write(f"{secret}\n")
        out.flush()
        os.fsync(out.fileno())
    if file.exists():
        file.replace(file.with_name(f"{file.name}.old"))
    fresh.replace(file)


# -------------------------------------------------------------------------------------------------------- the server


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed: everywhere but on Windows."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


@dataclass(frozen=True, slots=True)
class Start:
    """first: see `run`. new_key: made by this start. began_s: when, on the monotonic clock; None: whoever asks knows."""

    first: bool
    new_key: str | None
    began_s: float | None


async def _serve(
    jubal: Jubal,
    listener: socket.socket,
    grpc: Place | None,
    start: Start,
    show: Callable[[Shown], None],
    orders: Orders,
) -> None:
    from jubal import app

    kept = await _kept_key(jubal) if start.first and not start.new_key else None
    shown = Shown(jubal, listener.getsockname()[1], start.new_key, kept, start.began_s)
    await app.serve(jubal, listener, grpc=grpc, orders=orders, on_ready=lambda: show(shown))


async def _kept_key(jubal: Jubal) -> str | None:
    """The secret in the first-key file, if it still opens this server."""
    from jubal.core.errors import JubalError

    secret = first_key(jubal.settings)
    if secret is None:
        return None
    try:
        await jubal.pipeline.identify(f"Bearer {secret}")
    except JubalError:
        return None
    return secret


@dataclass(frozen=True, slots=True)
class Shown:
    """What a start tells. new_key: made by this start; kept_key: in its file since an earlier one. port: the real one.

    began_s: see `Start`.
    """

    jubal: Jubal
    port: int
    new_key: str | None
    kept_key: str | None
    began_s: float | None

    def print(self) -> bool:
        """All but the last line. False where an engine failed."""
        server = self.jubal.settings.server
        failed = self._failed()
        url = base_url(server, self.port)
        print(f"\nJubal serves {url}", flush=True)
        if (grpc := self.jubal.grpc) is not None:
            print(f"and gRPC on {', '.join(grpc.addresses)}{' with TLS' if self.jubal.tls else ''}")
        print(flush=True)
        self._models()
        print(f"\n{self._key()}\n")
        if model := self._model_that_answers():
            print(f"Try it:\n\n{self._curl(url, model)}\n")
        if not is_loopback(server.host) and server.tls_cert is None:
            print(
                f"{server.host} can be reached from other machines, and there is no TLS: keys travel in clear. "
                "Set `tls_cert` and `tls_key`, or put a TLS proxy in front."
            )
        for line in failed:
            _print_red(line)
        return not failed

    def _failed(self) -> list[str]:
        found = []
        for name, served in self.jubal.served.items():
            status = served.engine.status()
            if status.state not in ("ready", "stopped"):  # stopped: its model is loaded when it is asked for
                found.append(f"The engine {name} is not ready: {printable(status.reason or status.state)}")
        return found

    def _models(self) -> None:
        from jubal.wire.openai_models import real_context

        rows = []
        for model in self.jubal.pipeline.catalogue:
            weights = self.jubal.pipeline.weights(model)
            context = real_context(model, weights)
            rows.append((model.name, model.engine, weights.name, "" if context is None else f"{context:,}"))
        print_table(table("model", "engine", "weights", "context", right=("context",)), rows)

    def _key(self) -> str:
        file = self.jubal.settings.home / FIRST_KEY
        if self.new_key is not None:
            return f"API key: {self.new_key}\n(shown only now; you alone can read it in {shlex.quote(str(file))})"
        if self.kept_key is not None:
            return f"API key: in {shlex.quote(str(file))}"
        return "API key: one that `jubal keys list` shows, put into $XAI_API_KEY. `jubal keys create --name NAME` makes another."

    def _model_that_answers(self) -> str | None:
        states = {name: served.engine.status().state for name, served in self.jubal.served.items()}
        able = (model.name for model in self.jubal.pipeline.catalogue if states[model.engine] in ("ready", "stopped"))
        return next(able, None)

    def _curl(self, url: str, model: str) -> str:
        """Works when pasted into a shell, whatever the path of the home folder."""
        file = shlex.quote(str(self.jubal.settings.home / FIRST_KEY))
        key = self.new_key or (f"$(cat {file})" if self.kept_key is not None else "$XAI_API_KEY")
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "max_tokens": CURL_TOKENS_MAX,
        }
        tls = self.jubal.settings.tls_files
        trust = f"--cacert {shlex.quote(str(tls[0]))} " if tls else ""
        return (
            f'curl -sS {trust}{shlex.quote(f"{url}/chat/completions")} -H "Authorization: Bearer {key}" '
            f"-H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"
        )


def _show(shown: Shown) -> None:
    """Called once, when requests are taken and every engine is ready or has failed."""
    with whoever_reads():
        if shown.print() and shown.began_s is not None:
            print_ready(shown.began_s)
        sys.stdout.flush()


def print_ready(began_s: float, processes: str = "") -> None:
    print(f"Jubal is ready in {time.monotonic() - began_s:.1f} s{processes}. Ctrl-C stops it.")


@contextmanager
def whoever_reads() -> Iterator[None]:
    """A reader of our output that left, as in `jubal serve | head`, or a terminal that was closed, is no reason to stop serving,
    nor for a traceback that nobody reads."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        drop_stdout()


def _print_red(line: str) -> None:
    red, plain = ("\x1b[31m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
    print(f"{red}{line}{plain}")
