"""What /health says of engines, fallbacks and breakers; and the watch that looks after upstreams."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from jubal.core.errors import EngineUnavailable
from jubal.core.model import Model
from jubal.engines.base import EngineState, EngineStatus
from jubal.serving.admission import Admission
from jubal.serving.breaker import Breaker
from jubal.serving.health import report
from jubal.serving.pipeline import Served
from jubal.serving.watch import Watch, Watched, look
from jubal.testing import ScriptedEngine


def served(name: str, state: EngineState, *, rests: bool = False) -> Served:
    engine = ScriptedEngine((), name=name)
    engine.state = EngineStatus(state, "a reason" if state == "failed" else None)
    return Served(engine, Admission(name, None, 5), opened(name) if rests else Breaker(name))


def opened(name: str) -> Breaker:
    breaker = Breaker(name, failures_max=1, rest_s=60)
    with pytest.raises(EngineUnavailable), breaker.attempt():
        raise EngineUnavailable("x")
    return breaker


@pytest.mark.parametrize(
    ("a", "b", "rests", "expected"),
    [
        ("ready", "ready", "", (200, "ok")),
        ("stopped", "ready", "", (200, "ok")),
        ("starting", "ready", "", (200, "starting")),
        ("starting", "starting", "", (503, "starting")),
        ("failed", "ready", "", (200, "degraded")),
        ("ready", "failed", "", (503, "degraded")),
        ("failed", "failed", "", (503, "degraded")),
        ("failed", "starting", "", (503, "degraded")),
        ("ready", "ready", "a", (200, "degraded")),
        ("ready", "ready", "b", (503, "degraded")),
        ("failed", "ready", "b", (503, "degraded")),
    ],
)
def test_503_only_where_a_model_has_no_engine_that_answers(
    a: EngineState, b: EngineState, rests: str, expected: tuple[int, str]
) -> None:
    """The first model has both engines, the second one `b` alone."""
    engines = {"a": served("a", a, rests="a" in rests), "b": served("b", b, rests="b" in rests)}
    models = [Model("one", "a", "up", fallback=("b",)), Model("two", "b", "up")]
    status, body = report(engines, {}, models, [])
    assert (status, body["status"]) == expected
    assert set(body["engines"]) == {"a", "b"}
    assert body["engines"]["a"].get("reason") == ("a reason" if a == "failed" else None)
    if "a" in rests:
        assert body["engines"]["a"]["breaker"] == "open"
        assert 50 < body["engines"]["a"]["asked_again_in_s"] <= 60


def test_a_rest_that_is_over_is_no_reason_to_send_requests_elsewhere() -> None:
    """A balancer that heeds /health would never send the request that closes the breaker."""
    now = [0.0]
    breaker = Breaker("a", failures_max=1, rest_s=5, clock=lambda: now[0])
    with pytest.raises(EngineUnavailable), breaker.attempt():
        raise EngineUnavailable("x")
    engines = {"a": replace(served("a", "ready"), breaker=breaker)}
    models = [Model("one", "a", "up")]
    assert report(engines, {}, models, [])[0] == 503
    now[0] = 5
    status, body = report(engines, {}, models, [])
    assert (status, body["status"], body["engines"]["a"]["breaker"]) == (200, "ok", "half_open")


@dataclass
class Probe:
    """Says one status after the other, the last one again and again."""

    statuses: list[EngineStatus]
    missing: list[str] = field(default_factory=list)
    asked: int = 0

    async def probe(self) -> EngineStatus:
        self.asked += 1
        if self.asked == 2:
            raise ZeroDivisionError("a fault of ours")
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]

    def unlisted(self, names: frozenset[str]) -> list[str]:
        return self.missing


GOOD, AWAY = EngineStatus("ready"), EngineStatus("failed", "away")


def test_only_an_upstream_that_came_back_wakes_the_breaker() -> None:
    one = Watched("box", Probe([GOOD]), opened("box"), 1.0, frozenset({"up"}))
    look(one, GOOD)
    look(one, GOOD)
    assert one.breaker.refuses_for_s > 50, "it listed its models all the time, and failed at answering"
    look(one, AWAY)
    look(one, AWAY)
    assert one.breaker.refuses_for_s > 50
    look(one, GOOD)
    assert one.breaker.refuses_for_s == 0


async def test_the_watch_goes_on_whatever_happens_and_ends_when_it_is_told() -> None:
    pauses: list[float] = []
    enough = asyncio.Event()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 20:
            enough.set()
        await asyncio.sleep(0)

    probe = Probe([AWAY, GOOD])
    watch = Watch([Watched("box", probe, Breaker("box"), 10.0, frozenset())], sleep=sleep)
    watch.start()
    await asyncio.wait_for(enough.wait(), 60)
    await watch.stop()
    asked = probe.asked
    await asyncio.sleep(0.01)
    assert probe.asked == asked >= 20
    assert all(8 <= pause <= 12 for pause in pauses)
    assert len(set(pauses)) > 10, "they are spread"
