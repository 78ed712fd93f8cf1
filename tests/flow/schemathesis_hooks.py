"""What Schemathesis can't know: names of models. With made-up ones every request would end at the same 404."""

from __future__ import annotations

from typing import Any

import schemathesis

LANGUAGE = "grok-4"
EMBEDDING = "grok-embedding-small"


def _model_for(path: str) -> str:
    return EMBEDDING if "embedding" in path else LANGUAGE


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Names that are no text at all, and every eighth, stay as they are."""
    if isinstance(body, dict) and isinstance(body.get("model"), str) and len(body["model"]) % 8:
        return {**body, "model": _model_for(context.operation.path)}
    return body


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: Any) -> Any:
    if path_parameters and len(str(path_parameters.get("model", ""))) % 8:
        return {**path_parameters, "model": _model_for(context.operation.path)}
    return path_parameters
