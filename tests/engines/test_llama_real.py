"""The embedded engine on the real model: llama.cpp, SmolLM2, real processes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import pytest_asyncio

from jubal.core.errors import BadRequest, ContextTooLong, EngineBroken, EngineUnavailable
from jubal.core.events import EngineEvent, TextDelta, TurnEnded, UsageSoFar
from jubal.core.generation import Bounds, FunctionTool, Generation, JsonOutput, Message, Sampling, TextPart, Tools
from jubal.engines.llama_cpp.engine import URL, LlamaEngine
from jubal.engines.llama_cpp.launch import SocketFolder
from jubal.testing import check_engine

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTEXT = 512


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(models_home: Path) -> AsyncIterator[LlamaEngine]:
    others = psutil.Process().children()  # servers that other tests share
    engine = LlamaEngine("local", models_home, "smollm2-135m", context=CONTEXT)
    await engine.start()
    await engine.ready()
    yield engine
    await engine.close()
    assert [one for one in psutil.Process().children() if one not in others] == [], "a child is left"


async def collect(engine: LlamaEngine, turn: Generation) -> list[EngineEvent]:
    async with aclosing(engine.stream(turn)) as events:
        return [event async for event in events]


def text_of(events: list[EngineEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def end_of(events: list[EngineEvent]) -> TurnEnded:
    assert isinstance(events[-1], TurnEnded)
    return events[-1]


def asks(text: str, tokens_max: int | None = 32, **options: object) -> Generation:
    message = Message("user", (TextPart(text),))
    return Generation("m", (message,), Sampling(temperature=0), Bounds(tokens_max), **options)  # type: ignore[arg-type]


async def slots_busy(engine: LlamaEngine) -> int:
    assert engine._session is not None
    async with engine._session.get(f"{URL}/slots", timeout=aiohttp.ClientTimeout(60)) as response:
        return sum(slot["is_processing"] for slot in await response.json())


async def slots_free_down_to(engine: LlamaEngine, busy: int) -> None:
    began = time.monotonic()
    while await slots_busy(engine) > busy:
        assert time.monotonic() - began < 60
        await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def beside_a_long_answer(engine: LlamaEngine) -> AsyncIterator[None]:
    """What happens inside must be over before a long answer is that began first: a measure that no load can bend."""
    endless = LlamaEngine("local", engine._models_home, "smollm2-135m", extra={"ignore_eos": True})
    endless._process, endless._identity = engine._process, engine._identity
    endless._session, endless._client = engine._session, engine._client
    answer = endless.stream(asks("Count to one thousand.", 450))
    await anext(answer)
    rest = asyncio.create_task(drained(answer))
    try:
        yield
        assert not rest.done(), "it took as long as answering"
    finally:
        rest.cancel()
        await asyncio.gather(rest, return_exceptions=True)
        await slots_free_down_to(engine, 0)


async def drained(events: AsyncGenerator[EngineEvent, None]) -> None:
    async with aclosing(events):
        async for _ in events:
            pass


def child_of() -> psutil.Process:
    (child,) = (one for one in psutil.Process().children() if "jubal.engines.llama_cpp.child" in one.cmdline())
    return child


async def test_it_answers_in_pieces(engine: LlamaEngine) -> None:
    events = await collect(engine, asks("What is the capital of France?"))
    assert "Paris" in text_of(events)
    assert sum(isinstance(event, TextDelta) for event in events) > 3
    end = end_of(events)
    assert end.reasons == ("stop",)
    assert end.usage is not None
    assert end.usage.completion > 3


async def test_what_it_is(engine: LlamaEngine) -> None:
    weights = engine.weights("grok-4")
    assert weights.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert weights.fingerprint == "fp_b179c9523d"
    assert weights.context == CONTEXT
    assert weights.input == ("text",)
    assert (weights.temperature, weights.top_p) == (0.2, 0.9)


async def test_a_prompt_that_was_seen_before_is_cached(engine: LlamaEngine) -> None:
    turn = asks("Tell me about the history of the city of Oslo. " * 5, 4)
    first, second = end_of(await collect(engine, turn)).usage, end_of(await collect(engine, turn)).usage
    assert first is not None
    assert second is not None
    assert first.prompt == second.prompt
    assert (second.cached or 0) > 0.9 * second.prompt > (first.cached or 0)


async def test_the_bound_is_kept_and_so_is_temperature_zero(engine: LlamaEngine) -> None:
    answers = [await collect(engine, asks("What is the capital of France?", 5)) for _ in range(2)]
    assert end_of(answers[0]).reasons == ("length",)
    assert end_of(answers[0]).usage.completion == 5  # type: ignore[union-attr]
    assert text_of(answers[0]) == text_of(answers[1])


async def test_a_stop_text_ends_the_answer_and_is_not_in_it(engine: LlamaEngine) -> None:
    turn = asks("What is the capital of France?")
    said = text_of(await collect(engine, turn))
    stop = " " + said.split()[3]
    events = await collect(engine, replace(turn, sampling=Sampling(temperature=0, stop=(stop,))))
    assert text_of(events) == said[: said.index(stop)]
    assert (end_of(events).reasons, end_of(events).stops) == (("stop",), (stop,))


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("raw", [True, False])
async def test_it_says_which_stop_text_it_was(engine: LlamaEngine, live: bool, raw: bool) -> None:
    """Not the model's own end, nor the bound; of several choices each for itself."""
    asked = replace(asks("What is the capital of France?", 32), live=live)
    if raw:
        asked = replace(asked, messages=(), prompts=("The capital of France is the city of",))

    def until(*stops: str, **fields: Any) -> Generation:
        return replace(asked, sampling=Sampling(temperature=0, stop=stops), **fields)

    without = await collect(engine, until("no such text"))
    assert end_of(without).stops == ()
    word = text_of(without).split()[2]
    stopped = end_of(await collect(engine, until(word)))
    assert (stopped.reasons, stopped.stops) == (("stop",), (word,))
    assert end_of(await collect(engine, until("nothing", word, choices=2))).stops == (word, word)


async def test_seeds_repeat(engine: LlamaEngine) -> None:
    def story(seed: int) -> Generation:
        sampling = Sampling(temperature=1.5, top_p=1.0, seed=seed)
        return Generation("m", asks("Tell me a story.").messages, sampling, Bounds(12), choices=2)

    async def told(seed: int) -> list[str]:
        events = await collect(engine, story(seed))
        return ["".join(e.text for e in events if isinstance(e, TextDelta) and e.choice == c) for c in (0, 1)]

    first = await told(5)
    for _ in range(3):  # a processor may round a prompt that is in the cache already a little otherwise
        before, first = first, await told(5)
        if first == before:
            break
    assert first == before
    assert first[0] != first[1], "choices of one seed differ"
    assert await told(-(2**62)) != first


async def test_several_choices_are_all_counted(engine: LlamaEngine) -> None:
    one = end_of(await collect(engine, asks("Name three colours.", 8))).usage
    two = end_of(await collect(engine, asks("Name three colours.", 8, choices=2))).usage
    assert one is not None
    assert two is not None
    assert two.completion == 2 * one.completion
    assert two.prompt == one.prompt


async def test_the_prompt_is_counted_with_the_first_piece(engine: LlamaEngine) -> None:
    events = await collect(engine, asks("What is the capital of France? " * 12))
    usage = end_of(events).usage
    assert usage is not None
    (number,) = (number for number, event in enumerate(events) if isinstance(event, UsageSoFar))
    so_far = events[number]
    assert isinstance(so_far, UsageSoFar)
    assert (so_far.usage.prompt, so_far.usage.cached) == (usage.prompt, usage.cached)
    assert so_far.usage.completion == number == 1


async def test_a_prompt_beyond_the_window_is_refused_with_both_numbers(engine: LlamaEngine) -> None:
    with pytest.raises(ContextTooLong) as caught:
        await collect(engine, asks("word " * 3000))
    assert caught.value.code == "context_length_exceeded"
    assert str(CONTEXT) in caught.value.message
    assert any(number.isdigit() and 3000 <= int(number) < 3100 for number in caught.value.message.split())


async def test_an_answer_ends_where_the_window_does(engine: LlamaEngine) -> None:
    bounded = LlamaEngine("local", engine._models_home, "smollm2-135m", extra={"ignore_eos": True})
    bounded._process, bounded._identity = engine._process, engine._identity
    bounded._session, bounded._client = engine._session, engine._client
    events = await collect(bounded, asks("word " * 440, None))
    end = end_of(events)
    assert end.reasons == ("length",)
    assert end.usage is not None
    assert CONTEXT - 2 <= end.usage.prompt + end.usage.completion <= CONTEXT + 1


async def test_characters_are_never_cut(engine: LlamaEngine) -> None:
    wanted = "Zażółć 😀👩‍👩‍👧 漢字 🇩🇪 é\u0301 \U0001f9d1\U0001f3ff!"
    forced = LlamaEngine("local", engine._models_home, "smollm2-135m", extra={"grammar": f'root ::= "{wanted}"'})
    forced._process, forced._identity = engine._process, engine._identity
    forced._session, forced._client = engine._session, engine._client
    events = await collect(forced, asks("Say it.", 200))
    assert text_of(events) == wanted
    for event in events:
        if isinstance(event, TextDelta):
            event.text.encode()
            assert "\ufffd" not in event.text


async def test_a_cancelled_answer_frees_its_slot(engine: LlamaEngine) -> None:
    async with beside_a_long_answer(engine):
        events = engine.stream(asks("Count to one thousand.", 400))
        await anext(events)
        assert await slots_busy(engine) == 2
        await events.aclose()
        await slots_free_down_to(engine, 1)


async def test_a_cancelled_request_is_noticed_while_its_prompt_is_read(engine: LlamaEngine) -> None:
    async with beside_a_long_answer(engine):
        reading = asyncio.create_task(collect(engine, asks("".join(f"{number} " for number in range(100)), 60)))
        while await slots_busy(engine) < 2:
            assert not reading.done()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await slots_free_down_to(engine, 1)


async def test_cancelled_choices_free_all_slots(engine: LlamaEngine) -> None:
    async with beside_a_long_answer(engine):
        events = engine.stream(asks("Count to one thousand.", 400, choices=3))
        for _ in range(6):
            await anext(events)
        await events.aclose()
        await slots_free_down_to(engine, 1)


async def test_json_is_held_to_its_schema(engine: LlamaEngine) -> None:
    schema = '{"type":"object","properties":{"ok":{"type":"boolean"}},"required":["ok"],"additionalProperties":false}'
    events = await collect(engine, asks("Is water wet?", 40, output=JsonOutput(schema)))
    assert text_of(events).replace(" ", "").replace("\n", "") in ('{"ok":true}', '{"ok":false}')


async def test_functions_are_called_although_the_template_knows_none(engine: LlamaEngine) -> None:
    parameters = '{"type":"object","properties":{"city":{"type":"string","maxLength":20}},"required":["city"],"additionalProperties":false}'
    tools = Tools((FunctionTool("get_weather", "Weather of a city.", parameters),), "required", parallel=False)
    end = end_of(await collect(engine, asks("What is the weather in Oslo?", 80, tools=tools)))
    assert end.reasons == ("tool_calls",)


async def test_tokens_are_counted(engine: LlamaEngine) -> None:
    assert await engine.tokenize("m", "") == ()
    assert [token.text for token in await engine.tokenize("m", "Hello world")] == ["Hello", " world"]


async def test_a_killed_child_breaks_the_answer_and_the_next_one_works(engine: LlamaEngine) -> None:
    killed = child_of()
    with pytest.raises(EngineBroken):
        async with aclosing(engine.stream(asks("Count to one thousand.", 400))) as events:
            async for event in events:
                if isinstance(event, TextDelta) and killed.is_running():
                    killed.kill()
    assert "Paris" in text_of(await collect(engine, asks("What is the capital of France?")))
    assert child_of().pid != killed.pid


async def test_the_promise_of_an_engine(models_home: Path) -> None:
    async def started() -> LlamaEngine:
        engine = LlamaEngine("other", models_home, "smollm2-135m", context=512, slots=2)
        await engine.start()
        return engine

    await check_engine(started)


async def test_a_file_that_is_no_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\0" * 1000)
    engine = LlamaEngine("bad", tmp_path, "bad.gguf")
    await engine.start()
    try:
        with pytest.raises(EngineUnavailable, match="bad GGUF version"):
            await engine.ready()
        assert engine.status().state == "failed"
    finally:
        await engine.close()


@pytest.mark.parametrize("when", ["loading", "ready"])
async def test_the_child_ends_when_the_parent_is_killed(models_home: Path, when: str) -> None:
    script = f"""
import asyncio, sys
from pathlib import Path
from jubal.engines.llama_cpp.engine import LlamaEngine

async def main():
    engine = LlamaEngine("local", Path({str(models_home)!r}), "smollm2-135m", context=512)
    await engine.start()
    if {when!r} == "ready":
        await engine.ready()
    print("go", flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    await parent.stdout.readline()
    await until(lambda: bool(psutil.Process(parent.pid).children()), 60)
    (child,) = psutil.Process(parent.pid).children()
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    await until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 60)
    SocketFolder().remove()  # and with it what the killed server left


async def until(condition: Callable[[], bool], within_s: float) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.02)


def goes_on(*prompts: str | tuple[int, ...], tokens_max: int = 5, **options: object) -> Generation:
    sampling = Sampling(temperature=0)
    return Generation("m", (), sampling, Bounds(tokens_max), prompts=prompts, **options)  # type: ignore[arg-type]


async def test_token_ids_are_a_prompt_like_their_text(engine: LlamaEngine) -> None:
    text = "The capital of France is"
    ids = tuple(token.id for token in await engine.tokenize("m", text))
    by_text, by_ids = [await collect(engine, goes_on(prompt)) for prompt in (text, ids)]
    assert text_of(by_text) == text_of(by_ids) != ""
    assert end_of(by_ids).usage.prompt == len(ids)  # type: ignore[union-attr]


async def test_several_prompts_are_answered_as_each_alone_and_counted_together(engine: LlamaEngine) -> None:
    ids = tuple(token.id for token in await engine.tokenize("m", "The capital of France is the city of"))
    prompts = ("The capital of France is", "One, two, three,", ids)
    alone = [await collect(engine, goes_on(prompt)) for prompt in prompts]
    together = await collect(engine, goes_on(*prompts, choices=2))
    for index in range(6):
        said = "".join(e.text for e in together if isinstance(e, TextDelta) and e.choice == index)
        assert said == text_of(alone[index // 2])
    usages = [end_of(events).usage for events in alone]
    whole = end_of(together).usage
    assert whole is not None
    assert whole.prompt == sum(usage.prompt for usage in usages if usage)
    assert whole.completion == 2 * sum(usage.completion for usage in usages if usage)


async def test_ids_that_the_model_has_not_are_the_callers_fault(engine: LlamaEngine) -> None:
    with pytest.raises(BadRequest, match="invalid tokens"):
        await collect(engine, goes_on((504, 99_999_999)))


@pytest.mark.parametrize(
    "turn",
    [
        asks("hi", 3),
        asks("Grüße, 世界! \U0001f600 " * 12, 3),
        asks("1234567890 " * 20, 3),
        Generation(
            "m",
            (
                Message("system", (TextPart("You are terse."),)),
                Message("user", (TextPart("One?"),)),
                Message("assistant", (TextPart("Two."),)),
                Message("user", (TextPart("Three?"),)),
            ),
            bounds=Bounds(3),
        ),
        Generation("m", (), bounds=Bounds(3), prompts=("Once upon a time",)),
        Generation("m", (), bounds=Bounds(3), prompts=((1, 2, 3, 4),)),
    ],
    ids=["short", "unicode", "digits", "conversation", "text", "tokens"],
)
async def test_what_it_counts_beforehand_is_what_it_reads(engine: LlamaEngine, turn: Generation) -> None:
    """Credit is held by this count where it is short: it must never be less than what is charged."""
    counted = await engine.count(turn)
    usage = end_of(await collect(engine, turn)).usage
    assert usage is not None
    assert 0 <= counted - usage.prompt <= 1
