"""The pipeline and money: what is held before work, and what becomes of it however the work ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from jubal.accounts import credits, ledger, prices, usage
from jubal.accounts.acl import EVERYTHING, Acl
from jubal.accounts.credits import Terms
from jubal.accounts.holds import REFUSED_S, Credit
from jubal.accounts.keys import Caller
from jubal.accounts.limits import MemoryLimiter
from jubal.accounts.prices import PriceTerms, TeamPrices
from jubal.accounts.store import GroupCommit, Store
from jubal.accounts.usage import UsageRow
from jubal.agent.toolbox import Toolbox
from jubal.core.errors import EngineUnavailable, NotAllowed, NotIdentified, OutOfCredit, StoreUnavailable
from jubal.core.events import Event, Finished, TextDelta, ToolCall, TurnEnded
from jubal.core.generation import Bounds, Generation, ImagePart, JsonOutput, Message, TextPart, Tools
from jubal.core.model import Catalogue, Model, Weights
from jubal.core.money import Price
from jubal.core.server_tools import WebSearch
from jubal.core.usage import Usage
from jubal.engines.base import EngineStatus
from jubal.records import answers
from jubal.serving.admission import Admission
from jubal.serving.charging import Charging
from jubal.serving.pipeline import Pipeline, Served
from jubal.testing import Hang, ScriptedEngine
from jubal.testing.engines import Step
from jubal.testing.tools import ScriptedTools
from jubal.tools.base import ToolOutput
from tests.accounts.conftest import NOW_US

PREPAID = Caller("key", "team", Acl.parse(EVERYTHING), prepaid=True)
PRICE = Price(3, 1, 5)
ASKED = Generation("grok-4", (Message("user", (TextPart("hi"),)),), bounds=Bounds(10))
GOOD: tuple[Step, ...] = (TextDelta("a"), TurnEnded(("stop",), Usage(10, 2, 4)))
COST = 6 * 3 + 4 * 1 + 2 * 5


class Nobody:
    def identify_cached(self, secret: str) -> Caller | None:
        return None

    async def identify(self, secret: str) -> Caller:
        raise NotIdentified("", given=True)


class Log:
    """A group commit that can be slow or fail after it was done."""

    def __init__(self, store: Store) -> None:
        self.group = GroupCommit(store, answers.settle)
        self.rows: list[UsageRow] = []
        self.fails = False
        self.pause_s = 0.0

    async def commit(self, row: UsageRow) -> None:
        self.rows.append(row)
        await asyncio.sleep(self.pause_s)
        await self.group.commit(row)
        if self.fails:
            raise StoreUnavailable("gone")


class Bench:
    def __init__(self, store: Store, engine: ScriptedEngine) -> None:
        self.store = store
        self.log = Log(store)
        self.credit = Credit(store, wait_s=0, idle_s=0)
        model = Model("grok-4", engine.name, "up", price=PRICE)
        self.pipeline = Pipeline(
            Catalogue.of([model]),
            {engine.name: Served(engine, Admission(engine.name, None, 5))},
            Nobody(),
            MemoryLimiter(),
            self.log,
            charging=Charging(self.credit),
        )

    def add(self, ticks: int) -> None:
        self.store.transact(credits.book, "add", team_id="team", ticks=ticks, now_us=NOW_US)

    async def run(self, caller: Caller = PREPAID, asked: Generation = ASKED, request_id: str = "r1") -> list[Event]:
        admitted = self.pipeline.admit(caller, "chat", asked, request_id=request_id)
        return [event async for event in self.pipeline.run(admitted)]

    async def left(self) -> tuple[int, int]:
        """Credit, and what is still reserved of it once nobody needs it."""
        await self.credit.upkeep()
        found = self.store.transact(credits.standing, "team", now_us=NOW_US)
        assert self.store.read(credits.reconcile, NOW_US) == []
        return found.balance.credit, found.reserved


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/jubal.db") as opened:
        yield opened


@asynccontextmanager
async def bench(store: Store, *steps: Step, engine: ScriptedEngine | None = None) -> AsyncIterator[Bench]:
    made = Bench(store, engine or ScriptedEngine(steps or GOOD))
    yield made
    await made.pipeline.drain()
    await made.log.group.close()
    await made.credit.close()


async def test_a_good_answer_is_paid_from_what_was_held(store: Store) -> None:
    async with bench(store) as made:
        made.add(10_000)
        events = await made.run()
        assert isinstance(events[-1], Finished)
        assert events[-1].cost_ticks == COST
        [row] = made.log.rows
        assert (row.cost_in_usd_ticks, row.drawn_ticks) == (COST, COST)
        assert (row.input_ticks, row.cached_input_ticks, row.output_ticks, row.reasoning_ticks) == (18, 4, 10, 0)
        assert row.reserve_id is not None
        assert await made.left() == (10_000 - COST, 0)


async def test_without_credit_no_engine_is_asked_and_no_row_is_left(store: Store) -> None:
    engine = ScriptedEngine(GOOD)
    async with bench(store, engine=engine) as made:
        made.add(100)
        with pytest.raises(OutOfCredit):
            await made.run()
        assert engine.turns == []
        assert made.log.rows == []
        assert await made.left() == (100, 0)


class Counting(ScriptedEngine):
    """Counts ten tokens in every prompt."""

    def __init__(self, *scripts: tuple[Step, ...], error: Exception | None = None) -> None:
        super().__init__(*scripts)
        self.error = error
        self.counted = 0

    async def count(self, turn: Generation) -> int:
        assert turn.model == "up"
        self.counted += 1
        if self.error is not None:
            raise self.error
        return 10


LONG = replace(ASKED, messages=(Message("user", (TextPart("seldom"),)), *(Message("user", (TextPart("hi"),)),) * 15))
BY_BYTES = (6 + 15 * 2 + 48 + 8 * 16) * 3 + 10 * 5
BY_COUNT_OF_LONG = (4 * 16 + 9 + 48) * 3 + 10 * 5
"""The estimate is more than the ten tokens: four for each message, and a quarter of 36 characters."""


async def test_where_credit_is_short_the_engine_counts_the_prompt(store: Store) -> None:
    engine = Counting(GOOD)
    async with bench(store, engine=engine) as made:
        made.add(BY_BYTES)
        await made.run(asked=LONG)
        assert engine.counted == 0, "there is enough for a token in each byte"
        left = BY_BYTES - COST
        assert left > BY_COUNT_OF_LONG
        await made.run(asked=LONG, request_id="r2")
        assert engine.counted == 1
        assert made.log.rows[1].drawn_ticks == COST
        assert await made.left() == (left - COST, 0)


async def test_the_count_is_a_bound_and_no_more_is_let_in_by_it(store: Store) -> None:
    engine = Counting(GOOD)
    async with bench(store, engine=engine) as made:
        made.add(BY_COUNT_OF_LONG - 1)
        with pytest.raises(OutOfCredit):
            await made.run(asked=LONG)
        assert (engine.counted, engine.turns) == (1, [])
        made.add(1)
        await asyncio.sleep(REFUSED_S)
        await made.run(asked=LONG, request_id="r2")
        assert await made.left() == (BY_COUNT_OF_LONG - COST, 0)


async def test_who_has_nothing_left_keeps_no_engine_busy(store: Store) -> None:
    engine = Counting(GOOD)
    async with bench(store, engine=engine) as made:
        made.add(60)
        for n in range(3):
            with pytest.raises(OutOfCredit):
                await made.run(asked=LONG, request_id=f"r{n}")
        assert engine.counted == 0


@pytest.mark.parametrize(
    "asked",
    [
        replace(LONG, output=JsonOutput()),
        replace(LONG, tools=Tools(server=(WebSearch(),))),
        replace(LONG, reasoning="low"),
        replace(LONG, messages=(*LONG.messages, Message("user", (ImagePart("data:image/png;base64,"),)))),
    ],
)
def test_only_a_prompt_that_is_read_once_is_counted(asked: Generation) -> None:
    assert prices.countable(LONG)
    assert not prices.countable(asked)


async def test_an_engine_that_can_not_count_now_changes_nothing(store: Store) -> None:
    for state, error in (("ready", EngineUnavailable("busy")), ("starting", None)):
        engine = Counting(GOOD, error=error)
        engine.state = EngineStatus(state)  # type: ignore[arg-type]
        async with bench(store, engine=engine) as made:
            if error is not None:
                made.add(BY_COUNT_OF_LONG)
            with pytest.raises(OutOfCredit, match=r"may cost up to 0\.0000000686"):
                await made.run(asked=LONG)
            assert engine.turns == []


async def test_two_gateways_that_count_never_overspend(store: Store) -> None:
    """Many at once on both, with credit for a part of them: what was spent is what was there, or less."""
    one, two = Counting(GOOD), Counting(GOOD)
    async with bench(store, engine=one) as first, bench(store, engine=two) as second:
        first.add(3 * BY_COUNT_OF_LONG)
        asked = [made.run(asked=LONG, request_id=f"{n}") for n, made in enumerate((first, second) * 20)]
        ended = await asyncio.gather(*asked, return_exceptions=True)
        good = sum(isinstance(events, list) for events in ended)
        assert all(isinstance(one, list | OutOfCredit) for one in ended)
        assert good >= 2, "the first may hold by the bytes, and what it leaves is for one by the count"
        rows = [*first.log.rows, *second.log.rows]
        assert len(rows) == good
        assert all(row.drawn_ticks == row.cost_in_usd_ticks for row in rows), "none cost more than was held"
        await second.credit.upkeep()
        assert await first.left() == (3 * BY_COUNT_OF_LONG - good * COST, 0)


async def test_a_cost_below_zero_frees_no_more_than_was_held(store: Store) -> None:
    """Whatever an engine counts: memory must never believe in more credit than the store has."""
    async with bench(store) as made:
        made.add(100)
        hold = await made.credit.hold("team", Terms(), 60, "r1")
        assert hold.drawn(-1000) == 0
        made.credit.settled(hold, -1000)
        with pytest.raises(OutOfCredit):
            await made.credit.hold("team", Terms(), 101, "r2")
        assert await made.left() == (100, 0)


async def test_an_unbounded_answer_is_bounded(store: Store) -> None:
    engine = ScriptedEngine(GOOD, GOOD)
    async with bench(store, engine=engine) as made:
        made.add(100_000)
        await made.run(asked=replace(ASKED, bounds=Bounds()))
        assert engine.turns[0].bounds.tokens_max == 8192
        free = replace(PREPAID, prepaid=False)
        await made.run(caller=free, asked=replace(ASKED, bounds=Bounds()), request_id="r2")
        assert engine.turns[1].bounds.tokens_max is None, "who has no limit is not bounded"


async def test_what_fails_before_work_costs_nothing(store: Store) -> None:
    async with bench(store, EngineUnavailable("down")) as made:
        made.add(10_000)
        with pytest.raises(EngineUnavailable):
            await made.run()
        assert await made.left() == (10_000, 0)


async def test_a_client_that_leaves_pays_for_what_there_was(store: Store) -> None:
    async with bench(store, TextDelta("a"), Hang()) as made:
        made.add(10_000)
        task = asyncio.create_task(made.run())
        while not made.credit._open.get("team"):
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        [row] = made.log.rows
        assert row.status == "cancelled"
        assert row.cost_in_usd_ticks > 0
        assert await made.left() == (10_000 - row.cost_in_usd_ticks, 0)


async def test_a_commit_of_unknown_fate_frees_nothing_twice(store: Store) -> None:
    async with bench(store) as made:
        made.add(10_000)
        made.log.fails = True
        with pytest.raises(StoreUnavailable):
            await made.run()
        assert made.credit.try_hold("team", 1, "r") is None
        assert await made.left() == (10_000 - COST, 0)


async def test_a_client_that_leaves_while_it_is_charged(store: Store) -> None:
    async with bench(store) as made:
        made.add(10_000)
        made.log.pause_s = 0.05
        task = asyncio.create_task(made.run())
        while not made.log.rows:
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert not made.credit._open["team"]
        credit, reserved = await made.left()
        assert reserved == 0
        assert credit in (10_000 - COST, 10_000)


async def test_wherever_a_client_leaves_nothing_stays_held_and_nothing_is_charged_twice(store: Store) -> None:
    """In the queue for credit, at the store, before the first piece, in a tool, in the second turn, while it is charged."""
    price = replace(PRICE, tools=(("web_search", 1000),))
    able = Weights("scripted", "fp_0000000000", 1_000_000, tools=True)
    calls: tuple[Step, ...] = (
        TextDelta("a"),
        ToolCall("1", "web_search", "{}"),
        TurnEnded(("tool_calls",), Usage(9, 2, 0)),
    )
    asked = replace(ASKED, tools=Tools(server=(WebSearch(),)))
    ends = set()
    for turns in range(60):
        async with bench(store, engine=ScriptedEngine(calls, GOOD, calls, GOOD, weights=able)) as made:
            family = ScriptedTools({"web_search": ToolOutput("found")})
            made.pipeline.toolbox = Toolbox({family.kind: family})
            [model] = made.pipeline.catalogue
            made.pipeline.catalogue = Catalogue.of([replace(model, price=price)])
            made.pipeline._usage = made.log.group
            made.add(100_000)
            if turns % 2:  # then what it is held in is there already, and no thread has a say in where it leaves
                await made.run(asked=asked, request_id=f"warm{turns}")
            before = store.read(ledger.read, "team").credit
            task = asyncio.create_task(made.run(asked=asked, request_id=f"r{turns}"))
            for _ in range(turns % 40):
                # A turn of the loop reaches every step between two waits; now and then the store's threads get time too.
                await asyncio.sleep(0.001 if turns >= 40 and turns % 4 == 0 else 0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await made.pipeline.drain()
            await made.log.group.drain()
            await made.credit._trip_ended("team")
            assert not made.credit._open.get("team")
            rows = [row for row in store.read(usage.listing) if row.request_id == f"r{turns}"]
            assert len(rows) <= 1
            cost = sum(row.cost_in_usd_ticks for row in rows)
            ends.add(rows[0].status if rows else "nothing")
            assert await made.left() == (before - cost, 0)
    assert "nothing" in ends, "some left before any work"
    assert "cancelled" in ends, "and some after it began"


async def test_calls_of_server_tools_that_went_well_are_charged(store: Store) -> None:
    turns: tuple[tuple[Step, ...], ...] = (
        (
            ToolCall("1", "web_search", "{}"),
            ToolCall("2", "web_search", "{}"),
            TurnEnded(("tool_calls",), Usage(10, 2, 0)),
        ),
        GOOD,
    )
    price = replace(PRICE, tools=(("web_search", 1000),))
    able = Weights("scripted", "fp_0000000000", 1_000_000, tools=True)
    async with bench(store, engine=ScriptedEngine(*turns, weights=able)) as made:
        family = ScriptedTools({"web_search": ToolOutput("found")})
        made.pipeline.toolbox = Toolbox({family.kind: family})
        [model] = made.pipeline.catalogue
        made.pipeline.catalogue = Catalogue.of([replace(model, price=price)])
        asked = replace(ASKED, tools=Tools(server=(WebSearch(),)))
        made.add(9_000)
        with pytest.raises(OutOfCredit):
            await made.run(asked=asked, request_id="r0")
        made.add(1_000_000)
        await asyncio.sleep(0.25)  # a refusal is believed for 0.2 s
        events = await made.run(asked=asked)
        assert isinstance(events[-1], Finished)
        [row] = made.log.rows
        assert events[-1].cost_ticks == row.cost_in_usd_ticks == 10 * 3 + 2 * 5 + COST + 2000
        assert json.loads(row.tools or "") == {"web_search": [2, 2000]}
        assert await made.left() == (1_009_000 - row.cost_in_usd_ticks, 0)


async def test_a_hidden_prompt_is_learnt(store: Store) -> None:
    """The first such request goes over what was held; the second holds enough, and is refused where it is not there."""
    hidden: tuple[Step, ...] = (TextDelta("a"), TurnEnded(("stop",), Usage(1500, 2, 0)))
    async with bench(store, engine=ScriptedEngine(hidden, hidden, hidden)) as made:
        made.add(300)
        await made.run()
        assert await made.left() == (300 - 1500 * 3 - 10, 0)
        made.add(4_300)
        with pytest.raises(OutOfCredit):
            await made.run(request_id="r2")
        made.add(5_000)
        await asyncio.sleep(0.25)  # a refusal is believed for 0.2 s
        await made.run(request_id="r3")
        assert (await made.left())[0] >= 0


async def test_a_fallback_that_reads_more_is_held_for(store: Store) -> None:
    """The ceiling was cut to the first engine's window. The fallback answered beyond it, and the team owed what it may not owe."""
    small = ScriptedEngine([EngineUnavailable("away")], name="small", weights=Weights("s", "fp_0000000001", 20))
    large = ScriptedEngine(
        [TextDelta("a"), TurnEnded(("stop",), Usage(50, 2, 0))],
        name="large",
        weights=Weights("l", "fp_0000000002", 1000),
    )
    async with bench(store, engine=small) as made:
        [model] = made.pipeline.catalogue
        made.pipeline.catalogue = Catalogue.of([replace(model, fallback=("large",))])
        made.pipeline.engines = {**made.pipeline.engines, "large": Served(large, Admission("large", None, 5))}
        made.add(20 * 3 + 10 * 5)
        with pytest.raises(OutOfCredit):
            await made.run()
        made.add(10_000)
        await asyncio.sleep(0.25)  # a refusal is believed for 0.2 s
        await made.run(request_id="r2")
        [row] = made.log.rows
        assert row.drawn_ticks == row.cost_in_usd_ticks == 50 * 3 + 2 * 5


async def test_a_team_of_no_known_tier_is_refused(store: Store) -> None:
    async with bench(store) as made:
        with pytest.raises(NotAllowed):
            made.pipeline.admit(replace(PREPAID, tier="gold"), "chat", ASKED, request_id="r")


async def test_own_prices_are_charged(store: Store) -> None:
    async with bench(store) as made:
        own = TeamPrices((("grok-4", PriceTerms(output=0)),))
        await made.run(replace(PREPAID, prepaid=False, prices=own))
        assert made.log.rows[0].cost_in_usd_ticks == COST - 10


async def test_who_needs_no_hold_waits_for_no_store(store: Store) -> None:
    async with bench(store) as made:
        await made.run(replace(PREPAID, prepaid=False))
        [row] = made.log.rows
        assert (row.reserve_id, row.drawn_ticks) == (None, None)
        assert not made.credit._reserves
        assert await made.left() == (-COST, 0)
