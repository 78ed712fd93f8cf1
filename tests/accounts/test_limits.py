"""Rate limits, with a clock of our own."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jubal.accounts import limits
from jubal.accounts.acl import EVERYTHING, Acl
from jubal.accounts.keys import Caller
from jubal.accounts.limits import MemoryLimiter, Ticket
from jubal.accounts.scopes import Scopes
from jubal.core.errors import TooFast
from tests.accounts.conftest import Clock

CALLER = Caller("key", "team", Acl.parse(EVERYTHING))


class KeyLimiter(MemoryLimiter):
    """Limits of keys only: what a caller may do whose team may do anything."""

    def take(self, caller: Caller, tokens: int) -> Ticket:  # type: ignore[override]
        return self.try_take(Scopes().of(caller, "grok-4"), tokens)


def numbers(ticket: Ticket) -> tuple[int | None, ...]:
    return ticket.allowance


def take_all(limiter: KeyLimiter, caller: Caller, tokens: int = 0, most: int = 1000) -> list[Ticket]:
    """As many as are let in at once."""
    tickets: list[Ticket] = []
    while len(tickets) < most:
        try:
            tickets.append(limiter.take(caller, tokens))
        except TooFast:
            break
    return tickets


def test_no_limits(clock: Clock) -> None:
    limiter = KeyLimiter(clock)
    ticket = limiter.take(CALLER, 10**12)
    assert numbers(ticket) == (None, None, None, None)
    limiter.give_back(ticket, 10**12)
    assert limiter._meters == {}


def test_requests_per_minute(clock: Clock) -> None:
    limiter = KeyLimiter(clock)
    caller = replace(CALLER, rpm=3)
    assert [numbers(ticket) for ticket in take_all(limiter, caller)] == [
        (3, 2, None, None),
        (3, 1, None, None),
        (3, 0, None, None),
    ]
    with pytest.raises(TooFast) as caught:
        limiter.take(caller, 0)
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.message == (
        "This API key has reached its rate limit of 3 requests per minute; this request needs 1. Try again in 20.001 s."
    )
    assert caught.value.retry_after_s == 20.001
    clock.pass_s(20.001)
    assert len(take_all(limiter, caller)) == 1
    clock.pass_s(60)
    assert len(take_all(limiter, caller)) == 3


def test_tokens_per_minute(clock: Clock) -> None:
    limiter = KeyLimiter(clock)
    caller = replace(CALLER, tpm=1000)
    assert numbers(limiter.take(caller, 900)) == (None, None, 1000, 100)
    with pytest.raises(TooFast, match="limit of 1000 tokens per minute; this request needs 200") as caught:
        limiter.take(caller, 200)
    assert caught.value.retry_after_s == pytest.approx(6, abs=0.002)
    clock.pass_s(caught.value.retry_after_s or 0)
    assert numbers(limiter.take(caller, 200))[3] == 0


def test_a_refused_request_takes_nothing(clock: Clock) -> None:
    limiter = KeyLimiter(clock)
    caller = replace(CALLER, rpm=2, tpm=100)
    limiter.take(caller, 90)
    for _ in range(5):
        with pytest.raises(TooFast, match="tokens"):
            limiter.take(caller, 20)
    assert numbers(limiter.take(caller, 10)) == (2, 0, 100, 0)
    with pytest.raises(TooFast, match="tokens") as caught:  # both are reached: the one that takes longer tells when
        limiter.take(caller, 100)
    assert caught.value.retry_after_s == pytest.approx(60, abs=0.002)


def test_more_than_the_limit_is_never_let_in_and_no_wait_is_promised(clock: Clock) -> None:
    limiter = KeyLimiter(clock)
    with pytest.raises(TooFast, match="Ask for fewer") as caught:
        limiter.take(replace(CALLER, tpm=100), 101)
    assert caught.value.retry_after_s is None


def test_what_is_given_back_can_be_taken_at_once(clock: Clock) -> None:
    limiter = KeyLimiter(clock)
    caller = replace(CALLER, tpm=1000)
    ticket = limiter.take(caller, 1000)
    assert take_all(limiter, caller, 1) == []
    limiter.give_back(ticket, 990)
    assert numbers(limiter.take(caller, 90))[3] == 900


def test_tokens_used_on_top_are_owed(clock: Clock) -> None:
    limiter = KeyLimiter(clock)
    caller = replace(CALLER, tpm=600)
    ticket = limiter.take(caller, 100)
    limiter.give_back(ticket, -1100)
    with pytest.raises(TooFast) as caught:
        limiter.take(caller, 1)
    assert caught.value.retry_after_s == pytest.approx(60.1, abs=0.002)


def test_a_ticket_is_given_back_once(clock: Clock) -> None:
    limiter = KeyLimiter(clock)
    caller = replace(CALLER, tpm=100)
    limiter.take(caller, 60)
    ticket = limiter.take(caller, 40)
    for _ in range(3):
        limiter.give_back(ticket, 40)
    assert len(take_all(limiter, caller, 1)) == 40


def test_more_than_was_taken_is_not_given_back(clock: Clock) -> None:
    limiter = KeyLimiter(clock)
    caller = replace(CALLER, tpm=100)
    limiter.give_back(limiter.take(caller, 60), 0)
    limiter.give_back(limiter.take(caller, 10), 1000)
    assert len(take_all(limiter, caller, 1)) == 40


def test_tokens_that_left_meanwhile_are_not_given_back_twice(clock: Clock) -> None:
    """A plain token bucket lets in three limits here: one that comes back after it had left already, and two more."""
    limiter = KeyLimiter(clock)
    caller = replace(CALLER, tpm=1000)
    slow = limiter.take(caller, 1000)
    clock.pass_s(60)
    limiter.give_back(limiter.take(caller, 1000), 0)
    limiter.give_back(slow, 1000)
    assert take_all(limiter, caller, 1) == []


def test_a_ticket_that_is_never_given_back_counts_as_used(clock: Clock) -> None:
    limiter = KeyLimiter(clock)
    caller = replace(CALLER, tpm=100)
    limiter.take(caller, 100)
    clock.pass_s(60)
    assert len(take_all(limiter, caller, 1)) == 100


def test_keys_do_not_share(clock: Clock) -> None:
    limiter = KeyLimiter(clock)
    for key in ("a", "b"):
        assert len(take_all(limiter, replace(CALLER, key_id=key, rpm=5))) == 5


def test_a_changed_limit_keeps_what_is_spent(clock: Clock) -> None:
    limiter = KeyLimiter(clock)
    ticket = limiter.take(replace(CALLER, tpm=100), 80)
    assert numbers(limiter.take(replace(CALLER, rpm=5, tpm=200), 20)) == (5, 4, 200, 100)
    with pytest.raises(TooFast):
        limiter.take(replace(CALLER, rpm=5, tpm=50), 1)
    limiter.give_back(ticket, 80)
    assert numbers(limiter.take(replace(CALLER, tpm=50), 10)) == (None, None, 50, 20)


def test_idle_keys_are_forgotten(clock: Clock) -> None:
    limiter = KeyLimiter(clock)
    held = limiter.take(replace(CALLER, key_id="held", tpm=10), 10)
    for n in range(10 * limits.ENTRIES_BEFORE_SWEEP):
        limiter.take(replace(CALLER, key_id=str(n), rpm=6000), 0)
        clock.pass_s(0.01)
    assert len(limiter._meters) <= limits.ENTRIES_BEFORE_SWEEP
    limiter.give_back(held, -10)
    assert take_all(limiter, replace(CALLER, key_id="held", tpm=10), 1) == []


# -------------------------------------------------------------------------------------------------------- properties

STEPS = st.lists(
    st.tuples(
        st.integers(0, 30_000),  # ms that pass
        st.integers(0, 120),  # tokens that the next request asks for
        st.integers(0, 120),  # tokens that it will have used
        st.integers(0, 90_000),  # ms that it takes
    ),
    max_size=40,
)


def ask(limiter: KeyLimiter, caller: Caller, tokens: int) -> Ticket | TooFast:
    try:
        return limiter.take(caller, tokens)
    except TooFast as refusal:
        return refusal


def in_any_window(events: list[tuple[float, int]], limit: int) -> bool:
    """Whether every stretch of time holds at most the limit and the limit's share of that stretch."""
    for first, (begin, _) in enumerate(events):
        total = 0
        for at, amount in events[first:]:
            total += amount
            if total > limit + limit * (at - begin) / 60 + 1e-6:
                return False
    return True


@given(STEPS, st.integers(1, 200), st.integers(1, 5))
def test_no_stretch_of_time_sees_more_than_the_limit(
    steps: list[tuple[int, int, int, int]], tpm: int, rpm: int
) -> None:
    """Tokens count with what was really used, from the moment they were taken: however late the rest came back."""
    clock = Clock()
    limiter = KeyLimiter(clock)
    caller = replace(CALLER, tpm=tpm, rpm=rpm)
    running: list[tuple[float, Ticket, int]] = []
    let_in: list[tuple[float, int]] = []
    for passes_ms, asks, uses, takes_ms in steps:
        until = clock.now + passes_ms / 1000
        for ends, ticket, unused in sorted((one for one in running if one[0] <= until), key=lambda one: one[0]):
            clock.now = ends
            limiter.give_back(ticket, unused)
        running = [one for one in running if one[0] > until]
        clock.now = until
        ticket = ask(limiter, caller, asks)
        if isinstance(ticket, TooFast):
            continue
        used = min(uses, asks)
        running.append((clock.now + takes_ms / 1000, ticket, asks - used))
        let_in.append((clock.now, used))
        assert 0 <= (ticket.allowance.remaining_tokens or 0) <= tpm - asks
    assert in_any_window(let_in, tpm)
    assert in_any_window([(at, 1) for at, _ in let_in], rpm)


@given(STEPS, st.integers(1, 200))
def test_after_the_wait_that_was_named_it_is_let_in(steps: list[tuple[int, int, int, int]], tpm: int) -> None:
    clock = Clock()
    limiter = KeyLimiter(clock)
    caller = replace(CALLER, tpm=tpm, rpm=7)
    for passes_ms, asks, uses, _ in steps:
        clock.pass_s(passes_ms / 1000)
        ticket = ask(limiter, caller, asks)
        if isinstance(ticket, TooFast):
            wait_s = ticket.retry_after_s
            assert (wait_s is None) is (asks > tpm)
            if wait_s is None:
                continue
            assert 0 < wait_s <= 60.001
            clock.pass_s(wait_s - 0.0015)
            assert isinstance(ask(limiter, caller, asks), TooFast)
            clock.pass_s(0.0015)
            ticket = limiter.take(caller, asks)
        if uses % 2:
            limiter.give_back(ticket, max(0, asks - uses))


@given(STEPS, st.integers(1, 200))
def test_giving_back_never_makes_more_than_the_limit(steps: list[tuple[int, int, int, int]], tpm: int) -> None:
    clock = Clock()
    limiter = KeyLimiter(clock)
    caller = replace(CALLER, tpm=tpm)
    for passes_ms, asks, gives, _ in steps:
        clock.pass_s(passes_ms / 1000)
        tickets = take_all(limiter, caller, asks, most=3)
        for ticket in tickets:
            limiter.give_back(ticket, gives)
    clock.pass_s(1e6)
    assert len(take_all(limiter, caller, 1)) == tpm


@given(st.lists(st.integers(0, 30_000), max_size=30), st.integers(2, 50))
def test_it_is_no_tighter_than_it_says(passes_ms: list[int], rpm: int) -> None:
    """Asked often enough, it lets in the limit and then its rate, to the last one."""
    clock = Clock()
    limiter = KeyLimiter(clock)
    caller = replace(CALLER, rpm=rpm)
    total, begin = len(take_all(limiter, caller)), clock.now
    for step in passes_ms:
        clock.pass_s(step / 1000)
        total += len(take_all(limiter, caller))
        at_most = rpm + rpm * (clock.now - begin) / 60
        assert at_most - 1 - 1e-6 <= total <= at_most + 1e-6
