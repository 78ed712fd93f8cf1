"""Raw prompts to engines that speak OpenAI's legacy completions: a turn with `prompts`, no messages and no chat template.

The same promise as the chat pair of openai_compat.py, whose HTTP part (`stream_chat`) carries this one too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Final

import msgspec

from jubal.core.events import EngineEvent, Likely, TextDelta, TokenLogprob
from jubal.core.generation import Generation
from jubal.engines.openai_compat import (
    FINISH_REASON,
    CompletionChunk,
    StreamDecoder,
    WireChoice,
    _Likely,
    _token_logprob,
)

HALF_CHARACTER: Final = "bytes:"
"""How this dialect writes a token that is no whole character: `bytes:\\xf0\\x9f`."""

# ---------------------------------------------------------------------------------------------- Generation -> body


def text_body(turn: Generation, *, extra: Mapping[str, object] | None = None) -> bytes:
    """The body of a completion, streamed where the turn is live. extra: further fields that this engine understands.

    `logprobs` is at least 1: llama.cpp takes 0 for none at all.
    """
    sampling = turn.sampling
    prompts = turn.prompts
    body: dict[str, object] = {"model": turn.model, "prompt": prompts[0] if len(prompts) == 1 else prompts}
    if turn.live:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    optional = {
        "max_tokens": turn.bounds.tokens_max,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "seed": sampling.seed,
        "stop": sampling.stop or None,
        "n": turn.choices if turn.choices > 1 else None,
        "user": turn.user,
        "suffix": turn.suffix,
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


class _Choice(WireChoice, gc=False):
    text: str | None = None
    logprobs: _Logprobs | None = None


_CHUNKS: Final = msgspec.json.Decoder(CompletionChunk[_Choice])


class TextDecoder(StreamDecoder[_Choice]):
    """The decoder of legacy completions."""

    def __init__(self, choices: int, stops: tuple[str, ...] = ()) -> None:
        super().__init__(choices, _CHUNKS, stops)
        self._held: dict[int, tuple[TokenLogprob, ...]] = {}

    def _choice(self, choice: _Choice) -> Iterator[EngineEvent]:
        index, text = choice.index, choice.text or ""
        self._check_index(index)
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
