"""The pipeline with a scripted engine and everything else in memory."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from jubal.accounts.acl import EVERYTHING, Acl
from jubal.accounts.keys import Caller
from jubal.accounts.limits import MemoryLimiter
from jubal.accounts.usage import UsageRow
from jubal.core.errors import (
    AtCapacity,
    BadRequest,
    EngineBroken,
    EngineUnavailable,
    InternalError,
    JubalError,
    NotAllowed,
    NotIdentified,
    StoreUnavailable,
    TooFast,
    UnknownModel,
)
from jubal.core.events import Applied, Event, Finished, Started, TextDelta, TurnEnded, UsageSoFar
from jubal.core.generation import Bounds, Generation, ImagePart, Message, Sampling, TextPart
from jubal.core.grammar import ANSWER, Checker
from jubal.core.model import Catalogue, Model, Weights
from jubal.core.money import Price
from jubal.core.tally import estimate_prompt
from jubal.core.usage import Usage
from jubal.engines.base import EngineState, EngineStatus
from jubal.serving.admission import Admission
from jubal.serving.breaker import Breaker
from jubal.serving.pipeline import Pipeline, Served, new_request_id
from jubal.testing import Hang, ScriptedEngine
from jubal.testing.engines import Step

CALLER = Caller("key", "team", Acl.parse(EVERYTHING))
GOOD: Sequence[Step] = (TextDelta("a"), TextDelta("b"), TurnEnded(("stop",), Usage(10, 2, 4)))
PRICE = Price(3, 1, 5)
ASKED = Generation("grok-4", (Message("user", (TextPart("hi"),)),))


@dataclass
class Log:
    rows: list[UsageRow] = field(default_factory=list)
    error: JubalError | None = None
    pause_s: float = 0.0

    async def commit(self, row: UsageRow) -> None:
        await asyncio.sleep(self.pause_s)
        if self.error:
            raise self.error
        self.rows.append(row)


class Keys:
    def identify_cached(self, secret: str) -> Caller | None:
        return CALLER if secret == "xai-good" else None

    async def identify(self, secret: str) -> Caller:
        raise NotIdentified("Incorrect API key provided.", given=True)


def pipeline(
    *engines: ScriptedEngine,
    log: Log | None = None,
    queued_max: int = 5,
    running_max: int | None = None,
    breaker: Breaker | None = None,
) -> tuple[Pipeline, Log]:
    """breaker: of the first engine."""
    log = log or Log()
    served = {engine.name: Served(engine, Admission(engine.name, running_max, queued_max)) for engine in engines}
    if breaker is not None:
        served[engines[0].name] = replace(served[engines[0].name], breaker=breaker)
    names = [engine.name for engine in engines]
    model = Model(
        "grok-4", names[0], "up", aliases=("g4",), input=("text", "image"), fallback=tuple(names[1:]), price=PRICE
    )
    ids = iter(f"id-{n}" for n in range(100))
    made = Pipeline(
        Catalogue.of([model]), served, Keys(), MemoryLimiter(), log, now=lambda: 1000.0, new_id=lambda: next(ids)
    )
    return made, log


async def run(made: Pipeline, generation: Generation = ASKED, caller: Caller = CALLER) -> list[Event]:
    admitted = made.admit(caller, "chat", generation, request_id="r1")
    checker = Checker(ANSWER, generation.choices)
    seen = []
    async for event in made.run(admitted):
        checker.see(event)
        seen.append(event)
    checker.end()
    return seen


async def test_a_good_answer() -> None:
    engine = ScriptedEngine(GOOD)
    made, log = pipeline(engine)
    cost = 6 * 3 + 4 * 1 + 2 * 5
    assert await run(made) == [
        Started("r1", 1000, "grok-4", "fp_0000000000"),
        TextDelta("a"),
        TextDelta("b"),
        Finished(("stop",), Usage(10, 2, 4), cost, ended=1000),
    ]
    assert engine.turns[0].model == "up", "the engine's own name"
    [row] = log.rows
    assert (row.request_id, row.status, row.model, row.engine, row.weights) == (
        "r1",
        "ok",
        "grok-4",
        "scripted",
        "fp_0000000000",
    )
    assert (row.prompt_tokens, row.cached_tokens, row.completion_tokens, row.cost_in_usd_ticks) == (10, 4, 2, cost)
    assert (row.key_id, row.team_id, row.endpoint, row.stream, row.estimated) == ("key", "team", "chat", True, False)
    assert row.first_token_us is not None
    assert row.first_token_us <= row.latency_us


async def test_priority_is_told_and_charged_where_it_can_be_given() -> None:
    cost = 6 * 3 + 4 * 1 + 2 * 5
    asked = replace(ASKED, priority=True)
    for running_max, given in ((1, True), (None, False)):  # without a queue there is nobody to go before
        made, log = pipeline(ScriptedEngine(GOOD), running_max=running_max)
        events = await run(made, asked)
        assert events[0] == Started("r1", 1000, "grok-4", "fp_0000000000", Applied(priority=given))
        assert events[-1] == Finished(("stop",), Usage(10, 2, 4), cost * (1 + given), ended=1000)
        [row] = log.rows
        assert (row.cost_in_usd_ticks, row.service_tier) == (cost * (1 + given), "priority" if given else None)
        assert (row.input_ticks, row.cached_input_ticks, row.output_ticks) == tuple(
            ticks * (1 + given) for ticks in (18, 4, 10)
        )


async def test_priority_waits_before_others_and_each_is_charged_for_what_it_got() -> None:
    made, log = pipeline(ScriptedEngine(GOOD, GOOD, GOOD, GOOD), running_max=1, queued_max=5)
    order: list[str] = []

    async def ask(name: str) -> None:
        admitted = made.admit(CALLER, "chat", replace(ASKED, priority=name == "paying"), request_id=name)
        async for event in made.run(admitted):
            if isinstance(event, Started):
                order.append(name)
            await asyncio.sleep(0)

    await asyncio.gather(*(ask(name) for name in ("first", "second", "third", "paying")))
    assert order == ["first", "paying", "second", "third"]
    assert {row.request_id: row.service_tier for row in log.rows} == {
        "first": None,
        "second": None,
        "third": None,
        "paying": "priority",
    }


async def test_deferred_work_has_no_priority() -> None:
    made, log = pipeline(ScriptedEngine(GOOD), running_max=1)
    later = Log()
    asked = replace(ASKED, priority=True)
    events = [e async for e in made.run(made.admit(CALLER, "chat", asked, request_id="r1", later=later))]
    assert isinstance(events[0], Started)
    assert not events[0].applied.priority
    assert (later.rows[0].service_tier, later.rows[0].cost_in_usd_ticks) == (None, 6 * 3 + 4 * 1 + 2 * 5)
    assert not log.rows


async def test_the_row_is_committed_before_the_end_is_passed_on() -> None:
    made, log = pipeline(ScriptedEngine(GOOD), log=Log(pause_s=0.01))
    async for event in made.run(made.admit(CALLER, "chat", ASKED, request_id="r1")):
        assert len(log.rows) == isinstance(event, Finished)


async def test_no_end_without_a_row() -> None:
    made, _ = pipeline(ScriptedEngine(GOOD), log=Log(error=StoreUnavailable("away")))
    seen: list[Event] = []
    with pytest.raises(StoreUnavailable):
        async for event in made.run(made.admit(CALLER, "chat", ASKED, request_id="r1")):
            seen.append(event)
    assert not any(isinstance(event, Finished) for event in seen)


async def test_usage_that_the_engine_does_not_tell_is_estimated_and_says_so() -> None:
    made, log = pipeline(ScriptedEngine((TextDelta("a"), TextDelta("b"), TurnEnded(("stop",), None))))
    last = (await run(made))[-1]
    assert isinstance(last, Finished)
    assert last.usage == Usage(estimate_prompt(ASKED), 2)
    assert log.rows[0].estimated


async def test_a_cut_answer_is_one_row_that_charges_what_came() -> None:
    engine = ScriptedEngine((TextDelta("a"), UsageSoFar(Usage(10, 1, 4)), TextDelta("b"), Hang()))
    made, log = pipeline(engine)
    events = made.run(made.admit(CALLER, "chat", ASKED, request_id="r1"))
    for _ in range(4):
        await anext(events)
    task = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await made.drain()
    assert (engine.cut, engine.running) == (1, 0)
    [row] = log.rows
    assert (row.status, row.prompt_tokens, row.completion_tokens) == ("cancelled", 10, 2)
    assert row.cost_in_usd_ticks == 6 * 3 + 4 + 2 * 5
    assert row.estimated


async def test_closing_the_answer_stops_the_engine_before_it_returns() -> None:
    engine = ScriptedEngine((TextDelta("a"), Hang()))
    made, log = pipeline(engine)
    events = made.run(made.admit(CALLER, "chat", ASKED, request_id="r1"))
    await anext(events)
    await events.aclose()
    assert (engine.cut, engine.running, len(log.rows)) == (1, 0, 1)


async def test_a_settlement_survives_a_second_cancellation() -> None:
    engine = ScriptedEngine((TextDelta("a"), Hang()))
    made, log = pipeline(engine, log=Log(pause_s=0.05))

    async def consume() -> None:
        async for _ in made.run(made.admit(CALLER, "chat", ASKED, request_id="r1")):
            pass

    task = asyncio.ensure_future(consume())
    while not log.rows and not engine.running:
        await asyncio.sleep(0)
    task.cancel()
    while not log.rows:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await made.drain()
    assert len(log.rows) == 1


@pytest.mark.parametrize("script", [(EngineBroken("x"),), (TextDelta("a"), EngineBroken("x"))])
async def test_a_failure_costs_nothing_and_is_one_row(script: Sequence[Step]) -> None:
    made, log = pipeline(ScriptedEngine(script))
    with pytest.raises(EngineBroken):
        await run(made)
    [row] = log.rows
    assert (row.status, row.error_code, row.cost_in_usd_ticks) == ("failed", "EngineBroken", 0)


async def test_a_bug_is_an_internal_error_without_details() -> None:
    made, log = pipeline(ScriptedEngine((TextDelta("a"), ZeroDivisionError("secret detail"))))
    with pytest.raises(InternalError) as caught:
        await run(made)
    assert "secret" not in caught.value.message
    assert log.rows[0].status == "failed"


async def test_an_engine_that_forgets_its_end() -> None:
    made, _ = pipeline(ScriptedEngine((TextDelta("a"),)))
    with pytest.raises(EngineBroken):
        await run(made)


async def test_a_fallback_is_asked_only_before_the_first_piece() -> None:
    made, log = pipeline(
        ScriptedEngine((EngineUnavailable("x"),)),
        ScriptedEngine(GOOD, name="spare", weights=Weights("w", "fp_1111111111")),
    )
    first = (await run(made))[0]
    assert isinstance(first, Started)
    assert first.fingerprint == "fp_1111111111"
    assert log.rows[0].engine == "spare"
    made, log = pipeline(ScriptedEngine((TextDelta("a"), EngineUnavailable("x"))), ScriptedEngine(GOOD, name="spare"))
    with pytest.raises(EngineUnavailable):
        await run(made)
    assert log.rows[0].engine == "scripted"


async def test_a_request_at_fault_is_not_asked_of_the_fallback() -> None:
    spare = ScriptedEngine(GOOD, name="spare")
    made, _ = pipeline(ScriptedEngine((BadRequest("x"),)), spare)
    with pytest.raises(BadRequest):
        await run(made)
    assert not spare.turns


async def test_a_full_queue_refuses_without_a_row() -> None:
    made, log = pipeline(ScriptedEngine((TextDelta("a"), Hang())), running_max=1, queued_max=0)
    first = made.run(made.admit(CALLER, "chat", ASKED, request_id="r1"))
    await anext(first)
    with pytest.raises(AtCapacity):
        await run(made)
    assert not log.rows
    await first.aclose()


async def test_an_engine_at_its_own_limit_has_a_fallback_and_our_full_queue_has_none() -> None:
    made, log = pipeline(ScriptedEngine((AtCapacity("429"),)), ScriptedEngine(GOOD, name="spare"))
    await run(made)
    assert [row.engine for row in log.rows] == ["spare"]
    spare = ScriptedEngine(GOOD, name="spare")
    made, _ = pipeline(ScriptedEngine((TextDelta("a"), Hang())), spare, running_max=1, queued_max=0)
    first = made.run(made.admit(CALLER, "chat", ASKED, request_id="r1"))
    await anext(first)
    with pytest.raises(AtCapacity, match="queue"):
        await run(made)
    assert not spare.turns
    await first.aclose()


async def test_while_an_engine_rests_its_fallback_is_asked_at_once_and_without_one_nobody() -> None:
    now = [0.0]
    away = (EngineUnavailable("away"),)
    engine, spare = ScriptedEngine(away, away, GOOD), ScriptedEngine(GOOD, name="spare")
    breaker = Breaker("scripted", failures_max=2, rest_s=5, clock=lambda: now[0])
    made, log = pipeline(engine, spare, breaker=breaker)
    for _ in range(4):
        await run(made)
    assert len(engine.turns) == 2
    now[0] = 5
    await run(made)
    await run(made)
    assert [row.engine for row in log.rows] == ["spare"] * 4 + ["scripted"] * 2

    made, log = pipeline(
        ScriptedEngine(away), breaker=Breaker("scripted", failures_max=1, rest_s=5, clock=lambda: now[0])
    )
    with pytest.raises(EngineUnavailable, match="away"):
        await run(made)
    now[0] = 6.5
    with pytest.raises(EngineUnavailable, match=r"`scripted` failed 1 times.*4 s") as caught:
        await run(made)
    assert caught.value.retry_after_s == 3.5
    assert [row.status for row in log.rows] == ["failed"], "no engine was asked: no row"


async def test_who_waits_for_an_engine_that_begins_to_rest_is_not_sent_to_it() -> None:
    engine, spare = ScriptedEngine((Hang(0.2), EngineUnavailable("away"))), ScriptedEngine(GOOD, name="spare")
    made, log = pipeline(engine, spare, running_max=1, breaker=Breaker("scripted", failures_max=1, rest_s=60))
    await asyncio.gather(run(made), run(made), run(made))
    assert len(engine.turns) == 1
    assert [row.engine for row in log.rows] == ["spare"] * 3


@pytest.mark.parametrize(
    ("live", "state", "paid"), [(False, "ready", True), (True, "ready", False), (False, "starting", False)]
)
async def test_a_whole_answer_that_nobody_waits_for_pays_for_the_prompt_where_an_engine_worked(
    live: bool, state: EngineState, paid: bool
) -> None:
    engine = ScriptedEngine((Hang(),))
    engine.state = EngineStatus(state)
    made, log = pipeline(engine)
    asked = replace(ASKED, live=live)
    task = asyncio.ensure_future(run(made, asked))
    while not engine.turns:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait((task,))
    [row] = log.rows
    prompt = estimate_prompt(asked) if paid else 0
    assert (row.status, row.prompt_tokens, row.completion_tokens) == ("cancelled", prompt, 0)
    assert row.cost_in_usd_ticks == prompt * PRICE.input
    assert row.estimated is paid


async def test_what_is_refused_before_any_work() -> None:
    engine = ScriptedEngine(GOOD, weights=Weights("text-only", "fp_0000000000"))
    made, log = pipeline(engine)
    with pytest.raises(UnknownModel):
        await run(made, Generation("grok-99", ASKED.messages))
    with pytest.raises(NotAllowed):
        await run(made, caller=Caller("k", "t", Acl.parse(["api-key:endpoint:chat", "api-key:model:other"])))
    with pytest.raises(NotAllowed):
        await run(made, caller=Caller("k", "t", Acl.parse(["api-key:endpoint:embed", "api-key:model:*"])))
    assert await run(
        made,
        Generation("g4", ASKED.messages),
        Caller("k", "t", Acl.parse(["api-key:endpoint:chat", "api-key:model:g4"])),
    )
    image = Message("user", (TextPart("look"), ImagePart("https://x/y.png")))
    with pytest.raises(BadRequest, match=r"grok-4.*text-only") as caught:
        await run(made, Generation("grok-4", (*ASKED.messages, image)))
    assert caught.value.param == "messages[1].content"
    assert len(engine.turns) == 1
    assert len(log.rows) == 1


async def test_tokens_that_were_not_used_are_given_back() -> None:
    made, _ = pipeline(ScriptedEngine(GOOD))
    caller = Caller("k", "t", Acl.parse(EVERYTHING), tpm=130)
    asked = Generation("grok-4", ASKED.messages, bounds=Bounds(100))
    for _ in range(2):  # 105 tokens are taken each time, 12 used: the second would not fit otherwise
        await run(made, asked, caller)
    with pytest.raises(TooFast):
        await run(made, Generation("grok-4", ASKED.messages, bounds=Bounds(120)), caller)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic x", "xai-good"])
async def test_headers_that_are_no_key(header: str | None) -> None:
    made, _ = pipeline(ScriptedEngine(GOOD))
    with pytest.raises(NotIdentified) as caught:
        await made.identify(header)
    assert not caught.value.given


@pytest.mark.parametrize("header", ["Bearer xai-good", "bearer  xai-good ", "BEARER xai-good"])
async def test_headers_that_are_one(header: str) -> None:
    made, _ = pipeline(ScriptedEngine(GOOD))
    assert await made.identify(header) is CALLER


def test_request_ids_are_uuids_in_order_of_time() -> None:
    """The store's trees grow at their end."""
    ids = []
    for _ in range(3):
        ids += [new_request_id() for _ in range(100)]
        time.sleep(0.002)
    assert len(set(ids)) == len(ids)
    assert all(str(uuid.UUID(one)) == one and uuid.UUID(one).version == 7 for one in ids)
    assert all(uuid.UUID(one).variant == uuid.RFC_4122 for one in ids)
    assert max(ids[:100]) < min(ids[200:])
    assert abs(time.time() - int(ids[-1].replace("-", "")[:12], 16) / 1000) < 60


@pytest.mark.parametrize(
    ("sampling", "applied"),
    [
        (Sampling(), Applied(0.2, 0.9)),
        (Sampling(temperature=0, top_p=0.5), Applied(0, 0.5)),
    ],
)
async def test_an_answer_says_what_it_is_made_with(sampling: Sampling, applied: Applied) -> None:
    engine = ScriptedEngine(GOOD, weights=Weights("w", "fp_0000000000", temperature=0.2, top_p=0.9))
    made, _ = pipeline(engine)
    admitted = made.admit(CALLER, "chat", replace(ASKED, sampling=sampling), request_id="r")
    events = [event async for event in made.run(admitted)]
    assert isinstance(events[0], Started)
    assert events[0].applied == applied
    assert engine.turns[0].sampling == sampling, "the engine applies its own defaults"
