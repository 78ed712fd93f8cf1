"""Server tools for one request: which there are, running them within bounds, numbering what they find."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from jubal.core.errors import BadRequest
from jubal.core.events import ServerToolCall, ServerToolResult, ToolCall
from jubal.core.generation import FunctionTool, Generation
from jubal.core.server_tools import KIND, ServerTool, Source, ToolKind, UserLocation, WebSearch
from jubal.tools.base import Aliased, Found, ToolFailed, ToolFamily, ToolOutput, ToolSession

log = structlog.get_logger("jubal.tools")

CUT: Final = "\n… (cut: the whole is longer)"
ARGUMENTS_CHARS_MAX: Final = 1 << 20
ADDRESS_CHARS_MAX: Final = 8_192
TITLE_CHARS_MAX: Final = 300


@dataclass(frozen=True, slots=True)
class ToolBounds:
    """What tools may use of one request.

    call_s: seconds of one call. total_s: of all rounds of calls together. calls_max: calls. at_once: calls that run at the same
    time. output_chars_max: characters of one output that the model gets to read.
    """

    call_s: float = 90.0
    total_s: float = 600.0
    calls_max: int = 64
    at_once: int = 8
    output_chars_max: int = 24_000


class Toolbox:
    """The families of tools that a server has, shared by all requests. clock: monotonic seconds. today: the date, in UTC."""

    def __init__(
        self,
        families: Mapping[ToolKind, ToolFamily[Any]] | None = None,
        bounds: ToolBounds | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], str] = lambda: time.strftime("%Y-%m-%d", time.gmtime()),
    ) -> None:
        self.families = dict(families or {})
        self.bounds = bounds or ToolBounds()
        self.clock = clock
        self.today = today

    def check(self, generation: Generation) -> None:
        """Refuses what could not be begun. Raises `BadRequest`."""
        wanted = generation.tools.server
        if not wanted:
            return
        if generation.choices > 1:
            raise BadRequest("`n` must be 1 with server-side tools.", param="n", code="invalid_value")
        for index, tool in enumerate(wanted):
            kind = KIND[type(tool)]
            if kind not in self.families:
                has = ", ".join(self.families) or "none"
                raise BadRequest(
                    f"This server has no `{kind}` tool. Server-side tools here: {has}.",
                    param="tools",
                    code="tool_not_available",
                )
            if any(kind == KIND[type(other)] and kind != "mcp" for other in wanted[:index]):
                raise BadRequest(f"`tools` has `{kind}` twice.", param="tools", code="invalid_value")

    @asynccontextmanager
    async def open(self, generation: Generation) -> AsyncGenerator[Workbench, None]:
        """The tools that `generation` asks for, ready to be called; all they hold is freed at the end.

        Raises `BadRequest` for wishes that can't be met, and for two functions of one name.
        """
        bench = Workbench(self)
        try:
            for tool in generation.tools.server:
                await bench.add(tool, self.families[KIND[type(tool)]])
            bench.check_names(generation.tools.functions)
            yield bench
        finally:
            await bench.close()

    async def close(self) -> None:
        for family in self.families.values():
            await family.close()


class Workbench:
    """The tools of one request. functions: what the model may call. sources: all that was found, by number from 1.

    problems: why tools that were asked for are not there, a sentence each.
    """

    def __init__(self, box: Toolbox) -> None:
        self._box = box
        self._bounds = box.bounds
        self._sessions: list[ToolSession] = []
        self._owners: dict[str, tuple[ToolSession, ToolKind]] = {}
        self._aliases: dict[str, str] = {}
        self.problems: list[str] = []
        self._location: UserLocation | None = None
        self._numbers: dict[str, int] = {}
        self._uses: dict[ToolKind, int] = {}
        self._calls = 0
        self._spent_s = 0.0
        self.functions: list[FunctionTool] = []
        self.sources: list[Source] = []

    async def add(self, wanted: ServerTool, family: ToolFamily[Any]) -> None:
        """Raises `BadRequest`."""
        session = family.open(wanted)
        self._sessions.append(session)
        if isinstance(wanted, WebSearch):
            self._location = wanted.location
        try:
            async with asyncio.timeout(self._bounds.call_s):
                functions = await session.functions()
        except (ToolFailed, TimeoutError) as error:  # the answer goes on without it, and the model is told
            self.problems.append(f"The {family.kind} tools are not available: {error or 'they did not answer in time'}")
            return
        for function in functions:
            if function.name in self._owners:
                raise BadRequest(f"`tools` has two functions named `{function.name}`.", param="tools", code="twice")
            self._owners[function.name] = (session, family.kind)
            self.functions.append(function)
        if isinstance(family, Aliased):
            self._aliases |= {alias: name for alias, name in family.aliases.items() if name in self._owners}

    def check_names(self, client: tuple[FunctionTool, ...]) -> None:
        """Raises `BadRequest` where a function of the client has the name of one of ours."""
        for function in client:
            if function.name in self._owners:
                raise BadRequest(
                    f"`tools`: the name `{function.name}` belongs to a server-side tool of this request.",
                    param="tools",
                    code="invalid_value",
                )

    @property
    def instructions(self) -> str:
        """What the model should know beside the functions."""
        lines = [f"Today's date is {self._box.today()}."]
        if self._location is not None:
            place = (self._location.city, self._location.region, self._location.country, self._location.timezone)
            lines.append(f"The user is in {', '.join(part for part in place if part)}.")
        return " ".join(lines + self.problems)

    @property
    def exhausted(self) -> bool:
        """The request has used up what tools may use: the model must answer now."""
        return self._calls >= self._bounds.calls_max or self._spent_s >= self._bounds.total_s

    @property
    def uses(self) -> tuple[tuple[ToolKind, int], ...]:
        """Calls that went well, by kind."""
        return tuple(self._uses.items())

    def call_of(self, call: ToolCall) -> ServerToolCall | None:
        """`call` as one of ours, by the name that was offered; None where no tool of ours is known by the name."""
        name = call.name if call.name in self._owners else self._aliases.get(call.name, "")
        owner = self._owners.get(name)
        return None if owner is None else ServerToolCall(call.id, owner[1], name, call.arguments, call.choice)

    async def run_all(self, calls: list[ServerToolCall]) -> AsyncGenerator[ServerToolResult, None]:
        """The results, each when it is there. Closing it cancels what still runs, and waits until it has ended."""
        began_s = self._box.clock()
        places = asyncio.Semaphore(self._bounds.at_once)
        tasks = [asyncio.ensure_future(self._run(call, places)) for call in calls]
        try:
            for done in asyncio.as_completed(tasks):
                yield await done
        finally:
            self._spent_s += self._box.clock() - began_s
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, call: ServerToolCall, places: asyncio.Semaphore) -> ServerToolResult:
        """One call. It ends well or badly, and never raises but for a cancellation."""
        async with places:
            began_s = self._box.clock()
            ok, output = True, ToolOutput()
            try:
                output = await self._answer(call)
            except ToolFailed as error:
                ok, output = False, ToolOutput(f"The call failed: {error}")
            except Exception as error:  # a fault of ours in a tool must not end the answer
                log.exception("a tool failed by a fault of ours", tool=call.name)
                ok, output = False, ToolOutput(f"The call failed: an internal error ({type(error).__name__}).")
            seconds = self._box.clock() - began_s
        if ok:
            self._uses[call.kind] = self._uses.get(call.kind, 0) + 1
        output = replace(output, found=tuple(replace(found, source=_named(found.source)) for found in output.found))
        sources = tuple(found.source for found in output.found)
        text = clean(self._bounded(self._written(output)))
        return ServerToolResult(call.id, call.kind, call.name, ok, text, seconds, sources, output.files, call.choice)

    async def _answer(self, call: ServerToolCall) -> ToolOutput:
        """Raises `ToolFailed`."""
        self._calls += 1
        left_s = min(self._bounds.call_s, self._bounds.total_s - self._spent_s)
        if self._calls > self._bounds.calls_max or left_s <= 0:
            raise ToolFailed("this request may call no more tools. Answer with what you know.")
        if len(call.arguments) > ARGUMENTS_CHARS_MAX:
            raise ToolFailed(f"the arguments are too long: at most {ARGUMENTS_CHARS_MAX:,} characters.")
        session, _ = self._owners[call.name]
        try:
            async with asyncio.timeout(left_s):
                return await session.call(call.name, call.arguments)
        except TimeoutError:
            raise ToolFailed(f"it took longer than {left_s:.0f} seconds.") from None

    def _written(self, output: ToolOutput) -> str:
        """For the model: the text, then each thing found under its number."""
        parts = [output.text] if output.text else []
        parts += [self._entry(found) for found in output.found]
        parts += [f"File made: {file.name} ({len(file.data)} bytes)" for file in output.files]
        return "\n\n".join(parts) or "(nothing)"

    def _entry(self, found: Found) -> str:
        number = self._number(found.source)
        head = f"[{number}] {found.source.title}".rstrip()
        return "\n".join(part for part in (head, found.source.url, found.text) if part)

    def _number(self, source: Source) -> int:
        """The same for the same address."""
        number = self._numbers.get(source.url)
        if number is None:
            self.sources.append(source)
            number = self._numbers[source.url] = len(self.sources)
        return number

    def _bounded(self, text: str) -> str:
        most = self._bounds.output_chars_max
        return text if len(text) <= most else text[: most - len(CUT)] + CUT

    async def close(self) -> None:
        for session in self._sessions:
            await session.close()


def _named(source: Source) -> Source:
    """On a line each, as what the model reads begins a line with what was found, and bounded."""
    url, title = clean(source.url[:ADDRESS_CHARS_MAX]), clean(source.title[: 2 * TITLE_CHARS_MAX])
    return Source("".join(url.split()), " ".join(title.split())[:TITLE_CHARS_MAX])


def clean(text: str) -> str:
    """Text that can be sent: pages and remote servers give halves of surrogate pairs too, and NUL ends texts elsewhere."""
    if text.isprintable():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")
