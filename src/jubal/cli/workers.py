"""`[server] workers`: `jubal serve` as several processes. What the parent does, and the command that each worker runs."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from jubal import config

if TYPE_CHECKING:
    from jubal.cli.serve import Shown
    from jubal.serving.places import Place

GRACE_S: Final = 15.0
"""After the drain limit: for the answers that were ended to say so and to be settled. Who is there longer is killed."""


class _Orders(msgspec.Struct, frozen=True):
    """What a worker is told first. The settings as the parent read them: the file may be another one by the time of a restart.

    port: of HTTP, the real one. grpc: hosts and port. first: see `serve.run`.
    """

    settings: config.Settings
    port: int
    grpc: tuple[tuple[str, ...], int] | None
    log_level: str
    first: bool


class _Said(msgspec.Struct, frozen=True):
    """What a worker says when it is ready. text: what its start tells, all but the last line. well: no engine failed."""

    text: str
    well: bool


def check(settings: config.Settings) -> None:
    """Whether several processes can serve these settings. Raises `ConfigError`."""
    from jubal import catalogue

    where = f"{settings.file}: server.workers"
    if sys.platform == "win32":
        raise config.ConfigError(f"{where}: on Windows a server is one process, expected 1.")
    if settings.limits.url.startswith("memory://"):
        raise config.ConfigError(
            f"{where}: several workers can't count rate limits together in memory: "
            'set limits.url = "redis://HOST:PORT/0", or workers = 1.'
        )
    for models in (catalogue.build(settings), catalogue.embedding_models(settings)):
        engines = catalogue.engine_settings(settings, models)
        for model in models:
            for name in (model.engine, *model.fallback):
                if engines[name].kind == "llama":
                    raise config.ConfigError(
                        f"{where}: the model `{model.name}` is served by the engine `{name}` of kind `llama`, which belongs to one "
                        "process. Serve it with a `jubal serve` of its own, and name that one here as an engine of kind `openai`; "
                        "or set workers = 1."
                    )


# ---------------------------------------------------------------------------------------------- the parent


def supervise(
    settings: config.Settings, kept: socket.socket, grpc: Place | None, log_level: str, began_s: float
) -> None:
    """Serves with several workers until all have ended. Raises `typer.Exit` where that is not what somebody asked for.

    The parent stays small: it imports neither the server nor the store. What has to be done once, from migrations to the
    first key, is done by the first worker, before there are others. kept: keeps the port for them.
    """
    from jubal.cli import logs, serve
    from jubal.serving.places import reserve
    from jubal.supervisor import Supervisor

    logs.configure(log_level, config.secrets(settings), pid=os.getpid())
    port = kept.getsockname()[1]

    def orders(first: bool) -> bytes:
        place = None if grpc is None else (grpc.hosts, grpc.port)
        return msgspec.msgpack.encode(_Orders(settings, port, place, log_level, first), enc_hook=str)

    def show(said: bytes) -> None:
        told = msgspec.msgpack.decode(said, type=_Said)
        with serve.whoever_reads():
            print(told.text, end="")
            if told.well:
                serve.print_ready(began_s, f" with {settings.server.workers} workers")
            sys.stdout.flush()

    async def run(close_door: Callable[[], None]) -> int:
        supervisor = Supervisor(
            settings.server.workers,
            lambda line: (sys.executable, "-P", "-m", "jubal", "worker", str(line)),
            orders,
            close_door=close_door,
            drain_s=settings.server.drain_s + GRACE_S,
        )
        return await supervisor.run(show)

    with ExitStack() as door:
        door.enter_context(kept)
        if grpc is not None:
            for host in grpc.hosts:
                door.enter_context(reserve(host, grpc.port))
        code = asyncio.run(run(door.close))
    if code:
        raise typer.Exit(code)
    with serve.whoever_reads():
        print("Stopped.", flush=True)


# ---------------------------------------------------------------------------------------------- a worker


def worker(line: Annotated[int, typer.Argument(metavar="DESCRIPTOR")]) -> None:
    """One process of `jubal serve`, which starts it; nothing for a shell."""
    from jubal.cli import logs, serve
    from jubal.serving.places import Place, bind
    from jubal.supervisor import Line

    parent = Line(line)
    try:
        orders = msgspec.msgpack.decode(parent.orders(), type=_Orders, dec_hook=_path)
    except EOFError:  # the parent was killed meanwhile; there is nobody to work for
        raise typer.Exit(1) from None
    settings = orders.settings
    secrets = config.secrets(settings)
    logs.configure(orders.log_level, secrets, pid=os.getpid())
    logs.configure_libraries(secrets, pid=os.getpid())
    place = None if orders.grpc is None else Place(*orders.grpc, shared=True)

    def listen(drain: Callable[[], None], stop_now: Callable[[], None], read_again: Callable[[], None]) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, read_again)  # the parent looks after the terminal
        parent.listen(drain, stop_now, drain_s=settings.server.drain_s + GRACE_S)

    def show(shown: Shown) -> None:
        parent.ready(msgspec.msgpack.encode(_said(shown) if orders.first else _Said("", well=True)))

    with bind(settings.server.host, orders.port, shared=True) as listener:
        serve.run(settings, listener, place, first=orders.first, show=show, orders=listen)


def _said(shown: Shown) -> _Said:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        well = shown.print()
    return _Said(text.getvalue(), well)


def _path(kind: Any, value: Any) -> Any:
    """The one type of settings that the encoding does not know."""
    assert kind is Path
    return Path(value)
