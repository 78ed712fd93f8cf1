"""An OpenAPI 3.1 document out of operations, whose bodies and answers are msgspec structs. Nothing of a dialect is known here.

Loaded when somebody asks for the document: requests need none of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, TypeAlias

import msgspec

Schema: TypeAlias = dict[str, Any]
Answer: TypeAlias = type | tuple[type, ...] | None
"""A struct, one of several, or no body at all."""

REFERENCE: Final = "#/components/schemas/"
PARAMETER: Final = re.compile(r"\{(\w+)\}")
JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
PHRASES: Final = {422: "The body does not fit the schema", 498: "Capacity exceeded"}
NEEDS_KEY: Final[list[Schema]] = [{"bearer": []}, {"x-api-key": []}]
NEEDS_MANAGEMENT_KEY: Final[list[Schema]] = [{"management": []}]
SCHEMES: Final[Schema] = {
    "management": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key made by `jubal keys create --management`.",
    },
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key made by `jubal keys create`."},
    "x-api-key": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "The same, as Anthropic's clients send it.",
    },
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    method: in upper case. path: with `{name}` for each part that varies; parameters: the schema of those that are more than a
    text. query: parameters after the `?`, none of them required. management: it takes a management key, and no other.
    name: the operationId; the schemas of the body are called after it. body: the struct that the dialect decodes.
    answers: by status, the errors among them. frames: what a server-sent event holds, where a 200 can be a stream;
    done: what the last one says instead.
    refined: what a body must keep to beside its types, by `Struct.field`: JSON Schema keywords. example: a body that is
    answered well. links: operations that a 200 gives parameters for, by name: expressions as OpenAPI has them.
    """

    method: str
    path: str
    name: str
    summary: str
    tag: str
    answers: Mapping[int, Answer]
    body: type | None = None
    frames: Answer = None
    done: str | None = "[DONE]"
    refined: Mapping[str, Schema] = field(default_factory=dict)
    parameters: Mapping[str, Schema] = field(default_factory=dict)
    example: Schema | None = None
    links: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    needs_key: bool = True
    management: bool = False
    query: Mapping[str, Schema] = field(default_factory=dict)

    @property
    def route(self) -> tuple[str, str]:
        """The method, and the path with `{}` for every part that varies."""
        return self.method, PARAMETER.sub("{}", self.path)


def document(operations: Iterable[Operation], *, title: str, version: str, description: str) -> bytes:
    """The document as JSON."""
    operations = tuple(operations)
    components = _answers(operations)
    paths: dict[str, Schema] = {}
    for operation in operations:
        body = None
        if operation.body is not None:
            body, own = _body(operation.name, operation.body, operation.refined)
            components |= own
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, body)
    whole = {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, "description": description},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "headers": {
                "x-request-id": {
                    "description": "The id of this request in the usage and in the server's log.",
                    "schema": {"type": "string", "format": "uuid"},
                    "required": True,
                }
            },
            "securitySchemes": SCHEMES,
        },
    }
    return msgspec.json.encode(whole)


def _operation(operation: Operation, body: Schema | None) -> Schema:
    made: Schema = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.tag],
        "responses": {
            str(status): _response(
                status, answer, _event(operation) if status == HTTPStatus.OK and operation.frames else None
            )
            for status, answer in sorted(operation.answers.items())
        },
        "security": NEEDS_MANAGEMENT_KEY if operation.management else NEEDS_KEY if operation.needs_key else [],
    }
    if operation.links:
        made["responses"]["200"]["links"] = {
            name: {"operationId": name, "parameters": parameters} for name, parameters in operation.links.items()
        }
    if names := PARAMETER.findall(operation.path):
        made["parameters"] = [
            {
                "name": name,
                "in": "path",
                "required": True,
                "schema": operation.parameters.get(name, {"type": "string", "minLength": 1}),
            }
            for name in names
        ]
    if operation.query:
        made.setdefault("parameters", []).extend(
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in operation.query.items()
        )
    if body is not None:
        example = {} if operation.example is None else {"example": operation.example}
        made["requestBody"] = {"required": True, "content": {JSON: {"schema": body, **example}}}
    return made


def _response(status: int, answer: Answer, event: Schema | None) -> Schema:
    made: Schema = {
        "description": PHRASES.get(status) or HTTPStatus(status).phrase,
        "headers": {"x-request-id": {"$ref": "#/components/headers/x-request-id"}},
    }
    content: Schema = {}
    if answer is not None:
        content[JSON] = {"schema": _either(answer)}
    if event is not None:
        content[EVENTS] = {"schema": event}
    if content:
        made["content"] = content
    return made


def _event(operation: Operation) -> Schema:
    """One server-sent event: OpenAPI 3.1 has no word for a stream of them, and tools take the schema for each (3.2 says so)."""
    data: Schema = {"contentMediaType": JSON, "contentSchema": _either(operation.frames)}
    if operation.done is not None:
        data = {"anyOf": [{"const": operation.done}, data]}
    return {
        "type": "object",
        "required": ["data"],
        "properties": {"event": {"type": "string"}, "data": {"type": "string", **data}},
    }


def _either(answer: Answer) -> Schema:
    assert answer is not None
    if isinstance(answer, tuple):
        return {"anyOf": [_reference(one) for one in answer]}
    return _reference(answer)


def _reference(struct: type) -> Schema:
    return {"$ref": REFERENCE + struct.__name__}


def _answers(operations: tuple[Operation, ...]) -> dict[str, Schema]:
    """The schemas of all answers under the names of their structs. Raises `ValueError` where two have the same."""
    wanted: dict[type, None] = {}
    for operation in operations:
        for answer in (*operation.answers.values(), operation.frames):
            for struct in answer if isinstance(answer, tuple) else (answer,):
                if struct is not None:
                    wanted[struct] = None
    _, components = msgspec.json.schema_components(tuple(wanted), ref_template=REFERENCE + "{name}")
    if twice := [name for name in components if "." in name]:
        raise ValueError(f"two structs of answers have the same name: {', '.join(twice)}")
    return components


def _body(prefix: str, struct: type, refined: Mapping[str, Schema]) -> tuple[Schema, dict[str, Schema]]:
    """The schema of a body, and those it refers to.

    A dialect's structs are its own, with names like `_Part`, which several dialects have. Their docstrings are about decoding.
    """
    template = f"{REFERENCE}{prefix}{{name}}"
    (schema,), components = msgspec.json.schema_components((struct,), ref_template=template)
    for where, keywords in refined.items():
        name, _, key = where.partition(".")
        components[f"_{name}"]["properties"][key] |= keywords
    for component in components.values():
        component.pop("description", None)
        component["title"] = component["title"].lstrip("_")
    renamed = {f"{prefix}{name.lstrip('_')}": component for name, component in components.items()}
    whole = _without_underscores((schema, renamed), f"{REFERENCE}{prefix}_")
    return whole[0], whole[1]


def _without_underscores(node: Any, marked: str) -> Any:
    if isinstance(node, dict):
        return {key: _without_underscores(value, marked) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_without_underscores(value, marked) for value in node]
    if isinstance(node, str) and node.startswith(marked):
        return marked[:-1] + node.removeprefix(marked)
    return node
