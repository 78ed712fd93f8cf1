"""What is asked: one request for text, in no dialect's words."""

from __future__ import annotations

from dataclasses import field, replace
from typing import Final, Literal, TypeAlias

from jubal.core.server_tools import ServerTool
from jubal.core.values import value

Effort: TypeAlias = Literal["none", "low", "medium", "high"]
TURNS_MAX: Final = 16
"""Rounds of the tool loop where nobody says."""
Role: TypeAlias = Literal["system", "developer", "user", "assistant", "tool"]


@value(frozen=True, slots=True)
class TextPart:
    text: str


@value(frozen=True, slots=True)
class ImagePart:
    """An image by its URL: https, or a data URL with base64. Engines get data URLs only. detail: how closely to look.

    size: width and height in pixels; None: nobody looked yet. where: the field of the request that names it, for errors; "" where
    the dialect does not tell.
    """

    url: str
    detail: Literal["auto", "low", "high"] = "auto"
    size: tuple[int, int] | None = field(default=None, compare=False)
    where: str = field(default="", compare=False)


Part: TypeAlias = TextPart | ImagePart


@value(frozen=True, slots=True)
class PastCall:
    """A function call that an assistant message of the history made. arguments: JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


@value(frozen=True, slots=True)
class Message:
    """One message of the conversation. Roles come in any order (seed: "Flexible Roles").

    tool_call_id: for role tool, which call this answers; None pairs results with calls in order.
    reasoning: for role assistant, the thinking that went with it, if the caller sends it back.
    """

    role: Role
    parts: tuple[Part, ...]
    name: str | None = None
    calls: tuple[PastCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str | None = None

    @property
    def text(self) -> str:
        """All text parts, joined by nothing."""
        if len(self.parts) == 1 and isinstance(self.parts[0], TextPart):
            return self.parts[0].text
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def has_image(self) -> bool:
        for part in self.parts:  # noqa: SIM110  any() makes a generator, for each message of each request
            if isinstance(part, ImagePart):
                return True
        return False


@value(frozen=True, slots=True)
class FunctionTool:
    """A function that the caller runs. parameters: a JSON Schema as JSON text, its root an object; None: no parameters.

    strict is the caller's wish that arguments follow the schema to the letter; Jubal always tries (xai-api.md 10.1).
    where: what the request calls `parameters`, for errors; None: the caller has not written them (a server tool's).
    example: arguments of a good call, as JSON text, shown to models that have to be told in words how to call; None: none.
    """

    name: str
    description: str = ""
    parameters: str | None = None
    strict: bool = False
    where: str | None = field(default=None, compare=False)
    example: str | None = None


@value(frozen=True, slots=True)
class NamedTool:
    """The model must call this function."""

    name: str


ToolChoice: TypeAlias = Literal["auto", "none", "required"] | NamedTool


@value(frozen=True, slots=True)
class Tools:
    """What may be called, and what must be. parallel: more than one call in an answer is allowed.

    functions: what an engine knows of. server: what Jubal runs itself; the agent makes functions of them, and no engine sees
    them.
    """

    functions: tuple[FunctionTool, ...] = ()
    choice: ToolChoice = "auto"
    parallel: bool = True
    server: tuple[ServerTool, ...] = ()

    @property
    def wanted(self) -> bool:
        """The model should know of the tools."""
        return bool(self.functions or self.server) and self.choice != "none"


NO_TOOLS = Tools()


@value(frozen=True, slots=True)
class JsonOutput:
    """The answer must be a JSON object; schema: that follows this JSON Schema, as JSON text. name: the caller's for it.

    where: what the request calls the schema, for errors.
    """

    schema: str | None = None
    name: str = ""
    where: str = field(default="response_format", compare=False)


@value(frozen=True, slots=True)
class Sampling:
    """How to choose tokens. None: the engine's own default.

    temperature 0..2; top_p (0, 1]; penalties -2..2; seed: any 64-bit integer, for repeatable answers where the engine can;
    stop: up to eight strings, none empty, that end the answer and are not part of it.
    top_k: only the so many likeliest tokens, at least 1; min_p: only tokens at least that likely as the likeliest, 0..1.
    bias: (token id of the engine's own vocabulary, -100..100), added to that token's logit.
    """

    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    bias: tuple[tuple[int, float], ...] = ()
    top_k: int | None = None
    min_p: float | None = None


@value(frozen=True, slots=True)
class Bounds:
    """tokens_max: visible tokens of each choice; None: as far as the window goes.

    turns_max: rounds of the tool loop, each a step of the model and the server tools that it calls; then it has to answer.
    """

    tokens_max: int | None = None
    turns_max: int = TURNS_MAX


Prompt: TypeAlias = str | tuple[int, ...]
"""Text to go on from, or the ids of its tokens in the vocabulary of the engine's model."""


@value(frozen=True, slots=True)
class Generation:
    """One request. `model` is the name the engine must use: serving/ resolves what the caller wrote.

    choices: how many independent answers, 1..128.
    live: somebody reads the pieces as they are made. False: only the whole counts, and an engine may fetch it in one go.
    user: the caller's opaque id of its end user.
    cache_key: requests with the same key share a prompt prefix (xai-api.md 22), a hint for placement.
    reasoning: how much to think before the answer, as a budget; None: the model's own habit.
    prompts: each to go on from as it stands, without a chat template; then messages are empty. Empty: answer the messages.
    suffix: what comes after the text that is wanted; None: nothing, or unknown.
    cache: an answer that was given before to the same request may be given again.
    inline_citations: sources are cited in the text, as `[[1]](url)`.
    priority: to be answered before others, at a higher price, where others can be in the way (xai-api.md 24).
    output: None for text. logprobs: tell each token's probability and that of so many likely others, 0..20; None: don't.
    """

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    bounds: Bounds = field(default_factory=Bounds)
    choices: int = 1
    live: bool = True
    user: str | None = None
    cache_key: str | None = None
    tools: Tools = NO_TOOLS
    output: JsonOutput | None = None
    logprobs: int | None = None
    reasoning: Effort | None = None
    prompts: tuple[Prompt, ...] = ()
    suffix: str | None = None
    cache: bool = True
    inline_citations: bool = False
    priority: bool = False

    @property
    def answers(self) -> int:
        """Answers in all: choice c of prompt p is answer p * choices + c."""
        return self.choices * len(self.prompts) if self.prompts else self.choices

    @property
    def has_images(self) -> bool:
        """Somewhere in the conversation."""
        for message in self.messages:  # noqa: SIM110  as in Message.has_image
            if message.has_image:
                return True
        return False


def with_system(messages: tuple[Message, ...], text: str) -> tuple[Message, ...]:
    """`text` at the end of the first system message, or as one in front: some templates take one at the start only."""
    first = messages[0] if messages else None
    if first is not None and first.role in ("system", "developer"):
        return (replace(first, parts=(*first.parts, TextPart("\n\n" + text))), *messages[1:])
    return (Message("system", (TextPart(text),)), *messages)


def with_call_ids(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Results of tools that name no call get the calls before them, in order (xai-api.md 6.2): some engines insist on an id."""
    if not any(message.role == "tool" and message.tool_call_id is None for message in messages):
        return messages
    out: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        if message.calls:
            waiting = [call.id for call in message.calls]
        elif message.role == "tool":
            if message.tool_call_id is None and waiting:
                message = replace(message, tool_call_id=waiting[0])
            waiting = [identity for identity in waiting if identity != message.tool_call_id]
        out.append(message)
    return tuple(out)
