"""Raw prompts to engines that speak OpenAI's legacy completions: a turn with `prompt`, no messages and no chat template.

The same promise as the chat pair of openai_compat.py, whose HTTP part (`stream_chat`) carries this one too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Final

import msgspec

from jubal.core.errors import EngineBroken
from jubal.core.events import EngineEvent, FinishReason, Likely, TextDelta, TokenLogprob, TurnEnded, UsageSoFar
from jubal.core.generation import Generation
from jubal.core.usage import Usage
from jubal.engines.openai_compat import (
    FINISH_REASON,
    _Likely,
    _Mender,
    _reported,
    _Timings,
    _token_logprob,
    _Usage,
    _usage,
)
from jubal.engines.sse import SSEDecoder

HALF_CHARACTER: Final = "bytes:"
"""How this dialect writes a token that is no whole character: `bytes:\\xf0\\x9f`."""

# ---------------------------------------------------------------------------------------------- Generation -> body


def text_body(turn: Generation, *, extra: Mapping[str, object] | None = None) -> bytes:
    """The body of a completion, streamed where the turn is live. extra: further fields that this engine understands.

    `logprobs` is at least 1: llama.cpp takes 0 for none at all.
    """
    sampling = turn.sampling
    body: dict[str, object] = {"model": turn.model, "prompt": turn.prompt}
    if turn.live:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    optional = {
        "max_tokens": turn.bounds.tokens_max,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "seed": sampling.seed,
        "stop": sampling.stop or None,
        "n": turn.choices if turn.choices > 1 else None,
        "user": turn.user,
        "logprobs": None if turn.logprobs is None else max(1, turn.logprobs),
        "logit_bias": {str(token): bias for token, bias in sampling.bias} or None,
    }
    body.update((name, value) for name, value in optional.items() if value is not None)
    if extra:
        body.update(extra)
    return msgspec.json.encode(body)


# ---------------------------------------------------------------------------------------------- bytes -> events


class _Logprobs(msgspec.Struct, gc=False):
    """Four lists side by side; llama.cpp sends `content`, the shape of the chat dialect, instead."""

    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None
    content: list[_Likely] | None = None


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    text: str | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, gc=False):
    """A chunk and a whole answer look alike."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw()  # `Raw | None` would take nothing but null
    timings: _Timings | None = None


class TextDecoder:
    """Feeds on the bytes of a streamed completion, cut anywhere, and yields events; the last one is `TurnEnded`."""

    def __init__(self, choices: int) -> None:
        self._decode = msgspec.json.Decoder(_Chunk).decode
        self._sse = SSEDecoder()
        self._choices = choices
        self._reasons: dict[int, FinishReason] = {}
        self._held: dict[int, tuple[TokenLogprob, ...]] = {}
        self._usage: Usage | None = None
        self._mender: _Mender | None = None
        self._metered = False
        self._begun = False
        self.ended = False

    def feed(self, data: bytes) -> Iterator[EngineEvent]:
        """Raises `EngineBroken` for what is no chunk, and the error that an error frame stands for."""
        for payload in self._sse.feed(data):
            yield from self._event(payload)

    def whole(self, body: bytes) -> Iterator[EngineEvent]:
        """The same events from the body of a whole answer."""
        yield from self._event(body)
        yield from self.finish()

    def finish(self) -> Iterator[EngineEvent]:
        """The bytes are over. Raises `EngineBroken` where the answer is not."""
        for payload in self._sse.finish():
            yield from self._event(payload)
        if self.ended:
            return
        if len(self._reasons) < self._choices:
            raise EngineBroken("The engine's stream ended in the middle of the answer.")
        yield self._end()  # some servers send no [DONE]

    def _event(self, payload: bytes) -> Iterator[EngineEvent]:
        if self.ended:
            return
        if payload == b"[DONE]":
            yield self._end()
            return
        try:
            chunk = self._decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._mender = self._mender or _Mender()
            chunk = self._mender.chunk(payload, _Chunk)
        if bytes(chunk.error) not in (b"", b"null"):  # a Raw equals no bytes
            raise _reported(503 if not self._begun else 200, payload)
        self._begun = True
        for choice in chunk.choices:
            yield from self._choice(choice)
        if chunk.usage is not None:
            self._usage = _usage(chunk.usage)
        if (t := chunk.timings) is not None and t.predicted_n and not self._metered:  # before that it counts the prompt
            self._metered = True
            yield UsageSoFar(Usage(t.cache_n + t.prompt_n, t.predicted_n, t.cache_n))

    def _choice(self, choice: _Choice) -> Iterator[EngineEvent]:
        index, text = choice.index, choice.text or ""
        if not 0 <= index < self._choices:
            raise EngineBroken(f"The engine answered choice {index} of {self._choices}.")
        if self._mender is not None:
            text = self._mender.join(index, text)
        told = _token_logprobs(choice.logprobs) if choice.logprobs is not None else ()
        if self._held:
            told = self._held.pop(index, ()) + told
        if text:
            yield TextDelta(text, index, told)
        elif told:
            self._held[index] = told  # half a character: its token goes with the rest of it
        if choice.finish_reason is not None and index not in self._reasons:
            self._reasons[index] = FINISH_REASON.get(choice.finish_reason, "stop")

    def _end(self) -> TurnEnded:
        self.ended = True
        return TurnEnded(tuple(self._reasons.get(index, "stop") for index in range(self._choices)), self._usage)


def _token_logprobs(told: _Logprobs) -> tuple[TokenLogprob, ...]:
    if told.content:
        return tuple(map(_token_logprob, told.content))
    tokens, logprobs, tops = told.tokens or (), told.token_logprobs or (), told.top_logprobs or ()
    return tuple(
        TokenLogprob(_likely(token, logprob), tuple(_likely(*other) for other in (top or {}).items()))
        for token, logprob, top in zip_longest(tokens, logprobs, tops)
        if token is not None and logprob is not None
    )


def _likely(token: str, logprob: float) -> Likely:
    if not token.startswith(HALF_CHARACTER):
        return Likely(token, logprob)
    try:
        raw = bytes.fromhex(token.removeprefix(HALF_CHARACTER).replace("\\x", " "))
    except ValueError:
        return Likely(token, logprob)
    return Likely(raw.decode(errors="replace"), logprob, raw)
