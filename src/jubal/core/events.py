"""What happens while a request is answered.

An engine yields `EngineEvent`s of one turn; the agent turns them into `Event`s of the whole answer; a dialect renders
those. Nobody changes one after it was made.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from jubal.core.errors import JubalError
from jubal.core.generation import Effort
from jubal.core.server_tools import OutputFile, Source, ToolKind
from jubal.core.usage import Usage
from jubal.core.values import value

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls", "content_filter", "turn_limit"]


@value(frozen=True, slots=True)
class Applied:
    """What an answer is made with: the request's wish, or else a default. None: the engine's own choice, which it does not tell.

    priority: it went before others, and costs more.
    """

    temperature: float | None = None
    top_p: float | None = None
    reasoning: Effort | None = None
    priority: bool = False


UNTOLD: Final = Applied()


@value(frozen=True, slots=True)
class Started:
    """The first event of every answer, and the only place where ids and times come from.

    id: a bare UUID, also the x-request-id. created: Unix seconds. model: the resolved public name. fingerprint: names the
    weights that answer (`fp_` and hex digits).
    """

    id: str
    created: int
    model: str
    fingerprint: str
    applied: Applied = UNTOLD


@value(frozen=True, slots=True)
class Likely:
    """A token that could have come at a place. logprob: natural logarithm of its probability, at most 0.

    bytes: what it stands for; None where the engine does not tell. A token can be a part of a character.
    """

    token: str
    logprob: float
    bytes: bytes | None = None


@value(frozen=True, slots=True)
class TokenLogprob:
    """The token that came, and the likeliest ones at its place, most likely first."""

    chosen: Likely
    top: tuple[Likely, ...] = ()


@value(frozen=True, slots=True)
class TextDelta:
    """A piece of visible text, never empty. logprobs: of its tokens, where they were asked for."""

    text: str
    choice: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


@value(frozen=True, slots=True)
class ReasoningDelta:
    """A piece of the model's thinking, never empty."""

    text: str
    choice: int = 0


@value(frozen=True, slots=True)
class ToolCall:
    """A whole function call. arguments: a JSON object as text, at least `{}`."""

    id: str
    name: str
    arguments: str
    choice: int = 0


@value(frozen=True, slots=True)
class ServerToolCall:
    """A tool of ours begins to run: the model called it. name: the function; arguments: JSON text, as the model wrote it."""

    id: str
    kind: ToolKind
    name: str
    arguments: str
    choice: int = 0


@value(frozen=True, slots=True)
class ServerToolResult:
    """A tool of ours has ended. ok: it did what it was called for; only then it is charged.

    output: what the model reads of it. seconds: how long it took. sources: what it found. files: what it made.
    """

    id: str
    kind: ToolKind
    name: str
    ok: bool
    output: str
    seconds: float
    sources: tuple[Source, ...] = ()
    files: tuple[OutputFile, ...] = ()
    choice: int = 0


@value(frozen=True, slots=True)
class Citation:
    """The text just given cites a source. number: the source's, from 1, the same at each citation of it.

    start, end: where `[[number]](url)` stands in the text of the choice, in characters, end not included.
    """

    number: int
    source: Source
    start: int
    end: int
    choice: int = 0


@value(frozen=True, slots=True)
class UsageSoFar:
    """Exact counts in the middle of a turn or answer, for whoever must charge one that is cut. Each delta after it adds a
    token. From an engine: of this turn. From the agent: of the whole answer so far."""

    usage: Usage


@value(frozen=True, slots=True)
class TurnEnded:
    """An engine's last event. reasons: one per choice, in order.

    usage: of this turn, all choices together; None: the engine does not tell, and it has to be estimated.
    stops: the stop string that ended each choice, None where none did or the engine does not tell; empty: it tells of no choice.
    """

    reasons: tuple[FinishReason, ...]
    usage: Usage | None
    stops: tuple[str | None, ...] = ()


@value(frozen=True, slots=True)
class Finished:
    """The last event of a good answer. cost_ticks: None where nobody prices it. estimated: no engine told `usage`.

    sources: all that server tools met, each once, in the order of their numbers. tool_uses: calls of server tools that went
    well, by kind. ended: Unix seconds, None where no clock is at hand. stops: as in `TurnEnded`.
    """

    reasons: tuple[FinishReason, ...]
    usage: Usage
    cost_ticks: int | None = None
    estimated: bool = False
    sources: tuple[Source, ...] = ()
    tool_uses: tuple[tuple[ToolKind, int], ...] = ()
    ended: int | None = None
    stops: tuple[str | None, ...] = ()

    def settled(self, cost_ticks: int, ended: int) -> Finished:
        """The same with its cost and its time."""
        return Finished(
            self.reasons,
            self.usage,
            cost_ticks,
            self.estimated,
            self.sources,
            self.tool_uses,
            ended,
            self.stops,
        )

    def stop_of(self, choice: int) -> str | None:
        """The stop string that ended a choice; None where none did, or nobody tells."""
        return self.stops[choice] if self.stops else None


@value(frozen=True, slots=True)
class Failed:
    """The last event of an answer that broke after it began."""

    error: JubalError


EngineEvent: TypeAlias = TextDelta | ReasoningDelta | ToolCall | UsageSoFar | TurnEnded
Event: TypeAlias = (
    Started
    | TextDelta
    | ReasoningDelta
    | ToolCall
    | ServerToolCall
    | ServerToolResult
    | Citation
    | UsageSoFar
    | Finished
    | Failed
)
