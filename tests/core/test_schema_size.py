"""What is counted in a schema is what an automaton of it would hold, and counting takes the time of reading."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest

from jubal.core.errors import BadRequest
from jubal.core.schema import EXPANSION_MAX, Bounds, Support, check, check_support, relaxed
from jubal.core.schema_size import ENDLESS, expansion, multiple_size, pattern_size

SUPPORT = Support(
    frozenset(
        {"type", "enum", "anyOf", "oneOf", "allOf", "$ref", "properties", "patternProperties", "pattern", "multipleOf"}
    ),
    frozenset(),
    bounds=Bounds(states=1_000, optional=50, remainders=1_000, values=100, branches=100, properties=100),
)


@pytest.mark.parametrize(
    ("pattern", "states", "optional"),
    [
        ("", 0, 0),
        ("^abc$", 5, 0),
        ("[abc][^a-z]\\d\\p{L}\\x{41}", 5, 0),
        ("[]a]b", 2, 0),
        ("a{3}", 3, 0),
        ("a{3,7}b", 8, 0),
        ("a{3,}", 4, 0),
        ("a{0,5}?", 5, 0),
        ("a{,5}", 5, 0),
        ("(ab){10}", 20, 0),
        ("((ab){10}c){10}", 210, 0),
        ("(?:ab|cd){2}", 8, 0),
        ("(a?b*c+){10}", 30, 20),
        ("(a{1000}){1000}", 1_000_000, 0),
        ("a\\{3}", 4, 0),
        ("\\(a{3}", 4, 0),
        ("a{99999999999999}", ENDLESS, 0),
        ("(" * 5 + "a{9999999}" + "){9999999}" * 5, ENDLESS, 0),
        ("[", 1, 0),
        ("(a{3}", 3, 0),
        ("a{3})b", 5, 0),
    ],
)
def test_size_of_a_pattern(pattern: str, states: int, optional: int) -> None:
    assert pattern_size(pattern) == (states, optional)


@pytest.mark.parametrize(
    "pattern", ["[" * 200_000, "(" * 200_000, "{" * 200_000, "\\" * 200_000, "a{" * 100_000, "[a" * 100_000]
)
def test_odd_patterns_are_read_in_no_time(pattern: str) -> None:
    """The test's time limit is the assertion: by the square of its length each would take minutes."""
    assert 0 <= pattern_size(pattern).states <= len(pattern)
    with contextlib.suppress(BadRequest):
        check_support({"type": "string", "pattern": pattern + "(?="}, SUPPORT, "s")


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (1, 1),
        (7, 7),
        (60, 3),
        (0.01, 1),
        (0.3, 3),
        (86400, 27),
        (10**9, 1),
        (1e300, 1),
        (123456789, 123456789),
        (1.5, 3),
    ],
)
def test_size_of_a_multiple(value: float, size: int) -> None:
    assert multiple_size(value) == size


def test_size_of_a_huge_multiple() -> None:
    assert multiple_size(float("1e999")) == 0  # no engine takes it
    assert multiple_size(3**9000) == ENDLESS


def test_expansion() -> None:
    assert expansion({}) == 0
    assert expansion({1: []}) == 1
    assert expansion({1: [2, 2], 2: [3, 3], 3: []}) == 7
    chain = {number: [number + 1] for number in range(100_000)} | {100_000: list[int]()}
    assert expansion(chain) == 100_001
    doubling = {number: [number + 1] * 2 for number in range(1000)} | {1000: list[int]()}
    assert expansion(doubling) == ENDLESS


def laughs(depth: int, keyword: str = "allOf") -> dict[str, Any]:
    """Each definition is the next one twice."""
    inner = {f"d{n}": {keyword: [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(depth)}
    return {"$defs": {**inner, f"d{depth}": {"type": "string"}}, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize("keyword", ["allOf", "anyOf", "oneOf"])
def test_definitions_that_multiply_are_refused(keyword: str) -> None:
    assert check(json.loads(json.dumps(laughs(10, keyword))), "s") > 10
    with pytest.raises(BadRequest, match=f"more than {EXPANSION_MAX:,} schemas"):
        check(json.loads(json.dumps(laughs(24, keyword))), "s")


OVER: dict[str, dict[str, Any]] = {
    "characters": {"type": "string", "pattern": "(a{40}){40}"},
    "patternProperties": {"type": "object", "patternProperties": {"(a{40}){40}": {"type": "string"}}},
    "optional": {"type": "string", "pattern": "(a?){51}"},
    "remainders": {"type": "integer", "multipleOf": 1009},
    "remainders of several": {
        "type": "object",
        "properties": {f"p{n}": {"multipleOf": 2 * n + 101} for n in range(12)},
    },
    "remainders of a combination": {"allOf": [{"multipleOf": 97}, {"multipleOf": 89}]},
    "remainders of a schema and its branch": {"multipleOf": 97, "anyOf": [{"multipleOf": 89}]},
    "values": {"type": "object", "properties": {f"p{n}": {"enum": list(range(26))} for n in range(4)}},
    "branches": {"anyOf": [{"oneOf": [{"type": "string"}] * 10}] * 10},
    "properties": {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(101)}},
}


@pytest.mark.parametrize("case", OVER)
def test_what_is_over_the_bounds_is_refused_and_relaxed_where_nobody_can_be_told(case: str) -> None:
    schema = OVER[case]
    check(schema, "s")
    with pytest.raises(BadRequest, match="so much of it") as refused:
        check_support(schema, SUPPORT, "the.schema")
    assert (refused.value.param, refused.value.code) == ("the.schema", "unsupported_schema")
    assert relaxed(schema, SUPPORT) == {"type": "object"}
    check_support(schema, Support(SUPPORT.keywords, SUPPORT.formats), "s")


def test_what_is_within_the_bounds_passes() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "pattern": "^[a-z]{1,40}(-[a-z]{1,40})*$"}, "b": {"multipleOf": 0.01}},
        "patternProperties": {"^x-": {"enum": [1, 2, 3]}},
    }
    check_support(schema, SUPPORT, "s")
    assert relaxed(schema, SUPPORT) == schema
