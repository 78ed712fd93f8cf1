"""Wrong keys: how long whoever tries them waits."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from jubal.accounts import guesses
from jubal.accounts.guesses import WrongKeys, network_of
from jubal.core.errors import TooFast
from tests.accounts.conftest import Clock


def tries(wrong: WrongKeys, times: int, address: str = "198.51.100.1") -> list[float]:
    delays = []
    for _ in range(times):
        with wrong.held_back(address) as delay_s:
            delays.append(delay_s)
    return delays


def test_delays_grow_to_the_limit(clock: Clock) -> None:
    delays = tries(WrongKeys(2.0, clock), 30)
    assert delays[:20] == [0.0] * 20
    assert delays[20:] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0, 2.0, 2.0]


def test_it_is_forgotten(clock: Clock) -> None:
    wrong = WrongKeys(2.0, clock)
    tries(wrong, 30)
    clock.pass_s(3 * 30 + 1)
    assert tries(wrong, 20) == [0.0] * 20


def test_each_address_for_itself(clock: Clock) -> None:
    wrong = WrongKeys(2.0, clock)
    tries(wrong, 30)
    assert tries(wrong, 5, "198.51.100.2") == [0.0] * 5


def test_no_delay_where_none_is_wanted(clock: Clock) -> None:
    assert tries(WrongKeys(0.0, clock), 500) == [0.0] * 500


def test_answers_that_are_held_back_are_bounded(clock: Clock) -> None:
    wrong = WrongKeys(2.0, clock)
    tries(wrong, 30)
    with ExitStack() as held:
        for _ in range(guesses.WAITING_MAX):
            held.enter_context(wrong.held_back("198.51.100.1"))
        with pytest.raises(TooFast) as caught, wrong.held_back("198.51.100.1"):
            pass
        assert caught.value.code == "too_many_wrong_keys"
        assert caught.value.retry_after_s is not None
        assert tries(wrong, 1, "198.51.100.2") == [0.0]
    assert tries(wrong, 1) == [2.0], "there is room again"


def test_memory_is_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guesses, "ADDRESSES_MAX", 100)
    wrong = WrongKeys(2.0, clock)
    tries(wrong, 25, "198.51.100.250")
    for n in range(99):
        tries(wrong, 1, f"198.51.100.{n}")
    assert tries(wrong, 1, "198.51.100.250")[0] > 0, "still known, as it is the last of a hundred"
    for n in range(200):
        tries(wrong, 1, f"203.0.113.{n}")
    assert len(wrong._peers) == 100


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("198.51.100.1", "198.51.100.1"),
        ("::ffff:198.51.100.1", "198.51.100.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("", ""),
        ("x" * 1000, "x" * 64),
    ],
)
def test_what_counts_as_one(address: str, network: str) -> None:
    assert network_of(address) == network
