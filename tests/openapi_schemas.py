"""The schemas of the published OpenAPI document, made strict: what is not described must not be there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import jsonschema

from jubal.core.events import Event
from jubal.core.fold import Completion, Folder
from jubal.wire.openapi import Operation, document


class Described:
    """The document of some operations. `check` also notes which fields of the answers were ever seen."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        whole = json.loads(document(operations, title="t", version="0", description=""))
        self.schemas: dict[str, Any] = whole["components"]["schemas"]
        self.seen: set[str] = set()
        for schema in self.schemas.values():
            if "properties" in schema:
                schema["additionalProperties"] = False

    def check(self, name: str, raw: bytes | str) -> None:
        """Raises `ValidationError` where `raw` is not of the schema of this name, or says more."""
        value = json.loads(raw)
        schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": self.schemas}}
        jsonschema.Draft202012Validator(schema).validate(value)
        self._note(name, value)

    def _note(self, name: str, value: dict[str, Any]) -> None:
        for key, one in value.items():
            self.seen.add(f"{name}.{key}")
            for inner in one if isinstance(one, list) else (one,):
                for struct in _structs(self.schemas[name]["properties"][key]):
                    if isinstance(inner, dict) and inner.keys() <= self.schemas[struct]["properties"].keys():
                        self._note(struct, inner)

    def fields(self, *names: str) -> set[str]:
        """All fields of these schemas, and of those within them."""
        found: set[str] = set()
        for name in names:
            for key, schema in self.schemas[name]["properties"].items():
                found |= {f"{name}.{key}"} | self.fields(*_structs(schema))
        return found


def _structs(schema: Any) -> list[str]:
    """The names that a schema refers to."""
    if isinstance(schema, dict):
        own = [schema["$ref"].rpartition("/")[2]] if "$ref" in schema else []
        return own + [name for value in schema.values() for name in _structs(value)]
    return [name for value in schema for name in _structs(value)] if isinstance(schema, list) else []


def fold(events: Iterable[Event]) -> Completion:
    """The whole answer of these events."""
    folder = Folder()
    for event in events:
        folder.feed(event)
    assert folder.completion is not None
    return folder.completion
