"""JSON Schemas: what is none, what can't be obeyed, and what is left of one in an engine's words."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jubal.core.errors import BadRequest
from jubal.core.schema import (
    DEPTH_MAX,
    RESTRICTING,
    SCHEMAS_MAX,
    VALUES_MAX,
    Support,
    check,
    check_support,
    reduced,
    relaxed,
)
from jubal.engines.llama_cpp.schema import BUILT_IN, GUIDED

WHERE = "response_format.json_schema.schema"


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


GOOD: list[Any] = [
    True,
    False,
    {},
    {"title": "x", "description": 5, "default": [], "examples": {}, "$comment": "c", "x-mine": [1], "nullable": True},
    {"type": ["string", "null"], "minLength": 1.0, "format": "int32"},
    {"properties": {"type": {"type": "string"}, "properties": True, "$ref": {}}, "required": ["type"]},
    {"enum": [{"type": 5}, None]},
    {"const": {"$ref": 5, "type": 7}},
    {"$ref": "#"} | {"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}},
    {"properties": {"next": {"$ref": "#"}}},
    {"$defs": {"n": {"properties": {"c": {"items": {"$ref": "#/$defs/n"}}}}}, "$ref": "#/$defs/n"},
    {"$ref": "#/$defs/a~1b~0c%20d", "$defs": {"a/b~c d": True}},
    {"items": [{"type": "null"}, {"$ref": "#/items/0"}], "additionalItems": False},
    {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}], "$defs": {"a": {"not": {}}}},
    nested(DEPTH_MAX),
]


@pytest.mark.parametrize("schema", GOOD, ids=range(len(GOOD)))
def test_good_ones(schema: Any) -> None:
    check(schema, WHERE)


BAD: list[tuple[Any, str]] = [
    (5, ""),
    (None, ""),
    ([], ""),
    ({"type": 5}, ".type"),
    ({"type": "STRING"}, ".type"),
    ({"type": []}, ".type"),
    ({"type": ["string", None]}, ".type"),
    ({"properties": {"x": {"type": 5}}}, ".properties.x.type"),
    ({"properties": []}, ".properties"),
    ({"properties": {"x": "string"}}, ".properties.x"),
    ({"items": {"anyOf": [{}, {"enum": []}]}}, ".items.anyOf[1].enum"),
    ({"items": 5}, ".items"),
    ({"anyOf": []}, ".anyOf"),
    ({"oneOf": {}}, ".oneOf"),
    ({"enum": {}}, ".enum"),
    ({"required": "a"}, ".required"),
    ({"required": [5]}, ".required"),
    ({"minLength": -1}, ".minLength"),
    ({"maxItems": 1.5}, ".maxItems"),
    ({"maxItems": True}, ".maxItems"),
    ({"minimum": "3"}, ".minimum"),
    ({"exclusiveMinimum": True}, ".exclusiveMinimum"),
    ({"multipleOf": 0}, ".multipleOf"),
    ({"minimum": 3, "maximum": 2}, ".minimum"),
    ({"minItems": 3, "maxItems": 2}, ".minItems"),
    ({"uniqueItems": 1}, ".uniqueItems"),
    ({"pattern": 1}, ".pattern"),
    ({"format": None}, ".format"),
    ({"dependentRequired": {"a": "b"}}, ".dependentRequired"),
    ({"$ref": 5}, ".$ref"),
    ({"$ref": "http://127.0.0.1/s"}, ".$ref"),
    ({"$ref": "other.json"}, ".$ref"),
    ({"$ref": "#name"}, ".$ref"),
    ({"$ref": "#/$defs/a", "$defs": {}}, ".$ref"),
    ({"$ref": "#/anyOf/1", "anyOf": [{}]}, ".$ref"),
    ({"$ref": "#/enum", "enum": [1]}, ".$ref"),
    ({"$ref": "#/x-mine/a", "x-mine": {"a": {}}}, ".$ref"),
    ({"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"$ref": "#/$defs/a"}}}, ".properties.a"),
    ({"$ref": "#"}, ""),
    ({"anyOf": [{"type": "null"}, {"$ref": "#"}]}, ""),
    ({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}}}, ".$defs.a"),
    (nested(DEPTH_MAX + 1), ".items" * (DEPTH_MAX + 1)),
    ({"properties": {str(n): True for n in range(SCHEMAS_MAX + 1)}}, ""),
    ({"enum": list(range(VALUES_MAX + 1))}, ".enum"),
]


@pytest.mark.parametrize(("schema", "place"), BAD, ids=range(len(BAD)))
def test_bad_ones_name_the_place(schema: Any, place: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check(schema, WHERE)
    assert caught.value.param == WHERE + place
    assert caught.value.code == "invalid_schema"
    assert caught.value.param in caught.value.message


def test_long_words_of_the_caller_are_cut() -> None:
    with pytest.raises(BadRequest) as caught:
        check({"properties": {"n" * 5000: {"type": "t" * 5000}}}, WHERE)
    assert len(caught.value.message) < 700


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False)
    | st.sampled_from(["a", "#", "#/$defs/a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*sorted(RESTRICTING), "$defs", "definitions", "a"]), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=400, deadline=None)
@given(json_values)
def test_anything_is_a_schema_or_a_bad_request(value: Any) -> None:
    """And what passes `check` never fails anything after it but by a `BadRequest`."""
    value = json.loads(json.dumps(value))
    try:
        check(value, WHERE)
        for support in (GUIDED, BUILT_IN):
            check_support(value, support, WHERE)
            check(reduced(value, support), WHERE)
    except BadRequest as error:
        assert (error.param or "").startswith(WHERE)
        assert error.code in ("invalid_schema", "unsupported_schema")


@settings(max_examples=150, deadline=None)
@given(json_values)
def test_what_passes_is_a_schema_to_others_too(value: Any) -> None:
    value = json.loads(json.dumps(value))
    try:
        check(value, WHERE)
    except BadRequest:
        return
    if not {"items", "dependencies", "definitions", "pattern", "patternProperties"} & set(str(value).split("'")):
        jsonschema.Draft202012Validator.check_schema(value)


UNSUPPORTED: list[tuple[dict[str, Any], str, str]] = [
    ({"type": "array", "uniqueItems": True}, ".uniqueItems", "uniqueItems"),
    ({"properties": {"a": {"not": {"const": 1}}}}, ".properties.a.not", "not"),
    ({"anyOf": [{}, {"if": {}, "then": {}}]}, ".anyOf[1].if", "if"),
    ({"$defs": {"a": {"contains": {}}}, "$ref": "#/$defs/a"}, ".$defs.a.contains", "contains"),
    ({"items": {"format": "iri"}}, ".items.format", "iri"),
    ({"type": "array", "maxItems": 10_001}, ".maxItems", "10001"),
    ({"type": "array", "minItems": 1_000_000}, ".minItems", "1000000"),
    ({"pattern": "^(?=a)a$"}, ".pattern", "pattern"),
    ({"pattern": r"(a)\1"}, ".pattern", "pattern"),
    ({"pattern": r"\bfoo"}, ".pattern", "pattern"),
    ({"pattern": r"^\\[ab]$"}, ".pattern", "pattern"),
    ({"pattern": r'^"[ab]$'}, ".pattern", "pattern"),
    ({"format": "uri", "pattern": "^https"}, ".format", "format"),
    ({"patternProperties": {"(?!a)": {}}}, ".patternProperties", "patternProperties"),
    ({"minProperties": 1}, ".minProperties", "minProperties"),
    ({"unevaluatedProperties": False}, ".unevaluatedProperties", "unevaluatedProperties"),
    ({"dependentRequired": {"a": ["b"]}}, ".dependentRequired", "dependentRequired"),
]


@pytest.mark.parametrize(("schema", "place", "word"), UNSUPPORTED, ids=range(len(UNSUPPORTED)))
def test_what_is_not_obeyed_is_named(schema: Any, place: str, word: str) -> None:
    check(schema, WHERE)
    with pytest.raises(BadRequest, match=word) as caught:
        check_support(schema, GUIDED, WHERE)
    assert (caught.value.param, caught.value.code) == (WHERE + place, "unsupported_schema")


def test_what_restricts_nothing_is_no_trouble() -> None:
    schema = {
        "uniqueItems": False, "minProperties": 0, "not": False, "format": "password", "x-a": {"not": {}}, "title": "not",
        "pattern": r"^[\\\"]{2}\.\(\?=\d$", "enum": [{"not": 1}], "dependentRequired": {},
    }  # fmt: skip
    check_support(schema, GUIDED, WHERE)
    assert reduced(schema, GUIDED) == {"pattern": r"^[\\\"]{2}\.\(\?=\d$", "enum": [{"not": 1}]}


def test_reduced_keeps_what_restricts() -> None:
    schema = {
        "$schema": "s", "title": "T", "type": "object",
        "properties": {"title": {"type": "string", "title": "Title", "format": "date"}, "u": {"format": "uri"}},
        "items": [{"title": "t"}, False], "additionalItems": {"$ref": "#/$defs/a"},
        "$defs": {"a": {"description": "d", "type": "null"}},
    }  # fmt: skip
    assert reduced(schema, GUIDED) == {
        "type": "object",
        "properties": {"title": {"type": "string", "format": "date"}, "u": {"pattern": GUIDED.patterns["uri"]}},
        "prefixItems": [{}, False],
        "items": {"$ref": "#/$defs/a"},
        "$defs": {"a": {"type": "null"}},
    }


def test_relaxed_allows_more_where_it_must() -> None:
    schema = {"type": "array", "uniqueItems": True, "items": {"pattern": r"\\bx", "minLength": 2, "format": "iri"}}
    assert relaxed(schema, GUIDED) == {"type": "array", "items": {"minLength": 2}}
    assert relaxed({"properties": {"a": {"$ref": "https://x"}}}, GUIDED) == {"type": "object"}
    assert relaxed(None, GUIDED) == {"type": "object"}


def test_one_of_a_set_alone() -> None:
    support = Support(frozenset({"anyOf", "enum"}), frozenset(), alone={"anyOf": "anyOf", "enum": "enum"})
    check_support({"anyOf": [{"enum": [1]}]}, support, WHERE)
    with pytest.raises(BadRequest, match="beside") as caught:
        check_support({"anyOf": [{}], "enum": [1]}, support, WHERE)
    assert caught.value.param == WHERE + ".enum"
