"""Teams."""

from __future__ import annotations

import pytest

from jubal.accounts import teams
from jubal.accounts.store import Store
from jubal.core.errors import BadRequest, NotFound
from tests.accounts.conftest import NOW_US


def test_a_team_is_found_by_id_and_by_name(store: Store) -> None:
    team = store.transact(teams.create, name="research", prepaid=True, tier="gold", now_us=NOW_US)
    assert (team.name, team.prepaid, team.tier, team.blocked, team.created_us) == (
        "research", True, "gold", False, NOW_US,
    )  # fmt: skip
    assert store.read(teams.get, team.id) == team
    assert store.read(teams.by_name_or_id, "research") == team
    assert store.read(teams.by_name_or_id, team.id) == team


def test_an_id_goes_before_a_name(store: Store) -> None:
    first = store.transact(teams.create, name="first", now_us=NOW_US)
    store.transact(teams.create, name=first.id, now_us=NOW_US)
    assert store.read(teams.by_name_or_id, first.id) == first


def test_the_listing_is_oldest_first(store: Store) -> None:
    for n in (3, 1, 2):
        store.transact(teams.create, name=f"t{n}", now_us=n)
    assert [team.name for team in store.read(teams.listing)] == ["t1", "t2", "t3", "default"]
    assert [team.name for team in store.read(teams.listing, limit=1)] == ["t1"]


def test_names_are_unique(store: Store) -> None:
    with pytest.raises(BadRequest, match="already") as caught:
        store.transact(teams.create, name="default", now_us=NOW_US)
    assert (caught.value.param, caught.value.code) == ("name", "team_exists")


@pytest.mark.parametrize("name", ["", " x", "x ", "x" * 201, "a\nb", "\x1b[31m"])
def test_a_name_must_be_fit_to_print(sqlite_store: Store, name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        sqlite_store.transact(teams.create, name=name, now_us=NOW_US)
    assert caught.value.param == "name"


def test_unknown_teams(store: Store) -> None:
    with pytest.raises(NotFound, match="`nobody`"):
        store.read(teams.by_name_or_id, "nobody")
    with pytest.raises(NotFound, match="`nobody`"):
        store.read(teams.get, "nobody")
