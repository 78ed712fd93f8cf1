"""The routes of the management API (xai-api.md 21), and those about one's own key (2.3, 2.4).

Each asks admin/ and renders what it says: who may do what is decided there, for the command line and for this alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeAlias, TypeVar
from urllib.parse import parse_qs

import msgspec

from jubal.accounts import keys, ledger, prices, teams
from jubal.accounts.acl import ENDPOINTS
from jubal.accounts.audit import Act
from jubal.accounts.keys import Key, Place
from jubal.accounts.scopes import Scopes
from jubal.accounts.team_limits import ALL, NO_RATES, Rates, TeamLimits
from jubal.accounts.teams import Team
from jubal.admin import actor, analytics, billing, log
from jubal.admin import keys as admin_keys
from jubal.admin import limits as admin_limits
from jubal.admin import teams as admin_teams
from jubal.admin.actor import Actor
from jubal.admin.analytics import Condition, Query
from jubal.admin.billing import Bill, Books, Change, Prepaid, SpendingLimit
from jubal.core.errors import BadRequest, JubalError, NotFound, UnsupportedMedia
from jubal.core.model import Model, Weights
from jubal.core.money import LongContext, Price
from jubal.wire import management as wire
from jubal.wire.decode import decode
from jubal.wire.openai_models import real_context

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from jubal.accounts.store import Store
    from jubal.serving.door import Door
    from jubal.serving.http import Exchange
    from jubal.serving.pipeline import Pipeline

P = ParamSpec("P")
T = TypeVar("T")
Handler: TypeAlias = Callable[["Exchange"], Awaitable[None]]
Names: TypeAlias = tuple[str, ...]

OVERLAP_US: Final = 24 * 3600 * 1_000_000
"""How long an old secret works unless told (xai-api.md 21.1)."""
PAGE: Final = 100
PAGE_MAX: Final = 1000
BODY_BYTES_MAX: Final = 1 << 20
CLUSTER: Final = "jubal"
NO_LONG_CONTEXT: Final = LongContext(0, 0, 0, 0)
UNITS: Final[dict[str, analytics.Unit]] = {
    "TIME_UNIT_MONTH": "month",
    "TIME_UNIT_CALENDAR_WEEK": "calendar_week",
    "TIME_UNIT_DAY": "day",
    "TIME_UNIT_HOUR": "hour",
    "TIME_UNIT_QUARTER_HOUR": "quarter_hour",
    "TIME_UNIT_MINUTE": "minute",
    "TIME_UNIT_SECOND": "second",
    "TIME_UNIT_NONE": "none",
}
AGGREGATIONS: Final[dict[str, analytics.Aggregation]] = {
    "AGGREGATION_SUM": "sum",
    "AGGREGATION_AVG": "avg",
    "AGGREGATION_VAR": "var",
    "AGGREGATION_STD": "std",
    "AGGREGATION_MIN": "min",
    "AGGREGATION_MAX": "max",
    "AGGREGATION_P50": "p50",
    "AGGREGATION_P90": "p90",
    "AGGREGATION_P99": "p99",
    "AGGREGATION_P999": "p999",
    "AGGREGATION_COUNT": "count",
    "AGGREGATION_COUNT_DISTINCT": "count_distinct",
}
COMPARISONS: Final[tuple[analytics.Comparison, ...]] = (">=", "<=", ">", "<")
FILTERS_MAX: Final = 100
ORIGINS: Final = {"purchase": "PURCHASE", "spend": "SPEND", "refund": "REFUND", "manual": "MANUAL"}


class Routes:
    """A table of paths with `{}` for each part that varies."""

    def __init__(self) -> None:
        self._paths: list[tuple[list[str], dict[str, Callable[..., Awaitable[None]]]]] = []

    def add(self, method: str, path: str, handler: Callable[..., Awaitable[None]]) -> None:
        """handler: takes the exchange and one text for each `{}`."""
        parts = path.split("/")
        for known, methods in self._paths:
            if known == parts:
                methods[method] = handler
                return
        self._paths.append((parts, {method: handler}))

    def find(self, path: str) -> Mapping[str, Handler] | None:
        parts = path.split("/")
        for known, methods in self._paths:
            if len(known) == len(parts) and all(a in ("{}", b) for a, b in zip(known, parts, strict=True)):
                values = [part for name, part in zip(known, parts, strict=True) if name == "{}"]
                if all(values):
                    return {method: partial(_called, handler, values) for method, handler in methods.items()}
        return None

    def routes(self) -> set[tuple[str, str]]:
        return {(method, "/".join(parts)) for parts, methods in self._paths for method in methods}


async def _called(handler: Callable[..., Awaitable[None]], values: list[str], exchange: Exchange) -> None:
    await handler(exchange, *values)


class Own(Routes):
    """GET /v1/api-key and /v1/me: what an inference key may know of itself."""

    def __init__(self, store: Store, door: Door) -> None:
        super().__init__()
        self._store = store
        self._door = door
        self.add("GET", "/v1/api-key", self._key)
        self.add("GET", "/v1/me", self._me)

    async def _found(self, exchange: Exchange) -> tuple[Key, Team]:
        caller = await self._door.identify(exchange)

        def read(conn: Connection) -> tuple[Key, Team]:
            key = keys.get(conn, caller.key_id)
            return key, teams.get(conn, key.team_id)

        try:
            return await self._store.run_read(read)
        except NotFound:  # deleted in these two seconds
            raise keys.unknown() from None

    async def _key(self, exchange: Exchange) -> None:
        key, team = await self._found(exchange)
        await _answer(
            exchange,
            wire.OwnKey(
                redacted_api_key=key.redacted,
                user_id=key.user_id,
                name=key.name,
                create_time=wire.stamp(key.created_us),
                modify_time=wire.stamp(key.modified_us),
                modified_by=key.modified_by,
                team_id=key.team_id,
                acls=list(key.acls),
                api_key_id=key.id,
                team_blocked=team.blocked,
                api_key_blocked=key.blocked,
                api_key_disabled=key.disabled,
            ),
        )

    async def _me(self, exchange: Exchange) -> None:
        key, team = await self._found(exchange)
        mine = wire.MyKey(key.redacted, key.id, key.blocked, key.disabled)
        await _answer(exchange, wire.Me(key.user_id, key.team_id, "no_zdr", team.blocked, mine, None))


class Management(Routes):
    """For management keys. books: what the ledger says. scopes: what limits teams. now_us: microseconds since 1970."""

    def __init__(
        self,
        store: Store,
        door: Door,
        pipeline: Pipeline,
        books: Books,
        scopes: Scopes,
        *,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        super().__init__()
        self._store = store
        self._door = door
        self._pipeline = pipeline
        self._books = books
        self._scopes = scopes
        self._now_us = now_us
        self._add_keys()
        self._add_billing()

    def _add_keys(self) -> None:
        of_team, of_key = "/auth/teams/{}", "/auth/api-keys/{}"
        self.add("POST", f"{of_team}/api-keys", self._create)
        self.add("GET", f"{of_team}/api-keys", self._list)
        self.add("GET", of_key, self._get)
        self.add("PUT", of_key, self._update)
        self.add("DELETE", of_key, self._delete)
        self.add("POST", f"{of_key}/rotate", self._rotate)
        self.add("GET", f"{of_key}/propagation", self._propagation)
        self.add("GET", f"{of_team}/models", self._models)
        self.add("GET", f"{of_team}/limits", self._team_limits)
        self.add("PUT", f"{of_team}/limits", self._set_team_limit)
        self.add("GET", f"{of_team}/endpoints", self._endpoints)
        self.add("GET", "/auth/management-keys/validation", self._validation)
        self.add("GET", "/auth/teams", self._teams)
        self.add("GET", "/audit/teams/{}/events", self._events)

    def _add_billing(self) -> None:
        of_team = "/v1/billing/teams/{}"
        self.add("GET", f"{of_team}/billing-info", self._billing_info)
        self.add("POST", f"{of_team}/billing-info", self._set_billing_info)
        self.add("GET", f"{of_team}/invoices", self._invoices)
        self.add("GET", f"{of_team}/payment-method", self._payment_methods)
        self.add("POST", f"{of_team}/payment-method/default", self._set_payment_method)
        self.add("GET", f"{of_team}/postpaid/invoice/preview", self._preview)
        self.add("GET", f"{of_team}/postpaid/spending-limits", self._limits)
        self.add("POST", f"{of_team}/postpaid/spending-limits", self._set_limit)
        self.add("GET", f"{of_team}/prepaid/balance", self._balance)
        self.add("POST", f"{of_team}/prepaid/top-up", self._top_up)
        self.add("POST", f"{of_team}/usage", self._usage)

    # ------------------------------------------------------------------------------------------ what all of them do

    async def _actor(self, exchange: Exchange) -> Actor:
        caller = await self._door.identify(exchange, management=True)
        return actor.of_key(caller, request_id=exchange.id, address=self._door.address(exchange))

    async def _body(self, exchange: Exchange, decoder: msgspec.json.Decoder[T]) -> T:
        if (exchange.header(b"content-type") or "").startswith("multipart/"):
            raise UnsupportedMedia("Send the request as application/json.")
        return decode(decoder, await exchange.body(BODY_BYTES_MAX))

    async def _act(self, fn: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """One act and its line in the audit log. Names of parameters at fault are those of this API."""
        with _in_our_words():
            return await self._store.run(fn, *args, **kwargs)

    async def _read(self, fn: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        with _in_our_words():
            return await self._store.run_read(fn, *args, **kwargs)

    # ------------------------------------------------------------------------------------------ keys

    async def _create(self, exchange: Exchange, team_id: str) -> None:
        who = await self._actor(exchange)
        asked = await self._body(exchange, msgspec.json.Decoder(wire.CreateKey))
        key, secret = await self._act(
            admin_keys.create,
            who,
            team_id=team_id,
            name=asked.name,
            acls=tuple(asked.acls or ()),  # without ACLs a key can do nothing (xai-api.md 2.2)
            rps=wire.whole(asked.qps, "qps"),
            rpm=wire.whole(asked.qpm, "qpm"),
            tpm=wire.whole(asked.tpm, "tpm"),
            expires_us=_moment(asked.expire_time, "expireTime"),
            now_us=self._now_us(),
        )
        await _answer(exchange, _key(key, secret))

    async def _list(self, exchange: Exchange, team_id: str) -> None:
        who = await self._actor(exchange)
        query = _Query(exchange)
        size, wanted, now_us = query.page_size(), set(query.all("aclFilters")), self._now_us()
        active = query.flag("activeOnly")

        def only(key: Key) -> bool:
            return (not wanted or not wanted.isdisjoint(key.acls)) and not (active and _is_idle(key, now_us))

        found = await self._read(
            admin_keys.listing,
            who,
            team_id=team_id,
            limit=size + 1,
            after=_place(query.one("paginationToken")),
            only=only,
        )
        last = Place.of(found[size - 1]) if len(found) > size else None
        more = msgspec.UNSET if last is None else f"{last.created_us}.{last.id}"
        await _answer(exchange, wire.ApiKeyList([_key(key) for key in found[:size]], more))

    async def _get(self, exchange: Exchange, key_id: str) -> None:
        who = await self._actor(exchange)
        await _answer(exchange, _key(await self._read(admin_keys.get, who, key_id)))

    async def _update(self, exchange: Exchange, key_id: str) -> None:
        who = await self._actor(exchange)
        changes = wire.changes_of(await self._body(exchange, msgspec.json.Decoder(wire.UpdateKey)))
        key = await self._act(admin_keys.update, who, key_id, changes, now_us=self._now_us())
        await _answer(exchange, _key(key))

    async def _delete(self, exchange: Exchange, key_id: str) -> None:
        who = await self._actor(exchange)
        await self._act(admin_keys.delete, who, key_id, now_us=self._now_us())
        await _answer(exchange, wire.Nothing())

    async def _rotate(self, exchange: Exchange, key_id: str) -> None:
        who = await self._actor(exchange)
        body = await exchange.body(BODY_BYTES_MAX) or b"{}"
        asked = decode(msgspec.json.Decoder(wire.RotateKey), body)
        now_us = self._now_us()
        until_us = _moment(asked.old_secret_expire_time, "oldSecretExpireTime")
        key, secret = await self._act(
            admin_keys.rotate,
            who,
            key_id,
            # "now" of a client is in the past here: it means that the old secret stops at once
            overlap_us=OVERLAP_US if until_us is None else max(0, until_us - now_us),
            expires_us=_moment(asked.expire_time, "expireTime"),
            now_us=now_us,
        )
        await _answer(exchange, _key(key, secret))

    async def _propagation(self, exchange: Exchange, key_id: str) -> None:
        who = await self._actor(exchange)
        known = await self._read(admin_keys.is_propagated, who, key_id, now_us=self._now_us())
        await _answer(exchange, wire.Propagation({CLUSTER: known}))

    async def _validation(self, exchange: Exchange) -> None:
        caller = await self._door.identify(exchange, management=True)
        try:
            key = await self._read(keys.get, caller.key_id)
        except NotFound:  # deleted in these two seconds
            raise keys.unknown() from None
        await _answer(
            exchange,
            wire.ManagementKey(
                api_key_id=key.id,
                team_id=key.team_id,
                scope="SCOPE_TEAM",
                scope_id=key.team_id,
                owner_user_id=key.user_id,
                create_time=wire.stamp(key.created_us),
                modify_time=wire.stamp(key.modified_us),
                name=key.name,
                acls=list(key.acls),
                redacted_api_key=key.redacted,
                ip_ranges=None,
            ),
        )

    async def _teams(self, exchange: Exchange) -> None:
        who = await self._actor(exchange)
        found = await self._read(admin_teams.listing, who)
        await _answer(
            exchange,
            wire.ManagedTeams(
                [
                    wire.ManagedTeam(team.id, team.name, wire.stamp(team.created_us), team.blocked, team.tier)
                    for team in found
                ]
            ),
        )

    async def _endpoints(self, exchange: Exchange, team_id: str) -> None:
        who = await self._actor(exchange)
        who.demand("ListPossibleEndpointAcls")
        who.demand_team(team_id)
        await _answer(
            exchange,
            wire.EndpointAcls(
                [
                    wire.EndpointAcl(f"api-key:endpoint:{name}", _description(name), "api-key", "endpoint", name)
                    for name in ("*", *ENDPOINTS)
                ]
            ),
        )

    async def _models(self, exchange: Exchange, team_id: str) -> None:
        who = await self._actor(exchange)
        team, limits = await self._read(admin_limits.on_models, who, team_id)
        own = await self._read(prices.of_team, team_id, self._now_us())
        price_of = partial(self._pipeline.charging.price_of_team, team.tier, own)
        cluster = wire.ClusterConfig(
            CLUSTER,
            [
                _language_model(model, weights, price_of(model), self._scopes.rates_on(model.name, team.tier, limits))
                for model, weights in self._pipeline.offers("language")
            ],
            [
                _embedding_model(model, weights, price_of(model))
                for model, weights in self._pipeline.offers("embedding")
            ],
            [],
            [],
            [],
        )
        await _answer(exchange, wire.ClusterConfigs([cluster]))

    async def _events(self, exchange: Exchange, team_id: str) -> None:
        who = await self._actor(exchange)
        query = _Query(exchange)
        size = query.page_size()
        found = await self._read(
            log.listing,
            who,
            team_id=team_id,
            begin_us=_moment(query.one("startTime"), "startTime") or 0,
            end_us=_moment(query.one("endTime"), "endTime") or 2**62,
            before=query.one("paginationToken"),
            limit=size + 1,
        )
        more = found[size - 1].id if len(found) > size else msgspec.UNSET
        await _answer(exchange, wire.AuditEvents([_event(act) for act in found[:size]], more))

    # ------------------------------------------------------------------------------------------ limits

    async def _team_limits(self, exchange: Exchange, team_id: str) -> None:
        who = await self._actor(exchange)
        team, limits = await self._read(admin_limits.get, who, team_id)
        models = sorted({*self._scopes.models, *limits.models, *limits.own} - {ALL})
        await _answer(exchange, wire.TeamLimitList([self._limit(name, team, limits) for name in (ALL, *models)]))

    async def _set_team_limit(self, exchange: Exchange, team_id: str) -> None:
        who = await self._actor(exchange)
        asked = await self._body(exchange, msgspec.json.Decoder(wire.SetTeamLimit))
        model = asked.model
        if model != ALL:
            model = self._pipeline.offer(model, ("language", "embedding"))[0].name
        rates = Rates(_rate(asked.rps, "rps"), _rate(asked.rpm, "rpm"), _rate(asked.tpm, "tpm"))
        if rates == NO_RATES:
            raise BadRequest("Which limit? Give `rps`, `rpm` or `tpm`.", param="rpm", code="missing_field")
        await self._store.run(admin_limits.put_own, who, team_id, model, rates, now_us=self._now_us())
        team, limits = await self._read(admin_limits.get, replace(who, acl=None), team_id)
        await _answer(exchange, self._limit(model, team, limits))

    def _limit(self, model: str, team: Team, limits: TeamLimits) -> wire.TeamLimit:
        own = limits.own.get(model, NO_RATES)
        rates = self._scopes.limits_of(None if model == ALL else model, team.tier, limits)
        mine = wire.OwnLimits(wire.rate(own.rps), wire.rate(own.rpm), wire.rate(own.tpm))
        return wire.TeamLimit(model, wire.rate(rates.rps), wire.rate(rates.rpm), wire.rate(rates.tpm), mine)

    # ------------------------------------------------------------------------------------------ billing

    async def _billing_info(self, exchange: Exchange, team_id: str) -> None:
        who = await self._actor(exchange)
        info = await self._read(billing.info, who, team_id)
        await _answer(exchange, wire.BillingInfoAnswer(msgspec.convert(info, wire.BillingInfo)))

    async def _set_billing_info(self, exchange: Exchange, team_id: str) -> None:
        who = await self._actor(exchange)
        asked = await self._body(exchange, msgspec.json.Decoder(wire.SetBillingInfo))
        info = msgspec.to_builtins(asked.billing_info)
        await self._act(billing.set_info, who, team_id, info, now_us=self._now_us())
        await _answer(exchange, wire.Nothing())

    async def _payment_methods(self, exchange: Exchange, team_id: str) -> None:
        who = await self._actor(exchange)
        await _answer(exchange, wire.PaymentMethods(await self._read(billing.payment_methods, who, team_id), None))

    async def _set_payment_method(self, exchange: Exchange, team_id: str) -> None:
        who = await self._actor(exchange)
        await self._body(exchange, msgspec.json.Decoder(wire.SetPaymentMethod))
        raise await self._read(billing.no_payment, who, "SetDefaultPaymentMethod", team_id)

    async def _top_up(self, exchange: Exchange, team_id: str) -> None:
        who = await self._actor(exchange)
        await self._body(exchange, msgspec.json.Decoder(wire.TopUp))
        raise await self._read(billing.no_payment, who, "TopUpOrGetExistingPendingChange", team_id)

    async def _preview(self, exchange: Exchange, team_id: str) -> None:
        who = await self._actor(exchange)
        bill, limit = await self._read(billing.preview, who, self._books, team_id, now_us=self._now_us())
        left = await self._read(self._books.prepaid, team_id, self._now_us())
        await _answer(exchange, _preview(bill, limit, left))

    async def _invoices(self, exchange: Exchange, team_id: str) -> None:
        who = await self._actor(exchange)
        query = _Query(exchange)
        bills = await self._read(
            billing.invoices,
            who,
            self._books,
            team_id,
            since=query.month("since") or 0,
            only=query.month("billingCycle"),
            now_us=self._now_us(),
        )
        wanted = set(query.all("invoiceIds.invoiceIds"))
        invoices = [_invoice(bill) for bill in bills]
        await _answer(exchange, wire.InvoiceList([one for one in invoices if not wanted or one.invoice_id in wanted]))

    async def _limits(self, exchange: Exchange, team_id: str) -> None:
        who = await self._actor(exchange)
        limit = await self._read(billing.limit, who, self._books, team_id)
        hard, soft, effective = map(_cents, (limit.hard, limit.soft, limit.effective))
        await _answer(exchange, wire.SpendingLimits(wire.Limits(hard, hard, soft, effective)))

    async def _set_limit(self, exchange: Exchange, team_id: str) -> None:
        who = await self._actor(exchange)
        asked = (await self._body(exchange, msgspec.json.Decoder(wire.SetSpendingLimit))).desired_soft_spending_limit
        ticks = None if asked is None else wire.ticks(asked.val, "desiredSoftSpendingLimit.val")
        await self._act(billing.limit_spending, who, team_id, ticks, now_us=self._now_us())
        await _answer(exchange, wire.SoftLimit(_cents(ticks)))

    async def _balance(self, exchange: Exchange, team_id: str) -> None:
        who = await self._actor(exchange)
        prepaid = await self._read(billing.prepaid, who, self._books, team_id, now_us=self._now_us())
        changes = [_prepaid_change(team_id, change) for change in prepaid.changes]
        await _answer(exchange, wire.PrepaidBalance(changes, wire.Cents(wire.cents(-prepaid.left))))

    async def _usage(self, exchange: Exchange, team_id: str) -> None:
        who = await self._actor(exchange)
        asked = await self._body(exchange, msgspec.json.Decoder(wire.UsageQuery))
        query = _query(asked.analytics_request)
        series, truncated = await self._read(analytics.analyze, who, team_id, query)
        await _answer(
            exchange,
            wire.UsageAnswer(
                [
                    wire.TimeSeries(
                        list(one.group),
                        list(one.labels),
                        [wire.DataPoint(wire.stamp(at_us), list(values)) for at_us, values in one.points],
                    )
                    for one in series
                ],
                truncated,
            ),
        )


# ------------------------------------------------------------------------------------------------------------- queries


class _Query:
    """What stands after the `?`."""

    def __init__(self, exchange: Exchange) -> None:
        self._values = parse_qs(exchange.scope["query_string"].decode("latin-1"), max_num_fields=1000)

    def one(self, name: str) -> str | None:
        return self._values[name][-1] if name in self._values else None

    def all(self, name: str) -> list[str]:
        return self._values.get(name, [])

    def flag(self, name: str) -> bool:
        text = (self.one(name) or "false").lower()
        if text not in ("true", "false"):
            raise _wrong(name, "true or false")
        return text == "true"

    def number(self, name: str, low: int, high: int) -> int | None:
        """Raises `BadRequest` for what is no number of low..high."""
        text = self.one(name)
        if text is None:
            return None
        if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high):
            raise _wrong(name, f"a number of {low} to {high}")
        return int(text)

    def page_size(self) -> int:
        return self.number("pageSize", 1, PAGE_MAX) or PAGE

    def month(self, name: str) -> int | None:
        """`NAME.year` and `NAME.month` as 202611."""
        year, month = self.number(f"{name}.year", 1970, 9998), self.number(f"{name}.month", 1, 12)
        if year is None and month is None:
            return None
        if year is None:
            raise _wrong(f"{name}.year", "a year, with the month")
        if month is None and name == "billingCycle":
            raise _wrong(f"{name}.month", "a month, with the year")
        return year * 100 + (month or 1)


def _place(token: str | None) -> Place | None:
    """Where a page of keys begins. The key that stood there may be deleted meanwhile. Raises `BadRequest`."""
    if token is None:
        return None
    created, dot, ident = token.partition(".")
    if not (dot and created.isascii() and created.isdigit() and len(created) < 19 and ident.isprintable()):
        raise BadRequest("There is no page of this name.", param="paginationToken", code="invalid_value")
    return Place(int(created), ident)


def _wrong(param: str, expected: str) -> BadRequest:
    return BadRequest(f"`{param}`: expected {expected}.", param=param, code="invalid_value")


def _rate(text: str | int | None, param: str) -> int | None:
    """A rate limit; 0 for none, None for what is not said. Raises `BadRequest` naming the parameter."""
    return None if text is None else wire.whole(text, param) or 0


def _moment(text: str | None, param: str) -> int | None:
    return None if not text else wire.microseconds(text, param)


PARAMS: Final = {
    **{"rps": "qps", "rpm": "qpm", "expires": "expireTime", "overlap": "oldSecretExpireTime", "key_id": "api_key_id"},
    "spending_limit": "desiredSoftSpendingLimit.val",
    **{"timezone": "analyticsRequest.timeRange.timezone", "timeRange": "analyticsRequest.timeRange"},
    "values": "analyticsRequest.values",
}


@contextmanager
def _in_our_words() -> Iterator[None]:
    """The accounts' names of parameters as this API has them."""
    try:
        yield
    except JubalError as error:
        if (param := error.param) in PARAMS:
            error.param = PARAMS[param]
            if error.message.startswith(f"{param} "):
                error.message = error.param + error.message.removeprefix(param)
        raise


def _query(asked: wire.AnalyticsRequest) -> Query:
    """Raises `BadRequest` naming what this server can't answer."""
    if asked.time_unit not in UNITS:
        raise _wrong("analyticsRequest.timeUnit", f"one of {', '.join(UNITS)}")
    if not 1 <= len(asked.values) <= analytics.VALUES_MAX:
        raise _wrong("analyticsRequest.values", f"1 to {analytics.VALUES_MAX} of them")
    values = []
    for index, value in enumerate(asked.values):
        if value.name not in analytics.MEASURES:
            raise _wrong(f"analyticsRequest.values[{index}].name", f"one of {', '.join(analytics.MEASURES)}")
        if value.aggregation not in AGGREGATIONS:
            raise _wrong(f"analyticsRequest.values[{index}].aggregation", f"one of {', '.join(AGGREGATIONS)}")
        values.append((value.name, AGGREGATIONS[value.aggregation]))
    if len(set(asked.group_by)) < len(asked.group_by) or set(asked.group_by) - set(analytics.GROUPS):
        raise _wrong("analyticsRequest.groupBy", f"different ones of {', '.join(analytics.GROUPS)}")
    with _in_our_words():
        zone = analytics.zone_of(asked.time_range.timezone)
    begin_us, end_us = (
        _local(text, zone, f"analyticsRequest.timeRange.{name}")
        for name, text in (("startTime", asked.time_range.start_time), ("endTime", asked.time_range.end_time))
    )
    if len(asked.filters) > FILTERS_MAX:
        raise _wrong("analyticsRequest.filters", f"{FILTERS_MAX} at most")
    conditions = tuple(
        _condition(text, f"analyticsRequest.filters[{index}]") for index, text in enumerate(asked.filters)
    )
    return Query(begin_us, end_us, zone, UNITS[asked.time_unit], tuple(values), tuple(asked.group_by), conditions)


def _local(text: str, zone: Any, param: str) -> int:
    """A time of the query's zone, unless it names one itself."""
    from datetime import datetime

    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=zone)
        if not 1970 <= moment.year <= 9000:
            raise ValueError(text)
        return int(moment.timestamp()) * 1_000_000
    except (ValueError, OverflowError):
        raise _wrong(param, "a time such as 2026-10-01 00:00:00") from None


def _condition(text: str, param: str) -> Condition:
    """`FIELD:VALUE`, for numbers `FIELD:>N` and the like too, and `NOT ` before it for all but these (xai-api.md 21.3)."""
    negated = text.startswith("NOT ")
    field, _, value = text.removeprefix("NOT ").partition(":")
    comparison = next((sign for sign in COMPARISONS if value.startswith(sign)), None)
    if field in analytics.GROUPS and value and comparison is None and "\0" not in value:
        return Condition(field, value, negated=negated)
    if field not in analytics.MEASURES:
        raise _wrong(
            param, f"FIELD:VALUE with a field of {', '.join(analytics.GROUPS)}, or FIELD:>N with one of values"
        )
    try:
        number = float(value.removeprefix(comparison or ""))
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise _wrong(param, "a number after the field, as in usd:>0.5")
    return Condition(field, number, comparison or "=", negated)


# ----------------------------------------------------------------------------------------------------------- rendering


async def _answer(exchange: Exchange, body: msgspec.Struct) -> None:
    await exchange.reply(200, msgspec.json.encode(body))


def _key(key: Key, secret: str | None = None) -> wire.ApiKey:
    return wire.ApiKey(
        redacted_api_key=key.redacted,
        user_id=key.user_id,
        name=key.name,
        create_time=wire.stamp(key.created_us),
        modify_time=wire.stamp(key.modified_us),
        modified_by=key.modified_by,
        team_id=key.team_id,
        api_key_id=key.id,
        disabled=key.disabled,
        blocked=key.blocked,
        expire_time=None if key.expires_us is None else wire.stamp(key.expires_us),
        last_use_time=None if key.last_used_us is None else wire.stamp(key.last_used_us),
        qps=key.rps,
        qpm=key.rpm,
        tpm=None if key.tpm is None else str(key.tpm),
        acl_strings=list(key.acls),
        api_key=msgspec.UNSET if secret is None else secret,
    )


def _is_idle(key: Key, now_us: int) -> bool:
    return key.disabled or key.blocked or (key.expires_us is not None and key.expires_us <= now_us)


def _description(endpoint: str) -> str:
    return ENDPOINTS.get(endpoint, "Every endpoint.")


def _language_model(model: Model, weights: Weights, price: Price, rates: Rates) -> wire.ClusterLanguageModel:
    long = price.long_context or NO_LONG_CONTEXT
    sees = "image" in model.input and "image" in weights.input
    return wire.ClusterLanguageModel(
        name=model.name,
        version=weights.name,
        input_modalities=[kind.upper() for kind in model.input if kind in weights.input],
        output_modalities=["TEXT"],
        prompt_text_token_price=str(price.input),
        prompt_image_token_price=str((price.input if price.image is None else price.image) if sees else 0),
        cached_prompt_token_price=str(price.cached_input),
        completion_text_token_price=str(price.output),
        prompt_text_token_price_long_context=str(long.input),
        cached_prompt_token_price_long_context=str(long.cached_input),
        completion_token_price_long_context=str(long.output),
        long_context_threshold=str(long.threshold),
        search_price=str(round(price.tool_fee("web_search") * 1000 / wire.CENT)),
        rps=wire.rate(rates.rps),
        rpm=wire.rate(rates.rpm),
        tpm=wire.rate(rates.tpm),
        cluster=CLUSTER,
        max_prompt_length=real_context(model, weights) or 0,
        aliases=list(model.aliases),
        features=wire.Features(weights.tools, weights.json, model.reasoning),
    )


def _embedding_model(model: Model, weights: Weights, price: Price) -> wire.ClusterEmbeddingModel:
    return wire.ClusterEmbeddingModel(
        name=model.name,
        version=weights.name,
        input_modalities=["TEXT"],
        output_modalities=["EMBEDDING"],
        prompt_text_token_price=str(price.input),
        cluster=CLUSTER,
        aliases=list(model.aliases),
    )


def _event(act: Act) -> wire.AuditEvent:
    return wire.AuditEvent(
        event_id=act.id,
        time=wire.stamp(act.created_us),
        actor=wire.AuditActor(act.actor_kind, act.actor_id, act.actor_name),
        action=act.action,
        resource=wire.AuditResource(act.resource, act.resource_id),
        team_id=act.team_id,
        before=None if act.before is None else dict(act.before),
        after=None if act.after is None else dict(act.after),
        request_id=act.request_id,
        address=act.address,
    )


def _lines(bill: Bill) -> list[wire.InvoiceLine]:
    return [
        wire.InvoiceLine(
            cluster_name=CLUSTER,
            description=line.description,
            unit_type=line.unit,
            unit_price=str(round(line.ticks * 1_000_000 / wire.CENT / line.quantity) if line.quantity else 0),
            num_units=str(line.quantity),
            amount=amount,
        )
        for line, amount in zip(bill.lines, wire.shares(line.ticks for line in bill.lines), strict=True)
    ]


def _prepaid_change(team_id: str, change: Change) -> wire.PrepaidChange:
    created = wire.stamp(change.created_us)
    return wire.PrepaidChange(
        team_id=team_id,
        change_origin=ORIGINS[change.kind],
        topup_status="SUCCEEDED",
        amount=wire.Cents(wire.cents(-change.ticks)),
        invoice_id=change.id,
        invoice_number="",
        create_time=created,
        create_ts=created,
        spend_bp_key_year=msgspec.UNSET if change.month is None else change.month // 100,
        spend_bp_key_month=msgspec.UNSET if change.month is None else change.month % 100,
    )


def _cents(ticks: int | None) -> wire.Cents | None:
    return None if ticks is None else wire.Cents(wire.cents(ticks))


def _cycle(month: int) -> wire.BillingCycle:
    return wire.BillingCycle(month // 100, month % 100)


def _preview(bill: Bill, limit: SpendingLimit, left: Prepaid) -> wire.InvoicePreview:
    total = wire.cents(bill.total)
    free, prepaid, due = wire.shares((bill.from_free, bill.from_prepaid, bill.due))
    return wire.InvoicePreview(
        wire.CoreInvoice(
            lines=_lines(bill),
            amount_before_vat=total,
            vat_cost="0",
            amount_after_vat=total,
            auto_credits_issued="0",
            default_credits_issued=free,
            total_with_corr=wire.Cents(due),
            prepaid_credits=wire.Cents(wire.cents(-left.left)),
            prepaid_credits_used=wire.Cents(prepaid),
        ),
        effective_spending_limit=None if limit.effective is None else wire.cents(limit.effective),
        default_credits=free,
        billing_cycle=_cycle(bill.month),
    )


def _invoice(bill: Bill) -> wire.Invoice:
    name = f"{bill.month // 100}-{bill.month % 100:02}"
    over = wire.stamp(ledger.first_us(ledger.next_month(bill.month)))
    return wire.Invoice(
        team_id=bill.team_id,
        invoice_id=f"{bill.team_id}:{name}",
        invoice_number=name,
        create_time=over,
        invoice_status="PENDING" if bill.open else "PAID",
        billing_cycle=_cycle(bill.month),
        first_desired_next_cycle_ts=over,
        charger_attempts=[],
        invoice_pdf_asset_key_suffix="",
        lines=_lines(bill),
        subtotal=wire.cents(bill.total),
        tax="0",
        total=wire.cents(bill.due),
        monthly=wire.Monthly(_cycle(bill.month)),
    )
