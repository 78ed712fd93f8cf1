"""Raw prompts to OpenAI-compatible servers: bodies, chunks as real servers send them, and the engine on a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from jubal.core.errors import BadRequest, ContextTooLong, EngineBroken, EngineUnavailable
from jubal.core.events import EngineEvent, Likely, TextDelta, TokenLogprob, TurnEnded, UsageSoFar
from jubal.core.generation import Bounds, Generation, Message, Sampling, TextPart
from jubal.core.usage import Usage
from jubal.engines.openai_compat import OpenAICompatEngine
from jubal.engines.openai_text import TextDecoder, text_body


def turn(prompt: str = "Once", **fields: Any) -> Generation:
    return Generation(**{"model": "up", "messages": (), "bounds": Bounds(8), "prompts": (prompt,), **fields})


def frame(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields, ensure_ascii=False).encode() + b"\n\n"


def piece(text: str, index: int = 0, **fields: object) -> bytes:
    return frame(choices=[{"index": index, "text": text, "logprobs": None, "finish_reason": None, **fields}])


def ending(choices: int = 1) -> bytes:
    ends = [{"index": index, "text": "", "finish_reason": "length"} for index in range(choices)]
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    return frame(choices=ends) + frame(choices=[], usage=usage) + b"data: [DONE]\n\n"


# ---------------------------------------------------------------------------------------------- bodies


def test_the_least_body() -> None:
    assert json.loads(text_body(turn(live=False))) == {"model": "up", "prompt": "Once", "max_tokens": 8}


def test_the_whole_body() -> None:
    sampling = Sampling(0.5, 0.9, 1.0, -1.0, 7, ("a",), ((5, -100.0),))
    body = json.loads(text_body(turn(sampling=sampling, choices=2, logprobs=3, user="u"), extra={"cache_prompt": True}))
    assert body == {
        "model": "up", "prompt": "Once", "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 8,
        "temperature": 0.5, "top_p": 0.9, "frequency_penalty": 1.0, "presence_penalty": -1.0, "seed": 7, "stop": ["a"],
        "n": 2, "user": "u", "logprobs": 3, "logit_bias": {"5": -100.0}, "cache_prompt": True,
    }  # fmt: skip


def test_no_likely_others_are_asked_for_as_one() -> None:
    """llama.cpp answers `"logprobs": 0` with none at all."""
    assert json.loads(text_body(turn(logprobs=0)))["logprobs"] == 1


@pytest.mark.parametrize(
    ("prompts", "sent"),
    [
        (("a",), "a"),
        (("a", "b"), ["a", "b"]),
        (((1, 2),), [1, 2]),
        (((1, 2), (3,)), [[1, 2], [3]]),
    ],
)
def test_prompts_go_in_the_form_that_openai_has_for_them(prompts: tuple[object, ...], sent: object) -> None:
    body = json.loads(text_body(turn(prompts=prompts, suffix="end")))
    assert (body["prompt"], body["suffix"]) == (sent, "end")


# ---------------------------------------------------------------------------------------------- chunks


def read(*frames: bytes, choices: int = 1) -> list[EngineEvent]:
    """Fed one byte at a time."""
    decoder = TextDecoder(choices)
    events = [event for byte in b"".join(frames) for event in decoder.feed(bytes([byte]))]
    return [*events, *decoder.finish()]


TIMED = {"cache_n": 1, "prompt_n": 4, "predicted_n": 1}
LLAMA = (
    frame(choices=[{"text": "", "index": 0, "logprobs": None, "finish_reason": None}], timings=dict.fromkeys(TIMED, 0)),
    frame(
        choices=[
            {
                "text": " 🦊",
                "index": 0,
                "logprobs": {
                    "content": [
                        {
                            "id": 228,
                            "token": " 🦊",
                            "bytes": [32, 240, 159, 166, 138],
                            "logprob": -0.25,
                            "top_logprobs": [{"id": 228, "token": "\ufffd", "bytes": [138], "logprob": -0.25}],
                        }
                    ]
                },
                "finish_reason": None,
            }
        ],
        timings=TIMED,
    ),
    ending(),
)


def test_llama_tells_tokens_as_in_chat_and_counts_as_it_goes() -> None:
    fox = Likely(" 🦊", -0.25, " 🦊".encode())
    assert read(*LLAMA) == [
        TextDelta(" 🦊", 0, (TokenLogprob(fox, (Likely("\ufffd", -0.25, b"\x8a"),)),)),
        UsageSoFar(Usage(5, 1, 1)),
        TurnEnded(("length",), Usage(5, 2)),
    ]


def test_vllm_names_its_stop_reason_and_a_half_token_waits_for_its_other_half() -> None:
    def told(token: str) -> dict[str, object]:
        return {"tokens": [token], "token_logprobs": [-1.0], "top_logprobs": [{token: -1.0}], "text_offset": [0]}

    half, rest = Likely("\ufffd", -1.0, b"\xf0\x9f"), Likely("\ufffd\ufffd", -1.0, b"\xa6\x8a")
    frames = (
        piece("", logprobs=told("bytes:\\xf0\\x9f")),
        piece("🦊", logprobs=told("bytes:\\xa6\\x8a"), stop_reason=None, prompt_token_ids=None),
        frame(choices=[{"index": 0, "text": "", "finish_reason": "stop", "stop_reason": 2}], usage=None, error=None),
    )
    both = (TokenLogprob(half, (half,)), TokenLogprob(rest, (rest,)))
    assert read(*frames) == [TextDelta("🦊", 0, both), TurnEnded(("stop",), None)]


def test_lists_of_unlike_length_and_nulls_do_no_harm() -> None:
    told = {"tokens": ["a", "b", "c"], "token_logprobs": [None, -1.0], "top_logprobs": [None, None, {"x": -2.0}]}
    assert read(piece("abc", logprobs=told), ending())[0] == TextDelta("abc", 0, (TokenLogprob(Likely("b", -1.0)),))
    odd = {"tokens": ["bytes:no"], "token_logprobs": [-1.0]}
    assert read(piece("bytes:no", logprobs=odd), ending())[0] == TextDelta(
        "bytes:no", 0, (TokenLogprob(Likely("bytes:no", -1.0)),)
    )


def test_a_character_cut_between_two_events_is_joined() -> None:
    fox = "🦊".encode()
    cut = piece("X").replace(b"X", fox[:2]) + piece("X").replace(b"X", fox[2:])
    assert read(cut, ending()) == [TextDelta("🦊"), TurnEnded(("length",), Usage(5, 2))]


@pytest.mark.parametrize(
    ("frames", "choices"),
    [
        ((piece("a"),), 1),
        ((b"data: {\n\n",), 1),
        ((b"data: [1]\n\n",), 1),
        ((piece("a", 1),), 1),
        ((piece("a", -1),), 1),
        ((frame(choices=[{"index": 0, "text": "a", "finish_reason": "stop"}]),), 2),
    ],
)
def test_what_is_no_answer_is_broken(frames: tuple[bytes, ...], choices: int) -> None:
    with pytest.raises(EngineBroken):
        read(*frames, choices=choices)


def test_errors_in_a_stream() -> None:
    with pytest.raises(EngineUnavailable, match="busy"):
        read(frame(error={"message": "busy"}))
    with pytest.raises(EngineBroken, match="lost"):
        read(piece("a"), frame(error={"message": "lost"}))


# ---------------------------------------------------------------------------------------------- on a socket


@dataclass
class Upstream:
    """Answers /v1/completions with these frames, each time; `status` and `body` for a refusal."""

    frames: tuple[bytes, ...] = ()
    status: int = 200
    body: object = None
    hang: bool = False
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(await request.json())
        if self.body is not None:
            return web.json_response(self.body, status=self.status)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        try:
            for one in self.frames:
                await response.write(one)
            if self.hang:
                await asyncio.sleep(3600)
        except (asyncio.CancelledError, ConnectionResetError):
            self.gone.set()
            raise
        return response


@asynccontextmanager
async def engine_on(there: Upstream) -> AsyncIterator[OpenAICompatEngine]:
    app = web.Application()
    app.router.add_post("/v1/completions", there.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    there.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    engine = OpenAICompatEngine("box", there.url, retries=0)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()
        await runner.cleanup()


async def collect(engine: OpenAICompatEngine, asked: Generation) -> list[EngineEvent]:
    return [event async for event in engine.stream(asked)]


async def test_a_prompt_goes_to_completions_and_comes_back_as_text() -> None:
    there = Upstream((piece(" upon"), piece(" a"), ending()))
    async with engine_on(there) as engine:
        assert await collect(engine, turn()) == [
            TextDelta(" upon"),
            TextDelta(" a"),
            TurnEnded(("length",), Usage(5, 2)),
        ]
    assert there.asked[0]["prompt"] == "Once"
    assert "messages" not in there.asked[0]


async def test_several_prompts_are_one_call() -> None:
    there = Upstream((piece("x", 3), piece("y", 0), ending(4)))
    async with engine_on(there) as engine:
        events = await collect(engine, turn(prompts=("a", (7, 8)), choices=2))
    assert events == [TextDelta("x", 3), TextDelta("y"), TurnEnded(("length",) * 4, Usage(5, 2))]
    assert [(body["prompt"], body["n"]) for body in there.asked] == [(["a", [7, 8]], 2)]


async def test_a_whole_answer() -> None:
    body = {"choices": [{"index": 0, "text": " upon", "finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}  # fmt: skip
    there = Upstream(body=body)
    async with engine_on(there) as engine:
        assert await collect(engine, turn(live=False)) == [TextDelta(" upon"), TurnEnded(("stop",), Usage(1, 1))]
    assert "stream" not in there.asked[0]


async def test_messages_still_go_to_chat() -> None:
    there = Upstream((piece("x"), ending()))
    async with engine_on(there) as engine:
        with pytest.raises(EngineBroken):  # which this upstream has not
            await collect(engine, Generation("up", (Message("user", (TextPart("hi"),)),)))
    assert there.asked == []


async def test_closing_cuts_the_upstream() -> None:
    there = Upstream((piece("a"),), hang=True)
    async with engine_on(there) as engine:
        events = engine.stream(turn())
        assert await anext(events) == TextDelta("a")
        await events.aclose()
        await asyncio.wait_for(there.gone.wait(), 60)


async def test_refusals() -> None:
    long = {"error": {"type": "exceed_context_size_error", "n_prompt_tokens": 2001, "n_ctx": 512}}
    async with engine_on(Upstream(status=400, body=long)) as engine:
        with pytest.raises(ContextTooLong, match=r"2001 tokens.*512"):
            await collect(engine, turn())
    async with engine_on(Upstream(status=400, body={"error": {"message": "no"}})) as engine:
        with pytest.raises(BadRequest, match="no"):
            await collect(engine, turn())
