"""The circuit breaker with a clock that is told the time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from jubal.core.errors import (
    AtCapacity,
    BadRequest,
    EngineBroken,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
)
from jubal.serving.breaker import REST_MAX_S, Attempt, Breaker, never


@dataclass
class Clock:
    s: float = 100.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker("box", failures_max=3, rest_s=5.0, clock=clock)


def fail(breaker: Breaker, error: BaseException | None = None) -> None:
    error = error or EngineUnavailable("x")
    with pytest.raises(type(error)), breaker.attempt():
        raise error


def answer(breaker: Breaker) -> None:
    with breaker.attempt() as attempt:
        attempt.answered()


def resting(breaker: Breaker) -> float:
    """Seconds that a refused request is told to wait."""
    with pytest.raises(EngineUnavailable, match="resting") as caught:
        breaker.attempt().__enter__()
    assert caught.value.retry_after_s is not None
    return caught.value.retry_after_s


def opened(breaker: Breaker) -> Breaker:
    for _ in range(3):
        fail(breaker)
    assert breaker.state == "open"
    return breaker


@pytest.mark.parametrize("kind", [EngineUnavailable, EngineTimeout, EngineBroken])
def test_failures_in_a_row_open_it_for_a_while(breaker: Breaker, clock: Clock, kind: type[EngineError]) -> None:
    fail(breaker, kind("x"))
    fail(breaker, kind("x"))
    assert breaker.state == "closed"
    fail(breaker, kind("x"))
    assert breaker.state == "open"
    assert resting(breaker) == 5.0
    clock.s += 3
    assert resting(breaker) == 2.0
    clock.s += 2
    answer(breaker)
    assert breaker.state == "closed"
    assert breaker.failures == 0


def test_an_answer_in_between_starts_the_count_again(breaker: Breaker) -> None:
    for _ in range(5):
        fail(breaker)
        fail(breaker)
        answer(breaker)
    assert breaker.state == "closed"


@pytest.mark.parametrize(
    "error",
    [
        BadRequest("x"),
        AtCapacity("x"),
        asyncio.CancelledError(),
        EngineBroken("x", code="engine_model_not_found"),
        ZeroDivisionError(),
    ],
)
def test_what_tells_nothing_of_the_engine_is_not_counted(breaker: Breaker, error: BaseException) -> None:
    for _ in range(10):
        fail(breaker, error)
    assert breaker.state == "closed"
    fail(breaker)
    fail(breaker)
    fail(breaker, error)
    fail(breaker)
    assert breaker.state == "open", "nor is it an answer"


def test_what_happens_after_the_first_piece_is_not_counted(breaker: Breaker) -> None:
    for _ in range(5):
        with pytest.raises(EngineBroken), breaker.attempt() as attempt:
            attempt.answered()
            raise EngineBroken("died in the middle")
    assert breaker.state == "closed"
    assert breaker.failures == 0


def test_one_request_tries_at_a_time(breaker: Breaker, clock: Clock) -> None:
    opened(breaker)
    clock.s += 5
    with breaker.attempt() as trying:
        assert breaker.state == "half_open"
        assert resting(breaker) == 1.0
        trying.answered()
        answer(breaker)
    assert breaker.state == "closed"


def test_each_failed_try_doubles_the_rest_up_to_a_bound_and_an_answer_forgets_that(
    breaker: Breaker, clock: Clock
) -> None:
    opened(breaker)
    rests = []
    for _ in range(7):
        rests.append(resting(breaker))
        clock.s += rests[-1]
        fail(breaker)
    assert rests == [5, 10, 20, 40, 80, REST_MAX_S, REST_MAX_S]
    clock.s += REST_MAX_S
    answer(breaker)
    opened(breaker)
    assert resting(breaker) == 5


def test_a_try_that_is_cut_lets_the_next_one_try_at_once(breaker: Breaker, clock: Clock) -> None:
    opened(breaker)
    clock.s += 5
    fail(breaker, asyncio.CancelledError())
    assert breaker.state == "half_open"
    answer(breaker)
    assert breaker.state == "closed"


def test_a_try_that_hangs_does_not_hold_up_the_others_for_ever(breaker: Breaker, clock: Clock) -> None:
    opened(breaker)
    clock.s += 5
    hanging = breaker.attempt()
    hanging.__enter__()
    clock.s += 4.9
    assert resting(breaker) == pytest.approx(0.1)
    clock.s += 0.1
    second = breaker.attempt().__enter__()
    hanging.__exit__(EngineTimeout, EngineTimeout("x"), None)
    assert breaker.state == "half_open", "its turn is over"
    second.answered()
    assert breaker.state == "closed"


def test_what_began_before_the_rest_counts_no_more(breaker: Breaker, clock: Clock) -> None:
    early: list[Attempt] = [breaker.attempt().__enter__() for _ in range(3)]
    opened(breaker)
    early[0].answered()
    early[1].__exit__(EngineBroken, EngineBroken("x"), None)
    assert breaker.state == "open"
    assert resting(breaker) == 5
    clock.s += 5
    answer(breaker)
    early[2].__exit__(EngineBroken, EngineBroken("x"), None)
    assert breaker.failures == 0


def test_who_waited_in_a_queue_is_checked_again(breaker: Breaker, clock: Clock) -> None:
    waiting = breaker.attempt().__enter__()
    opened(breaker)
    with pytest.raises(EngineUnavailable, match="resting"):
        waiting.check()
    clock.s += 5
    waiting.check()
    assert breaker.state == "half_open"
    waiting.check()
    waiting.answered()
    assert breaker.state == "closed"


def test_it_can_be_woken(breaker: Breaker) -> None:
    breaker.wake()
    assert breaker.state == "closed"
    opened(breaker)
    breaker.wake()
    with breaker.attempt() as trying:
        breaker.wake()
        assert resting(breaker) == 1.0, "one at a time all the same"
        trying.answered()
    assert breaker.state == "closed"


def test_changes_are_told_once(clock: Clock) -> None:
    told: list[str] = []
    breaker = Breaker("box", failures_max=1, rest_s=5, clock=clock, on_change=lambda b: told.append(b.state))
    fail(breaker)
    clock.s += 5
    fail(breaker)
    clock.s += 10
    answer(breaker)
    answer(breaker)
    assert told == ["open", "half_open", "open", "half_open", "closed"]


def test_one_that_never_opens() -> None:
    breaker = never()
    for _ in range(100):
        fail(breaker)
    assert breaker.state == "closed"
