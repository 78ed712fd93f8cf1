"""GET /openapi.json: the document of the routes that this server has.

A new route is described where its dialect's answers are (`wire/*_schema.py`), and its table is added to `TABLES`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from jubal import __version__
from jubal.wire import anthropic_schema, management, openai_schema, responses_schema
from jubal.wire.openapi import Operation, document

DESCRIPTION: Final = (
    "A self-hosted Grok API. Fields of a request that are not described are ignored, null means unset. A path that has other "
    "methods than the one asked for answers 405 with `Allow`; every error of the REST API has the same body."
)


class EngineHealth(msgspec.Struct):
    """breaker: closed while it is asked, open while it rests after failures in a row, half_open while one request tries.

    asked_again_in_s: when its rest is over. reason: why it is not ready, or what is wrong with it all the same.
    """

    kind: str
    state: Literal["stopped", "starting", "ready", "failed"]
    running: int
    queued: int
    breaker: Literal["closed", "open", "half_open"]
    failures_in_a_row: int | UnsetType = UNSET
    asked_again_in_s: float | UnsetType = UNSET
    reason: str | UnsetType = UNSET


class Health(msgspec.Struct):
    """200 while every model has an engine that answers, be it a fallback; 503 where one has none.

    ok: every engine is ready. starting: some are not yet. degraded: some failed, or rest after failures.
    tools: kinds of server tools that may be asked for, and what each runs on.
    """

    status: Literal["ok", "starting", "degraded"]
    version: str
    engines: dict[str, EngineHealth]
    tools: dict[str, str]


class OpenAPIDocument(msgspec.Struct):
    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]
    components: dict[str, Any]
    servers: list[dict[str, Any]]


OWN: Final = (
    Operation(
        "GET",
        "/health",
        "getHealth",
        "Which engines are ready",
        "Server",
        {200: Health, 503: Health},
        needs_key=False,
    ),
    Operation(
        "GET",
        "/openapi.json",
        "getOpenAPI",
        "This document",
        "Server",
        {200: OpenAPIDocument},
        needs_key=False,
    ),
)
TABLES: Final[tuple[tuple[Operation, ...], ...]] = (
    openai_schema.OPERATIONS,
    responses_schema.OPERATIONS,
    anthropic_schema.OPERATIONS,
    management.OPERATIONS,
    OWN,
)


def describe(routes: Iterable[tuple[str, str]]) -> bytes:
    """The document of these routes, each a method and a path with `{}` for every part that varies."""
    served = set(routes)
    operations = [operation for table in TABLES for operation in table if operation.route in served]
    return document(operations, title="Jubal", version=__version__, description=DESCRIPTION)
