"""JSON Schema as callers send it: what is none is refused, and so is what an engine can't hold an answer to.

    check(schema, where)                  is it a JSON Schema at all, and one that ends?
    check_support(schema, support, where) can this engine obey every keyword that restricts?
    reduced(schema, support)              the same schema in the words that this engine knows
    relaxed(schema, support)              the nearest that it can obey

A keyword that restricts and is dropped in silence makes answers that look right and are not, so it is named in a 400 instead.
Unknown keywords are annotations, as the standard has it (2020-12, section 4.3.1).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from jubal.core.errors import BadRequest
from jubal.core.schema_size import expansion, multiple_size, pattern_size

Schema: TypeAlias = Any
"""JSON as it was decoded: an object or a boolean where it is a schema."""

DEPTH_MAX: Final = 64
"""Schemas inside schemas. Grammars are compiled by recursion, and nobody writes deeper by hand."""
SCHEMAS_MAX: Final = 5_000
"""Schemas in one document, each property and each branch counted."""
ITEMS_MAX: Final = 10_000
"""Of `minItems` and `maxItems` that a grammar is made for: a million take seconds, in which nobody else is served. 256 are promised
(xai-api.md 10.2)."""
VALUES_MAX: Final = 10_000
"""Values of all `enum`s of a document together."""
REQUEST_SCHEMAS_MAX: Final = 10_000
"""Schemas of all documents of a request together: reading them takes 0.02 ms each, in which nobody else is served."""
EXPANSION_MAX: Final = 20_000
"""Schemas of a document once each `$ref` and `allOf` is written out where it stands: each of 25 definitions with the next one
twice makes 33 million, on which llguidance spent 24 s and 6 GB."""
LCM_OF_MAX: Final = 100
"""Different `multipleOf` whose combinations are looked at; of more, the sum alone is above any bound."""
SHOWN_MAX: Final = 80
"""Characters of the caller's own words in an error."""

TYPES: Final = frozenset({"string", "number", "integer", "boolean", "object", "array", "null"})

# Where a keyword's value holds further schemas.
_ONE: Final = frozenset({
    "items", "additionalItems", "additionalProperties", "contains", "propertyNames", "not", "if", "then", "else",
    "unevaluatedItems", "unevaluatedProperties",
})  # fmt: skip
_SEVERAL: Final = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_NAMED: Final = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"})
_IN_PLACE: Final = frozenset({"anyOf", "oneOf", "allOf", "not", "if", "then", "else", "dependentSchemas"})
"""What applies to the same value again, so that a way back to itself through these never ends."""
_DEFINITIONS: Final = frozenset({"$defs", "definitions"})

# What else a keyword's value has to be.
_COUNTS: Final = frozenset({
    "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains",
})  # fmt: skip
_LISTED: Final = frozenset({"minItems", "maxItems", "minProperties", "maxProperties"})
_NUMBERS: Final = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
_STRINGS: Final = frozenset({"pattern", "format", "$ref", "$dynamicRef", "$recursiveRef"})
_RANGES: Final = (
    ("minLength", "maxLength"),
    ("minItems", "maxItems"),
    ("minProperties", "maxProperties"),
    ("minimum", "maximum"),
)

RESTRICTING: Final = (_ONE | _SEVERAL | _NAMED | _COUNTS | _NUMBERS | _STRINGS) - _DEFINITIONS | {
    "type", "enum", "const", "required", "uniqueItems", "dependentRequired", "dependencies",
}  # fmt: skip
"""Every keyword of the drafts 4 to 2020-12 that makes some value invalid."""
FORMATS: Final = frozenset({
    "date-time", "date", "time", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6", "uri",
    "uri-reference", "iri", "iri-reference", "uuid", "uri-template", "json-pointer", "relative-json-pointer", "regex",
})  # fmt: skip
"""The formats of the standard. Any other name, such as OpenAPI's `int32`, says nothing that could be held to."""

_NO_WORDS: Final = MappingProxyType[str, str]({})


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much of what is costly may be in one document: see `jubal.core.schema_size`.

    states: of all patterns together. optional: of one pattern. remainders: of all `multipleOf` together. values: of all
    `enum`s. branches: of all `anyOf` and `oneOf`. properties: names of them.
    """

    states: int = 100_000
    optional: int = 100
    remainders: int = 50_000
    values: int = VALUES_MAX
    branches: int = SCHEMAS_MAX
    properties: int = SCHEMAS_MAX


@dataclass(frozen=True, slots=True)
class Support:
    """What an engine can hold an answer to.

    keywords: of `RESTRICTING`, those that it obeys. formats: values of `format` that it obeys. patterns: further formats that it
    obeys when they are written as `pattern`. alone: keywords of which it obeys those of one group in a schema, and no others.
    not_in_patterns: pieces of a regular expression, such as `(?=`, that it does not take, outside of classes of characters.
    bounds: how large a schema it compiles in an instant, and obeys without getting slow.
    """

    keywords: frozenset[str]
    formats: frozenset[str]
    patterns: Mapping[str, str] = field(default_factory=lambda: _NO_WORDS)
    alone: Mapping[str, str] = field(default_factory=lambda: _NO_WORDS)
    not_in_patterns: frozenset[str] = frozenset()
    bounds: Bounds = field(default_factory=Bounds)


# ---------------------------------------------------------------------------------------------- walking


@dataclass(frozen=True, slots=True)
class _Place:
    """A schema of the document, where it is (in the request's words), how deep, and through which keyword of the one above."""

    schema: Schema
    where: str
    depth: int


def _below(place: _Place) -> Iterator[tuple[str, _Place]]:
    """(keyword, place) of the schemas directly inside, in the order of the document. Raises `BadRequest` for wrong shapes."""
    schema = place.schema
    if not isinstance(schema, dict):
        return
    for keyword, value in schema.items():
        where = f"{place.where}.{_shown(keyword)}"
        if (
            keyword == "items" and isinstance(value, list)
        ) or keyword in _SEVERAL:  # a list of `items` is older than 2020-12
            for number, one in enumerate(_expect(value, list, where, keyword, "a list of schemas")):
                yield keyword, _Place(one, f"{where}[{number}]", place.depth + 1)
        elif keyword in _ONE:
            yield keyword, _Place(value, where, place.depth + 1)
        elif keyword in _NAMED:
            for name, one in _expect(value, dict, where, keyword, "an object of schemas").items():
                yield keyword, _Place(one, f"{where}.{_shown(name)}", place.depth + 1)


def _places(schema: Schema, where: str) -> Iterator[_Place]:
    """Every schema of the document. Raises `BadRequest` where there are too many of them, or too deep."""
    stack = [_Place(schema, where, 0)]
    count = 0
    while stack:
        place = stack.pop()
        count += 1
        if place.depth > DEPTH_MAX:
            raise _invalid(place.where, f"schemas are nested more than {DEPTH_MAX} deep")
        if count > SCHEMAS_MAX:
            raise _invalid(where, f"there are more than {SCHEMAS_MAX} schemas in it")
        yield place
        stack.extend(reversed([inner for _, inner in _below(place)]))


# ---------------------------------------------------------------------------------------------- is it one?


def check(schema: Schema, where: str) -> int:
    """How many schemas are in it. Raises `BadRequest` that names place and keyword where `schema` is no JSON Schema, refers
    outside of itself, or never ends.

    where: what the request calls it, such as `response_format.json_schema.schema`.
    """
    values = count = 0
    for place in _places(schema, where):
        count += 1
        if isinstance(place.schema, bool):
            continue
        if not isinstance(place.schema, dict):
            raise _invalid(place.where, f"a schema is an object or a boolean, not {_kind(place.schema)}")
        for keyword, value in place.schema.items():
            rule = _RULES.get(keyword)
            if rule is not None:
                rule(f"{place.where}.{keyword}", keyword, value)
        _check_ranges(place)
        values += len(place.schema.get("enum", ()))
        if values > VALUES_MAX:
            raise _invalid(f"{place.where}.enum", f"all `enum`s together hold more than {VALUES_MAX} values")
        if "$ref" in place.schema:
            resolve(schema, place.schema["$ref"], f"{place.where}.$ref")
    _check_ends(schema, where)
    return count


def _check_type(where: str, keyword: str, value: object) -> None:
    names = value if isinstance(value, list) else [value]
    if not names:
        raise _invalid(where, "`type` must not be an empty list")
    for name in names:
        if not isinstance(name, str) or name not in TYPES:
            raise _invalid(
                where, f"`type` is one of {', '.join(sorted(TYPES))}, or a list of them, not {_quoted(name)}"
            )


def _check_count(where: str, keyword: str, value: object) -> None:
    whole = (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and value.is_integer()
    )
    if not whole or not 0 <= value < 2**53:  # type: ignore[operator]  # a number, by the line above
        raise _invalid(where, f"`{keyword}` is a whole number of at least 0, not {_quoted(value)}")


def _check_number(where: str, keyword: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _invalid(where, f"`{keyword}` is a number, not {_quoted(value)}")
    if keyword == "multipleOf" and value <= 0:
        raise _invalid(where, "`multipleOf` must be above 0")


def _check_string(where: str, keyword: str, value: object) -> None:
    _expect(value, str, where, keyword, "a string")


def _check_branches(where: str, keyword: str, value: object) -> None:
    if not _expect(value, list, where, keyword, "a list of schemas"):
        raise _invalid(where, f"`{keyword}` must not be empty")


def _check_enum(where: str, keyword: str, value: object) -> None:
    if not _expect(value, list, where, keyword, "a list of values"):
        raise _invalid(where, "`enum` must not be empty")


def _check_names(where: str, keyword: str, value: object) -> None:
    for name in _expect(value, list, where, keyword, "a list of names"):
        _expect(name, str, where, keyword, "a list of names")


def _check_dependencies(where: str, keyword: str, value: object) -> None:
    for names in _expect(value, dict, where, keyword, "an object of lists of names").values():
        _check_names(where, keyword, names)


def _check_flag(where: str, keyword: str, value: object) -> None:
    _expect(value, bool, where, keyword, "true or false")


_RULES: Final[Mapping[str, Callable[[str, str, object], None]]] = MappingProxyType({
    **dict.fromkeys(_COUNTS, _check_count),
    **dict.fromkeys(_NUMBERS, _check_number),
    **dict.fromkeys(_STRINGS, _check_string),
    **dict.fromkeys(_SEVERAL, _check_branches),
    "type": _check_type,
    "enum": _check_enum,
    "required": _check_names,
    "dependentRequired": _check_dependencies,
    "uniqueItems": _check_flag,
})  # fmt: skip


def _check_ranges(place: _Place) -> None:
    """A range that holds nothing is a slip, and no engine could obey it."""
    for low, high in _RANGES:
        if low in place.schema and high in place.schema and place.schema[low] > place.schema[high]:
            raise _invalid(f"{place.where}.{low}", f"`{low}` is above `{high}`, so that nothing fits")


def resolve(document: Schema, reference: str, where: str) -> Schema:
    """The schema that a `$ref` names: `#`, or `#/` and a JSON pointer. Raises `BadRequest` where it names none in `document`."""
    if not reference.startswith("#") or (len(reference) > 1 and reference[1] != "/"):
        raise _invalid(where, f"`$ref` must point into the schema itself (`#` or `#/…`), not at {_quoted(reference)}")
    node = document
    for step in reference[2:].split("/") if len(reference) > 1 else ():
        name = _unescaped(step)
        if isinstance(node, dict) and name in node:
            node = node[name]
        elif isinstance(node, list) and name.isascii() and name.isdecimal() and len(name) < 6 and int(name) < len(node):
            node = node[int(name)]
        else:
            raise _invalid(where, f"`$ref` points nowhere: {_quoted(reference)}")
    if not isinstance(node, dict | bool):
        raise _invalid(where, f"`$ref` points at something that is no schema: {_quoted(reference)}")
    return node


def _unescaped(step: str) -> str:
    """A step of a JSON pointer in a URI fragment (RFC 6901, section 6)."""
    if "%" in step:
        raw = re.sub(rb"%([0-9A-Fa-f]{2})", lambda found: bytes([int(found[1], 16)]), step.encode(errors="replace"))
        step = raw.decode(errors="replace")
    return step.replace("~1", "/").replace("~0", "~")


def _check_ends(document: Schema, where: str) -> None:
    """Raises `BadRequest` where a schema comes back to itself without a step into a value, which no value could satisfy, or comes
    to so many others that way that nobody could compile it."""
    places = {id(place.schema): place for place in _places(document, where) if isinstance(place.schema, dict)}
    outgoing: dict[int, list[int]] = {}
    for key, place in places.items():
        ways = [id(inner.schema) for keyword, inner in _below(place) if keyword in _IN_PLACE]
        if "$ref" in place.schema:
            target = resolve(document, place.schema["$ref"], f"{place.where}.$ref")
            if isinstance(target, dict) and id(target) not in places:
                raise _invalid(f"{place.where}.$ref", "`$ref` points at something that is no schema")
            ways.append(id(target))
        outgoing[key] = [way for way in ways if way in places]
    for key in _left_over(outgoing):
        raise _invalid(places[key].where, "it refers to itself without end")
    if expansion(outgoing) > EXPANSION_MAX:
        raise _invalid(where, f"its `$ref`s and combinations make more than {EXPANSION_MAX:,} schemas when written out")


def _left_over(outgoing: Mapping[int, list[int]]) -> list[int]:
    """The nodes from which some way never ends: what is left when nodes without a way out are taken off again and again."""
    incoming: dict[int, list[int]] = {key: [] for key in outgoing}
    for key, ways in outgoing.items():
        for way in ways:
            incoming[way].append(key)
    left = {key: len(ways) for key, ways in outgoing.items()}
    done = [key for key, ways in left.items() if not ways]
    while done:
        key = done.pop()
        del left[key]
        for source in incoming[key]:
            left[source] -= 1
            if not left[source]:
                done.append(source)
    return list(left)


# ---------------------------------------------------------------------------------------------- can it be obeyed?

_TOKEN: Final = re.compile(r"\[(?:\^(?:\\.|[^\]\\])+|(?:\\.|[^\]\\]){2,})(?:\]|\Z)|\(\?.|\\.|.", re.DOTALL)
"""Pieces of a `pattern`: a class of several characters as one, an escape, the beginning of a group, any character. (A class
without its end goes to the end of the text: looking for it again at each `[` would take the square of the length.)"""
IRREGULAR: Final = frozenset({
    "(?=", "(?!", "(?<", "(?P", "(?>", "\\b", "\\B", "\\k", *(f"\\{number}" for number in range(1, 10)),
})  # fmt: skip
"""Pieces that no automaton can do, or that the engines' ones do not: look-around, references back, word boundaries, names."""


def check_support(schema: Schema, support: Support, where: str) -> None:
    """Raises `BadRequest` (code `unsupported_schema`) naming the first keyword that restricts and can't be obeyed.

    `schema` passed `check`.
    """
    for place in _places(schema, where):
        if not isinstance(place.schema, dict):
            continue
        for keyword, value in place.schema.items():
            if not _obeyed(keyword, value, support):
                what = f"`{keyword}`"
                if keyword in support.keywords or keyword == "format":
                    what += f": {_quoted(value)}"
                raise _unsupported(f"{place.where}.{keyword}", what)
        _check_alone(place, support)
        if place.schema.get("format") in support.patterns and "pattern" in place.schema:
            raise _unsupported(f"{place.where}.format", "this `format` beside `pattern`")
    if (too_much := _over_bounds(schema, support.bounds)) is not None:
        raise _unsupported(where, f"so much of it: {too_much}")


def _over_bounds(schema: Schema, bounds: Bounds) -> str | None:
    """What there is too much of, in words. `schema` passed `check`."""
    states = optional = values = branches = properties = 0
    multiples, merging = set[int](), False
    for place in _places(schema, ""):
        if not isinstance(place.schema, dict):
            continue
        for pattern in _patterns(place.schema):
            size = pattern_size(pattern)
            states, optional = states + size.states, max(optional, size.optional)
        if "multipleOf" in place.schema:
            multiples.add(multiple_size(place.schema["multipleOf"]))
        merging = (
            merging or not _IN_PLACE.isdisjoint(place.schema) or ("$ref" in place.schema and len(place.schema) > 1)
        )
        values += len(place.schema.get("enum", ()))
        branches += len(place.schema.get("anyOf", ())) + len(place.schema.get("oneOf", ()))
        properties += len(place.schema.get("properties", ()))
    remainders = math.lcm(*multiples) if merging and len(multiples) < LCM_OF_MAX else sum(multiples)
    found = {
        "all patterns together stand for more than {:,} characters": (states, bounds.states),
        "a pattern has more than {:,} pieces with `?` or `*`": (optional, bounds.optional),
        "all `multipleOf` together have more than {:,} remainders": (remainders, bounds.remainders),
        "all `enum`s together hold more than {:,} values": (values, bounds.values),
        "all `anyOf` and `oneOf` together have more than {:,} branches": (branches, bounds.branches),
        "all objects together have more than {:,} properties": (properties, bounds.properties),
    }
    return next((words.format(most) for words, (count, most) in found.items() if count > most), None)


def _patterns(schema: Mapping[str, Any]) -> Iterator[str]:
    if "pattern" in schema:
        yield schema["pattern"]
    yield from schema.get("patternProperties", ())


def _check_alone(place: _Place, support: Support) -> None:
    first = next((keyword for keyword in place.schema if keyword in support.alone), None)
    for keyword in place.schema:
        if first is not None and support.alone.get(keyword, support.alone[first]) != support.alone[first]:
            raise _unsupported(f"{place.where}.{keyword}", f"`{keyword}` beside `{first}`")


def _obeyed(keyword: str, value: object, support: Support) -> bool:
    if keyword not in RESTRICTING or _idle(keyword, value):
        return True
    if keyword == "format":
        return value not in FORMATS or value in support.formats or value in support.patterns
    if keyword == "pattern":
        return keyword in support.keywords and _regular(str(value), support)
    if keyword == "patternProperties" and isinstance(value, dict):
        return keyword in support.keywords and all(_regular(pattern, support) for pattern in value)
    if keyword in _LISTED and isinstance(value, int | float) and value > ITEMS_MAX:
        return False
    return keyword in support.keywords


def _regular(pattern: str, support: Support) -> bool:
    return support.not_in_patterns.isdisjoint(_TOKEN.findall(pattern))


def _idle(keyword: str, value: object) -> bool:
    """What restricts nothing, whatever engine it is."""
    match keyword:
        case "uniqueItems":
            return value is False
        case "not":
            return value is False
        case "minLength" | "minItems" | "minProperties":
            return value == 0
        case "unevaluatedItems" | "unevaluatedProperties" | "contains" if value is True:
            return keyword != "contains"
        case "required" | "patternProperties" | "dependentRequired" | "dependentSchemas" | "dependencies":
            return not value
    return False


def reduced(schema: Schema, support: Support) -> Schema:
    """What `support` can obey of `schema`: annotations, idle and unknown keywords gone, a list of `items` in the words of 2020-12,
    formats as patterns where that is how they are obeyed. `schema` passed `check`; if it passed `check_support` too, the result
    allows the same values, else more.
    """
    if not isinstance(schema, dict):
        return schema
    out: dict[str, Schema] = {}
    for keyword, value in schema.items():
        if keyword in _DEFINITIONS:
            out[keyword] = {name: reduced(one, support) for name, one in value.items()}
        elif keyword not in RESTRICTING or _idle(keyword, value) or not _obeyed(keyword, value, support):
            continue
        elif keyword in _NAMED:
            out[keyword] = {name: reduced(one, support) for name, one in value.items()}
        elif isinstance(value, list) and (keyword in _SEVERAL or keyword == "items"):
            out["prefixItems" if keyword == "items" else keyword] = [reduced(one, support) for one in value]
        elif keyword in _ONE:
            out["items" if keyword == "additionalItems" else keyword] = reduced(value, support)
        elif keyword != "format" or value in support.formats:
            out[keyword] = value
        elif value in support.patterns:
            out.setdefault("pattern", support.patterns[value])
    return out


def relaxed(schema: Schema, support: Support) -> Schema:
    """`reduced` for a schema that nobody can be told to change, such as a tool's on another server: any object where it is none."""
    try:
        check(schema, "schema")
    except BadRequest:
        return {"type": "object"}
    return reduced(schema, support) if _over_bounds(schema, support.bounds) is None else {"type": "object"}


# ---------------------------------------------------------------------------------------------- words


def _expect(value: Any, kind: type, where: str, keyword: str, what: str) -> Any:
    if not isinstance(value, kind):
        raise _invalid(where, f"`{keyword}` is {what}, not {_kind(value)}")
    return value


def _invalid(where: str, why: str) -> BadRequest:
    return BadRequest(f"`{where}` is no valid JSON Schema: {why}.", param=where, code="invalid_schema")


def _unsupported(where: str, what: str) -> BadRequest:
    return BadRequest(
        f"`{where}`: the model can't be held to {what} here. Leave it out, or say it in the description.",
        param=where,
        code="unsupported_schema",
    )


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
    return "an object"


def _quoted(value: object) -> str:
    return f"`{_shown(value if isinstance(value, str) else repr(value))}`"


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN_MAX else text[: SHOWN_MAX - 1] + "…"
