"""Usage as a time series, the query of xai-api.md 21.3 (AnalyzeBillingItems).

What the sums by the hour can tell comes from them, however long the range is. The rest is read from the rows, request by
request, up to a bound (`ROWS_MAX`): intervals below an hour, percentiles and the like, what else than key and model rows tell.
"""

from __future__ import annotations

import math
import operator
import statistics
from array import array
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import islice
from typing import Final, Literal, NamedTuple, TypeAlias
from zoneinfo import ZoneInfo

from sqlalchemy.engine import Connection

from jubal.accounts import itemised, keys, rollups
from jubal.accounts.itemised import Line
from jubal.accounts.rollups import HOUR_US, Group, Total
from jubal.admin import usage
from jubal.admin.actor import Actor
from jubal.core.errors import BadRequest
from jubal.core.money import TICKS_PER_USD

Unit: TypeAlias = Literal["month", "calendar_week", "day", "hour", "quarter_hour", "minute", "second", "none"]
Aggregation: TypeAlias = Literal[
    "sum", "avg", "var", "std", "min", "max", "p50", "p90", "p99", "p999", "count", "count_distinct"
]
POINTS_MAX: Final = 10_000
"""Of one series. An hourly series of a year has 8,784."""
SERIES_MAX: Final = 1_000
ALL_POINTS_MAX: Final = 200_000
SUMS_MAX: Final = 200_000
ROWS_MAX: Final = 100_000
VALUES_MAX: Final = 10
"""Of one point. What rows say of each is held in memory until the end."""
SECOND_US: Final = 1_000_000
SIZES_US: Final[dict[Unit, int]] = {
    "hour": HOUR_US,
    "quarter_hour": 900 * SECOND_US,
    "minute": 60 * SECOND_US,
    "second": SECOND_US,
}
"""Of intervals that are all of one length."""
GROUPS: Final = ("api_key_id", "description", "unit_type", "endpoint", "status")
"""By what usage is told apart. description: the model. unit_type: what was charged for, as lines of invoices say it. endpoint: its
ACL name. status: ok, failed or cancelled."""
GROUPS_OF_SUMS: Final[dict[str, Group]] = {"api_key_id": "key", "description": "model"}
AGGREGATIONS_OF_SUMS: Final = ("sum", "avg", "count")


class Measured(NamedTuple):
    """What is known of one request, of one line of what it cost, or (`Total.requests`) of many requests together.

    first_token_us: None where it is not known.
    """

    total: Total
    first_token_us: int | None = None


Measure: TypeAlias = Callable[[Measured], "float | None"]
MEASURES: Final[dict[str, Measure]] = {
    "usd": lambda one: one.total.cost_in_usd_ticks / TICKS_PER_USD,
    "usage": lambda one: one.total.prompt_tokens + one.total.completion_tokens + one.total.reasoning_tokens,
    "requests": lambda one: one.total.requests,
    "failed": lambda one: one.total.failed,
    "prompt_tokens": lambda one: one.total.prompt_tokens,
    "cached_tokens": lambda one: one.total.cached_tokens,
    "completion_tokens": lambda one: one.total.completion_tokens,
    "reasoning_tokens": lambda one: one.total.reasoning_tokens,
    "tool_calls": lambda one: one.total.tool_calls,
    "latency_seconds": lambda one: one.total.latency_us / SECOND_US,
    "time_to_first_token_seconds": lambda one: None if one.first_token_us is None else one.first_token_us / SECOND_US,
}
"""What can be told of a request. Of a line of what it cost (`unit_type`): `MEASURES_OF_LINES`, where usage is its quantity."""
MEASURES_OF_LINES: Final = ("usd", "usage")
MEASURES_OF_ROWS: Final = ("time_to_first_token_seconds",)
"""Those that sums can't tell."""

Comparison: TypeAlias = Literal["=", "<", "<=", ">", ">="]
COMPARED: Final[dict[Comparison, Callable[[float, float], bool]]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Condition:
    """What counts: where `field`, of `GROUPS`, is `value`, or of `MEASURES`, compares so to it. negated: all but these."""

    field: str
    value: str | float
    comparison: Comparison = "="
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    """begin, end: requests, and where sums tell it hours, that begin in between count. values: measures and what of them, at most
    `VALUES_MAX`. group_by: of `GROUPS`. conditions: all of them hold for what counts."""

    begin_us: int
    end_us: int
    zone: tzinfo
    unit: Unit
    values: tuple[tuple[str, Aggregation], ...]
    group_by: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()

    @property
    def fields(self) -> set[str]:
        """All that is told apart, counted or compared."""
        names = (name for name, _ in self.values)
        return {*self.group_by, *names, *(condition.field for condition in self.conditions)}


@dataclass(frozen=True, slots=True)
class Series:
    """group: the values of `Query.group_by`; labels: for people to read. points: one for each interval: when it began, and the
    values."""

    group: tuple[str, ...]
    labels: tuple[str, ...]
    points: tuple[tuple[int, tuple[float, ...]], ...]


class _Point:
    """What counts in one interval of a series. values: for each of `Query.values`, what was measured."""

    __slots__ = ("requests", "values")

    def __init__(self, query: Query) -> None:
        self.requests = 0
        self.values = [array("d") for _ in query.values]


class _Found:
    """What a query found: by group, by the interval's begin. cut: there was more."""

    def __init__(self, query: Query, starts: list[int]) -> None:
        self.groups: dict[tuple[str, ...], dict[int, _Point]] = {}
        self.cut = False
        self._query = query
        self._starts = starts

    def add(self, at_us: int, texts: Mapping[str, str], measured: Measured) -> None:
        """Adds what counts; the rest is left out. texts: by name, of `GROUPS`."""
        query = self._query
        if not all(_holds(one, texts, measured) is not one.negated for one in query.conditions):
            return
        points = self.groups.setdefault(tuple(texts[name] for name in query.group_by), {})
        # A day of sums may have begun before the first interval.
        start = self._starts[max(0, bisect_right(self._starts, at_us) - 1)]
        if (point := points.get(start)) is None:
            point = points[start] = _Point(query)
        point.requests += measured.total.requests
        for (name, _), values in zip(query.values, point.values, strict=True):
            if (value := MEASURES[name](measured)) is not None:
                values.append(value)


def zone_of(name: str) -> tzinfo:
    """Raises `BadRequest` for what is no time zone."""
    if name in ("Etc/GMT", "Etc/UTC", "UTC", "GMT"):
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise BadRequest(f"There is no time zone `{name[:100]}`.", param="timezone", code="invalid_value") from None


def analyze(conn: Connection, actor: Actor, team_id: str, query: Query) -> tuple[list[Series], bool]:
    """The series, and whether there was more than they tell. Raises `NotAllowed`, `BadRequest`."""
    starts = _starts(query)
    _check_fields(query)
    found = _Found(query, starts)
    (_add_sums if _sums_tell(query) else _add_rows)(conn, actor, team_id, query, found)
    kept = max(1, min(SERIES_MAX, ALL_POINTS_MAX // len(starts)))
    groups = sorted(found.groups)
    names = _key_names(conn, team_id, query, groups[:kept])
    series = [
        Series(
            group,
            tuple(names.get(value, value) for value in group),
            tuple((start, _values(found.groups[group].get(start), query)) for start in starts),
        )
        for group in groups[:kept]
    ]
    return series, found.cut or len(groups) > kept


def _check_fields(query: Query) -> None:
    """Raises `BadRequest` where lines of what requests cost are asked for what only requests have."""
    fields = query.fields
    if "unit_type" in fields and (others := fields & (MEASURES.keys() - set(MEASURES_OF_LINES))):
        raise BadRequest(
            f"`unit_type` tells {' and '.join(MEASURES_OF_LINES)} apart, and nothing of {', '.join(sorted(others))}.",
            param="values",
            code="invalid_value",
        )


def _key_names(conn: Connection, team_id: str, query: Query, groups: list[tuple[str, ...]]) -> Mapping[str, str]:
    """By id: what the keys among the groups are called. Those that were deleted have no name any more."""
    if "api_key_id" not in query.group_by:
        return {}
    place = query.group_by.index("api_key_id")
    return keys.labels(conn, team_id, {group[place] for group in groups})


# -------------------------------------------------------------------------------------------------------- sums, by the hour


def _sums_tell(query: Query) -> bool:
    """Whether the sums by the hour hold the answer."""
    return (
        query.unit not in ("quarter_hour", "minute", "second")
        and all(aggregation in AGGREGATIONS_OF_SUMS for _, aggregation in query.values)
        and not query.fields & {*GROUPS, *MEASURES_OF_ROWS} - GROUPS_OF_SUMS.keys()
        and all(condition.field in GROUPS_OF_SUMS for condition in query.conditions)
        and _has_whole_hours(query.zone)
    )


def _has_whole_hours(zone: tzinfo) -> bool:
    """Whether its days begin with an hour of UTC."""
    year = datetime.now(zone).year
    halves = (datetime(year, month, 1, tzinfo=zone) for month in (1, 7))  # summer time may be half an hour of it
    return not any((half.utcoffset() or timedelta(0)) % timedelta(hours=1) for half in halves)


def _add_sums(conn: Connection, actor: Actor, team_id: str, query: Query, found: _Found) -> None:
    hourly = query.unit == "hour" or query.zone is not UTC
    time: tuple[Group, ...] = () if query.unit == "none" else ("hour",) if hourly else ("day",)
    told_apart = {*query.group_by, *(condition.field for condition in query.conditions)}
    # Groups first: sums of one series come together and in the order of time.
    totals = usage.totals(
        conn,
        actor,
        (*(group for name, group in GROUPS_OF_SUMS.items() if name in told_apart), *time),
        query.begin_us,
        query.end_us,
        team_id=team_id,
        key_ids=_only(query, "api_key_id"),
        models=_only(query, "description"),
        limit=SUMS_MAX + 1,
    )
    found.cut = len(totals) > SUMS_MAX
    for total in totals[:SUMS_MAX]:
        if total.requests:
            texts = {"api_key_id": str(total.key_id), "description": str(total.model)}
            found.add(query.begin_us if total.begin_us is None else total.begin_us, texts, Measured(total))


def _only(query: Query, field: str) -> list[str] | None:
    """The values of a field that may count, where conditions name them; None for all."""
    named = {str(one.value) for one in query.conditions if one.field == field and not one.negated}
    return sorted(named) or None


# ------------------------------------------------------------------------------------------------------------ rows, one by one


def _add_rows(conn: Connection, actor: Actor, team_id: str, query: Query, found: _Found) -> None:
    """Raises `BadRequest` for a range whose rows may be deleted."""
    rows = usage.export(
        conn,
        actor,
        query.begin_us,
        query.end_us,
        team_id=team_id,
        key_ids=_only(query, "api_key_id"),
        models=_only(query, "description"),
    )
    if query.begin_us < (deleted_before_us := rollups.deleted_before(conn)):
        since = datetime.fromtimestamp(deleted_before_us // SECOND_US, UTC)
        raise BadRequest(
            f"Single requests are kept here since {since:%Y-%m-%d %H:%M:%S} UTC. Ask from then on, or for sums, averages and "
            f"counts by hours or more, grouped by {' and '.join(GROUPS_OF_SUMS)} at most.",
            param="timeRange",
            code="rows_deleted",
        )
    by_line = "unit_type" in query.fields
    for row in islice(rows, ROWS_MAX):
        texts = {
            "api_key_id": row.key_id,
            "description": row.model,
            "endpoint": row.endpoint,
            "status": row.status,
        }
        if not by_line:
            found.add(row.created_us, texts, Measured(rollups.total_of(row), row.first_token_us))
            continue
        for line in itemised.lines_of(row):
            if line.what != itemised.CHARGED and line.quantity:
                texts["unit_type"] = line.what
                found.add(row.created_us, texts, Measured(_of_line(line)))
    found.cut = next(rows, None) is not None


def _of_line(line: Line) -> Total:
    """requests is 1, the quantity counts as tokens (`MEASURES_OF_LINES`)."""
    return Total(1, 0, 0, line.quantity, 0, 0, 0, 0, line.ticks, 0)


def _holds(condition: Condition, texts: Mapping[str, str], measured: Measured) -> bool:
    if isinstance(condition.value, str):
        return texts[condition.field] == condition.value
    value = MEASURES[condition.field](measured)
    return value is not None and COMPARED[condition.comparison](value, condition.value)


# -------------------------------------------------------------------------------------------------------------- values


def _values(point: _Point | None, query: Query) -> tuple[float, ...]:
    """0 where there is nothing."""
    if point is None:
        return (0.0,) * len(query.values)
    return tuple(
        _value(aggregation, values, len(values) if measure in MEASURES_OF_ROWS else point.requests)
        for (measure, aggregation), values in zip(query.values, point.values, strict=True)
    )


def _value(aggregation: Aggregation, values: array[float], requests: int) -> float:
    """requests: that the values are of; more than one for each, where they are sums."""
    match aggregation:
        case "count":
            return requests
        case "count_distinct":
            return len(set(values))
        case "sum":
            return math.fsum(values)
    if not values:
        return 0.0
    mean = math.fsum(values) / requests
    match aggregation:
        case "avg":
            return mean
        case "min":
            return min(values)
        case "max":
            return max(values)
        case "var" | "std":
            variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
            return variance if aggregation == "var" else math.sqrt(variance)
    return _quantile(values, {"p50": 500, "p90": 900, "p99": 990, "p999": 999}[aggregation])


def _quantile(values: array[float], of_1000: int) -> float:
    """Interpolated between the two values that are nearest."""
    return values[0] if len(values) == 1 else statistics.quantiles(values, n=1000, method="inclusive")[of_1000 - 1]


# ------------------------------------------------------------------------------------------------------- intervals


def _starts(query: Query) -> list[int]:
    """When each interval begins, the first one no later than the query. Raises `BadRequest` where there are too many."""
    if query.end_us <= query.begin_us:
        raise BadRequest("The time range ends before it begins.", param="timeRange", code="invalid_value")
    start = _start_of(query.begin_us, query)
    starts = [start]
    while query.unit != "none" and (start := _next(start, query)) < query.end_us:
        starts.append(start)
        if len(starts) > POINTS_MAX:
            raise BadRequest(
                f"The range has more than {POINTS_MAX:,} intervals. Ask for less, or for longer ones.",
                param="timeRange",
                code="too_many_points",
            )
    return starts


def _start_of(us: int, query: Query) -> int:
    """When the interval of a moment began."""
    if query.unit == "none":
        return query.begin_us
    local = datetime.fromtimestamp(us // SECOND_US, query.zone)
    if (size := SIZES_US.get(query.unit)) is not None:
        offset = int((local.utcoffset() or timedelta(0)).total_seconds()) * SECOND_US
        return us - (us + offset) % size
    day = local.replace(hour=0, minute=0, second=0, microsecond=0)
    if query.unit == "month":
        day = day.replace(day=1)
    elif query.unit == "calendar_week":
        day -= timedelta(days=day.weekday())
    return int(day.timestamp()) * SECOND_US


def _next(start: int, query: Query) -> int:
    """When the interval after the one that begins at `start` does."""
    if (size := SIZES_US.get(query.unit)) is not None:
        return start + size
    days = {"day": 1, "calendar_week": 7, "month": 31}[query.unit]
    # An hour on top: the day may be one of 23 or 25 hours, or the 31 days end in the middle of the next month.
    local = datetime.fromtimestamp(start // SECOND_US, query.zone)
    after = local + timedelta(days=days, hours=1)
    return _start_of(int(after.timestamp()) * SECOND_US, query)
