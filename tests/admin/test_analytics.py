"""Usage as time series: sums by the hour and rows, request by request, tell the same; what only rows tell is as reckoned by hand."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Callable
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy.engine import Connection

from jubal.accounts import keys, rollups, teams, usage
from jubal.accounts.rollups import DAY_US, HOUR_US
from jubal.accounts.store import Store
from jubal.accounts.usage import UsageRow
from jubal.admin import actor, analytics
from jubal.admin.analytics import Condition, Query, Series
from jubal.core.errors import BadRequest
from tests.accounts.conftest import NOW_US, usage_row

MINUTE_US = 60_000_000
BEGIN_US = NOW_US - NOW_US % HOUR_US
SUM_OF_USD = (("usd", "sum"),)
UTC = analytics.zone_of("UTC")


def some_rows(team_id: str, key_ids: list[str], seed: int = 1) -> list[UsageRow]:
    """200 requests of about three days, of all kinds."""
    chance = random.Random(seed)
    rows = []
    for number in range(200):
        parts = [chance.randrange(10**6) for _ in range(5)]
        tools = json.dumps({"web_search": [2, 70]}) if number % 9 == 0 else None
        rows.append(
            usage_row(
                number,
                team_id=team_id,
                key_id=chance.choice(key_ids),
                model=chance.choice(["grok-4", "grok-3"]),
                endpoint=chance.choice(["chat", "embed"]),
                status=chance.choice(["ok", "ok", "failed", "cancelled"]),
                created_us=BEGIN_US + chance.randrange(3 * DAY_US),
                prompt_tokens=100 + chance.randrange(50),
                cached_tokens=chance.choice([None, 7]),
                completion_tokens=chance.randrange(40),
                reasoning_tokens=chance.randrange(9),
                latency_us=chance.randrange(10**7),
                first_token_us=chance.choice([None, 1_000, 2_000_000]),
                cost_in_usd_ticks=sum(parts) + (70 if tools else 0),
                tools=tools,
                **dict(
                    zip(
                        ("input_ticks", "cached_input_ticks", "output_ticks", "reasoning_ticks", "request_ticks"),
                        parts,
                        strict=True,
                    )
                ),
            )
        )
    return rows


class World:
    """A team with two keys and some requests, and another team with one of each."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.rows: list[UsageRow] = []
        store.transact(self._fill)

    def _fill(self, conn: Connection) -> None:
        self.operator = actor.operator(conn)
        self.team = teams.create(conn, name="red", now_us=NOW_US).id
        other = teams.create(conn, name="blue", now_us=NOW_US).id
        made = [keys.create(conn, team_id=self.team, name=name, now_us=NOW_US)[0] for name in ("one", "two")]
        self.keys = [key.id for key in made]
        self.labels = {key.id: f"{key.name} ({key.redacted})" for key in made}
        self.rows = some_rows(self.team, self.keys)
        usage.record(conn, [*self.rows, usage_row("theirs", team_id=other, created_us=BEGIN_US + 5)])

    def ask(self, query: Query) -> list[Series]:
        series, cut = self.store.read(analytics.analyze, self.operator, self.team, query)
        assert not cut
        return series

    def values(self, query: Query) -> dict[tuple[str, ...], list[float]]:
        """Of a query for one interval."""
        return {one.group: list(one.points[0][1]) for one in self.ask(query)}

    def asked(self, *values: tuple[str, Any], unit: Any = "none", **more: Any) -> Query:
        return Query(BEGIN_US, BEGIN_US + 3 * DAY_US, more.pop("zone", UTC), unit, values, **more)

    def refused(self, query: Query) -> str | None:
        with pytest.raises(BadRequest) as caught:
            self.ask(query)
        return caught.value.param


@pytest.fixture
def world(store: Store) -> World:
    return World(store)


def grouped(rows: list[UsageRow], by: Callable[[UsageRow], Any]) -> dict[Any, list[UsageRow]]:
    found: dict[Any, list[UsageRow]] = {}
    for row in rows:
        found.setdefault(by(row), []).append(row)
    return found


@pytest.mark.parametrize("unit", ["hour", "day", "calendar_week", "month", "none"])
@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
def test_sums_and_rows_tell_the_same(world: World, monkeypatch: pytest.MonkeyPatch, unit: str, zone: str) -> None:
    told = [
        (name, aggregation)
        for name in ("usd", "usage", "requests", "failed", "cached_tokens", "tool_calls", "latency_seconds")
        for aggregation in ("sum", "avg", "count")
    ]
    one, two = world.keys
    for conditions, series in (
        ((), 4),
        ((Condition("description", "grok-4"), Condition("api_key_id", one, negated=True)), 1),
        ((Condition("api_key_id", one), Condition("api_key_id", two)), 0),
    ):
        query = world.asked(
            *told,
            unit=unit,
            zone=analytics.zone_of(zone),
            group_by=("api_key_id", "description"),
            conditions=conditions,
        )
        assert analytics._sums_tell(query)
        by_sums = world.ask(query)
        monkeypatch.setattr(analytics, "_sums_tell", lambda query: False)
        by_rows = world.ask(query)
        monkeypatch.undo()
        assert len(by_sums) == len(by_rows) == series
        for by_sum, by_row in zip(by_sums, by_rows, strict=True):
            assert (by_sum.group, by_sum.labels) == (by_row.group, by_row.labels)
            for (at, values), (row_at, row_values) in zip(by_sum.points, by_row.points, strict=True):
                assert at == row_at
                assert values == pytest.approx(row_values)


def test_what_only_rows_tell(world: World) -> None:
    told = ("min", "max", "p50", "p90", "p99", "p999", "var", "std", "count", "count_distinct", "sum", "avg")
    names = ("usd", "time_to_first_token_seconds")
    found: dict[str, dict[tuple[str, ...], list[float]]] = {}
    for name in names:
        halves = [world.values(world.asked(*((name, one) for one in part), group_by=("status", "endpoint"))) for part in (told[:6], told[6:])]  # fmt: skip
        found[name] = {group: halves[0][group] + halves[1][group] for group in halves[0]}
    for group, rows in grouped(world.rows, lambda row: (row.status, row.endpoint)).items():
        for name in names:
            values = [row.cost_in_usd_ticks / 1e10 for row in rows]
            if name != "usd":
                values = [row.first_token_us / 1e6 for row in rows if row.first_token_us is not None]
            cuts = statistics.quantiles(values, n=1000, method="inclusive")
            quantiles = [cuts[499], cuts[899], cuts[989], cuts[998]]
            variance = statistics.pvariance(values)
            assert found[name][group] == pytest.approx(
                [
                    *(min(values), max(values), *quantiles, variance, math.sqrt(variance)),
                    *(len(values), len(set(values)), sum(values), statistics.fmean(values)),
                ]
            )
    assert len(found["usd"]) == 6


def test_lines_of_what_requests_cost(world: World) -> None:
    """Each kind of token and tool for itself; together they are what was charged."""
    found = world.values(world.asked(("usd", "sum"), ("usage", "sum"), ("usage", "count"), group_by=("unit_type",)))
    assert found[("cached input tokens",)][1:] == [
        7 * sum(row.cached_tokens == 7 for row in world.rows),
        sum(row.cached_tokens == 7 for row in world.rows),
    ]
    searched = [row for row in world.rows if row.tools]
    assert found[("web_search calls",)] == pytest.approx([70 * len(searched) / 1e10, 2 * len(searched), len(searched)])
    charged = sum(values[0] for values in found.values())
    not_cached = sum(row.cached_input_ticks or 0 for row in world.rows if not row.cached_tokens)
    empty = sum((row.output_ticks or 0) * (not row.completion_tokens) for row in world.rows)
    empty += sum((row.reasoning_ticks or 0) * (not row.reasoning_tokens) for row in world.rows)
    whole = sum(row.cost_in_usd_ticks for row in world.rows) - not_cached - empty
    assert charged == pytest.approx(whole / 1e10)
    only = world.values(world.asked(*SUM_OF_USD, conditions=(Condition("unit_type", "output tokens"),)))
    assert only[()] == pytest.approx(found[("output tokens",)][:1])
    for measure in ("requests", "latency_seconds", "time_to_first_token_seconds"):
        assert world.refused(world.asked((measure, "sum"), group_by=("unit_type",))) == "values"


@pytest.mark.parametrize(
    ("unit", "size_us"), [("quarter_hour", 15 * MINUTE_US), ("minute", MINUTE_US), ("second", 1_000_000)]
)
def test_intervals_below_an_hour(world: World, unit: Any, size_us: int) -> None:
    begin_us = max(row.created_us for row in world.rows) - 899 * size_us
    query = Query(begin_us, begin_us + 900 * size_us, UTC, unit, (("requests", "sum"),))
    (series,) = world.ask(query)
    starts = [at for at, _ in series.points]
    assert starts == list(range(begin_us - begin_us % size_us, begin_us + 900 * size_us, size_us))
    within = [row for row in world.rows if begin_us <= row.created_us < query.end_us]
    expected = grouped(within, lambda row: row.created_us - row.created_us % size_us)
    assert [values[0] for _, values in series.points] == [len(expected.get(at, ())) for at in starts]
    assert within


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "Australia/Lord_Howe", "Asia/Kathmandu"])
@pytest.mark.parametrize("unit", ["hour", "day"])
def test_zones_whose_days_begin_within_an_hour_of_utc(world: World, zone: str, unit: Any) -> None:
    (series,) = world.ask(world.asked(("requests", "sum"), unit=unit, zone=analytics.zone_of(zone)))
    local = [datetime.fromtimestamp(at / 1e6, ZoneInfo(zone)) for at, _ in series.points]
    assert {(one.minute, one.second) for one in local} == {(0, 0)}
    assert unit == "hour" or {one.hour for one in local} == {0}
    for (at, values), (end, _) in zip(series.points, [*series.points[1:], (BEGIN_US + 3 * DAY_US, ())], strict=True):
        assert values[0] == sum(at <= row.created_us < end for row in world.rows)


@pytest.mark.parametrize(
    ("comparison", "holds"),
    [
        ("=", lambda value, bound: value == bound),
        ("<", lambda value, bound: value < bound),
        ("<=", lambda value, bound: value <= bound),
        (">", lambda value, bound: value > bound),
        (">=", lambda value, bound: value >= bound),
    ],
)
@pytest.mark.parametrize("negated", [False, True])
def test_numbers_are_compared(world: World, comparison: Any, holds: Any, negated: bool) -> None:
    bound = sorted(row.prompt_tokens for row in world.rows)[100]
    condition = Condition("prompt_tokens", bound, comparison, negated)
    found = world.values(world.asked(("requests", "sum"), conditions=(condition,)))
    assert found[()][0] == sum(holds(row.prompt_tokens, bound) is not negated for row in world.rows)


def test_what_is_not_known_is_not_compared(world: World) -> None:
    """A request without a first token is neither early nor late."""
    known = [row for row in world.rows if row.first_token_us is not None]
    for comparison in (">=", "<"):
        condition = Condition("time_to_first_token_seconds", 0.5, comparison)  # type: ignore[arg-type]
        found = world.values(world.asked(("requests", "sum"), conditions=(condition,)))
        late = sum((row.first_token_us or 0) >= 500_000 for row in known)
        assert found[()][0] == (late if comparison == ">=" else len(known) - late)


def test_keys_have_names(world: World) -> None:
    series = world.ask(world.asked(*SUM_OF_USD, group_by=("description", "api_key_id")))
    assert [one.group for one in series] == sorted((model, key) for model in ("grok-3", "grok-4") for key in world.keys)
    assert all(one.labels == (one.group[0], world.labels[one.group[1]]) for one in series)
    world.store.transact(keys.delete, world.keys[0])
    series = world.ask(world.asked(*SUM_OF_USD, group_by=("api_key_id",)))
    assert {one.group[0]: one.labels[0] for one in series} == {
        world.keys[0]: world.keys[0],
        world.keys[1]: world.labels[world.keys[1]],
    }


def test_deleted_rows_are_not_told_as_nothing(world: World) -> None:
    """Sums still are there for all of it; of single requests only from then on."""
    before = world.ask(world.asked(*SUM_OF_USD, unit="day"))
    world.store.transact(usage.delete_before, BEGIN_US + DAY_US)
    assert world.ask(world.asked(*SUM_OF_USD, unit="day")) == before
    assert world.refused(world.asked(("usd", "p99"))) == "timeRange"
    since_us = world.store.read(rollups.deleted_before)
    query = Query(since_us, BEGIN_US + 3 * DAY_US, UTC, "none", (("requests", "sum"),), ("status",))
    kept = [row for row in world.rows if row.created_us >= since_us]
    assert sum(values[0] for values in world.values(query).values()) == len(kept)
    assert 0 < len(kept) < len(world.rows)


def test_more_than_is_told_is_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analytics, "ROWS_MAX", 150)
    series, cut = world.store.read(
        analytics.analyze, world.operator, world.team, world.asked(("requests", "sum"), unit="minute", zone=UTC)
    )
    assert cut
    assert sum(values[0] for _, values in series[0].points) == 150
    monkeypatch.setattr(analytics, "ROWS_MAX", 200)
    world.ask(world.asked(("usd", "max")))
    monkeypatch.setattr(analytics, "SUMS_MAX", 3)
    query = world.asked(*SUM_OF_USD, group_by=("api_key_id", "description"))
    assert world.store.read(analytics.analyze, world.operator, world.team, query)[1]


def test_series_have_a_point_for_each_interval(world: World) -> None:
    for unit, zone in (("day", "UTC"), ("day", "America/New_York"), ("month", "UTC"), ("calendar_week", "Asia/Tokyo"), ("hour", "UTC"), ("none", "UTC")):  # fmt: skip
        begin, end = BEGIN_US - 40 * DAY_US, BEGIN_US + 60 * DAY_US
        values: Any = (("requests", "sum"), ("usd", "avg"))
        series = world.ask(Query(begin, end, analytics.zone_of(zone), unit, values, ("description",)))  # type: ignore[arg-type]
        assert [one.group for one in series] == [("grok-3",), ("grok-4",)]
        for one in series:
            starts = [at for at, _ in one.points]
            assert starts == sorted(set(starts))
            assert sum(values[0] for _, values in one.points) == sum(row.model == one.group[0] for row in world.rows)
            assert starts[0] <= begin
            assert len(starts) == len(series[0].points)


def test_days_of_a_zone_with_summer_time() -> None:
    zone = ZoneInfo("Europe/Berlin")
    begin, end = (int(datetime(2026, month, 1, tzinfo=zone).timestamp()) * 1_000_000 for month in (3, 12))
    query = Query(begin, end, zone, "day", (("usd", "sum"),))
    starts = analytics._starts(query)
    assert len(starts) == 275
    assert all(datetime.fromtimestamp(at / 1e6, zone).hour == 0 for at in starts)
    months = analytics._starts(Query(begin, end, zone, "month", (("usd", "sum"),)))
    assert [datetime.fromtimestamp(at / 1e6, zone).month for at in months] == [3, 4, 5, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("zone", ["Mars", "../etc/passwd", ""])
def test_zones_that_are_not_known(zone: str) -> None:
    with pytest.raises(BadRequest) as caught:
        analytics.zone_of(zone)
    assert caught.value.param == "timezone"


def test_too_many_intervals(world: World) -> None:
    assert world.refused(world.asked(*SUM_OF_USD, unit="second")) == "timeRange"
    assert world.refused(Query(BEGIN_US, BEGIN_US, UTC, "day", SUM_OF_USD)) == "timeRange"
    assert HOUR_US * analytics.POINTS_MAX > 366 * DAY_US, "a year by the hour is told"
