"""The promise of `accounts.limits.Limiter` as checks that every limiter's test calls, on a clock of the test's own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from jubal.accounts.limits import Limiter, Scope, ScopeSet, Ticket
from jubal.core.errors import TooFast
from jubal.core.rates import Allowance


class StepClock:
    """Monotonic seconds that pass when they are told to, in whole microseconds."""

    def __init__(self, us: int = 1_000_000_000_000_000) -> None:
        self.us = us

    def __call__(self) -> float:
        return self.us / 1e6

    def now_us(self) -> int:
        return self.us

    def pass_s(self, seconds: float) -> None:
        self.us += round(seconds * 1e6)


Make: TypeAlias = Callable[[StepClock], Limiter]
Check: TypeAlias = Callable[[Limiter, StepClock, str], Awaitable[None]]


async def ask(limiter: Limiter, scopes: ScopeSet, tokens: int = 0) -> Ticket | TooFast:
    """A ticket, or the refusal."""
    try:
        return limiter.try_take(scopes, tokens) or await limiter.take(scopes, tokens)
    except TooFast as refused:
        return refused


async def how_many(limiter: Limiter, scopes: ScopeSet, tokens: int = 0, most: int = 1000) -> int:
    """How many are let in at once."""
    for count in range(most):
        if isinstance(await ask(limiter, scopes, tokens), TooFast):
            return count
    return most


async def _taken(limiter: Limiter, scopes: ScopeSet, tokens: int = 0) -> Ticket:
    found = await ask(limiter, scopes, tokens)
    assert isinstance(found, Ticket), found
    return found


async def _refused(limiter: Limiter, scopes: ScopeSet, tokens: int = 0) -> TooFast:
    found = await ask(limiter, scopes, tokens)
    assert isinstance(found, TooFast), found
    return found


async def _nothing_limits(limiter: Limiter, clock: StepClock, name: str) -> None:
    found = limiter.try_take((), 10**12)
    assert found is not None
    assert (found.allowance, found.open) == (Allowance(), False)
    limiter.give_back(found, 5)


async def _each_kind_has_its_period(limiter: Limiter, clock: StepClock, name: str) -> None:
    second, minute = Scope(f"{name}s", "S", rps=4), Scope(f"{name}m", "M", rpm=4)
    for scope, period_s, what in ((second, 1, "4 requests per second"), (minute, 60, "4 requests per minute")):
        assert await how_many(limiter, (scope,)) == 4
        refused = await _refused(limiter, (scope,))
        assert what in refused.message
        assert refused.retry_after_s is not None
        assert period_s / 4 <= refused.retry_after_s <= period_s / 4 + 0.001
        clock.pass_s(refused.retry_after_s)
        assert await how_many(limiter, (scope,)) == 1
        clock.pass_s(period_s)
        assert await how_many(limiter, (scope,)) == 4


async def _all_or_nothing(limiter: Limiter, clock: StepClock, name: str) -> None:
    key, team = Scope(f"{name}k", "Key", rpm=10, tpm=1000), Scope(f"{name}t", "Team", rpm=3, tpm=500)
    for _ in range(5):
        assert (await _refused(limiter, (key, team), 501)).message.startswith("Team of 500 tokens per minute")
    found = await _taken(limiter, (key, team), 100)
    assert found.allowance == Allowance(3, 2, 500, 400)
    assert (await _taken(limiter, (key,), 100)).allowance.remaining_tokens == 800, "refused ones took nothing"


async def _the_one_that_takes_longest_tells(limiter: Limiter, clock: StepClock, name: str) -> None:
    fast, slow = Scope(f"{name}f", "Fast", rpm=60), Scope(f"{name}s", "Slow", rpm=1)
    await _taken(limiter, (slow,))
    await how_many(limiter, (fast,))
    refused = await _refused(limiter, (fast, slow))
    assert refused.message.startswith("Slow of 1 requests per minute")
    assert refused.retry_after_s == 60.001
    assert refused.allowance == Allowance(1, 0), "of the limit that refused"


async def _a_refusal_tells_how_its_limit_stands(limiter: Limiter, clock: StepClock, name: str) -> None:
    quick = Scope(f"{name}q", "Quick", rps=2, rpm=50, tpm=900)
    wide = Scope(f"{name}w", "Wide", rpm=70, tpm=1000)
    assert (await _taken(limiter, (quick, wide), 300)).allowance == Allowance(50, 49, 900, 600)
    by_tokens = await _refused(limiter, (quick, wide), 601)
    assert by_tokens.allowance == Allowance(50, 49, 900, 600), "600 are left, and it wants 601"
    assert (await _taken(limiter, (quick, wide), 600)).allowance == Allowance(50, 48, 900, 0)
    by_second = await _refused(limiter, (quick, wide))
    assert by_second.allowance == Allowance(2, 0, 900, 0), "requests are those of the second, as that limit refused"
    too_many = await _refused(limiter, (wide,), 1001)
    assert too_many.allowance == Allowance(70, 68, 1000, 100)


async def _more_than_the_limit_is_never_let_in(limiter: Limiter, clock: StepClock, name: str) -> None:
    refused = await _refused(limiter, (Scope(name, "S", tpm=100),), 101)
    assert refused.retry_after_s is None
    assert "Ask for fewer" in refused.message


async def _what_is_given_back_can_be_taken_once(limiter: Limiter, clock: StepClock, name: str) -> None:
    scopes = (Scope(f"{name}1", "S", tpm=1000), Scope(f"{name}2", "S", tpm=1000))
    found = await _taken(limiter, scopes, 1000)
    assert await how_many(limiter, scopes, 1) == 0
    for _ in range(3):
        limiter.give_back(found, 990)
    assert await how_many(limiter, scopes, 10) == 99


async def _what_was_used_on_top_is_owed(limiter: Limiter, clock: StepClock, name: str) -> None:
    scopes = (Scope(name, "S", tpm=600),)
    limiter.give_back(await _taken(limiter, scopes, 100), -1100)
    refused = await _refused(limiter, scopes, 1)
    assert refused.retry_after_s is not None
    assert 60.1 <= refused.retry_after_s <= 60.102


async def _what_is_added_counts_at_once(limiter: Limiter, clock: StepClock, name: str) -> None:
    scopes = (Scope(name, "S", tpm=100),)
    found = await _taken(limiter, scopes, 40)
    limiter.add(found, 50)
    assert await how_many(limiter, scopes, 5) == 2
    limiter.give_back(found, 20)  # of 90
    assert await how_many(limiter, scopes, 1) == 20


async def _what_has_left_is_not_given_back(limiter: Limiter, clock: StepClock, name: str) -> None:
    scopes = (Scope(name, "S", tpm=1000),)
    slow = await _taken(limiter, scopes, 1000)
    clock.pass_s(60)
    limiter.give_back(await _taken(limiter, scopes, 1000), 0)
    limiter.give_back(slow, 1000)
    assert await how_many(limiter, scopes, 1) == 0


async def _what_is_never_given_back_is_forgotten(limiter: Limiter, clock: StepClock, name: str) -> None:
    """A gateway that was killed holds nothing after three minutes: what others give back is theirs again."""
    scopes = (Scope(name, "S", tpm=100),)
    await _taken(limiter, scopes, 100)
    clock.pass_s(180)
    for _ in range(3):
        limiter.give_back(await _taken(limiter, scopes, 100), 100)
    assert await how_many(limiter, scopes, 1) == 100


CHECKS: tuple[Check, ...] = (
    _nothing_limits,
    _each_kind_has_its_period,
    _all_or_nothing,
    _the_one_that_takes_longest_tells,
    _a_refusal_tells_how_its_limit_stands,
    _more_than_the_limit_is_never_let_in,
    _what_is_given_back_can_be_taken_once,
    _what_was_used_on_top_is_owed,
    _what_is_added_counts_at_once,
    _what_has_left_is_not_given_back,
    _what_is_never_given_back_is_forgotten,
)


async def check_limiter(make: Make) -> None:
    """Everything that `Limiter` promises, on a limiter whose time is the clock's."""
    clock = StepClock()
    limiter = make(clock)
    try:
        for check in CHECKS:
            await check(limiter, clock, f"{{check}}:{check.__name__}:")
            clock.pass_s(600)
    finally:
        await limiter.close()
