"""The service Sample: text that goes on from a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jubal.core.errors import BadRequest, JubalError
from jubal.core.events import Event, Finished, Started, TextDelta
from jubal.core.fold import Completion
from jubal.core.generation import Bounds, Generation
from jubal.wire.base import ErrorReply
from jubal.wire.openai_sampling import CHOICES_MAX, choices
from jubal.wire.xai_grpc import errors
from jubal.wire.xai_grpc.answer import FINISH_REASON, RunningUsage, Wishes, head, usage_of
from jubal.wire.xai_grpc.decode import decode, optional, wrong
from jubal.wire.xai_grpc.pb import Proto, sample
from jubal.wire.xai_grpc.request import logprobs, sampled, tokens_max


class SampleAsked:
    """A parsed SampleTextRequest. The answers to a prompt follow those to the one before it."""

    __slots__ = ("generation",)

    def __init__(self, asked: Proto, *, live: bool) -> None:
        if not asked.model:
            raise BadRequest("`model` must not be empty.", param="model", code="empty_value")
        wanted = choices(optional(asked, "n"))
        if not asked.prompt or not all(asked.prompt):
            raise wrong("prompt", "needs at least one text, and none that is empty")
        if len(asked.prompt) * wanted > CHOICES_MAX:
            raise wrong("prompt", f"makes more than {CHOICES_MAX} answers, with {wanted} for each")
        if logprobs(asked) is not None:
            raise wrong("logprobs", "this API has no place to tell them: leave it out")
        self.generation = Generation(
            asked.model,
            (),
            sampling=sampled(asked),
            bounds=Bounds(tokens_max(asked)),
            choices=wanted,
            live=live,
            user=asked.user or None,
            prompts=tuple(asked.prompt),
        )

    def renderer(self) -> SampleRenderer:
        return SampleRenderer(self.generation)

    def whole(self, completion: Completion) -> bytes:
        """A SampleTextResponse."""
        answer = head(completion, Wishes(), _response)
        for index, choice in enumerate(completion.choices):
            answer.choices.add(index=index, text=choice.text, finish_reason=FINISH_REASON[choice.reason])
        answer.usage.CopyFrom(usage_of(completion.usage, completion))
        serialized: bytes = answer.SerializeToString()
        return serialized


def _response(*, service_tier: int, **fields: object) -> Proto:
    """This message has no service tier."""
    return sample.SampleTextResponse(**fields)


class SampleRenderer:
    """One streamed text as serialized SampleTextResponses."""

    def __init__(self, generation: Generation) -> None:
        self._running = RunningUsage(generation)
        self._head = b""

    def frames(self, events: Sequence[Event]) -> Iterator[bytes]:
        for event in events:
            self._running.see(event)
            match event:
                case Started():
                    self._head = head(event, Wishes(), _response).SerializeToString()
                case TextDelta(text, choice):
                    yield self._chunk([sample.SampleChoice(index=choice, text=text)], None)
                case Finished():
                    ends = [
                        sample.SampleChoice(index=index, finish_reason=FINISH_REASON[reason])
                        for index, reason in enumerate(event.reasons)
                    ]
                    yield self._chunk(ends, event)

    def _chunk(self, pieces: list[Proto], end: Finished | None) -> bytes:
        chunk = sample.SampleTextResponse(choices=pieces)
        if end is None:
            self._running.put(chunk.usage)
        else:
            chunk.usage.CopyFrom(usage_of(end.usage, end))
        serialized: bytes = chunk.SerializeToString()
        return self._head + serialized


class XaiSample:
    """SampleText and SampleTextStreaming. live: requests are for a stream."""

    endpoint = "sample"

    def __init__(self, *, live: bool = False) -> None:
        self._live = live

    def parse(self, body: bytes) -> SampleAsked:
        """Raises `BadRequest`."""
        return SampleAsked(decode(sample.SampleTextRequest, body), live=self._live)

    def error(self, error: JubalError) -> ErrorReply:
        return errors.reply(error)
