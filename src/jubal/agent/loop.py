"""The loop that makes an answer out of an engine's turns, runs the server tools between them, and sums what they used."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from jubal.agent.citations import INSTRUCTIONS, Citer
from jubal.agent.toolbox import Toolbox, Workbench
from jubal.core.errors import EngineBroken
from jubal.core.events import (
    EngineEvent,
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    ServerToolCall,
    TextDelta,
    ToolCall,
    TurnEnded,
    UsageSoFar,
)
from jubal.core.generation import Generation, Message, PastCall, TextPart, Tools, with_system
from jubal.core.tally import Tally
from jubal.core.usage import NOTHING
from jubal.engines.base import Engine

NO_TOOLBOX: Final = Toolbox()


class Place(Protocol):
    """What the caller holds of the engine for this request. It is held when the loop begins."""

    def rest(self) -> None:
        """The engine has nothing to do for a while: others may have its time."""
        ...

    async def resume(self) -> None:
        """Returns when the engine may be asked again."""
        ...


class _Kept:
    """A place that nobody else wants."""

    def rest(self) -> None:
        """Kept."""

    async def resume(self) -> None:
        """At once."""


async def run(
    turn: Generation, engine: Engine, toolbox: Toolbox = NO_TOOLBOX, place: Place | None = None
) -> AsyncGenerator[Event, None]:
    """Answer `turn`: pieces as they come, then one `Finished`. `Started` is the pipeline's.

    place: given back while tools are connected to or run; None: there is nothing to give back.

    Raises what the engine raises; `EngineBroken` where it stops without an end. Closing it stops the work of engine and tools
    first.
    """
    if turn.tools.server and turn.tools.choice != "none":
        place = place or _Kept()
        place.rest()
        async with toolbox.open(turn) as bench, aclosing(_Agent(turn, engine, bench, place).run()) as events:
            async for event in events:
                yield event
        return
    tally = Tally()
    ended: TurnEnded | None = None
    pieces = engine.stream(_without_server_tools(turn))
    try:  # what `aclosing` does, for less: all that is streamed comes by here
        async for piece in pieces:
            tally.see(piece)
            if isinstance(piece, TurnEnded):
                ended = piece
            else:
                yield piece
    finally:
        await pieces.aclose()
    if ended is None:
        raise _no_end()
    yield Finished(ended.reasons, tally.usage(turn), estimated=not tally.exact, stops=ended.stops)


def _without_server_tools(turn: Generation) -> Generation:
    return replace(turn, tools=replace(turn.tools, server=())) if turn.tools.server else turn


def _no_end() -> EngineBroken:
    return EngineBroken("The engine stopped without ending its answer.")


@dataclass(slots=True)
class _Turn:
    """What one step of the model gave. text, reasoning: as the model wrote them. answered: calls of ours with their results;
    unknown: calls of functions that nobody has."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    ours: list[ServerToolCall] = field(default_factory=list)
    theirs: list[ToolCall] = field(default_factory=list)
    unknown: list[ToolCall] = field(default_factory=list)
    ended: TurnEnded | None = None


class _Agent:
    """One answer with server tools, of one choice."""

    def __init__(self, asked: Generation, engine: Engine, bench: Workbench, place: Place) -> None:
        self._engine = engine
        self._bench = bench
        self._place = place
        self._turn = _equipped(asked, bench)
        self._client = frozenset(function.name for function in asked.tools.functions)
        self._rounds_left = asked.bounds.turns_max
        self._visible = 0
        self._ids: set[str] = set()
        self._done: set[tuple[str, str]] = set()
        self._spent = NOTHING
        self._estimated = False
        self._citer = Citer(bench.sources) if asked.inline_citations and asked.output is None else None

    async def run(self) -> AsyncGenerator[Event, None]:
        while True:
            got = _Turn()
            await self._place.resume()
            async with aclosing(self._step(got)) as events:
                async for event in events:
                    yield event
            self._place.rest()
            assert got.ended is not None
            again = self._only_again(got)
            results: dict[str, str] = {}
            async with aclosing(self._bench.run_all(got.ours)) as done:
                async for result in done:
                    results[result.id] = result.output
                    yield result
            reason = self._reason_to_end(got, got.ended)
            if reason is not None:
                sources = tuple(self._bench.sources)
                stops = got.ended.stops if reason == "stop" else ()
                yield Finished((reason,), self._spent, None, self._estimated, sources, self._bench.uses, stops=stops)
                return
            self._go_on(got, results, stuck=again)

    def _reason_to_end(self, got: _Turn, ended: TurnEnded) -> FinishReason | None:
        if got.theirs:
            return "tool_calls"  # the client must act; what ours found is told
        if not (got.ours or got.unknown):
            return ended.reasons[0]
        return "turn_limit" if self._turn.tools.choice == "none" else None

    async def _step(self, got: _Turn) -> AsyncGenerator[Event, None]:
        """One step of the model, with what it used summed up at its end."""
        tally = Tally()
        async with aclosing(self._engine.stream(self._turn)) as pieces:
            async for piece in pieces:
                tally.see(piece)
                for event in self._seen(piece, got):
                    yield event
        if got.ended is None:
            raise _no_end()
        if self._citer is not None:
            for event in self._citer.finish(0):
                yield event
        self._spent += tally.usage(self._turn)
        self._estimated = self._estimated or not tally.exact
        yield UsageSoFar(self._spent)

    def _seen(self, piece: EngineEvent, got: _Turn) -> list[Event]:
        match piece:
            case TextDelta():
                got.text.append(piece.text)
                self._visible += 1
                return [piece] if self._citer is None else list(self._citer.feed(piece))
            case ReasoningDelta():
                got.reasoning.append(piece.text)
                return [piece]
            case ToolCall():
                return self._called(piece, got)
            case UsageSoFar(usage):
                return [UsageSoFar(self._spent + usage)]
            case TurnEnded():
                got.ended = piece
                return []

    def _called(self, call: ToolCall, got: _Turn) -> list[Event]:
        call = self._with_own_id(call)
        if call.name in self._client:
            got.theirs.append(call)
            return [call]
        ours = self._bench.call_of(call)
        if ours is None or self._turn.tools.choice == "none":
            got.unknown.append(call)
            return []
        got.ours.append(ours)
        return [ours]

    def _with_own_id(self, call: ToolCall) -> ToolCall:
        """Some servers number the calls of each turn anew, or give several the same id. In one answer each has its own."""
        identity, number = call.id, 1
        while identity in self._ids:
            number += 1
            identity = f"{call.id}_{number}"
        self._ids.add(identity)
        return call if identity == call.id else replace(call, id=identity)

    def _only_again(self, got: _Turn) -> bool:
        """The model asks for nothing that it has not asked for already: small ones do so for ever.

        A remote server's tool may well be asked again, as its answer can have changed.
        """
        asked = {(call.name, call.arguments) for call in got.ours}
        local = bool(got.ours) and not got.unknown and all(call.kind != "mcp" for call in got.ours)
        again = local and asked <= self._done
        self._done |= asked
        return again

    def _go_on(self, got: _Turn, results: dict[str, str], *, stuck: bool) -> None:
        """The next turn: the conversation with this one's calls and results. A choice that demanded a call is honoured now.

        stuck: it must answer, as it learns nothing new.
        """
        made: list[ServerToolCall | ToolCall] = [*got.ours, *got.unknown]
        calls = tuple(PastCall(call.id, call.name, call.arguments) for call in made)
        text, thought = "".join(got.text), "".join(got.reasoning)
        parts = (TextPart(text),) if text else ()
        answered = [Message("assistant", parts, calls=calls, reasoning=thought or None)]
        for call in calls:
            output = results.get(call.id, f"There is no function `{call.name}`.")
            answered.append(Message("tool", (TextPart(output),), name=call.name, tool_call_id=call.id))
        self._rounds_left -= 1
        over = stuck or self._rounds_left <= 0 or self._bench.exhausted
        turn = self._turn
        bounds = turn.bounds
        if bounds.tokens_max is not None and text:
            bounds = replace(bounds, tokens_max=max(1, bounds.tokens_max - self._visible))
            self._visible = 0
        self._turn = replace(
            turn,
            messages=(*turn.messages, *answered),
            bounds=bounds,
            tools=replace(turn.tools, choice="none" if over else "auto"),
        )


def _equipped(asked: Generation, bench: Workbench) -> Generation:
    """The first turn: our functions beside the client's, and what the model should know of them."""
    notes = bench.instructions
    if asked.inline_citations:
        notes += "\n" + INSTRUCTIONS
    tools = Tools((*asked.tools.functions, *bench.functions), asked.tools.choice, asked.tools.parallel)
    if not tools.functions:  # none of them is available
        tools = replace(tools, choice="none")
    return replace(asked, messages=with_system(asked.messages, notes), tools=tools)
