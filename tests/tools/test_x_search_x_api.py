"""The X API v2 as a provider, against a scripted server on loopback that answers in its documented shapes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from jubal import config
from jubal.core.server_tools import XSearch
from jubal.engines.wordllama_engine import TextVectors
from jubal.tools.base import ToolFailed, ToolOutput
from jubal.tools.x_search import x_api
from jubal.tools.x_search.family import XSearchFamily, make_x_search
from jubal.tools.x_search.posts import XSearchError, scope_of
from jubal.tools.x_search.query import parse
from jubal.tools.x_search.x_api import XApiProvider, translate

TOKEN = "AAAA-secret-token"
NOW_MS = 1_735_689_600_000
"""2025-01-01."""
PAGE = json.loads((Path(__file__).parent / "data/api_v2.json").read_text())


class FakeX:
    """Answers from a script, a list for each path, the last one again and again; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.script: dict[str, list[tuple[int, Any, dict[str, str]]]] = {}
        self.tokens: set[str | None] = set()

    def on(self, path: str, body: Any, status: int = 200, **headers: object) -> None:
        named = {name.replace("_", "-"): str(value) for name, value in headers.items()}
        self.script.setdefault(path, []).append((status, body, named))

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.path, dict(request.query)))
        self.tokens.add(request.headers.get("Authorization"))
        answers = self.script.get(request.path)
        if not answers:
            return web.json_response({"title": "Not Found Error", "status": 404}, status=404)
        status, body, headers = answers.pop(0) if len(answers) > 1 else answers[0]
        if body == "hang up":
            assert request.transport is not None
            request.transport.close()
        if isinstance(body, bytes):
            return web.Response(body=body, status=status, headers=headers)
        return web.json_response(body, status=status, headers=headers)


@pytest.fixture
async def fake() -> AsyncIterator[FakeX]:
    x = FakeX()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", x.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    x.url = runner.addresses[0]  # type: ignore[attr-defined]
    yield x
    await runner.cleanup()


@pytest.fixture
async def family(fake: FakeX) -> AsyncIterator[XSearchFamily]:
    host, port = fake.url[:2]  # type: ignore[attr-defined]
    made = make_x_search(
        config.XSearch(provider="x-api", base_url=f"http://{host}:{port}", reads_max=30), Path("unused"), TextVectors(), environ={"X_BEARER_TOKEN": TOKEN}
    )  # fmt: skip
    yield made
    await made.close()


async def call(family: XSearchFamily, name: str, wanted: XSearch | None = None, **arguments: Any) -> ToolOutput:
    return await family.open(wanted or XSearch()).call(name, json.dumps(arguments))


RECENT = "/2/tweets/search/recent"


async def test_keyword_search(fake: FakeX, family: XSearchFamily) -> None:
    fake.on(RECENT, PAGE, x_rate_limit_limit=450, x_rate_limit_remaining=449, x_rate_limit_reset=int(time.time()) + 900)
    output = await call(family, "x_keyword_search", query="harbour -filter:replies min_faves:40", limit=3)
    (path, asked) = fake.asked[0]
    assert path == RECENT
    assert asked["query"] == "harbour -is:reply"
    assert (asked["max_results"], asked["sort_order"]) == ("10", "recency")
    assert "author_id" in asked["expansions"]
    assert fake.tokens == {f"Bearer {TOKEN}"}
    assert [one.source.url for one in output.found] == ["https://x.com/HarbourOffice/status/1800000000000000101"], (
        "the counts are checked here"
    )
    assert output.text == "Read 4 posts from X (about $0.02)."


async def test_pages_until_enough_or_the_reads_are_used_up(fake: FakeX, family: XSearchFamily) -> None:
    for number in range(9):
        posts = [
            {**PAGE["data"][1], "id": str(1_900_000_000_000_000_000 + number * 100 + index)} for index in range(10)
        ]
        fake.on(RECENT, {"data": posts, "includes": PAGE["includes"], "meta": {"next_token": f"n{number}"}})
    output = await call(family, "x_keyword_search", query="lighthouse", limit=15)
    assert len(output.found) == 15
    assert [asked.get("next_token") for _, asked in fake.asked] == [None, "n0"]
    fake.asked.clear()
    output = await call(family, "x_keyword_search", query="lighthouse min_faves:1000", limit=15)
    assert output.found == ()
    assert len(fake.asked) == 3, "30 reads, 10 a page"
    assert "Read 30 posts" in output.text


async def test_the_callers_filters_are_sent_and_checked(fake: FakeX, family: XSearchFamily) -> None:
    fake.on(RECENT, PAGE)
    wanted = XSearch(allowed_handles=("sail_anna",), views_min=100)
    output = await call(family, "x_keyword_search", wanted, query="ferry OR town")
    assert fake.asked[0][1]["query"] == "from:sail_anna (ferry OR town)"
    assert [one.source.url[-3:] for one in output.found] == ["404"]


async def test_semantic_search_ranks_what_keywords_find(fake: FakeX, family: XSearchFamily) -> None:
    fake.on(RECENT, PAGE)
    output = await call(family, "x_semantic_search", query="opening hours of the lighthouse", limit=1)
    assert fake.asked[0][1]["query"] == "(opening OR hours OR of OR the OR lighthouse)"
    assert output.found[0].source.url.endswith("202")


async def test_users(fake: FakeX, family: XSearchFamily) -> None:
    fake.on(
        "/2/users/by",
        {"data": PAGE["includes"]["users"][:1], "errors": [{"title": "Not Found Error", "value": "harbour"}]},
    )
    output = await call(family, "x_user_search", query="@Harbour Office")
    assert fake.asked[0][1]["usernames"] == "HarbourOffice,Harbour_Office,Harbour,Office"
    assert output.found[0].text.startswith("@HarbourOffice | Harbour Office | 8,100 followers")


async def test_a_thread(fake: FakeX, family: XSearchFamily) -> None:
    first, second, third = PAGE["data"][:3]
    fake.on("/2/tweets/1800000000000000202", {"data": second, "includes": PAGE["includes"]})
    fake.on("/2/tweets/1800000000000000101", {"data": first, "includes": PAGE["includes"]})
    fake.on(RECENT, {"data": [second, third], "includes": PAGE["includes"], "meta": {}})
    output = await call(family, "x_thread_fetch", post_id="1800000000000000202")
    assert [one.source.url[-3:] for one in output.found] == ["101", "202", "303"]
    assert fake.asked[-1][1]["query"] == "conversation_id:1800000000000000101"
    with pytest.raises(ToolFailed, match="not there"):
        await call(family, "x_thread_fetch", post_id="99")
    with pytest.raises(ToolFailed, match="number of a post"):
        await call(family, "x_thread_fetch", post_id="..%2Fusers")


async def test_a_limit_that_is_over_soon_is_waited_for(fake: FakeX, family: XSearchFamily) -> None:
    fake.on(
        RECENT,
        {"title": "Too Many Requests", "status": 429},
        429,
        x_rate_limit_remaining=0,
        x_rate_limit_reset=int(time.time()) + 1,
    )
    fake.on(RECENT, PAGE)
    assert (await call(family, "x_keyword_search", query="harbour", limit=1)).found
    assert len(fake.asked) == 2


async def test_a_limit_that_is_not_over_soon_is_told_and_kept(fake: FakeX, family: XSearchFamily) -> None:
    fake.on(RECENT, PAGE, x_rate_limit_remaining=0, x_rate_limit_reset=int(time.time()) + 600)
    assert (await call(family, "x_keyword_search", query="harbour", limit=1)).found
    with pytest.raises(ToolFailed, match=r"no more requests until \d\d:\d\d:\d\d UTC, in 10 min"):
        await call(family, "x_keyword_search", query="harbour")
    assert len(fake.asked) == 1, "nothing is sent while the limit lasts"


@pytest.mark.parametrize(
    ("status", "body", "said", "tries"),
    [
        (401, {"title": "Unauthorized", "detail": "Unauthorized"}, "bearer token", 1),
        (403, {"title": "Forbidden"}, "access level", 1),
        (400, {"errors": [{"message": "Ambiguous use of and as a keyword."}]}, "Ambiguous use", 1),
        (400, b"<html>", "does not take the query", 1),
        (503, {"title": "Service Unavailable"}, "status 503", 3),
        (302, {}, "status 302", 1),
        (200, b"<html>", "not JSON", 1),
        (200, "hang up", "does not answer", 3),
        (429, {}, "too many requests", 3),
    ],
)
async def test_refusals(fake: FakeX, family: XSearchFamily, status: int, body: Any, said: str, tries: int) -> None:
    fake.on(RECENT, body, status, **({"x_rate_limit_reset": 1} if status == 429 else {}))
    with pytest.raises(ToolFailed, match=said) as caught:
        await call(family, "x_keyword_search", query="harbour")
    assert TOKEN not in str(caught.value)
    assert len(fake.asked) >= tries


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"data": None},
        {"data": [1, None]},
        {"data": [{"id": 5}]},
        [],
        {"meta": 3, "data": PAGE["data"], "includes": []},
        {"data": PAGE["data"], "includes": {"users": [{"id": "9001"}]}},
    ],
)
async def test_answers_of_other_shapes_are_no_posts(fake: FakeX, family: XSearchFamily, body: Any) -> None:
    fake.on(RECENT, body)
    assert (await call(family, "x_keyword_search", query="harbour")).found == ()


async def test_an_endless_answer_is_cut(fake: FakeX, family: XSearchFamily, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(x_api, "BODY_BYTES_MAX", 1000)
    fake.on(RECENT, PAGE)
    with pytest.raises(ToolFailed, match="too large"):
        await call(family, "x_keyword_search", query="harbour")


async def test_a_cancelled_call_ends(fake: FakeX, family: XSearchFamily) -> None:
    fake.on(RECENT, {}, 429, x_rate_limit_remaining=0, x_rate_limit_reset=int(time.time()) + 4)
    doing = asyncio.create_task(call(family, "x_keyword_search", query="harbour"))
    while not fake.asked:
        await asyncio.sleep(0.01)
    doing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await doing


def test_a_token_is_needed_and_never_shown(tmp_path: Path) -> None:
    with pytest.raises(XSearchError, match=r"\$MY_TOKEN"):
        make_x_search(
            config.XSearch(provider="x-api", api_key_env="MY_TOKEN"), tmp_path, None, environ={"X_BEARER_TOKEN": TOKEN}
        )
    assert TOKEN not in repr(XApiProvider(TOKEN))


# --------------------------------------------------------------------------------------------------- the translation


@pytest.mark.parametrize(
    ("query", "sent"),
    [
        ("cats dogs", "cats dogs"),
        ('"black cat" OR dog', '("black cat" OR dog)'),
        ("cat -(dog OR bird)", "cat -dog -bird"),
        ("cat -(dog bird)", "cat (-dog OR -bird)"),
        ("from:A to:b @c #d $E lang:en", "from:a to:b @c #d $e lang:en"),
        ("cat filter:links -filter:nativeretweets filter:videos", "cat has:links -is:retweet has:video_link"),
        ("conversation_id:1 quoted_tweet_id:2 url:x.org", 'conversation_id:1 quotes_of_tweet_id:2 url:"x.org"'),
        ("foo:bar don't", '"foo:bar" "don\'t"'),
        ("cat (dog OR min_faves:5)", "cat"),
        ("cat min_faves:5 since_id:9", "cat"),
        ("!!! cat", "cat"),
        ("cat OR (dog bird)", "(cat OR (dog bird))"),
        ("not cat", '"not" cat'),
    ],
)
def test_translation(query: str, sent: str) -> None:
    assert translate(parse(query), scope_of(XSearch()), now_ms=NOW_MS, full=True).query == sent


def test_dates_become_times() -> None:
    asked = translate(parse("cat since:2024-12-28 until:2024-12-30"), scope_of(XSearch()), now_ms=NOW_MS, full=False)
    assert asked.parameters() == {
        "query": "cat",
        "start_time": "2024-12-28T00:00:00Z",
        "end_time": "2024-12-30T00:00:00Z",
    }
    scope = scope_of(XSearch(from_date="2024-12-01", to_date="2024-12-31"))
    asked = translate(parse("cat since:2020-01-01"), scope, now_ms=NOW_MS, full=False)
    assert asked.parameters() == {"query": "cat", "start_time": "2024-12-25T00:01:00Z"}, "no further than 7 days back"
    assert translate(parse("cat"), scope, now_ms=NOW_MS, full=True).parameters()["start_time"] == "2024-12-01T00:00:00Z"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("lang:en", "at least one word"),
        ("-cat", "at least one word"),
        ("min_faves:9", "at least one word"),
        ("", "at least one word"),
        ("cat OR lang:en", "at least one word"),
        ("cat until:2024-01-01", "7 days"),
        ("cat since:2030-01-01", "future"),
        ("cat " * 200, "at most 512 characters"),
    ],
)
def test_what_x_can_not_do_is_told(query: str, said: str) -> None:
    with pytest.raises(ToolFailed, match=said):
        translate(parse(query), scope_of(XSearch()), now_ms=NOW_MS, full=False)


PIECES = st.sampled_from(
    [
        "cat",
        "dog",
        " ",
        " ",
        " OR ",
        "-",
        "(",
        ")",
        '"',
        "min_faves:3",
        "lang:en",
        "from:a",
        "filter:links",
        "since_id:4",
        "!!!",
        "within_time:1d",
        "\\",
    ]
)


@settings(deadline=None)
@given(st.lists(PIECES, max_size=20).map("".join) | st.text(max_size=30))
def test_any_query_is_translated_or_told(query: str) -> None:
    wanted = XSearch(allowed_handles=("x",), excluded_handles=())
    try:
        asked = translate(parse(query), scope_of(wanted), now_ms=NOW_MS, full=True)
    except ToolFailed:
        return
    assert asked.query.startswith("from:x")
    assert asked.query.count("(") == asked.query.count(")") or '"' in asked.query
    assert "-(" not in asked.query.replace('"', "") or '"' in asked.query
