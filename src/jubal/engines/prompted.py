"""Function calling for models whose template knows no tools: the functions in the system prompt, and decoding constrained to
"calls of these functions with valid arguments, or an answer".

Pure translation around an engine that can hold an answer to a JSON Schema: a turn with tools becomes one without, whose answer
is JSON of one of two forms, and the JSON becomes events again while it streams:

    {"answer": "text for the user"}
    {"tool_calls": [{"name": "get_weather", "arguments": {"location": "Oslo"}}]}
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final

from jubal.core.events import EngineEvent, FinishReason, TextDelta, ToolCall, TurnEnded
from jubal.core.generation import (
    NO_TOOLS,
    FunctionTool,
    Generation,
    JsonOutput,
    NamedTool,
    with_system,
)

PARALLEL_CALLS_MAX: Final = 4
"""Calls in one answer: a small model that may make any number of them makes them until its tokens end."""
CALL_TOKENS_MAX: Final = 2048
"""Tokens for calls: the caller's bound is for visible text, calls are not counted (xai-api.md 6.1), and half a call is none."""
TEXT_CHARS_MAX: Final = 1000
"""Of a text among the arguments that has no bound of its own."""
BOUNDS_OF_TEXT: Final = frozenset({"maxLength", "enum", "const", "pattern", "format"})
NAMED_SCHEMAS: Final = frozenset({"properties", "patternProperties", "$defs", "definitions"})
SCHEMAS: Final = frozenset({"items", "prefixItems", "anyOf", "oneOf", "allOf", "additionalProperties"})
AGAIN_TEMPERATURE: Final = 0.8
"""Of the second try for a call that must be made: at 0 it would run on in the same way."""
ENVELOPE_TOKENS: Final = 16
"""What stands around an answer."""

Schema = dict[str, Any]


def stream_prompted(
    turn: Generation, stream: Callable[[Generation], AsyncGenerator[EngineEvent, None]]
) -> AsyncGenerator[EngineEvent, None]:
    """The turn with its tools, through `stream`, which has to obey `Generation.output`."""
    asked = worded(turn)
    events = _run(turn, stream(asked))
    if turn.tools.choice == "auto" or turn.choices > 1:
        return events
    warmer = replace(asked, sampling=replace(asked.sampling, temperature=AGAIN_TEMPERATURE))
    return _once_more(events, lambda: _run(turn, stream(warmer)))


async def _once_more(
    first: AsyncGenerator[EngineEvent, None], again: Callable[[], AsyncGenerator[EngineEvent, None]]
) -> AsyncGenerator[EngineEvent, None]:
    """A call that must be made is asked for again where the first try ran on, in a number say, until its tokens ended.

    The first try is ours, not the caller's: the usage is that of the answer.
    """
    async with aclosing(first) as events:
        async for event in events:
            if isinstance(event, TurnEnded) and event.reasons == ("length",):
                break
            yield event
        else:
            return
    async with aclosing(again()) as events:
        async for event in events:
            yield event


async def _run(turn: Generation, events: AsyncGenerator[EngineEvent, None]) -> AsyncGenerator[EngineEvent, None]:
    visible_max = turn.bounds.tokens_max
    readers = [_Reader(choice, visible_max, as_json=turn.output is not None) for choice in range(turn.choices)]
    cut: FinishReason = "length"
    ended = TurnEnded((cut,) * turn.choices, None)
    async with aclosing(events):
        async for event in events:
            if isinstance(event, TextDelta):
                for piece in readers[event.choice].feed(event.text):
                    yield piece
                if readers[event.choice].full and all(reader.full for reader in readers):
                    break  # the engine may go on for calls; there will be none
            elif isinstance(event, TurnEnded):
                ended = event
            else:
                yield event
    for reader in readers:
        for call in reader.finish():
            yield call
    reasons = tuple(reader.reason(reason) for reader, reason in zip(readers, ended.reasons, strict=True))
    stops = tuple(stop if reason == "stop" else None for stop, reason in zip(ended.stops, reasons, strict=False))
    yield TurnEnded(reasons, ended.usage, stops)


# ---------------------------------------------------------------------------------------------- the question


def worded(turn: Generation) -> Generation:
    """The same turn, asked in words and held to a schema."""
    offered = _offered(turn)
    must = turn.tools.choice != "auto"
    instructions = _instructions(offered, must=must, parallel=turn.tools.parallel)
    bounds = turn.bounds
    if bounds.tokens_max is not None and (must or turn.output is None):  # an answer in JSON comes whole or cut
        bounds = replace(bounds, tokens_max=max(bounds.tokens_max + ENVELOPE_TOKENS, CALL_TOKENS_MAX))
    return replace(
        turn,
        bounds=bounds,
        messages=with_system(turn.messages, instructions),
        tools=NO_TOOLS,
        output=JsonOutput(json.dumps(answer_schema(turn), ensure_ascii=False), "answer", "tools"),
    )


def _offered(turn: Generation) -> tuple[FunctionTool, ...]:
    """The functions that may be called now: a named choice leaves one."""
    choice = turn.tools.choice
    if isinstance(choice, NamedTool):
        return tuple(function for function in turn.tools.functions if function.name == choice.name)
    return turn.tools.functions


def _instructions(functions: tuple[FunctionTool, ...], *, must: bool, parallel: bool) -> str:
    lines = [
        f"- {function.name}: {function.description or 'no description'} "
        f"Arguments (JSON Schema): {function.parameters or '{}'}"
        for function in functions
    ]
    call = 'Call with JSON: {"tool_calls": [{"name": "function name", "arguments": {…}}]}'
    many = " Several calls may be in the list." if parallel else " One call only."
    shown = _example(functions)
    if shown is not None:
        many += f"\nFor example: {shown}"
    rest = "" if must else '\nIf no function helps, answer with JSON: {"answer": "your answer to the user"}'
    return "You can call these functions:\n" + "\n".join(lines) + f"\n{call}.{many}{rest}"


def _example(functions: tuple[FunctionTool, ...]) -> str | None:
    """A call of the first function that has one: small models write what they saw."""
    for function in functions:
        if function.example is not None:
            return f'{{"tool_calls": [{{"name": "{function.name}", "arguments": {function.example}}}]}}'
    return None


def answer_schema(turn: Generation) -> Schema:
    """What the answer must look like: calls, and unless the caller demands one, or an answer."""
    definitions: Schema = {}
    items = [_call_schema(f"f{number}", function, definitions) for number, function in enumerate(_offered(turn))]
    several = turn.tools.parallel and not isinstance(turn.tools.choice, NamedTool)
    calls = {
        "type": "array",
        "items": items[0] if len(items) == 1 else {"anyOf": items},
        "minItems": 1,
        "maxItems": PARALLEL_CALLS_MAX if several else 1,
    }
    schema = _object({"tool_calls": calls})
    if turn.tools.choice == "auto":
        schema = {"anyOf": [_object({"answer": _wanted_answer(turn.output, definitions)}), schema]}
    return {**schema, "$defs": definitions} if definitions else schema


def _wanted_answer(output: JsonOutput | None, definitions: Schema) -> Schema:
    if output is None:
        return {"type": "string"}
    if output.schema is None:
        return {"type": "object"}
    return _moved(json.loads(output.schema), "answer", definitions)


def _call_schema(place: str, function: FunctionTool, definitions: Schema) -> Schema:
    parameters = json.loads(function.parameters) if function.parameters else {"type": "object", "properties": {}}
    bounded = _with_bounds(parameters)
    return _object({"name": {"const": function.name}, "arguments": _moved(bounded, place, definitions)})


def _with_bounds(node: Any) -> Any:
    """The same schema, with an end to each text: a small model may write on until its tokens end, and half a call is none."""
    if isinstance(node, list):
        return [_with_bounds(one) for one in node]
    if not isinstance(node, dict):
        return node
    out = {
        key: {name: _with_bounds(one) for name, one in value.items()}
        if key in NAMED_SCHEMAS and isinstance(value, dict)
        else _with_bounds(value)
        if key in SCHEMAS
        else value
        for key, value in node.items()
    }
    kinds = out.get("type")
    if (kinds == "string" or (isinstance(kinds, list) and "string" in kinds)) and BOUNDS_OF_TEXT.isdisjoint(out):
        least = out.get("minLength")
        out["maxLength"] = max(TEXT_CHARS_MAX, least if isinstance(least, int) else 0)
    return out


def _object(properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _moved(schema: Schema, place: str, definitions: Schema) -> Schema:
    """`schema` where it stands inside another: one that refers to its own root goes to `$defs`, and its references follow it."""
    if "$ref" not in json.dumps(schema):
        return schema
    definitions[place] = _rerooted(schema, f"#/$defs/{place}")
    return {"$ref": f"#/$defs/{place}"}


def _rerooted(node: Any, root: str) -> Any:
    if isinstance(node, list):
        return [_rerooted(one, root) for one in node]
    if not isinstance(node, dict):
        return node
    out = {key: _rerooted(value, root) for key, value in node.items()}
    reference = out.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        out["$ref"] = root + reference[1:]
    return out


# ---------------------------------------------------------------------------------------------- the answer

_CALLS: Final = re.compile(r'\s*\{\s*"tool_calls"\s*:\s*\[\s*')
_GAP: Final = re.compile(r"\s*,\s*")
_DECODER: Final = json.JSONDecoder()
_ANSWER: Final = re.compile(r'\s*\{\s*"answer"\s*:\s*"')


class _Reader:
    """Reads one choice's JSON while it comes: the text of an answer goes on at once, calls when they are whole.

    visible_max: tokens of visible text; then it is `full`.
    """

    def __init__(self, choice: int, visible_max: int | None, *, as_json: bool) -> None:
        self.called = False
        self.full = False
        self._left = visible_max
        self._choice = choice
        self._as_json = as_json
        self._seen = ""
        self._text: _StringReader | None = None

    def feed(self, text: str) -> Iterator[TextDelta]:
        if self._text is None:
            self._seen += text
            begun = None if self._as_json else _ANSWER.match(self._seen)
            if begun is None:
                return
            self._text, text = _StringReader(), self._seen[begun.end() :]
        if said := self._text.feed(text):
            yield from self._bounded(said)

    def _bounded(self, said: str) -> Iterator[TextDelta]:
        """One piece stands for one token: engines send a frame for each."""
        if self._left is not None:
            if self._left <= 0:
                return
            self._left -= 1
        yield TextDelta(said, self._choice)
        if self._left == 0 and not self._text_is_over:
            self.full = True

    @property
    def _text_is_over(self) -> bool:
        return self._text is not None and self._text.closed

    def reason(self, engines: FinishReason) -> FinishReason:
        if self.called:
            return "tool_calls"
        return "length" if self.full else engines

    def finish(self) -> Iterator[TextDelta | ToolCall]:
        """What could only be known at the end. A call that was cut by the token bound is none; those before it are."""
        if self._text is not None:
            return
        try:
            tree = json.loads(self._seen)
        except ValueError:
            tree = {"tool_calls": list(_whole_objects(self._seen))}
        if "answer" in tree:
            yield TextDelta(json.dumps(tree["answer"], ensure_ascii=False), self._choice)
        for call in tree.get("tool_calls", ()):
            self.called = True
            arguments = json.dumps(call["arguments"], ensure_ascii=False)
            yield ToolCall(f"call_{random.randrange(10**8):08d}", call["name"], arguments, self._choice)  # noqa: S311


def _whole_objects(cut: str) -> Iterator[dict[str, Any]]:
    """The calls that are whole in a list that is not."""
    begun = _CALLS.match(cut)
    place = begun.end() if begun else len(cut)
    while place < len(cut):
        try:
            call, place = _DECODER.raw_decode(cut, place)
        except ValueError:
            return
        yield call
        gap = _GAP.match(cut, place)
        place = gap.end() if gap else len(cut)


class _StringReader:
    """Decodes the inside of a JSON string piece by piece, up to its closing quote."""

    def __init__(self) -> None:
        self._rest = ""
        self.closed = False

    def feed(self, text: str) -> str:
        """The characters that are whole now."""
        if self.closed:
            return ""
        raw = self._rest + text
        place = 0
        while place < len(raw):
            if raw[place] == '"':
                self.closed = True
                break
            step = _length_of_character(raw, place)
            if step is None:
                break
            place += step
        self._rest = raw[place:]
        said: str = json.loads(f'"{raw[:place]}"', strict=False)
        # half a surrogate pair is no character; a model can write one all the same
        return said if said.isascii() else said.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _length_of_character(raw: str, place: int) -> int | None:
    """How many characters of `raw` write the one at `place`, escapes and surrogate pairs included; None: not all there yet."""
    if raw[place] != "\\":
        return 1
    left = len(raw) - place
    if left < 2:
        return None
    if raw[place + 1] != "u":
        return 2
    if left < 6:
        return None
    if raw[place + 2 : place + 4].lower() not in ("d8", "d9", "da", "db"):
        return 6
    second = raw[place + 6 : place + 12]
    if len(second) < 6 and (second.startswith("\\u") or second in ("", "\\")):
        return None
    return 12 if second.startswith("\\u") else 6
