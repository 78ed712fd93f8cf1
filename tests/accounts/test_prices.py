"""Prices: parts and sums, a team's own, discounts; and ceilings that nothing goes over."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jubal.accounts import credits, invoices, keys, ledger, prices, teams, usage
from jubal.accounts.keys import KeyRing
from jubal.accounts.prices import Ceiling, PriceTerms, TeamPrices, ceiling_ticks, prompt_tokens_max
from jubal.accounts.store import Store
from jubal.accounts.tiers import Tier, Tiers
from jubal.core.errors import BadRequest, NotAllowed, NotFound
from jubal.core.generation import (
    Bounds,
    FunctionTool,
    Generation,
    ImagePart,
    JsonOutput,
    Message,
    NamedTool,
    PastCall,
    TextPart,
    Tools,
)
from jubal.core.money import FREE, LongContext, Price, exact_ticks, exact_usd, ticks_of_usd
from jubal.core.usage import NOTHING, Usage
from jubal.serving.charging import Held, costs
from tests.accounts.conftest import NOW_US, usage_row

GROK_4 = Price.from_usd_per_million(3.00, 0.75, 15.00)
LONG = Price.from_usd_per_million(2.00, 0.50, 6.00)
LONG = replace(LONG, long_context=LongContext(200_000, 40_000, 10_000, 120_000))

counts = st.integers(0, 10**7)
rates = st.integers(0, 10**7)
tool_uses = st.dictionaries(st.sampled_from(["web_search", "x_search", "mcp", "own"]), st.integers(1, 50))
price_values = st.builds(
    Price,
    rates,
    rates,
    rates,
    image=st.none() | rates,
    reasoning=st.none() | rates,
    tools=st.none() | st.just((("own", 7),)),
    long_context=st.none() | st.builds(LongContext, st.integers(1, 10**6), rates, rates, rates),
    request=rates,
)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    cached, image, fresh = draw(counts), draw(st.integers(0, 5000)), draw(counts)
    return Usage(cached + image + fresh, draw(counts), draw(st.sampled_from([cached])), draw(counts), image)


@given(price_values, usages(), tool_uses)
def test_a_charge_is_the_sum_of_its_parts(price: Price, used: Usage, uses: dict[str, int]) -> None:
    charge = price.charge(used, uses)
    assert charge.total == sum(charge) == price.cost_ticks(used, uses)
    assert min(charge) >= 0
    assert charge.tools == sum(n * price.tool_fee(tool) for tool, n in uses.items())
    row = usage_row("a")._replace(**costs(charge, prices.tools_text(price, uses), Held()))
    assert row.cost_in_usd_ticks == charge.total
    stored = (row.input_ticks, row.cached_input_ticks, row.output_ticks, row.reasoning_ticks, row.request_ticks)
    fees = sum(ticks for _, ticks in json.loads(row.tools).values()) if row.tools else 0
    assert sum(part or 0 for part in stored) + fees == row.cost_in_usd_ticks
    highest = price.highest_input() * used.prompt + price.highest_output() * (used.completion + used.reasoning)
    assert charge.total <= highest + charge.tools + price.request


@given(price_values, usages(), st.integers(0, 10_000))
def test_a_discount_takes_its_part_and_never_more(price: Price, used: Usage, basis_points: int) -> None:
    full, less = price.cost_ticks(used), price.less(basis_points).cost_ticks(used)
    exact = full * (10_000 - basis_points)
    assert exact <= less * 10_000
    assert less <= full
    assert price.less(0).cost_ticks(used) == full
    assert price.less(10_000).cost_ticks(used, {"web_search": 3, "own": 1}) == 0


def test_long_prompts_cost_more_for_every_token() -> None:
    assert LONG.cost_ticks(Usage(199_999, 10)) == 199_999 * 20_000 + 600_000
    assert LONG.cost_ticks(Usage(200_000, 10, 100_000, 5)) == 100_000 * 40_000 + 100_000 * 10_000 + 15 * 120_000


def test_reasoning_images_requests_and_tools() -> None:
    price = Price(10, 1, 100, image=50, reasoning=7, request=1000)
    assert price.charge(Usage(30, 3, 10, 4, 5)) == (15 * 10 + 5 * 50, 10, 300, 28, 0, 1000)
    assert price.charge(NOTHING) == (0, 0, 0, 0, 0, 0)
    assert GROK_4.cost_ticks(Usage(0, 0), {"web_search": 2, "code_execution": 1, "unheard_of": 9}) == 150_000_000
    assert FREE.cost_ticks(Usage(10, 10), {"web_search": 2}) == 0


def test_the_seeds_legacy_price_per_request() -> None:
    tier = Tier("legacy", request=ticks_of_usd(0.03))
    assert tier.priced(GROK_4).cost_ticks(Usage(1000, 1000)) == 300_000_000


@pytest.mark.parametrize(
    ("usd", "ticks"), [("5", 50_000_000_000), ("0.0000000001", 1), ("25.50", 255_000_000_000), ("-1", -10_000_000_000)]
)
def test_amounts_as_they_are_written(usd: str, ticks: int) -> None:
    assert exact_ticks(usd) == ticks
    assert exact_ticks(exact_usd(ticks)) == ticks


@pytest.mark.parametrize(
    "usd",
    [
        "",
        "five",
        "0.00000000001",
        "nan",
        "inf",
        "1e999999999",
        "1e5000",
        "1e12",
        "-1e5000",
        "1.00000000000000000000000000001",
        "0" * 51 + "1",
    ],
)
def test_amounts_that_are_none(usd: str) -> None:
    with pytest.raises(ValueError, match="USD"):
        exact_ticks(usd)


# ---------------------------------------------------------------------------------------------------- prices of a team


def test_a_teams_own_price_is_in_force_for_its_keys(store: Store) -> None:
    team = store.transact(teams.create, name="acme", now_us=NOW_US)
    key, _ = store.transact(keys.create, team_id=team.id, name="k", now_us=NOW_US)
    assert store.read(keys.caller_of, key.id, NOW_US).prices is None
    store.transact(prices.put, team.id, "grok-4", PriceTerms(output=1, discount=0), now_us=NOW_US)
    store.transact(prices.put, team.id, "*", PriceTerms(discount=2500), now_us=NOW_US)
    own = store.read(keys.caller_of, key.id, NOW_US).prices
    assert own is not None
    assert own.on("grok-4", GROK_4) == replace(GROK_4, output=1)
    assert own.on("grok-1", GROK_4).cost_ticks(Usage(4, 4)) == GROK_4.cost_ticks(Usage(3, 3))
    store.transact(prices.remove, team.id, "grok-4")
    assert [model for _, model, _ in store.read(prices.listing)] == ["*"]
    with pytest.raises(NotFound):
        store.transact(prices.remove, team.id, "grok-4")


async def test_the_key_ring_brings_tier_and_prices(store: Store) -> None:
    team = store.transact(teams.create, name="acme", prepaid=True, tier="enterprise", now_us=NOW_US)
    _, secret = store.transact(keys.create, team_id=team.id, name="k", now_us=NOW_US)
    caller = await KeyRing(store).identify(secret)
    assert (caller.tier, caller.prepaid, caller.prices) == ("enterprise", True, None)
    with pytest.raises(NotAllowed):
        Tiers().of(replace(caller, tier="gone"))


def test_volume_discounts_begin_where_they_are_reached(store: Store) -> None:
    team = store.transact(teams.create, name="acme", now_us=NOW_US)
    terms = PriceTerms(discount=100, volume=((1000, 1000), (5000, 2000)))
    store.transact(prices.put, team.id, "*", terms, now_us=NOW_US)
    for spent, discount in ((0, 100), (999, 100), (1000, 1000), (4999, 1000), (5000, 2000)):
        assert TeamPrices((("*", terms),), spent).on("grok-4", GROK_4) == GROK_4.less(discount)
    store.transact(usage.record, [usage_row("a", team_id=team.id, cost_in_usd_ticks=1500)])
    found = store.read(prices.of_team, team.id, NOW_US)
    assert found is not None
    assert found.spent == 1500
    later = store.read(prices.of_team, team.id, ledger.first_us(ledger.next_month(ledger.month_of(NOW_US))))
    assert later is not None
    assert later.spent == 0


terms_values = st.builds(
    PriceTerms,
    input=st.none() | rates,
    request=st.none() | rates,
    tools=st.none() | st.just((("web_search", 5),)),
    long_context=st.none() | st.just(LongContext(5, 1, 2, 3)),
    discount=st.integers(0, 10_000),
    volume=st.lists(st.tuples(rates, st.integers(0, 10_000)), max_size=3).map(tuple),
)


@given(terms_values)
def test_terms_come_back_as_they_went_in(terms: PriceTerms) -> None:
    prices.check(terms)
    assert prices.decode(prices.encode(terms)) == terms


@pytest.mark.parametrize(
    "terms",
    [PriceTerms(input=-1), PriceTerms(tools=(("x", -1),)), PriceTerms(discount=10_001), PriceTerms(volume=((-1, 5),))],
)
def test_prices_that_are_none(terms: PriceTerms) -> None:
    with pytest.raises(BadRequest):
        prices.check(terms)


def test_the_built_in_tiers() -> None:
    tiers = Tiers()
    beta, standard, enterprise = (tiers.get(name) for name in ("public-beta", "standard", "enterprise"))
    assert beta is not None
    assert standard is not None
    assert enterprise is not None
    assert beta.terms(False) == credits.Terms(ticks_of_usd(25), 0)
    assert standard.terms(False) is None
    assert standard.terms(True) == credits.Terms(0, 0)
    assert enterprise.terms(False) == credits.Terms(0, ticks_of_usd(10_000))
    for tier, prepaid, own, cap in (
        (standard, False, 7, 7),  # a limit of its own, where there is no other
        (standard, False, 0, 0),
        (standard, True, 7, 0),  # which only narrows
        (beta, False, 7, 0),
        (enterprise, False, 7, 7),
        (enterprise, False, ticks_of_usd(10_001), ticks_of_usd(10_000)),
    ):
        assert tier.terms(prepaid, own) == credits.Terms(tier.monthly_credit or 0, cap)
    assert Tiers([Tier("standard", rpm=5)]).get("standard") == Tier("standard", rpm=5)


# ------------------------------------------------------------------------------------------------------------ ceilings

EVERYTHING = Generation(
    "grok-4",
    (
        Message("system", (TextPart("é" * 10),)),
        Message("user", (TextPart("hi"), ImagePart("https://x/y.png"))),
        Message("assistant", (), calls=(PastCall("c1", "f", '{"a": 1}'),), reasoning="thinking"),
        Message("tool", (TextPart("\ud83d"),), tool_call_id="c1"),
    ),
    tools=Tools((FunctionTool("f", "does it", '{"type": "object"}'),)),
    output=JsonOutput('{"type": "object"}'),
    bounds=Bounds(100),
)


def test_every_byte_of_a_prompt_may_be_a_token() -> None:
    texts = 20 + 2 + 8 + len('c1f{"a": 1}') + 3 + 2 + len('fdoes it{"type": "object"}') + len('{"type": "object"}')
    around = prices.TOKENS_PER_REQUEST + 4 * prices.TOKENS_PER_MESSAGE + prices.TOKENS_PER_IMAGE
    around += prices.TOKENS_PER_FUNCTION + prices.TOKENS_OF_INSTRUCTIONS
    assert prompt_tokens_max(EVERYTHING) == texts + around


def test_the_ceiling_knows_choices_windows_and_bounds() -> None:
    asked = Generation("grok-4", (Message("user", (TextPart("x" * 1000),)),), bounds=Bounds(100))
    prompt = 1000 + prices.TOKENS_PER_REQUEST + prices.TOKENS_PER_MESSAGE
    price = Price(3, 1, 5, request=9)
    assert ceiling_ticks(asked, price, None) == 3 * prompt + 500 + 9
    assert ceiling_ticks(replace(asked, choices=4), price, None) == 3 * prompt + 2000 + 9
    assert ceiling_ticks(asked, price, 50) == 3 * 50 + 5 * 50 + 9
    assert ceiling_ticks(replace(asked, bounds=Bounds()), price, None, 7) == 3 * prompt + 35 + 9
    forced = replace(asked, tools=Tools((FunctionTool("f"),), NamedTool("f")))
    assert ceiling_ticks(forced, price, None) > ceiling_ticks(
        replace(forced, tools=Tools(forced.tools.functions)), price, None
    )
    assert ceiling_ticks(replace(asked, reasoning="high"), price, None) >= ceiling_ticks(asked, price, None) + 5 * 1024
    assert ceiling_ticks(asked, FREE, None) == 0


def test_the_ceiling_of_several_prompts_is_that_of_all_their_answers() -> None:
    asked = Generation("grok-4", (), prompts=("é" * 50, (1, 2, 3)), suffix="end", choices=2, bounds=Bounds(100))
    prompt = 100 + 3 + 3 + prices.TOKENS_PER_REQUEST + 2 * prices.TOKENS_PER_MESSAGE
    assert ceiling_ticks(asked, Price(3, 1, 5), None) == 3 * prompt + 4 * 500
    assert ceiling_ticks(asked, Price(3, 1, 5), 20) == 3 * 2 * 20 + 4 * 100


@given(st.integers(0, 10**6), st.integers(1, 10**5), st.integers(0, 10**4), st.integers(0, 10**10))
def test_an_answer_cut_to_the_credit_costs_no_more(fixed: int, tokens: int, per_token: int, more: int) -> None:
    found = Ceiling(fixed, tokens, per_token, False, 0, 0)
    held = min(found.ticks, found.least + more)
    cut = found.tokens_for(held)
    assert min(tokens, prices.SENSIBLE_ANSWER_TOKENS) <= cut <= tokens
    assert fixed + cut * per_token <= held


# ------------------------------------------------------------------------------------------------------------ invoices


def test_an_invoice_equals_the_ledger(store: Store) -> None:
    team = store.transact(teams.create, name='=A<b>"', now_us=NOW_US)
    store.transact(credits.standing, team.id, now_us=NOW_US, monthly_grant=3_000_000)
    store.transact(credits.book, "add", team_id=team.id, ticks=5_000_000, now_us=NOW_US)
    rows = []
    for n, (model, price, used, uses) in enumerate(
        [
            ("grok-4", GROK_4, Usage(100, 20, 30, 5), {}),
            ("grok-4", GROK_4.less(1000), Usage(50, 7), {"web_search": 2}),
            ("grok-4.7", LONG, Usage(250_000, 7), {"web_search": 1, "mcp": 4}),
            ("flat", Price(request=300_000_000), Usage(5, 5), {}),
        ]
    ):
        blank = usage_row(n, team_id=team.id, model=model, prompt_tokens=used.prompt, cached_tokens=used.cached)
        blank = blank._replace(completion_tokens=used.completion, reasoning_tokens=used.reasoning)
        rows.append(blank._replace(**costs(price.charge(used, uses), prices.tools_text(price, uses), Held())))
    rows.append(usage_row("old release", team_id=team.id, cost_in_usd_ticks=17))
    rows.append(usage_row("failed", team_id=team.id, cost_in_usd_ticks=0, status="failed", prompt_tokens=10**6))
    month = ledger.month_of(NOW_US)
    rows.append(usage_row("next month", team_id=team.id, created_us=ledger.first_us(ledger.next_month(month))))
    rows.append(usage_row("other team", team_id="other"))
    store.transact(usage.record, rows)
    found = store.read(invoices.build, team.id, month)
    assert found.total == sum(line.ticks for line in found.lines) == sum(row.cost_in_usd_ticks for row in rows[:-2])
    assert (found.from_grant, found.from_prepaid) == (3_000_000, 5_000_000)
    assert found.on_account == found.total - 8_000_000
    assert (found.granted, found.purchased, found.requests) == (3_000_000, 5_000_000, 5)
    lines = {(line.model, line.what): (line.quantity, line.ticks) for line in found.lines}
    assert lines["grok-4", "input tokens"] == (70 + 50, 70 * 30_000 + 50 * 27_000)
    assert lines["grok-4", "cached input tokens"] == (30, 30 * 7_500)
    assert lines["grok-4", "reasoning tokens"] == (5, 5 * 150_000)
    assert lines["grok-4", "web_search calls"] == (2, 90_000_000)
    assert lines["grok-4.7", "input tokens"] == (250_000, 250_000 * 40_000)
    assert lines["grok-4.7", "mcp calls"] == (4, 0)
    assert lines["flat", "requests"] == (1, 300_000_000)
    assert lines["", "requests that are not itemised"] == (0, 17)
    assert store.read(invoices.months, team.id) == [month, ledger.next_month(month)]
    made = invoices.as_json(found)
    assert sum(exact_ticks(line["usd"]) for line in made["lines"]) == made["total_ticks"]
    *body, last = invoices.as_csv(found).splitlines()[1:]
    assert sum(int(line.rsplit(",", 1)[1]) for line in body) == int(last.rsplit(",", 1)[1]) == found.total
    assert all(line.startswith("\"'=A<b>") for line in body)
    page = invoices.as_html(found)
    assert "=A&lt;b&gt;&quot;" in page
    assert "<b>" not in page
    assert exact_usd(found.total) in page


@pytest.mark.parametrize("text", ["", "2026", "2026-13", "2026-0", "26-11", "2026-1x", "९९९९-01", "9999-12"])
def test_months_that_are_none(text: str) -> None:
    with pytest.raises(BadRequest):
        invoices.parse_month(text)


def test_a_month_without_anything(store: Store) -> None:
    team = store.read(teams.default)
    found = store.read(invoices.build, team.id, 202501)
    assert (found.lines, found.total, found.name) == ((), 0, "2025-01")
    assert store.read(invoices.months, team.id) == []


def test_priority_doubles_all_but_the_fees_of_tools() -> None:
    """Long context too, and a price of its own for images and reasoning."""
    price = Price(3, 1, 5, image=7, reasoning=11, tools=(("web_search", 13),), request=17)
    price = replace(price, long_context=LongContext(100, 19, 23, 29))
    for used in (Usage(50, 6, 4, 2, 9), Usage(200, 6, 4, 2, 9)):
        usual, more = price.charge(used, {"web_search": 3}), price.for_priority().charge(used, {"web_search": 3})
        assert more.tools == usual.tools == 39
        assert more._replace(tools=0) == tuple(2 * ticks for ticks in usual._replace(tools=0))
    plain = Price(3, 1, 5)
    assert (plain.for_priority().image, plain.for_priority().reasoning) == (None, None)


def test_the_price_of_one_tool_leaves_those_of_the_others(sqlite_store: Store) -> None:
    own = PriceTerms(tools=(("web_search", 7),), discount=5_000)
    for listed in (GROK_4, replace(GROK_4, tools=(("x_search", 9), ("web_search", 100)))):
        price = own.on(listed, 0)
        assert price.tool_fee("web_search") == 4
        assert price.tool_fee("x_search") == -(-listed.tool_fee("x_search") // 2)
        assert price.tool_fee("code_execution") == listed.tool_fee("code_execution") // 2


@pytest.mark.parametrize(
    ("terms", "param"),
    [
        (PriceTerms(input=prices.TOKEN_TICKS_MAX + 1), "input"),
        (PriceTerms(request=prices.EACH_TICKS_MAX + 1), "request"),
        (PriceTerms(tools=(("web_search", prices.EACH_TICKS_MAX + 1),)), "tools.web_search"),
        (PriceTerms(tools=(("web_serach", 1),)), "tools"),
        (PriceTerms(long_context=LongContext(10, 1, -1, 1)), "long_context.cached_input"),
    ],
)
def test_prices_that_no_request_could_be_charged_by(store: Store, terms: PriceTerms, param: str) -> None:
    """Beyond them the cost of a long request would not fit into the store, and it could be answered to nobody."""
    team = store.read(teams.default)
    with pytest.raises(BadRequest) as refused:
        store.transact(prices.put, team.id, "grok-4", terms, now_us=NOW_US)
    assert refused.value.param == param


def test_the_highest_prices_there_may_be_are_charged(store: Store) -> None:
    team = store.read(teams.default)
    highest = PriceTerms(input=prices.TOKEN_TICKS_MAX, output=prices.TOKEN_TICKS_MAX, request=prices.EACH_TICKS_MAX)
    store.transact(prices.put, team.id, "grok-4", highest, now_us=NOW_US)
    cost = highest.on(GROK_4, 0).for_priority().cost_ticks(Usage(2_000_000, 2_000_000))
    store.transact(usage.record, [usage_row("dear", team_id=team.id, cost_in_usd_ticks=cost)])
    assert store.read(ledger.read, team.id).receivable == -cost
