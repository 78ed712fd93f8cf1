"""What happens while a request is answered.

An engine yields `EngineEvent`s of one turn; the agent turns them into `Event`s of the whole answer; a dialect renders
those. Frozen in meaning, not by machinery: events are made once per token on the hot path, and a frozen dataclass costs
three times as much to make. Nobody changes one after it was yielded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from jubal.core.errors import JubalError
from jubal.core.usage import Usage

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls", "content_filter", "turn_limit"]


@dataclass(slots=True)
class Started:
    """The first event of every answer, and the only place where ids and times come from.

    id: a bare UUID, also the x-request-id. created: Unix seconds. model: the resolved public name. fingerprint: names the
    weights that answer (`fp_` and hex digits).
    """

    id: str
    created: int
    model: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Likely:
    """A token that could have come at a place. logprob: natural logarithm of its probability, at most 0.

    bytes: what it stands for; None where the engine does not tell. A token can be a part of a character.
    """

    token: str
    logprob: float
    bytes: bytes | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The token that came, and the likeliest ones at its place, most likely first."""

    chosen: Likely
    top: tuple[Likely, ...] = ()


@dataclass(slots=True)
class TextDelta:
    """A piece of visible text, never empty. logprobs: of its tokens, where they were asked for."""

    text: str
    choice: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(slots=True)
class ReasoningDelta:
    """A piece of the model's thinking, never empty."""

    text: str
    choice: int = 0


@dataclass(slots=True)
class ToolCall:
    """A whole function call. arguments: a JSON object as text, at least `{}`."""

    id: str
    name: str
    arguments: str
    choice: int = 0


@dataclass(slots=True)
class UsageSoFar:
    """Exact counts in the middle of a turn or answer, for whoever must charge one that is cut. Each delta after it adds a
    token. From an engine: of this turn. From the agent: of the whole answer so far."""

    usage: Usage


@dataclass(slots=True)
class TurnEnded:
    """An engine's last event. reasons: one per choice, in order.

    usage: of this turn, all choices together; None: the engine does not tell, and it has to be estimated.
    """

    reasons: tuple[FinishReason, ...]
    usage: Usage | None


@dataclass(slots=True)
class Finished:
    """The last event of a good answer. cost_ticks: None where nobody prices it. estimated: no engine told `usage`."""

    reasons: tuple[FinishReason, ...]
    usage: Usage
    cost_ticks: int | None = None
    estimated: bool = False


@dataclass(slots=True)
class Failed:
    """The last event of an answer that broke after it began."""

    error: JubalError


EngineEvent: TypeAlias = TextDelta | ReasoningDelta | ToolCall | UsageSoFar | TurnEnded
Event: TypeAlias = Started | TextDelta | ReasoningDelta | ToolCall | UsageSoFar | Finished | Failed
