"""The access log: one line per request, where it is wanted. Whose key it was, never the key; the path, never its query."""

from __future__ import annotations

import re
import time
from typing import Any, Final

import structlog

INFO: Final = 20
CHARS_MAX: Final = 200
CLIENTS_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
"""A client's own name for its request, as far as it is logged. It never takes the place of ours: that one is what is charged."""


class AccessLog:
    """Writes to the process's log, whatever its level: who turned this on wants its lines."""

    def __init__(self) -> None:
        factory = structlog.get_config()["logger_factory"]
        wrapper = structlog.make_filtering_bound_logger(INFO)
        self._log: Any = structlog.wrap_logger(factory("jubal.access"), wrapper_class=wrapper)

    def write(
        self,
        *,
        request_id: str,
        client_request_id: str | None,
        key_id: str | None,
        method: str,
        path: str,
        status: int | None,
        began_s: float,
    ) -> None:
        """status: None where the client left before there was one. began_s: on the monotonic clock."""
        fields: dict[str, object] = {"request_id": request_id}
        if client_request_id is not None and CLIENTS_ID.fullmatch(client_request_id):
            fields["client_request_id"] = client_request_id
        if key_id is not None:
            fields["key_id"] = key_id
        duration_ms = round((time.monotonic() - began_s) * 1000, 1)
        self._log.info(
            "request", **fields, method=method, path=path[:CHARS_MAX], status=status, duration_ms=duration_ms
        )
