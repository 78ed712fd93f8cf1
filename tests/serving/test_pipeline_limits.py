"""Limits in the pipeline: what is taken when, and what a limiter that has to wait changes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from jubal import config
from jubal.accounts.limits import UNLIMITED, MemoryLimiter, ScopeSet, Ticket
from jubal.accounts.scopes import Scopes
from jubal.accounts.team_limits import Rates
from jubal.agent.toolbox import Toolbox
from jubal.app import make_code_execution
from jubal.core.errors import StoreUnavailable, TooFast
from jubal.core.events import TextDelta, TurnEnded, UsageSoFar
from jubal.core.fold import fold
from jubal.core.generation import Bounds, Tools
from jubal.core.model import Catalogue, Model
from jubal.core.server_tools import CodeExecution
from jubal.core.tally import estimate_prompt
from jubal.core.usage import Usage
from jubal.serving.admission import Admission
from jubal.serving.pipeline import ANSWER_TOKENS_GUESSED, Pipeline, Served
from jubal.testing import Hang, ScriptedEngine
from jubal.testing.engines import Step
from tests.serving.test_pipeline import ASKED, CALLER, GOOD, Keys, Log

LIMITED = replace(CALLER, rpm=10, tpm=10_000)
KEY = "{team}:key:key"


class Still(MemoryLimiter):
    """For which no time passes, so that nothing comes back by itself."""

    def __init__(self) -> None:
        super().__init__(lambda: 1000.0)


class Slow(Still):
    """Counts as if it had to ask somebody."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False

    def try_take(self, scopes: ScopeSet, tokens: int) -> Ticket | None:  # type: ignore[override]
        return None if scopes else UNLIMITED

    async def take(self, scopes: ScopeSet, tokens: int) -> Ticket:
        await asyncio.sleep(0)
        if self.away:
            raise StoreUnavailable("away", code="limits_unavailable")
        return super().try_take(scopes, tokens)


def pipeline(limiter: MemoryLimiter, *scripts: Sequence[Step], scopes: Scopes | None = None) -> tuple[Pipeline, Log]:
    engine, log = ScriptedEngine(*(scripts or (GOOD,))), Log()
    served = {engine.name: Served(engine, Admission(engine.name, None, 5))}
    catalogue = Catalogue.of([Model("grok-4", engine.name, "up", aliases=("g4",))])
    return Pipeline(catalogue, served, Keys(), limiter, log, scopes=scopes), log


@pytest.mark.parametrize("limiter", [Still, Slow])
async def test_what_is_taken_is_given_back_but_for_what_was_used(limiter: type[Still]) -> None:
    counters = limiter()
    made, _ = pipeline(counters)
    admitted = made.admit(LIMITED, "chat", ASKED, request_id="r")
    estimate = estimate_prompt(ASKED) + ANSWER_TOKENS_GUESSED
    events = made.run(admitted)
    await anext(events)
    assert counters.held(KEY) == estimate
    async for _ in events:
        pass
    assert counters.held(KEY) == 0
    assert admitted.ticket.allowance.remaining_tokens == 10_000 - estimate
    names = [name for name, _ in admitted.ticket_headers()]
    assert names == [b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens"]  # fmt: skip
    last = made.admit(LIMITED, "chat", ASKED, request_id="r2")
    await made.take(last)
    assert last.ticket.allowance.remaining_tokens == 10_000 - 12 - estimate, "12 were used"


async def test_a_limiter_that_waits_refuses_before_any_work() -> None:
    counters = Slow()
    made, log = pipeline(counters)
    for _ in range(10):
        await fold(made.run(made.admit(LIMITED, "chat", ASKED, request_id="r")))
    with pytest.raises(TooFast):
        await fold(made.run(made.admit(LIMITED, "chat", ASKED, request_id="r")))
    assert len(log.rows) == 10
    counters.away = True
    with pytest.raises(StoreUnavailable):
        await fold(made.run(made.admit(replace(LIMITED, key_id="other"), "chat", ASKED, request_id="r")))
    assert len(log.rows) == 10
    await fold(made.run(made.admit(CALLER, "chat", ASKED, request_id="r")))  # nothing limits this one


async def test_every_answer_of_a_request_is_taken_for() -> None:
    made, _ = pipeline(MemoryLimiter())
    asked = replace(ASKED, choices=3, bounds=Bounds(tokens_max=1000))
    admitted = made.admit(LIMITED, "chat", asked, request_id="r")
    assert admitted.tokens_taken == estimate_prompt(asked) + 3000
    with pytest.raises(TooFast, match="10000 tokens per minute"):
        made.admit(LIMITED, "chat", replace(asked, choices=10), request_id="r")


async def test_an_alias_counts_for_its_model() -> None:
    made, _ = pipeline(MemoryLimiter(), scopes=Scopes(models={"grok-4": Rates(rpm=1)}))
    made.admit(CALLER, "chat", ASKED, request_id="r")
    with pytest.raises(TooFast, match="on the model `grok-4`"):
        made.admit(replace(CALLER, key_id="another"), "chat", replace(ASKED, model="g4"), request_id="r")


async def test_steps_beyond_the_estimate_count_while_the_request_runs() -> None:
    """A request with server tools reads its conversation again and again: others wait for what it uses, at once."""
    counters = MemoryLimiter()
    made, _ = pipeline(counters, (TextDelta("a"), UsageSoFar(Usage(9000, 10)), TurnEnded(("stop",), Usage(9000, 20))))
    made.toolbox = Toolbox({"code_execution": make_code_execution(config.CodeExecution())})
    asked = replace(ASKED, tools=Tools(server=(CodeExecution(),), choice="none"))
    admitted = made.admit(LIMITED, "chat", asked, request_id="r")
    events = made.run(admitted)
    async for event in events:
        if isinstance(event, UsageSoFar):
            break
    with pytest.raises(TooFast, match="tokens per minute"):
        made.admit(LIMITED, "chat", replace(ASKED, bounds=Bounds(tokens_max=1500)), request_id="r2")
    await events.aclose()
    assert admitted.ticket.added > 8000
    assert counters.held(KEY) == 0


async def test_a_deferred_request_lets_those_pass_that_somebody_waits_for() -> None:
    engine, log = ScriptedEngine((Hang(0.02), *GOOD)), Log()
    served = {engine.name: Served(engine, Admission(engine.name, 1, 5))}
    made = Pipeline(Catalogue.of([Model("grok-4", engine.name, "up")]), served, Keys(), MemoryLimiter(), log)
    later = Log()
    work = []
    for number in range(5):
        background = number < 3
        asked = made.admit(CALLER, "chat", ASKED, request_id=f"r{number}", later=later if background else None)
        work.append(asyncio.ensure_future(fold(made.run(asked))))
        await asyncio.sleep(0)
    ended: list[int] = []
    for number, task in enumerate(work):
        task.add_done_callback(lambda _, number=number: ended.append(number))
    await asyncio.gather(*work)
    assert ended == [0, 3, 4, 1, 2]
    assert (len(log.rows), len(later.rows)) == (2, 3)
