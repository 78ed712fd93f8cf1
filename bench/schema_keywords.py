"""Which keywords of JSON Schema llama.cpp holds an answer to: by its own converter (`response_format`), and by llguidance.

    python bench/schema_keywords.py [MODELS_FOLDER [KEYWORD …]]

Prints the table of docs/decisions/structured-output.md. Each schema is answered by the real model at a temperature that tries
everything which it may; what comes is validated by the jsonschema package. "ignored": an answer that the schema forbids.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema

from jubal.engines.llama_cpp.engine import URL, LlamaEngine

TRIES = 4
FORMATS = jsonschema.FormatChecker(set(jsonschema.Draft202012Validator.FORMAT_CHECKER.checkers))


@FORMATS.checks("uri")
def is_uri(value: object) -> bool:
    """Enough of one: the package's own check needs another package."""
    return not isinstance(value, str) or re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]*", value) is not None


TOKENS_MAX = 48
NULL = {"type": "null"}
FLAG = {"type": "boolean"}


def thing(**keywords: Any) -> dict[str, Any]:
    return {"type": "object", **keywords}


ROWS: dict[str, Any] = {
    "type, one or a list": {"type": ["string", "null"], "maxLength": 3},
    "enum": {"enum": ["a", 1, None]},
    "enum beside type": {"type": "string", "enum": ["a", 1]},
    "const": {"const": {"a": "b c"}},
    "anyOf": {"anyOf": [FLAG, NULL]},
    "anyOf beside properties": thing(properties={"k": NULL}, required=["k"], additionalProperties=NULL, anyOf=[{"required": ["j"]}]),
    "oneOf, disjoint": {"oneOf": [FLAG, NULL]},
    "allOf of objects": {"allOf": [thing(properties={"a": NULL}, required=["a"]), thing(required=["b"], additionalProperties=NULL)]},
    "allOf of strings": {"allOf": [{"type": "string", "minLength": 2}, {"maxLength": 4}]},
    "$ref, $defs": {"$ref": "#/$defs/x", "$defs": {"x": FLAG}},
    "$ref with something beside it": thing(properties={"a": {"$ref": "#/$defs/x", "maxLength": 2}}, required=["a"], additionalProperties=False) | {"$defs": {"x": {"type": "string"}}},
    "$ref: #": thing(properties={"c": {"$ref": "#"}}, additionalProperties=False),
    "$ref, escaped pointer": {"$ref": "#/$defs/a~1b", "$defs": {"a/b": FLAG}},
    "properties, required": thing(properties={"a": FLAG}, required=["a"], additionalProperties=False),
    "required, not in properties": thing(required=["z"], additionalProperties=FLAG),
    "additionalProperties: schema": thing(properties={"a": NULL}, additionalProperties=FLAG),
    "patternProperties": thing(patternProperties={"^a[bc]?$": FLAG}, additionalProperties=False, required=["a"]),
    "propertyNames": thing(propertyNames={"maxLength": 1}, additionalProperties=NULL, required=["a"]),
    "minProperties": thing(additionalProperties=NULL, minProperties=2),
    "maxProperties": thing(properties={"a": NULL, "b": NULL}, additionalProperties=False, maxProperties=1),
    "items, minItems, maxItems": {"type": "array", "items": NULL, "minItems": 1, "maxItems": 3},
    "prefixItems": {"type": "array", "prefixItems": [NULL, FLAG], "minItems": 2, "maxItems": 2},
    "prefixItems with items": {"type": "array", "prefixItems": [NULL], "items": FLAG, "minItems": 2, "maxItems": 3},
    "uniqueItems": {"type": "array", "items": FLAG, "uniqueItems": True, "minItems": 2, "maxItems": 4},
    "contains": {"type": "array", "items": FLAG, "contains": {"const": True}, "maxItems": 3},
    "minLength, maxLength": {"type": "string", "minLength": 2, "maxLength": 4},
    "pattern": {"type": "string", "pattern": "^[a-c]{2,3}(x|yz)?$"},
    "pattern with maxLength": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 3},
    "pattern, look-ahead": {"type": "string", "pattern": "^(?=a)[ab]+$"},
    "pattern, backslash then a class": {"type": "string", "pattern": r"^\\[ab]{2}$"},
    "format: date": {"type": "string", "format": "date"},
    "format: time": {"type": "string", "format": "time"},
    "format: date-time": {"type": "string", "format": "date-time"},
    "format: uuid": {"type": "string", "format": "uuid"},
    "format: email": {"type": "string", "format": "email", "maxLength": 12},
    "format: ipv4": {"type": "string", "format": "ipv4"},
    "format: ipv6": {"type": "string", "format": "ipv6"},
    "format: uri": {"type": "string", "format": "uri", "maxLength": 20},
    "format with maxLength": {"type": "string", "format": "ipv4", "maxLength": 9},
    "minimum, maximum of integers": {"type": "integer", "minimum": 3, "maximum": 120},
    "minimum of numbers": {"type": "number", "minimum": 3, "maximum": 5.5, "multipleOf": 0.5},
    "exclusiveMinimum of integers": {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 12},
    "multipleOf": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 100},
    "not": {"enum": [1, 2, 3, 4, 5], "not": {"maximum": 4}},
    "if, then": {"enum": [1, 2, 3, 4, 5], "if": {"type": "integer"}, "then": {"minimum": 5}},
    "dependentRequired": thing(properties={"a": NULL, "b": NULL}, required=["a"], dependentRequired={"a": ["b"]}, additionalProperties=False),
    "schema: true": thing(properties={"a": True}, required=["a"], additionalProperties=False, maxProperties=1),
    "schema: false": thing(properties={"a": False, "b": NULL}, required=["b"], additionalProperties=False),
}  # fmt: skip


async def main(folder: Path, only: list[str]) -> None:
    engine = LlamaEngine("local", folder, "smollm2-135m", context=512)
    await engine.start()
    await engine.ready()
    print("| keyword | `response_format` | llguidance |\n|---|---|---|")
    for name, schema in ROWS.items():
        if only and name not in only:
            continue
        built_in = {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}
        guided = {
            "grammar": "%llguidance {}\nstart: %json "
            + json.dumps({**schema, "x-guidance": {"whitespace_flexible": False}})
        }
        print(
            f"| {name} | {await verdict(engine, schema, built_in)} | {await verdict(engine, schema, guided)} |",
            flush=True,
        )
    await engine.close()


async def verdict(engine: LlamaEngine, schema: Any, fields: dict[str, Any]) -> str:
    found = await asyncio.gather(*(one(engine, schema, fields, seed) for seed in range(TRIES)))
    for word in ("refused, 400", "refused, 500", "ignored", "obeyed"):
        if word in found:
            return word
    return "no answer came to its end"


async def one(engine: LlamaEngine, schema: Any, fields: dict[str, Any], seed: int) -> str:
    body = {
        "messages": [{"role": "user", "content": "Make something up, in JSON."}],
        "max_tokens": TOKENS_MAX,
        "temperature": 1.8,
        "seed": seed,
        **fields,
    }
    assert engine._session is not None
    async with engine._session.post(f"{URL}/v1/chat/completions", json=body) as response:
        if response.status != 200:
            return f"refused, {response.status}"
        choice = (await response.json())["choices"][0]
    text = choice["message"]["content"]
    if choice["finish_reason"] != "stop":
        return "ignored" if text[:1] not in '{["-0123456789tfn' else ""
    try:
        jsonschema.Draft202012Validator(schema, format_checker=FORMATS).validate(json.loads(text))
    except (ValueError, jsonschema.ValidationError):
        return "ignored"
    return "obeyed"


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else ".cache/models"), sys.argv[2:]))
