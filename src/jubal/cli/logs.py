"""Logging of the whole process: one event a line on stderr, for people on a terminal, JSON elsewhere.

Nothing in the project logs headers, bodies or keys; tracebacks are written without locals, which could hold them. What an exception
says may hold one all the same, so each line goes through `jubal.core.hiding`.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterable
from typing import Any, Final, TextIO, cast

import structlog

from jubal.core.hiding import hide, sure

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class Sink:
    """Standard error as logs are written to it: without secrets, and never a reason to fail. A full disk or a reader that left
    must not cost a request its answer."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets = sure(secrets)

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
            sys.stderr.write(hide(text, self._secrets))

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()


def configure(level: str, secrets: Iterable[str] = (), *, pid: int | None = None) -> None:
    """Jubal's own events, from `level` on. secrets: what no line may hold. pid: of this process, for every line, where
    several write to one place."""
    sink = cast("TextIO", Sink(secrets))
    structlog.configure(
        processors=[*_fields(pid), *_rendering()],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_: structlog.WriteLogger(sink),
        cache_logger_on_first_use=False,
    )


def configure_libraries(secrets: Iterable[str] = (), *, pid: int | None = None) -> None:
    """What libraries, uvicorn among them, log through `logging`: warnings and worse, in the same form."""
    handler = logging.StreamHandler(cast("TextIO", Sink(secrets)))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *_fields(pid)],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering()],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)


def _fields(pid: int | None) -> list[Any]:
    def add_pid(_logger: Any, _method: str, event: Any) -> Any:
        event["pid"] = pid
        return event

    return [
        *([] if pid is None else [add_pid]),
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _rendering() -> list[Any]:
    if sys.stderr.isatty():
        return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback, repr_native_str=True)]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
