"""Kept answers: which are repeatable, what names them, how much is kept, and that a replay is the same answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import fields, replace

import pytest

from jubal.core.events import (
    EngineEvent,
    Event,
    Finished,
    FinishReason,
    Likely,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCall,
    TurnEnded,
    UsageSoFar,
)
from jubal.core.fold import Completion, fold
from jubal.core.generation import (
    Bounds,
    FunctionTool,
    Generation,
    ImagePart,
    JsonOutput,
    Message,
    Sampling,
    TextPart,
    Tools,
)
from jubal.core.model import Catalogue, Model
from jubal.core.server_tools import WebSearch
from jubal.core.usage import Usage
from jubal.serving.admission import Admission
from jubal.serving.cache import ENTRY_OVERHEAD_BYTES, Kept, Recorder, ResponseCache, key_of, size_bytes
from jubal.serving.pipeline import Pipeline, Served
from jubal.testing import ScriptedEngine
from tests.serving.test_pipeline import CALLER, GOOD, PRICE, Keys, Log

GREEDY = Generation("grok-4", (Message("user", (TextPart("hi"),)),), sampling=Sampling(temperature=0))
FP = "fp_0000000000"


def key(generation: Generation = GREEDY, model: str = "grok-4", fingerprint: str = FP, team: str = "t") -> bytes | None:
    return key_of(generation, model=model, fingerprint=fingerprint, team_id=team)


def with_sampling(**sampling: object) -> Generation:
    return replace(GREEDY, sampling=Sampling(**sampling))  # type: ignore[arg-type]


def asked(*parts: TextPart | ImagePart) -> Generation:
    return replace(GREEDY, messages=(Message("user", parts),))


@pytest.mark.parametrize(
    ("generation", "repeatable"),
    [
        (GREEDY, True),
        (with_sampling(seed=7, temperature=1.5), True),
        (with_sampling(seed=0), True),
        (with_sampling(), False),
        (with_sampling(temperature=0.01), False),
        (replace(GREEDY, cache=False), False),
        (replace(GREEDY, choices=3), True),
        (replace(GREEDY, tools=Tools(server=(WebSearch(),))), False),
        (asked(ImagePart("data:image/png;base64,AA==")), True),
        (asked(ImagePart("https://example.com/now.png")), False),
    ],
)
def test_what_is_repeatable(generation: Generation, repeatable: bool) -> None:
    assert (key(generation) is not None) is repeatable


CHANGED: dict[str, Generation] = {
    "messages": asked(TextPart("ho")),
    "sampling": with_sampling(temperature=0, top_p=0.5),
    "bounds": replace(GREEDY, bounds=Bounds(7)),
    "choices": replace(GREEDY, choices=2),
    "tools": replace(GREEDY, tools=Tools((FunctionTool("f"),))),
    "output": replace(GREEDY, output=JsonOutput()),
    "logprobs": replace(GREEDY, logprobs=0),
    "reasoning": replace(GREEDY, reasoning="low"),
    "prompts": replace(GREEDY, prompts=("hi",)),
    "suffix": replace(GREEDY, suffix="hi"),
    "inline_citations": replace(GREEDY, inline_citations=True),
}
UNCHANGED: dict[str, Generation] = {
    "model": replace(GREEDY, model="an alias"),  # the resolved name counts
    "live": replace(GREEDY, live=False),
    "user": replace(GREEDY, user="u"),
    "cache_key": replace(GREEDY, cache_key="k"),
}


@pytest.mark.parametrize("field", sorted(CHANGED))
def test_every_field_that_can_change_the_answer_names_another(field: str) -> None:
    assert key(CHANGED[field]) not in (None, key())


@pytest.mark.parametrize("field", sorted(UNCHANGED))
def test_fields_that_change_nothing_do_not_count(field: str) -> None:
    assert key(UNCHANGED[field]) == key()


def test_a_new_field_counts_unless_it_is_taken_out() -> None:
    """Whoever adds one to `Generation` need not think of the cache; what is listed here is what does not count, or refuses."""
    known = set(CHANGED) | set(UNCHANGED) | {"cache"}
    for field in {field.name for field in fields(Generation)} - known:
        assert field in repr(GREEDY), f"`{field}` would not count: answers of different requests would be mixed up"


def test_model_weights_and_team_count() -> None:
    keys = {key(), key(model="grok-5"), key(fingerprint="fp_1"), key(team="t2")}
    assert len(keys) == 4


def test_text_can_not_be_made_to_look_like_another_request() -> None:
    one = replace(GREEDY, messages=(Message("user", (TextPart("a"), TextPart("b"))),))
    two = replace(GREEDY, messages=(Message("user", (TextPart("a'), TextPart(text='b"),)),))
    three = replace(GREEDY, messages=(Message("user", (TextPart("ab"),)),))
    assert len({key(one), key(two), key(three), key(asked(TextPart("\ud800")))}) == 4


# ---------------------------------------------------------------------------------------------- recording


def likely(token: str) -> tuple[TokenLogprob, ...]:
    return (TokenLogprob(Likely(token, -0.5, token.encode()), (Likely("x", -1.0),)),)


ANSWER: tuple[Event, ...] = (
    Started("id", 1, "grok-4", FP),
    ReasoningDelta("th"),
    ReasoningDelta("ink"),
    UsageSoFar(Usage(5, 1)),
    TextDelta("a", 0, likely("a")),
    TextDelta("b", 0, likely("b")),
    TextDelta("c", 1),
    TextDelta("d", 0),
    TextDelta("e", 0),
    ToolCall("call_1", "f", "{}", 1),
    ToolCall("call_2", "g", "{}", 1),
    Finished(("stop", "tool_calls"), Usage(5, 7)),
)


def recorded(*events: Event) -> Kept | None:
    recorder = Recorder(FP)
    for event in events:
        recorder.see(event)
    return recorder.kept


async def completion(*events: Event) -> Completion:
    async def play() -> AsyncGenerator[Event, None]:
        for event in events:
            yield event

    return await fold(play())


async def test_a_recorded_answer_folds_to_the_same_whole_in_fewer_pieces() -> None:
    kept = recorded(*ANSWER)
    assert kept is not None
    assert len(kept.pieces) == 6
    again = await completion(ANSWER[0], *kept.pieces, Finished(kept.reasons, kept.usage))
    assert again == await completion(*ANSWER)


@pytest.mark.parametrize("reason", ["length", "content_filter", "turn_limit"])
def test_cut_answers_are_not_kept(reason: FinishReason) -> None:
    assert recorded(ANSWER[0], TextDelta("a"), Finished((reason,), Usage(1, 1))) is None
    assert recorded(ANSWER[0], TextDelta("a"), Finished(("stop", reason), Usage(1, 1))) is None


def test_an_answer_without_an_end_or_of_a_fallback_is_not_kept() -> None:
    assert recorded(*ANSWER[:-1]) is None
    assert recorded(Started("id", 1, "grok-4", "fp_1111111111"), *ANSWER[1:]) is None


# ---------------------------------------------------------------------------------------------- what is kept


class Clock:
    s = 0.0

    def __call__(self) -> float:
        return self.s


def kept_of(text: str) -> Kept:
    return Kept(FP, (TextDelta(text),), ("stop",), Usage(1, 1), False)


def size(kept: Kept) -> int:
    return size_bytes(kept) + ENTRY_OVERHEAD_BYTES


def test_the_least_recently_used_goes_first() -> None:
    cache = ResponseCache(entries_max=2, bytes_max=1 << 20, ttl_s=60)
    cache.put(b"a", kept_of("a"))
    cache.put(b"b", kept_of("b"))
    assert cache.get(b"a")
    cache.put(b"c", kept_of("c"))
    assert cache.get(b"b") is None
    assert cache.get(b"a") == kept_of("a")
    assert cache.get(b"c")


def test_an_answer_is_kept_for_so_long() -> None:
    clock = Clock()
    cache = ResponseCache(entries_max=2, bytes_max=1 << 20, ttl_s=60, clock=clock)
    cache.put(b"a", kept_of("a"))
    clock.s = 59.9
    assert cache.get(b"a")
    clock.s = 60
    assert cache.get(b"a") is None
    assert cache.bytes == 0


def test_the_bound_on_memory_holds_at_every_moment() -> None:
    bound = 10 * size(kept_of("x" * 1000))
    cache = ResponseCache(entries_max=10_000, bytes_max=bound, ttl_s=60)
    texts = {b"%d" % n: "x" * (n * 37 % 3000) for n in range(500)}
    for name, text in texts.items():
        cache.put(name, kept_of(text))
        assert cache.bytes <= bound
    there = {name: kept for name in texts if (kept := cache.get(name)) is not None}
    assert len(there) == len(cache) > 3
    assert cache.bytes == sum(map(size, there.values()))
    cache.put(b"again", kept_of("a"))
    cache.put(b"again", kept_of("b"))
    everything = [cache.get(name) for name in (*texts, b"again")]
    assert cache.bytes == sum(size(kept) for kept in everything if kept is not None)
    before = cache.bytes
    cache.put(b"large", kept_of("x" * bound))
    assert cache.get(b"large") is None
    assert cache.bytes == before


def test_the_size_counts_text_calls_and_probabilities() -> None:
    plain = size_bytes(kept_of(""))
    assert size_bytes(kept_of("x" * 1000)) - plain == 1000
    many = Kept(FP, (TextDelta("", 0, likely("a" * 500)),), ("stop",), Usage(1, 1), False)
    assert size_bytes(many) - plain > 1000


# ---------------------------------------------------------------------------------------------- in the pipeline


def caching(*engines: ScriptedEngine) -> tuple[Pipeline, Log]:
    log = Log()
    served = {engine.name: Served(engine, Admission(engine.name, None, 5)) for engine in engines}
    model = Model(
        "grok-4", engines[0].name, "up", aliases=("g4",), price=PRICE, fallback=tuple(one.name for one in engines[1:])
    )
    from jubal.accounts.limits import MemoryLimiter

    cache = ResponseCache(entries_max=10, bytes_max=1 << 20, ttl_s=60)
    return Pipeline(Catalogue.of([model]), served, Keys(), MemoryLimiter(), log, cache=cache, now=lambda: 1000.0), log


async def ask(made: Pipeline, request_id: str, generation: Generation = GREEDY, team: str = "team") -> list[Event]:
    caller = replace(CALLER, team_id=team, tpm=1000)
    admitted = made.admit(caller, "chat", generation, request_id=request_id, repeatable=True)
    return [event async for event in made.run(admitted)]


async def test_the_second_answer_is_free_and_asks_no_engine() -> None:
    engine = ScriptedEngine(GOOD)
    made, log = caching(engine)
    first = await ask(made, "r1")
    second = await ask(made, "r2", replace(GREEDY, model="g4", live=False))
    assert len(engine.turns) == 1
    assert isinstance(first[-1], Finished)
    assert second[1:] == [TextDelta("ab"), Finished(("stop",), Usage(10, 2, 4), 0, ended=1000)]
    assert first[-1].cost_ticks
    assert isinstance(second[0], Started)
    assert (second[0].id, second[0].fingerprint) == ("r2", FP)
    assert [(row.request_id, row.status, row.engine, row.prompt_tokens) for row in log.rows] == [
        ("r1", "ok", "scripted", 10),
        ("r2", "ok", "cache", 10),
    ]
    assert log.rows[0].cost_in_usd_ticks > 0
    assert log.rows[1].cost_in_usd_ticks == 0


async def test_teams_share_nothing() -> None:
    engine = ScriptedEngine(GOOD)
    made, _ = caching(engine)
    for team in ("one", "two", "one", "two"):
        await ask(made, "r", team=team)
    assert len(engine.turns) == 2


async def test_a_hit_takes_no_tokens_of_the_limit() -> None:
    made, _ = caching(ScriptedEngine(GOOD))
    for number in range(100):  # 12 each would be more than the 1,000 a minute
        await ask(made, f"r{number}")


@pytest.mark.parametrize(
    "script",
    [
        (TextDelta("a"), TurnEnded(("length",), Usage(1, 1))),
        (TextDelta("a"), RuntimeError("a fault")),
    ],
)
async def test_what_is_not_whole_is_asked_for_again(script: tuple[EngineEvent | Exception, ...]) -> None:
    engine = ScriptedEngine(script, GOOD)
    made, _ = caching(engine)
    try:
        await ask(made, "r1")
    except Exception:
        pass
    assert TextDelta("b") in await ask(made, "r2")
    assert len(engine.turns) == 2
