"""POST /v1/completions: OpenAI's legacy completions as xAI speaks them (xai-api.md 12.1).

A prompt is text to go on from, or its token ids, without a chat template. Several prompts are one request with one usage row:
choice c of prompt p has the index p * n + c.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, assert_never

import msgspec

from jubal.core.errors import BadRequest, JubalError
from jubal.core.events import (
    Citation,
    Event,
    Failed,
    Finished,
    FinishReason,
    Likely,
    ReasoningDelta,
    ServerToolCall,
    ServerToolResult,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCall,
    UsageSoFar,
)
from jubal.core.fold import Choice, Completion
from jubal.core.generation import Bounds, Generation, Prompt
from jubal.wire import openai_errors, sse
from jubal.wire.base import ErrorReply
from jubal.wire.decode import decode, within
from jubal.wire.openai_chat import usage_body
from jubal.wire.openai_sampling import CHOICES_MAX, choices, sampling, tokens_bound

# ---------------------------------------------------------------------------------------------- the request


class _StreamOptions(msgspec.Struct, gc=False):
    include_usage: bool | None = None


class _Request(msgspec.Struct):
    """The body. Unknown fields are ignored, null means unset (xai-api.md 3)."""

    model: str
    prompt: str | list[str | int | list[int]]
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    n: int | None = None
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    logprobs: bool | int | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    user: str | None = None
    cache: bool | None = None


_DECODER: Final = msgspec.json.Decoder(_Request)
_encode: Final = msgspec.json.Encoder().encode

TOKENS_DEFAULT: Final = 16
LOGPROBS_MAX: Final = 5
TOKEN_ID_MAX: Final = 2**31 - 1


def _generation(asked: _Request) -> Generation:
    if not asked.model:
        raise BadRequest("`model` must not be empty.", param="model", code="empty_value")
    prompts = _prompts(asked.prompt)
    candidates = _candidates(asked)
    if len(prompts) * candidates > CHOICES_MAX:
        raise BadRequest(
            f"`prompt`: {len(prompts)} prompts with {candidates} choices each are more than {CHOICES_MAX} answers.",
            param="prompt",
            code="too_many",
        )
    if asked.echo and not all(isinstance(prompt, str) for prompt in prompts):
        raise _unsupported("echo", "with token ids in `prompt` there is no text to say; send text")
    logprobs = _logprobs(asked.logprobs)
    if asked.echo and logprobs is not None:
        raise _unsupported("echo", "with `logprobs` it needs the prompt's own probabilities, which engines do not tell")
    return Generation(
        model=asked.model,
        messages=(),
        sampling=sampling(asked),
        bounds=Bounds(
            tokens_max=TOKENS_DEFAULT if asked.max_tokens is None else tokens_bound("max_tokens", asked.max_tokens)
        ),
        choices=candidates,
        live=bool(asked.stream),
        user=asked.user,
        logprobs=0 if logprobs is None and candidates > choices(asked.n) else logprobs,
        reasoning="none",  # this dialect has no place for it (xai-api.md 12)
        prompts=prompts,
        suffix=asked.suffix or None,
        cache=asked.cache is not False,
    )


def _prompts(given: str | list[str | int | list[int]]) -> tuple[Prompt, ...]:
    """OpenAI's four forms: a string, strings, token ids, lists of token ids. Raises `BadRequest`."""
    if isinstance(given, str):
        return (_text("prompt", given),)
    if not given:
        raise BadRequest("`prompt` must not be empty.", param="prompt", code="empty_value")
    if isinstance(given[0], int):
        return (_ids("prompt", given),)
    prompts: list[Prompt] = []
    for number, one in enumerate(given):
        where = "prompt" if len(given) == 1 else f"prompt[{number}]"
        if isinstance(one, int) or isinstance(one, str) is not isinstance(given[0], str):
            raise BadRequest("`prompt` mixes text and token ids.", param="prompt", code="invalid_value")
        prompts.append(_text(where, one) if isinstance(one, str) else _ids(where, one))
    return tuple(prompts)


def _text(where: str, prompt: str) -> str:
    if not prompt:
        raise BadRequest(f"`{where}` must not be empty.", param=where, code="empty_value")
    return prompt


def _ids(where: str, prompt: Sequence[object]) -> tuple[int, ...]:
    if not prompt:
        raise BadRequest(f"`{where}` must not be empty.", param=where, code="empty_value")
    ids = tuple(one for one in prompt if isinstance(one, int))
    if len(ids) < len(prompt):
        raise BadRequest(f"`{where}` mixes text and token ids.", param=where, code="invalid_value")
    if not all(0 <= one <= TOKEN_ID_MAX for one in ids):
        raise BadRequest(f"`{where}`: token ids are 0 to {TOKEN_ID_MAX}.", param=where, code="out_of_range")
    return ids


def _unsupported(name: str, why: str) -> BadRequest:
    return BadRequest(f"`{name}` is not supported like this: {why}.", param=name, code="unsupported_parameter")


def _candidates(asked: _Request) -> int:
    """How many answers are made of each prompt, of which the best `n` are given. 1 is what some clients send for none."""
    wanted = choices(asked.n)
    within("best_of", asked.best_of, 1, CHOICES_MAX)
    if asked.best_of is None or asked.best_of == 1:
        return wanted
    if asked.best_of < wanted:
        raise BadRequest(
            f"`best_of` must not be less than `n`, which is {wanted}.", param="best_of", code="out_of_range"
        )
    if asked.best_of > wanted and asked.stream:
        raise _unsupported(
            "best_of", "which answers are the best is only known at their end, so they can't be streamed"
        )
    return asked.best_of


def _logprobs(wanted: bool | int | None) -> int | None:
    """OpenAI's number of likely others; true, which is xAI's, for the chosen tokens alone."""
    if wanted is None or isinstance(wanted, bool):
        return 0 if wanted else None
    within("logprobs", wanted, 0, LOGPROBS_MAX)
    return wanted


# ---------------------------------------------------------------------------------------------- the answer

FINISH_REASON: Final[dict[FinishReason, str]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "stop",
    "content_filter": "content_filter",
    "turn_limit": "length",
}


class _Probabilities:
    """The tokens of one choice, as they come, in this dialect's four lists. others: how many likely ones to name."""

    __slots__ = ("_decoder", "_others", "_place")

    def __init__(self, others: int) -> None:
        self._others = others
        self._place = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def body(self, tokens: Iterable[TokenLogprob]) -> dict[str, object]:
        """The chosen token is among the likely ones even where it is none of the likeliest, as OpenAI has it."""
        names: list[str] = []
        logprobs: list[float] = []
        tops: list[dict[str, float]] = []
        offsets: list[int] = []
        for token in tokens:
            chosen = token.chosen
            names.append(_name(chosen))
            logprobs.append(chosen.logprob)
            tops.append({_name(one): one.logprob for one in (*token.top[: self._others], chosen)})
            offsets.append(self._place)
            self._place += len(chosen.token if chosen.bytes is None else self._decoder.decode(chosen.bytes))
        return {
            "tokens": names,
            "token_logprobs": logprobs,
            "top_logprobs": tops if self._others else None,
            "text_offset": offsets,
        }


def _name(likely: Likely) -> str:
    """A token that is no whole character by its bytes, as OpenAI writes it: two of them would look the same."""
    if likely.bytes is not None:
        try:
            likely.bytes.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in likely.bytes)
    return likely.token


class TextRenderer:
    """One streamed answer as text_completion frames.

    echo: said first in each answer, one for each; empty: nothing is. logprobs: how many likely others of each token to name.
    """

    def __init__(self, *, echo: Sequence[str], logprobs: int, include_usage: bool) -> None:
        self._echo = echo
        self._logprobs = logprobs
        self._include_usage = include_usage
        self._head = b""
        self._tail = b""
        self._begun: set[int] = set()
        self._probabilities: dict[int, _Probabilities] = {}

    def feed(self, event: Event) -> bytes:
        match event:
            case TextDelta(text, choice, logprobs):
                return self._begin(choice) + self._chunk(choice, text, logprobs=logprobs)
            case Started():
                return self._start(event)
            case Finished():
                return self._finish(event)
            case Failed(error):
                return openai_errors.frame(_in_our_words(error))
            case ReasoningDelta() | ToolCall() | ServerToolCall() | ServerToolResult() | Citation() | UsageSoFar():
                return b""  # neither is asked for here
            case _:
                assert_never(event)

    def _start(self, start: Started) -> bytes:
        self._head = b'data: {"id":"cmpl-%b","object":"text_completion","created":%d,"model":%b,"choices":[' % (
            start.id.encode(),
            start.created,
            _encode(start.model),
        )
        self._tail = b',"system_fingerprint":%b}\n\n' % _encode(start.fingerprint)
        return b""

    def _begin(self, choice: int) -> bytes:
        """The prompt goes before the first piece of each choice."""
        if choice in self._begun:
            return b""
        self._begun.add(choice)
        return self._chunk(choice, self._echo[choice]) if self._echo else b""

    def _chunk(self, choice: int, text: str, reason: bytes = b"null", logprobs: tuple[TokenLogprob, ...] = ()) -> bytes:
        return b'%b{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b}]%b' % (
            self._head, choice, _encode(text), self._likely(choice, logprobs) if logprobs else b"null", reason, self._tail,
        )  # fmt: skip

    def _likely(self, choice: int, logprobs: tuple[TokenLogprob, ...]) -> bytes:
        if choice not in self._probabilities:
            self._probabilities[choice] = _Probabilities(self._logprobs)
        return _encode(self._probabilities[choice].body(logprobs))

    def _finish(self, end: Finished) -> bytes:
        frames = []
        for choice, reason in enumerate(end.reasons):
            frames.append(self._begin(choice))
            frames.append(self._chunk(choice, "", _encode(FINISH_REASON[reason])))
        if self._include_usage:
            frames.append(b'%b],"usage":%b%b' % (self._head, _encode(usage_body(end)), self._tail))
        frames.append(sse.DONE)
        return b"".join(frames)


class CompletionsAsked:
    """A parsed completion request."""

    __slots__ = ("_echo", "_include_usage", "_logprobs", "_wanted", "generation")

    deferral: Final = None

    def __init__(self, asked: _Request) -> None:
        self.generation = _generation(asked)
        self._wanted = choices(asked.n)
        prompts = self.generation.prompts if asked.echo else ()
        self._echo = [str(prompt) for prompt in prompts for _ in range(self._wanted)]
        self._logprobs = _logprobs(asked.logprobs)
        self._include_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        if asked.stream_options is not None and not asked.stream:
            raise BadRequest("`stream_options` needs `stream: true`.", param="stream_options", code="invalid_value")

    def renderer(self) -> TextRenderer:
        return TextRenderer(echo=self._echo, logprobs=self._logprobs or 0, include_usage=self._include_usage)

    def whole(self, completion: Completion) -> bytes:
        return _encode(
            {
                "id": f"cmpl-{completion.id}",
                "object": "text_completion",
                "created": completion.created,
                "model": completion.model,
                "choices": [self._choice_body(index, choice) for index, choice in enumerate(self._best(completion))],
                "usage": usage_body(completion),
                "system_fingerprint": completion.fingerprint,
            }
        )

    def _best(self, completion: Completion) -> Iterator[Choice]:
        """Of each prompt's answers as many as are wanted, the likeliest first where there are more."""
        each = self.generation.choices
        for first in range(0, len(completion.choices), each):
            answers = completion.choices[first : first + each]
            yield from (
                sorted(answers, key=_likelihood, reverse=True)[: self._wanted] if each > self._wanted else answers
            )

    def _choice_body(self, index: int, choice: Choice) -> dict[str, object]:
        return {
            "index": index,
            "text": self._echo[index] + choice.text if self._echo else choice.text,
            "logprobs": None if self._logprobs is None or not choice.logprobs else self._likely(choice),
            "finish_reason": FINISH_REASON[choice.reason],
        }

    def _likely(self, choice: Choice) -> dict[str, object]:
        return _Probabilities(self._logprobs or 0).body(choice.logprobs)


def _likelihood(choice: Choice) -> float:
    """The mean logarithm of its tokens' probabilities, at most 0; the same for all where the engine tells none."""
    told = [token.chosen.logprob for token in choice.logprobs]
    return sum(told) / len(told) if told else -math.inf


def _in_our_words(error: JubalError) -> JubalError:
    """Engines blame the messages for what is too long; here that is the prompt."""
    if error.param == "messages":
        error.param = "prompt"
    return error


class OpenAICompletions:
    """The dialect."""

    endpoint = "sample"
    body = _Request

    def parse(self, body: bytes) -> CompletionsAsked:
        """Raises `BadRequest`; `Undecodable` where a field is missing or has the wrong type."""
        return CompletionsAsked(decode(_DECODER, body))

    def error(self, error: JubalError) -> ErrorReply:
        return openai_errors.reply(_in_our_words(error))
