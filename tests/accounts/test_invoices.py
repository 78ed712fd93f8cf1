"""Invoices: the same before and after retention, what is paid of them, whom they are for; and whole cents that add up."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from jubal.accounts import credits, invoices, ledger, prices, teams, usage
from jubal.accounts.rollups import HOUR_US
from jubal.accounts.store import Store
from jubal.accounts.usage import UsageRow
from jubal.admin import actor, billing
from jubal.core.money import LongContext, Price
from jubal.core.usage import Usage
from jubal.serving.charging import Held, costs
from jubal.wire import management as wire
from tests.accounts.conftest import NOW_US, usage_row

GROK_4 = Price.from_usd_per_million(3.00, 0.75, 15.00)
LONG = replace(GROK_4, long_context=LongContext(100, 60_000, 15_000, 300_000))


def _itemised(request_id: object, team_id: str, created_us: int, price: Price, used: Usage, **uses: int) -> UsageRow:
    row = usage_row(request_id, team_id=team_id, created_us=created_us)
    row = row._replace(prompt_tokens=used.prompt, cached_tokens=used.cached, completion_tokens=used.completion)
    row = row._replace(reasoning_tokens=used.reasoning)
    return row._replace(**costs(price.charge(used, uses), prices.tools_text(price, uses), Held()))


def test_an_invoice_stays_as_it_is_when_retention_takes_its_rows(store: Store) -> None:
    """All of them, or half of them: its lines, their order and the number of requests."""
    team = store.transact(teams.create, name="kept", now_us=NOW_US)
    flat = replace(GROK_4.less(1234).for_priority(), request=17)
    rows = [
        _itemised(n, team.id, NOW_US + n * HOUR_US, price, Usage(100 + n, n, 20), web_search=n, mcp=1)
        for n, price in enumerate([GROK_4, flat, LONG, GROK_4, flat])
    ]
    rows.append(usage_row("old release", team_id=team.id, cost_in_usd_ticks=17))
    rows.append(usage_row("failed", team_id=team.id, cost_in_usd_ticks=0, status="failed"))
    store.transact(usage.record, rows)
    month = ledger.month_of(NOW_US)
    before = store.read(invoices.build, team.id, month)
    assert (before.requests, before.total) == (6, sum(row.cost_in_usd_ticks for row in rows))
    for hours in (1, 2, 3, 20):
        while store.transact(usage.delete_before, NOW_US + hours * HOUR_US, limit=1):
            assert store.read(invoices.build, team.id, month) == before
    assert store.read(usage.listing) == []
    assert store.read(credits.reconcile, NOW_US) == []


def test_two_gateways_that_delete_the_same_rows_keep_them_once(postgres_store: Store) -> None:
    store = postgres_store
    team = store.transact(teams.create, name="kept", now_us=NOW_US)
    rows = [_itemised(n, team.id, NOW_US, GROK_4, Usage(10, 5)) for n in range(200)]
    store.transact(usage.record, rows)
    before = store.read(invoices.build, team.id, ledger.month_of(NOW_US))

    def delete(_: int) -> int:
        deleted = 0
        while found := store.transact(usage.delete_before, NOW_US + 2 * HOUR_US, limit=50):
            deleted += found
        return deleted

    with ThreadPoolExecutor(4) as gateways:
        assert sum(gateways.map(delete, range(4))) == 200
    assert store.read(invoices.build, team.id, ledger.month_of(NOW_US)) == before


def test_a_payment_closes_what_was_due_first(store: Store) -> None:
    team = store.transact(teams.create, name="pays", now_us=NOW_US)
    month = ledger.month_of(NOW_US)
    after = ledger.next_month(month)
    rows = [_itemised("a", team.id, NOW_US, GROK_4, Usage(100, 0))]
    rows.append(_itemised("b", team.id, ledger.first_us(after), GROK_4, Usage(10, 0)))
    store.transact(usage.record, rows)

    def still_open() -> tuple[int, int]:
        return store.read(invoices.build, team.id, month).open, store.read(invoices.build, team.id, after).open

    assert still_open() == (3_000_000, 300_000)
    for ticks, left in ((1_000_000, (2_000_000, 300_000)), (2_100_000, (0, 200_000)), (500_000, (0, 0))):
        store.transact(credits.book, "pay", team_id=team.id, ticks=ticks, now_us=NOW_US)
        assert still_open() == left


def test_an_invoice_says_whom_it_is_for(sqlite_store: Store) -> None:
    team = sqlite_store.transact(teams.create, name="addressed", now_us=NOW_US)
    month = ledger.month_of(NOW_US)
    assert "<address>" not in invoices.as_html(sqlite_store.read(invoices.build, team.id, month))
    info = {"name": "Müller & <Söhne>", "address": {"line1": "Gasse 1", "postalCode": "1010", "city": "Wien"}}
    info |= {"email": "a@example.com", "taxIdType": "eu_vat", "taxNumber": "ATU1"}
    sqlite_store.transact(billing.set_info, sqlite_store.read(actor.operator), team.id, info, now_us=NOW_US)
    found = sqlite_store.read(invoices.build, team.id, month)
    said = "Müller &amp; &lt;Söhne&gt;<br>Gasse 1<br>1010 Wien<br>a@example.com<br>eu_vat ATU1"
    assert f"<address>{said}</address>" in invoices.as_html(found)
    assert invoices.as_json(found)["billed_to"] == info


@given(st.lists(st.integers(0, 10**12), max_size=20))
def test_cents_of_lines_add_up_to_those_of_their_sum(ticks: list[int]) -> None:
    shown = [int(text) for text in wire.shares(ticks)]
    assert sum(shown) == int(wire.cents(sum(ticks)))
    assert all(abs(one * wire.CENT - exact) < wire.CENT for one, exact in zip(shown, ticks, strict=True))
