"""Usage as a time series, the query of xai-api.md 21.3 (AnalyzeBillingItems), out of the sums by the hour."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final, Literal, TypeAlias
from zoneinfo import ZoneInfo

from sqlalchemy.engine import Connection

from jubal.accounts.rollups import HOUR_US, Group, Total
from jubal.admin import usage
from jubal.admin.actor import Actor
from jubal.core.errors import BadRequest
from jubal.core.money import TICKS_PER_USD

Unit: TypeAlias = Literal["month", "calendar_week", "day", "hour", "none"]
Aggregation: TypeAlias = Literal["sum", "avg", "count"]
POINTS_MAX: Final = 10_000
"""Of one series. An hourly series of a year has 8,784."""
SERIES_MAX: Final = 1_000
ALL_POINTS_MAX: Final = 200_000
SUMS_MAX: Final = 200_000
GROUPS: Final[dict[str, Group]] = {"api_key_id": "key", "description": "model"}
MEASURES: Final = {
    "usd": lambda total: total.cost_in_usd_ticks / TICKS_PER_USD,
    "usage": lambda total: total.prompt_tokens + total.completion_tokens + total.reasoning_tokens,
    "requests": lambda total: total.requests,
    "failed": lambda total: total.failed,
    "prompt_tokens": lambda total: total.prompt_tokens,
    "cached_tokens": lambda total: total.cached_tokens,
    "completion_tokens": lambda total: total.completion_tokens,
    "reasoning_tokens": lambda total: total.reasoning_tokens,
    "tool_calls": lambda total: total.tool_calls,
}


@dataclass(frozen=True, slots=True)
class Query:
    """begin, end: hours that begin in between count. values: measures (`MEASURES`) and what of them.

    group_by: of `GROUPS`. keys, models: only these; not_*: all but these.
    """

    begin_us: int
    end_us: int
    zone: tzinfo
    unit: Unit
    values: tuple[tuple[str, Aggregation], ...]
    group_by: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    not_keys: tuple[str, ...] = ()
    not_models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Series:
    """group: the values of `Query.group_by`. points: one for each interval: when it began, and the values."""

    group: tuple[str, ...]
    points: tuple[tuple[int, tuple[float, ...]], ...]


def zone_of(name: str) -> tzinfo:
    """Raises `BadRequest` for what is no time zone, and for one whose days don't begin with an hour of UTC."""
    if name in ("Etc/GMT", "Etc/UTC", "UTC", "GMT"):
        return UTC
    try:
        zone = ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise BadRequest(f"There is no time zone `{name[:100]}`.", param="timezone", code="invalid_value") from None
    year = datetime.now(zone).year
    halves = (datetime(year, month, 1, tzinfo=zone) for month in (1, 7))  # summer time may be half an hour of it
    if any((half.utcoffset() or timedelta(0)) % timedelta(hours=1) for half in halves):
        raise BadRequest(
            "Usage is kept by the hour of UTC; this zone is off by a part of an hour.",
            param="timezone",
            code="unsupported_timezone",
        )
    return zone


def analyze(conn: Connection, actor: Actor, team_id: str, query: Query) -> tuple[list[Series], bool]:
    """The series, and whether there were more than are answered. Raises `NotAllowed`, `BadRequest`."""
    starts = _starts(query)
    hourly = query.unit == "hour" or query.zone is not UTC
    time: tuple[Group, ...] = () if query.unit == "none" else ("hour",) if hourly else ("day",)
    # Groups first: sums of one series come together and in the order of time.
    found = usage.totals(
        conn,
        actor,
        (*(GROUPS[name] for name in query.group_by), *time, *_filtered(query)),
        query.begin_us,
        query.end_us,
        team_id=team_id,
        key_ids=query.keys or None,
        models=query.models or None,
        limit=SUMS_MAX + 1,
    )
    truncated = len(found) > SUMS_MAX
    sums: dict[tuple[str, ...], dict[int, list[Total]]] = {}
    for total in found[:SUMS_MAX]:
        if total.key_id in query.not_keys or total.model in query.not_models or not total.requests:
            continue
        group = tuple(str(total.key_id if name == "api_key_id" else total.model) for name in query.group_by)
        start = starts[0] if total.begin_us is None else _start_of(total.begin_us, query)
        sums.setdefault(group, {}).setdefault(max(start, starts[0]), []).append(total)
    kept = max(1, min(SERIES_MAX, ALL_POINTS_MAX // len(starts)))
    series = [_series(group, by_start, starts, query) for group, by_start in list(sums.items())[:kept]]
    return series, truncated or len(sums) > kept


def _filtered(query: Query) -> tuple[Group, ...]:
    """What must be told apart to leave something out."""
    return (
        *(("key",) if query.not_keys and "api_key_id" not in query.group_by else ()),
        *(("model",) if query.not_models and "description" not in query.group_by else ()),
    )


def _series(group: tuple[str, ...], by_start: dict[int, list[Total]], starts: list[int], query: Query) -> Series:
    points = []
    for start in starts:
        totals = by_start.get(start, [])
        points.append((start, tuple(_value(totals, *value) for value in query.values)))
    return Series(group, tuple(points))


def _value(totals: list[Total], measure: str, aggregation: Aggregation) -> float:
    requests = sum(total.requests for total in totals)
    if aggregation == "count":
        return requests
    whole = float(sum(MEASURES[measure](total) for total in totals))
    if aggregation == "avg":
        return whole / requests if requests else 0.0
    return whole


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
    if query.unit == "hour":
        return us - us % HOUR_US
    local = datetime.fromtimestamp(us // 1_000_000, query.zone)
    day = local.replace(hour=0, minute=0, second=0, microsecond=0)
    if query.unit == "month":
        day = day.replace(day=1)
    elif query.unit == "calendar_week":
        day -= timedelta(days=day.weekday())
    return int(day.timestamp()) * 1_000_000


def _next(start: int, query: Query) -> int:
    """When the interval after the one that begins at `start` does."""
    if query.unit == "hour":
        return start + HOUR_US
    days = {"day": 1, "calendar_week": 7, "month": 31}[query.unit]
    # An hour on top: the day may be one of 23 or 25 hours, or the 31 days end in the middle of the next month.
    local = datetime.fromtimestamp(start // 1_000_000, query.zone)
    after = local + timedelta(days=days, hours=1)
    return _start_of(int(after.timestamp()) * 1_000_000, query)
