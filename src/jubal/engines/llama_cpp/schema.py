"""How llama.cpp is held to a JSON Schema, and which schemas it can be held to (docs/decisions/structured-output.md).

Its chat endpoint turns `response_format` into a grammar of its own and drops what it does not know in silence: the range of a
number, `allOf`, half of what stands beside a `$ref`. The llguidance library inside it obeys all of those, and is reached through
`grammar`. What llguidance refuses, llama.cpp logs, and then answers without any grammar. So each new schema is tried first, on
one token that no JSON begins with.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import aiohttp
import msgspec

from jubal.core.errors import BadRequest, EngineBroken, EngineTimeout, EngineUnavailable
from jubal.core.generation import Generation, JsonOutput
from jubal.core.schema import IRREGULAR, Bounds, Support, check_support, reduced, relaxed

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
    bounds=Bounds(states=2_000, optional=32, values=500, branches=500, properties=500),
)  # fmt: skip
"""llama.cpp's own converter. It looks at each way that an answer may go on, at every token: 10,000 values of an `enum` take seconds
for each, and as long nobody else gets one. For a build without llguidance and for templates that think before they answer."""

ANY_OBJECT: Final = {"type": "object"}
STYLE: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": True}
"""One way to write a value: where white space is free, small models write nothing else until their tokens end."""
KNOWN_MAX: Final = 512
LOOK_S: Final = 0.5
"""How often the memory of a child is looked at that has not come back from a schema."""
WRONG: Final = "Z"
RIGHT: Final = "Q"
BIAS: Final = 1000
"""Added to the logit of `WRONG`, so that it comes unless a grammar forbids it."""


class _Trial(msgspec.Struct):
    content: str = ""


class SchemaHung(Exception):
    """llama.cpp does not come back from a schema: it must be ended, and no other life of it should see that schema."""


class Guide:
    """Which schemas llama.cpp obeys: each life of it is asked once for each. works: None until it was asked.

    timeout_s: for one trial. bytes_max: by which the child may grow meanwhile. resident: bytes of its memory, without the pages
    of files; None: not known. hung: told why a child seems not to come back, and whether that is certain; whether it agrees.
    """

    def __init__(
        self,
        *,
        timeout_s: float,
        bytes_max: int,
        resident: Callable[[], int | None],
        hung: Callable[[str, bool], bool],
    ) -> None:
        self.works: bool | None = None
        self._timeout_s = timeout_s
        self._bytes_max = bytes_max
        self._resident = resident
        self._hung = hung
        self._known: OrderedDict[str, bool] = OrderedDict()
        self._hopeless: OrderedDict[str, bool] = OrderedDict()
        self._trials: dict[str, asyncio.Task[str]] = {}
        self._turn = asyncio.Lock()

    def begin_life(self) -> None:
        """It is another child from here on. What hung the last one is not tried on it."""
        self.works = None
        self._known.clear()

    async def fields(self, session: aiohttp.ClientSession, url: str, output: JsonOutput) -> dict[str, object] | None:
        """What to add to a request's body, in place of its `response_format`; None: leave that in, nothing better is there.

        Raises `BadRequest` (code `unsupported_schema`) for what llama.cpp would not obey; `EngineError`.
        """
        if self.works is None:
            self.works = await self._try(session, url, f'%llguidance {{}}\nstart: "{RIGHT}"') == RIGHT
        if not self.works:
            demand(output, BUILT_IN)
            return None
        grammar = grammar_of(output)
        if not await self.obeys(session, url, grammar):
            raise BadRequest(
                f"`{output.where}`: no answer can be held to this schema: its parts contradict each other, or one has a "
                "pattern, range or combination that can't be compiled.",
                param=output.where,
                code="unsupported_schema",
            )
        return {"grammar": grammar}

    async def obeys(self, session: aiohttp.ClientSession, url: str, grammar: str) -> bool:
        """Raises `EngineError`."""
        if grammar in self._hopeless:
            return False
        obeyed = self._known.get(grammar)
        if obeyed is None:
            try:
                obeyed = await self._try(session, url, grammar) != WRONG
            except SchemaHung:
                _remember(self._hopeless, grammar, False)
                return False
            _remember(self._known, grammar, obeyed)
        return obeyed

    async def _try(self, session: aiohttp.ClientSession, url: str, grammar: str) -> str:
        """As `_trial`, by a task that goes on where its caller leaves: somebody must see whether llama.cpp comes back."""
        task = self._trials.get(grammar)
        if task is None:
            task = self._trials[grammar] = asyncio.create_task(self._watched(session, url, grammar))
            task.add_done_callback(lambda done: self._tried(grammar, done))
        return await asyncio.shield(task)

    def _tried(self, grammar: str, done: asyncio.Task[str]) -> None:
        del self._trials[grammar]
        if not done.cancelled() and isinstance(done.exception(), SchemaHung):
            _remember(self._hopeless, grammar, False)

    async def _watched(self, session: aiohttp.ClientSession, url: str, grammar: str) -> str:
        """One at a time, so that it is known which of them is at fault. Raises `SchemaHung`, `EngineError`."""
        async with self._turn:
            trial = asyncio.ensure_future(_trial(session, url, grammar))
            try:
                why = await self._watch(trial)
            finally:
                trial.cancel()
        if why is None:
            return trial.result()
        if self._hung(*why):
            raise SchemaHung(why)
        raise EngineTimeout("The engine took too long over the schema.")

    async def _watch(self, trial: asyncio.Future[str]) -> tuple[str, bool] | None:
        """Why llama.cpp has to be ended, and whether that is certain; None: the trial is over."""
        before: int | None = None
        until_s = time.monotonic() + self._timeout_s
        while time.monotonic() < until_s:
            await asyncio.wait({trial}, timeout=min(LOOK_S, self._timeout_s))
            if trial.done():
                return None
            now = self._resident()
            before = now if before is None else before
            if now is not None and before is not None and now - before > self._bytes_max:
                return f"It took {(now - before) >> 20} MB over a JSON Schema.", True
        return f"It did not come back from a JSON Schema within {self._timeout_s:g} s.", False


def _remember(known: OrderedDict[str, bool], grammar: str, obeyed: bool) -> None:
    known[grammar] = obeyed
    if len(known) > KNOWN_MAX:
        known.popitem(last=False)


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
    timeout = aiohttp.ClientTimeout(total=None)  # whoever asks has one
    try:
        async with session.post(f"{url}/completion", data=msgspec.json.encode(body), timeout=timeout) as response:
            answer = await response.read()
            return msgspec.json.decode(answer, type=_Trial).content if response.status == 200 else WRONG
    except aiohttp.ClientError as error:
        raise EngineUnavailable("The engine can't be reached.") from error
    except msgspec.DecodeError as error:
        raise EngineBroken("The engine answered no completion.") from error
