"""Which limits a request has to keep, and those that a team was given."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from jubal.accounts import keys, team_limits, teams
from jubal.accounts.acl import EVERYTHING, Acl
from jubal.accounts.keys import Caller, KeyRing
from jubal.accounts.limits import MemoryLimiter
from jubal.accounts.scopes import Scopes
from jubal.accounts.store import Store
from jubal.accounts.team_limits import ALL, Rates, TeamLimits
from jubal.accounts.tiers import Tier, Tiers
from jubal.core.errors import BadRequest, NotAllowed, NotFound, TooFast
from tests.accounts.conftest import NOW_US, Clock

CALLER = Caller("key", "team", Acl.parse(EVERYTHING), tier="small")
SCOPES = Scopes(Tiers([Tier("small", rpm=10, tpm=1000)]), {"grok-4": Rates(rps=2, rpm=5)})


def limits(caller: Caller, model: str) -> list[tuple[str, int | None, int | None, int | None]]:
    return [(scope.key, scope.rps, scope.rpm, scope.tpm) for scope in SCOPES.of(caller, model)]


def test_key_team_and_model_each_have_their_own() -> None:
    caller = replace(CALLER, rpm=3, rps=1)
    assert limits(caller, "grok-4") == [
        ("{team}:key:key", 1, 3, None),
        ("{team}:team", None, 10, 1000),
        ("{team}:model:grok-4", 2, 5, None),
    ]
    assert limits(CALLER, "other") == [("{team}:team", None, 10, 1000)]
    assert SCOPES.of(caller, "grok-4") is SCOPES.of(caller, "grok-4")


def test_nothing_is_limited_that_nobody_limited() -> None:
    assert Scopes().of(replace(CALLER, tier="standard"), "grok-4") == ()


def test_a_teams_own_limits_take_the_place_of_the_defaults_one_by_one() -> None:
    own = TeamLimits(Rates(tpm=0, rpm=20), {"grok-4": Rates(rpm=0), "other": Rates(tpm=7)})
    caller = replace(CALLER, limits=own)
    assert limits(caller, "grok-4") == [("{team}:team", None, 20, None), ("{team}:model:grok-4", 2, None, None)]
    assert limits(caller, "other") == [("{team}:team", None, 20, None), ("{team}:model:other", None, None, 7)]


def test_what_a_team_sets_itself_only_narrows() -> None:
    own = {ALL: Rates(rpm=5, tpm=2000), "grok-4": Rates(rps=9, rpm=1), "other": Rates(tpm=3)}
    caller = replace(CALLER, limits=TeamLimits(own=own))
    assert limits(caller, "grok-4") == [("{team}:team", None, 5, 1000), ("{team}:model:grok-4", 2, 1, None)]
    assert limits(caller, "other") == [("{team}:team", None, 5, 1000), ("{team}:model:other", None, None, 3)]
    unlimited = replace(CALLER, limits=TeamLimits(Rates(rpm=0, tpm=0), own=own))
    assert limits(unlimited, "x") == [("{team}:team", None, 5, 2000)]
    assert SCOPES.rates_on("grok-4", "small", TeamLimits(own=own)) == Rates(2, 1, 1000)
    assert SCOPES.rates_on("grok-4", "gone", TeamLimits()) == Rates(2, 5, None)


def test_a_tier_that_nobody_configured() -> None:
    with pytest.raises(NotAllowed):
        SCOPES.of(replace(CALLER, tier="gone"), "grok-4")


def test_a_refusal_names_who_reached_which_limit() -> None:
    limiter = MemoryLimiter(Clock())

    def message(caller: Caller, model: str) -> str:
        with pytest.raises(TooFast) as caught:
            for _ in range(100):
                limiter.try_take(SCOPES.of(caller, model), 0)
        return caught.value.message

    assert message(replace(CALLER, rpm=1), "x").startswith(
        "This API key has reached its rate limit of 1 requests per minute"
    )
    assert message(CALLER, "grok-4").startswith(
        "Your team has reached its rate limit on the model `grok-4` of 2 requests per sec"
    )
    assert message(CALLER, "x").startswith(
        "Your team has reached the rate limit of its tier `small` of 10 requests per minute"
    )
    given = replace(CALLER, limits=TeamLimits(Rates(rpm=1)), team_id="other")
    assert message(given, "x").startswith("Your team has reached its rate limit of 1 requests per minute")


def test_keys_of_a_team_share_what_is_the_teams() -> None:
    limiter = MemoryLimiter(Clock())
    for n in range(10):
        limiter.try_take(SCOPES.of(replace(CALLER, key_id=str(n)), "x"), 0)
    with pytest.raises(TooFast):
        limiter.try_take(SCOPES.of(replace(CALLER, key_id="another"), "x"), 0)
    limiter.try_take(SCOPES.of(replace(CALLER, team_id="another"), "x"), 0)


def test_set_show_and_clear(store: Store) -> None:
    team = store.read(teams.default).id
    assert store.read(team_limits.of_team, team) is None
    store.transact(team_limits.put, team_id=team, model=ALL, rates=Rates(rpm=5), now_us=NOW_US)
    kept = store.transact(team_limits.put, team_id=team, model=ALL, rates=Rates(tpm=0), now_us=NOW_US)
    assert kept == Rates(None, 5, 0)
    store.transact(team_limits.put, team_id=team, model="grok-4", rates=Rates(rps=1), now_us=NOW_US)
    found = store.read(team_limits.of_team, team)
    assert found is not None
    assert (found.all, dict(found.models)) == (Rates(None, 5, 0), {"grok-4": Rates(rps=1)})
    assert store.transact(team_limits.clear, team_id=team, model=ALL) == 1
    assert store.transact(team_limits.clear, team_id=team) == 1
    assert store.transact(team_limits.clear, team_id=team) == 0
    for wrong in (-1, 2**53):
        with pytest.raises(BadRequest, match="tpm") as caught:
            store.transact(team_limits.put, team_id=team, model=ALL, rates=Rates(tpm=wrong), now_us=NOW_US)
        assert caught.value.param == "tpm"


def test_what_a_team_was_given_and_what_it_set_itself_are_kept_apart(store: Store) -> None:
    team = store.read(teams.default).id
    both = {"team_id": team, "model": ALL, "now_us": NOW_US}
    assert store.transact(team_limits.put_own, rates=Rates(rpm=2, tpm=3), **both) == Rates(None, 2, 3)
    assert store.read(team_limits.of_team, team) == TeamLimits(own={ALL: Rates(None, 2, 3)})
    assert store.transact(team_limits.clear, team_id=team) == 0, "nothing was given"
    store.transact(team_limits.put, rates=Rates(rpm=50), **both)
    assert store.transact(team_limits.put_own, rates=Rates(rpm=0), **both) == Rates(tpm=3)
    assert store.read(team_limits.of_team, team) == TeamLimits(Rates(rpm=50), own={ALL: Rates(tpm=3)})
    assert store.transact(team_limits.clear, team_id=team) == 1
    assert store.read(team_limits.of_team, team) == TeamLimits(own={ALL: Rates(tpm=3)})
    assert store.transact(team_limits.put_own, rates=Rates(tpm=0), **both) == Rates()
    assert store.read(team_limits.of_team, team) is None, "an empty row is none"
    with pytest.raises(NotFound):
        store.transact(team_limits.put_own, team_id="nobody", model=ALL, rates=Rates(rpm=1), now_us=NOW_US)


def test_a_change_is_in_force_when_the_key_is_read_again(store: Store, clock: Clock) -> None:
    team = store.read(teams.default).id
    _, secret = store.transact(keys.create, team_id=team, name="k", now_us=NOW_US)

    async def limits_of() -> TeamLimits | None:
        return (await KeyRing(store, clock).identify(secret)).limits

    assert asyncio.run(limits_of()) is None
    store.transact(team_limits.put, team_id=team, model=ALL, rates=Rates(rpm=5), now_us=NOW_US)
    assert asyncio.run(limits_of()) == TeamLimits(Rates(rpm=5))
