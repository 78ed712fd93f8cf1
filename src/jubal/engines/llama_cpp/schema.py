"""How llama.cpp is held to a JSON Schema, and which schemas it can be held to (docs/decisions/structured-output.md).

Its chat endpoint turns `response_format` into a grammar of its own and drops what it does not know in silence: the range of a
number, `allOf`, half of what stands beside a `$ref`. The llguidance library inside it obeys all of those, and is reached through
`grammar`. What llguidance refuses, llama.cpp logs, and then answers without any grammar. So each new schema is tried first, on
one token that no JSON begins with.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import replace
from typing import Any, Final

import aiohttp
import msgspec

from jubal.core.errors import BadRequest, EngineBroken, EngineTimeout, EngineUnavailable
from jubal.core.generation import Generation, JsonOutput
from jubal.core.schema import IRREGULAR, Support, check_support, reduced, relaxed

_ESCAPED_IN_JSON: Final = frozenset(
    {"\\\\", '"', "\\n", "\\r", "\\t", "\\f", "\\v", "\\x", "\\u", "\\c", "\\0", "\n", "\r", "\t"}
)
"""What llguidance gets wrong in a pattern: after a single character that JSON escapes it forgets the rest (found by experiment)."""
GUIDED: Final = Support(
    keywords=frozenset({
        "type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref",
        "properties", "required", "additionalProperties", "patternProperties", "maxProperties",
        "items", "additionalItems", "prefixItems", "minItems", "maxItems",
        "minLength", "maxLength", "pattern",
        "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    }),
    formats=frozenset({"date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}),
    patterns={"uri": r"^[a-z][a-z0-9+.-]*://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?(\?[A-Za-z0-9._~=&-]*)?$"},
    not_in_patterns=IRREGULAR | _ESCAPED_IN_JSON,
)  # fmt: skip
"""llguidance. `oneOf` is obeyed as `anyOf`, as xAI does (xai-api.md 10.2). `minProperties` is not here: it counts a name that comes
twice as two."""
BUILT_IN: Final = Support(
    keywords=frozenset({
        "type", "enum", "const", "anyOf", "oneOf", "$ref", "properties", "required", "additionalProperties",
        "items", "minItems", "maxItems", "minLength", "maxLength", "pattern",
    }),
    formats=frozenset({"date-time", "date", "time", "uuid"}),
    alone={
        **{word: word for word in ("enum", "const", "anyOf", "oneOf", "$ref", "pattern", "format")},
        "minLength": "length",
        "maxLength": "length",
    },
    not_in_patterns=IRREGULAR | _ESCAPED_IN_JSON,
)  # fmt: skip
"""llama.cpp's own converter, for a build without llguidance and for templates that think before they answer."""

ANY_OBJECT: Final = {"type": "object"}
STYLE: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": True}
"""One way to write a value: where white space is free, small models write nothing else until their tokens end."""
KNOWN_MAX: Final = 512
TRIAL_TIMEOUT_S: Final = 30.0
WRONG: Final = "Z"
RIGHT: Final = "Q"
BIAS: Final = 1000
"""Added to the logit of `WRONG`, so that it comes unless a grammar forbids it."""


class _Trial(msgspec.Struct):
    content: str = ""


class Guide:
    """Which schemas one life of llama.cpp obeys: it is asked once for each. works: None until it was asked."""

    def __init__(self) -> None:
        self.works: bool | None = None
        self._known: OrderedDict[str, bool] = OrderedDict()

    async def fields(self, session: aiohttp.ClientSession, url: str, output: JsonOutput) -> dict[str, object] | None:
        """What to add to a request's body, in place of its `response_format`; None: leave that in, nothing better is there.

        Raises `BadRequest` (code `unsupported_schema`) for what llama.cpp would not obey; `EngineError`.
        """
        if self.works is None:
            self.works = await _trial(session, url, f'%llguidance {{}}\nstart: "{RIGHT}"') == RIGHT
        if not self.works:
            demand(output, BUILT_IN)
            return None
        grammar = grammar_of(output)
        obeyed = self._known.get(grammar)
        if obeyed is None:
            obeyed = self._known[grammar] = await _trial(session, url, grammar) != WRONG
            if len(self._known) > KNOWN_MAX:
                self._known.popitem(last=False)
        if not obeyed:
            raise BadRequest(
                f"`{output.where}`: no answer can be held to this schema: its parts contradict each other, or one has a "
                "pattern, range or combination that can't be compiled.",
                param=output.where,
                code="unsupported_schema",
            )
        return {"grammar": grammar}


def demand(output: JsonOutput, support: Support) -> None:
    """Raises `BadRequest` naming the first keyword that is not obeyed."""
    if output.schema is not None:
        check_support(json.loads(output.schema), support, output.where)


def with_known_schemas(turn: Generation) -> Generation:
    """The turn with what can be obeyed of the schemas that the caller has not written: server tools check their arguments."""
    functions = tuple(
        replace(function, parameters=json.dumps(relaxed(json.loads(function.parameters), GUIDED), ensure_ascii=False))
        if function.parameters is not None and function.where is None
        else function
        for function in turn.tools.functions
    )
    return replace(turn, tools=replace(turn.tools, functions=functions))


def grammar_of(output: JsonOutput) -> str:
    """The llguidance grammar of an answer. Raises `BadRequest` as `demand` does."""
    demand(output, GUIDED)
    schema: Any = ANY_OBJECT if output.schema is None else reduced(json.loads(output.schema), GUIDED)
    return f"%llguidance {{}}\nstart: %json {json.dumps({**schema, 'x-guidance': STYLE}, ensure_ascii=False)}"


async def _trial(session: aiohttp.ClientSession, url: str, grammar: str) -> str:
    """The one token that comes under `grammar`; "" where llama.cpp refuses it."""
    body = {"prompt": "x", "n_predict": 1, "temperature": 0, "grammar": grammar, "logit_bias": [[WRONG, BIAS]]}
    timeout = aiohttp.ClientTimeout(total=TRIAL_TIMEOUT_S)
    try:
        async with session.post(f"{url}/completion", data=msgspec.json.encode(body), timeout=timeout) as response:
            answer = await response.read()
            return msgspec.json.decode(answer, type=_Trial).content if response.status == 200 else WRONG
    except TimeoutError as error:
        raise EngineTimeout("The engine took too long over the schema.") from error
    except aiohttp.ClientError as error:
        raise EngineUnavailable("The engine can't be reached.") from error
    except msgspec.DecodeError as error:
        raise EngineBroken("The engine answered no completion.") from error
