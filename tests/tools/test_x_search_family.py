"""The functions that a model calls, on the archive: what they take, what they say, and what they refuse."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from jubal import config
from jubal.core.errors import BadRequest, EngineUnavailable
from jubal.core.server_tools import XSearch
from jubal.engines.wordllama_engine import TextVectors
from jubal.testing.tools import check_tools
from jubal.tools.base import ToolFailed, ToolOutput
from jubal.tools.x_search import archive, importing
from jubal.tools.x_search.archive import FILE_NAME
from jubal.tools.x_search.family import FUNCTIONS, XSearchFamily, make_x_search
from jubal.tools.x_search.local import LocalProvider
from jubal.tools.x_search.posts import XSearchError

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("home")
    store = archive.Archive(made / FILE_NAME)
    for name in ("posts.jsonl", "api_v2.json", "x_archive"):
        importing.import_posts(store, DATA / name)
    store.close()
    return made


@pytest.fixture
async def family(home: Path) -> AsyncIterator[XSearchFamily]:
    made = make_x_search(config.XSearch(), home, TextVectors(), environ={})
    yield made
    await made.close()


async def call(family: XSearchFamily, name: str, wanted: XSearch | None = None, **arguments: Any) -> ToolOutput:
    session = family.open(wanted or XSearch())
    try:
        return await session.call(name, json.dumps(arguments))
    finally:
        await session.close()


@pytest.mark.parametrize("name", ["x_keyword_search", "x_semantic_search", "x_user_search", "x_thread_fetch"])
async def test_it_keeps_the_promise_of_tools(home: Path, name: str) -> None:
    family = make_x_search(config.XSearch(), home, TextVectors(), environ={})
    given = {"x_thread_fetch": {"post_id": "1742000000000000003"}, "x_user_search": {"query": "lena"}}
    await check_tools(family, XSearch(), name, json.dumps(given.get(name, {"query": "sourdough"})))


async def test_functions_have_small_schemas(family: XSearchFamily) -> None:
    functions = await family.open(XSearch()).functions()
    assert [one.name for one in functions] == [
        "x_keyword_search",
        "x_semantic_search",
        "x_user_search",
        "x_thread_fetch",
    ]
    for one in functions:
        schema = json.loads(one.parameters or "")
        assert schema["type"] == "object"
        assert set(schema["required"]) <= set(schema["properties"])
        assert one.description
    assert len("".join(one.parameters or "" for one in FUNCTIONS)) < 3_000


async def test_keyword_search(family: XSearchFamily) -> None:
    output = await call(family, "x_keyword_search", query="moon", limit=3, mode="Latest")
    (found,) = output.found
    assert found.source.url == "https://x.com/Orbit_Desk/status/1742000000000000003"
    assert found.source.title == "@Orbit_Desk: The lander touched down softly on the far side of the Moon.…"
    head, text = found.text.split("\n")
    assert head == "@Orbit_Desk | 2024-01-02 01:48 UTC | 5,400 likes, 210,000 views | post 1742000000000000003"
    assert text.startswith("The lander touched down")
    assert output.text == ""


async def test_nothing_found_says_what_to_try(family: XSearchFamily) -> None:
    output = await call(family, "x_keyword_search", query="zeppelin")
    assert output.found == ()
    assert "Try" in output.text


async def test_semantic_search(family: XSearchFamily) -> None:
    output = await call(family, "x_semantic_search", query="spacecraft landing on the lunar surface", limit=2)
    assert output.found[0].source.url.endswith("003")
    assert len(output.found) <= 2
    none = await call(family, "x_semantic_search", query="lunar landing", min_score_threshold=0.999)
    assert none.found == ()
    dated = await call(
        family,
        "x_semantic_search",
        query="lunar landing",
        from_date="2024-01-14",
        to_date="2024-01-18",
        min_score_threshold=-1,
    )
    assert {one.source.url[-3:] for one in dated.found} == {"008", "009", "/10"}


async def test_user_search(family: XSearchFamily) -> None:
    output = await call(family, "x_user_search", query="harbour", count=1)
    assert output.found[0].source.url == "https://x.com/HarbourOffice"
    assert (
        output.found[0].text
        == "@HarbourOffice | Harbour Office | 8,100 followers | 3 posts in the archive | verified\nTides, ferries, fog."
    )


@pytest.mark.parametrize(
    "post_id", ["1742100000000000004", 1742100000000000004, "https://x.com/kim_transit/status/1742100000000000004?s=20"]
)
async def test_thread(family: XSearchFamily, post_id: object) -> None:
    output = await call(family, "x_thread_fetch", post_id=post_id)
    assert [one.source.url[-3:] for one in output.found] == ["003", "004", "005"]
    assert "answers post 1742000000000000003" in output.found[1].text


async def test_the_callers_filters_hold_in_every_function(family: XSearchFamily) -> None:
    wanted = XSearch(excluded_handles=("orbit_desk",), from_date="2024-01-01")
    for name, arguments in (
        ("x_keyword_search", {"query": "from:orbit_desk OR moon OR pictures OR oven"}),
        ("x_semantic_search", {"query": "moon", "min_score_threshold": -1, "from_date": "2000-01-01"}),
        ("x_thread_fetch", {"post_id": "1742100000000000004"}),
    ):
        output = await call(family, name, wanted, **arguments)
        assert output.found
        assert not [one for one in output.found if "Orbit_Desk/" in one.source.url or "2023-" in one.text]
    assert (await call(family, "x_user_search", wanted, query="orbit_desk")).found == ()
    with pytest.raises(ToolFailed, match="filters"):
        await call(family, "x_thread_fetch", wanted, post_id="1742000000000000003")


async def test_media_are_shown_to_callers_who_look_at_them(family: XSearchFamily) -> None:
    plain = await call(family, "x_keyword_search", query="worm report")
    assert "media:" not in plain.found[0].text
    shown = await call(family, "x_keyword_search", XSearch(images=True), query="worm report")
    assert shown.found[0].text.endswith("media: https://pics.example/media/worms.jpg")
    assert (
        "media:"
        not in (await call(family, "x_keyword_search", XSearch(videos=True), query="worm report")).found[0].text
    )


async def test_results_max_of_the_caller(family: XSearchFamily) -> None:
    assert len((await call(family, "x_keyword_search", XSearch(results_max=2), query="the", limit=30)).found) == 2


@pytest.mark.parametrize(
    ("name", "arguments", "mend"),
    [
        ("x_keyword_search", "not json", "JSON object"),
        ("x_keyword_search", "[]", "JSON object"),
        ("x_keyword_search", "", "`query` is missing"),
        ("x_keyword_search", "{}", "`query` is missing"),
        ("x_keyword_search", '{"query": "  "}', "`query` is missing"),
        ("x_keyword_search", '{"query": ["a"]}', "`query` is missing"),
        ("x_keyword_search", json.dumps({"query": "a" * 2000}), "at most 1,024"),
        ("x_keyword_search", '{"query": "a", "limit": 0}', "`limit` must be a whole number from 1 to 30"),
        ("x_keyword_search", '{"query": "a", "limit": "few"}', "`limit` must be a number"),
        ("x_keyword_search", '{"query": "a", "limit": 1.5}', "whole number"),
        ("x_keyword_search", '{"query": "a", "mode": "Best"}', "Latest, Top"),
        ("x_semantic_search", '{"query": "a", "from_date": "May"}', "2024-12-31"),
        ("x_semantic_search", '{"query": "a", "from_date": "2024-02-01", "to_date": "2024-01-01"}', "after"),
        ("x_semantic_search", '{"query": "a", "min_score_threshold": 7}', "between -1.0 and 1.0"),
        ("x_user_search", '{"count": 3}', "`query` is missing"),
        ("x_thread_fetch", '{"post_id": ""}', "`post_id` is missing"),
        ("x_thread_fetch", '{"post_id": "a b"}', "must be the id of a post"),
        ("x_thread_fetch", '{"post_id": "404"}', "not in the archive"),
        ("x_search", '{"query": "a"}', "x_keyword_search"),
    ],
)  # fmt: skip
async def test_unfit_arguments_say_what_to_mend(family: XSearchFamily, name: str, arguments: str, mend: str) -> None:
    with pytest.raises(ToolFailed, match=mend.replace("(", r"\(")):
        await family.open(XSearch()).call(name, arguments)


@pytest.mark.parametrize(
    "arguments",
    [{"limit": "3"}, {"limit": 1000}, {"mode": "latest"}, {"limit": None, "mode": ""}, {"other": 1}, {"limit": 2.0}],
)
async def test_arguments_that_are_nearly_right_are_taken(family: XSearchFamily, arguments: dict[str, Any]) -> None:
    assert (await call(family, "x_keyword_search", query="oven", **arguments)).found


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        (XSearch(allowed_handles=("a",), excluded_handles=("b",)), "excluded_x_handles"),
        (XSearch(allowed_handles=tuple(f"u{index}" for index in range(21))), "allowed_x_handles"),
        (XSearch(excluded_handles=("no handle",)), "excluded_x_handles"),
        (XSearch(from_date="yesterday"), "from_date"),
        (XSearch(to_date="2024-02-30"), "to_date"),
        (XSearch(from_date="2024-02-02", to_date="2024-02-01"), "from_date"),
    ],
)
def test_wishes_that_can_not_be_met(home: Path, wanted: XSearch, field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        make_x_search(config.XSearch(), home, None, environ={}).open(wanted)
    assert caught.value.param == field


# ------------------------------------------------------------------------------------------------------- how it is made


async def test_an_empty_archive_says_how_to_fill_it(tmp_path: Path) -> None:
    family = make_x_search(config.XSearch(), tmp_path, None, environ={})
    with pytest.raises(ToolFailed, match="jubal posts import"):
        await call(family, "x_keyword_search", query="a")
    await family.close()


async def test_without_an_embedder_there_is_no_semantic_search(home: Path) -> None:
    family = make_x_search(config.XSearch(), home, None, environ={})
    with pytest.raises(ToolFailed, match="x_keyword_search"):
        await call(family, "x_semantic_search", query="a")
    await family.close()


async def test_a_configured_file_is_imported_before_the_first_search(tmp_path: Path) -> None:
    settings = config.XSearch(path="posts.jsonl")
    (tmp_path / "posts.jsonl").write_bytes((DATA / "posts.jsonl").read_bytes())
    for _ in range(2):
        family = make_x_search(settings, tmp_path / "home", TextVectors(), environ={}, beside=tmp_path / "jubal.toml")
        await family.start()
        assert (await call(family, "x_keyword_search", query="oven")).found
        assert (await call(family, "x_semantic_search", query="railway")).found
        await family.close()


async def test_a_configured_file_that_is_not_there(tmp_path: Path) -> None:
    family = make_x_search(
        config.XSearch(path="none.jsonl"), tmp_path, None, environ={}, beside=tmp_path / "jubal.toml"
    )
    with pytest.raises(XSearchError, match=r"none\.jsonl"):
        await family.start()
    with pytest.raises(ToolFailed, match=r"none\.jsonl"):
        await call(family, "x_keyword_search", query="a")
    await family.close()


def test_making_a_family_touches_nothing(tmp_path: Path) -> None:
    make_x_search(config.XSearch(path="posts.jsonl"), tmp_path / "home", None, environ={})
    assert not (tmp_path / "home").exists()


async def test_new_posts_are_embedded_by_the_search_that_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jubal.tools.x_search.local.EMBED_NOW_MAX", 4)
    store = archive.Archive(tmp_path / FILE_NAME)
    importing.import_posts(store, DATA / "posts.jsonl")
    family = make_x_search(config.XSearch(), tmp_path, TextVectors(), environ={})
    output = await call(family, "x_semantic_search", query="railway", min_score_threshold=-1)
    assert "not yet prepared" in output.text
    assert len(output.found) == 4
    with store.reading() as connection:
        while archive.stats(connection, store.file).pending:  # the background goes on
            await asyncio.sleep(0.01)
    await family.close()
    store.close()


# -------------------------------------------------------------------------------------------------------------- faults


async def test_a_cancelled_search_stops_its_work(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A query that would go on for minutes is ended inside SQLite, and the family goes on."""
    family = make_x_search(config.XSearch(), home, None, environ={})
    began, ended = threading.Event(), threading.Event()
    real = archive.keyword

    def endless(connection: Any, query: str, *args: Any, **named: Any) -> Any:
        if query != "endless":
            return real(connection, query, *args, **named)
        began.set()
        try:
            connection.execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
            ).fetchone()
        finally:
            ended.set()

    monkeypatch.setattr(archive, "keyword", endless)
    doing = asyncio.create_task(call(family, "x_keyword_search", query="endless"))
    await asyncio.to_thread(began.wait, 60)
    doing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await doing
    assert ended.is_set(), "the cancellation is passed on after the work has ended"
    assert (await call(family, "x_keyword_search", query="oven")).found
    await family.close()


async def test_many_calls_at_a_time_share_a_few_threads(family: XSearchFamily) -> None:
    outputs = await asyncio.gather(
        *(call(family, "x_keyword_search", query=f"oven OR n{index}") for index in range(50))
    )
    assert all(output.found for output in outputs)
    assert sum("jubal-x-search" in thread.name for thread in threading.enumerate()) <= 4


async def test_a_broken_store_is_told_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"no database at all" * 200)
    family = make_x_search(config.XSearch(), tmp_path, None, environ={})
    with pytest.raises(ToolFailed) as caught:
        await call(family, "x_keyword_search", query="a")
    assert str(tmp_path) not in str(caught.value)
    await family.close()


async def test_closing_stops_an_import(tmp_path: Path) -> None:
    lines = "".join(
        json.dumps({"id": str(index), "author": "a", "text": f"post {index}"}) + "\n" for index in range(60_000)
    )
    (tmp_path / "posts.jsonl").write_text(lines)
    family = XSearchFamily(LocalProvider(tmp_path / FILE_NAME, None, tmp_path / "posts.jsonl"))
    await family.start()
    await _until(lambda: _posts(tmp_path) > 0)
    await family.close()
    assert 0 < _posts(tmp_path) < 60_000


def _posts(home: Path) -> int:
    if not (home / FILE_NAME).exists():
        return 0
    store = archive.Archive(home / FILE_NAME)
    try:
        with store.reading() as connection:
            return archive.stats(connection, store.file).posts
    finally:
        store.close()


async def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


async def test_an_embedder_that_fails_is_a_failed_call(home: Path) -> None:
    def broken(texts: list[str]) -> Any:
        raise EngineUnavailable("The embedding model is away.")

    family = make_x_search(config.XSearch(), home, broken, environ={})
    with pytest.raises(ToolFailed, match="model is away"):
        await call(family, "x_semantic_search", query="a")
    assert (await call(family, "x_keyword_search", query="oven")).found
    await family.close()
