"""The archive: what files it takes, what it finds, and that no query finds what the caller left out."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jubal.core.server_tools import XSearch
from jubal.engines.wordllama_engine import TextVectors
from jubal.tools.x_search import archive, importing, reading, vectors
from jubal.tools.x_search.posts import Post, Scope, XSearchError, scope_of
from jubal.tools.x_search.query import OPERATORS
from jubal.tools.x_search.terms import key_of

DATA = Path(__file__).parent / "data"
EVERYTHING = Scope()
NOW_S = 1_735_689_600
"""2025-01-01."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[archive.Archive]:
    made = archive.Archive(tmp_path / "posts.db")
    yield made
    made.close()


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[archive.Archive]:
    """All three fixtures. Nobody changes it."""
    made = archive.Archive(tmp_path_factory.mktemp("full") / "posts.db")
    for name in ("posts.jsonl", "api_v2.json", "x_archive"):
        assert importing.import_posts(made, DATA / name).bad == 0
    yield made
    made.close()


def search(
    store: archive.Archive, query: str, wanted: XSearch | None = None, *, top: bool = False, limit: int = 50
) -> list[str]:
    """Last three digits of the ids that are found."""
    with store.reading() as connection:
        scope = scope_of(wanted or XSearch())
        return [post.id[-3:] for post in archive.keyword(connection, query, scope, limit, top=top, now_s=NOW_S)]


def counts(store: archive.Archive) -> tuple[int, int]:
    with store.reading() as connection:
        found = archive.stats(connection, store.file)
    return found.posts, found.authors


def posts_file(folder: Path, *posts: dict[str, Any] | str) -> Path:
    file = folder / "some posts.jsonl"
    file.write_text("".join((post if isinstance(post, str) else json.dumps(post)) + "\n" for post in posts))
    return file


# ------------------------------------------------------------------------------------------------------- keyword search


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("bread", ["001"]),
        ("BREAD", ["001"]),
        ("#bread", ["001"]),
        ("#bake", []),
        ("neighbours OR moon", ["003", "002"]),
        ("pictures -congratulations", ["005"]),
        ("first pictures", ["005", "004"]),
        ('"first pictures should"', ["005"]),
        ('"pictures first"', []),
        ("(moon OR oven) (cheering OR sings)", ["003", "001"]),
        ("-(from:orbit_desk) pictures", ["004"]),
        ("from:ORBIT_DESK", ["005", "003"]),
        ("from:@Orbit_Desk pictures", ["005"]),
        ("to:orbit_desk", ["004"]),
        ("@kim_transit", ["005"]),
        ("$quit", ["008"]),
        ("cafe", ["006"]),
        ("CAFÉ", ["006"]),
        ("lang:de", ["007"]),
        ("静か", ["009"]),
        ("静か 東京", ["009"]),
        ("🚆", ["009"]),
        ("filter:replies from:orbit_desk", ["005"]),
        ("from:orbit_desk -filter:replies", ["003"]),
        ("min_faves:1000", ["003"]),
        ("min_faves:990", ["008", "003"]),
        ("min_faves:991", ["003"]),
        ("moon min_faves:99999", []),
        ("pictures -min_faves:10", ["004"]),
        ("(oven OR min_faves:5000)", ["003", "001"]),
        ("(bug -min_faves:990) OR oven", ["001"]),
        ("min_views:31000", ["008", "003"]),
        ("min_retweets:30", ["505", "011", "730"]),
        ("min_replies:2", ["101", "505"]),
        ("since:2024-01-14 until:2024-01-16", ["008"]),
        ("until:2018-10-11", ["728"]),
        ("until:2018-10-11 OR oven", ["001", "728"]),
        ("oven -since:2024-01-01", ["001"]),
        ("within_time:206d", ["404", "303", "202", "101"]),
        ("since_id:1747000000000000007 max_id:1748000000000000009", ["009", "008"]),
        ("conversation_id:1800000000000000101", ["303", "202", "101"]),
        ("quoted_tweet_id:1799000000000000505", ["404"]),
        ("filter:quote", ["404"]),
        ("filter:nativeretweets", ["730"]),
        ("filter:verified", ["303", "101", "505"]),
        ("filter:images", ["101", "729"]),
        ("filter:links from:mira_gardens", ["728"]),
        ("url:harbour.example", ["101"]),
        ('url:"https://seeds.example/heirloom"', ["728"]),
        ("url:tides/2024", ["101"]),
        ("nonsense:operator", []),
        ("*", ["404", "303"]),
        ("!!! oven", ["001"]),
        ("worms OR !!!", []),
        ('"worm report" \\ ', ["729"]),
        ("4 kg & still", ["728"]),
    ],
)  # fmt: skip
def test_operators(full: archive.Archive, query: str, found: list[str]) -> None:
    assert search(full, query, limit=2 if query == "*" else 50) == found


def test_latest_and_top(full: archive.Archive) -> None:
    assert search(full, "from:tea_and_code OR from:orbit_desk") == ["009", "008", "005", "003"]
    assert search(full, "from:tea_and_code OR from:orbit_desk", top=True) == ["003", "008", "005", "009"]


def test_top_of_many_is_exact(store: archive.Archive) -> None:
    """Found by tiers of likes, and the same as by sorting all."""
    posts = [
        {
            "id": str(index),
            "author": "a",
            "text": "same words",
            "likes": (index * 7919) % 1000 if index % 2 else 0,
            "created_at": 1_700_000_000 + index,
        }
        for index in range(400)
    ]
    with store.reading() as connection:
        _import_values(connection, posts)
    ranked = [post["id"] for post in sorted(posts, key=lambda post: (-post["likes"], -post["created_at"]))]
    for limit in (1, 10, 150, 250, 400, 500):
        with store.reading() as connection:
            found = archive.keyword(connection, "same", EVERYTHING, limit, top=True, now_s=NOW_S)
        assert [post.id for post in found] == ranked[:limit]


def _import_values(connection: sqlite3.Connection, values: list[dict[str, Any]]) -> None:
    from jubal.tools.x_search.records import items_of

    archive.write(connection, [item for value in values for item in items_of(value, None) if isinstance(item, Post)])


# -------------------------------------------------------------------------------------------- what the caller left out


@pytest.mark.parametrize(
    ("wanted", "query", "found"),
    [
        (XSearch(allowed_handles=("Orbit_Desk",)), "pictures", ["005"]),
        (XSearch(allowed_handles=("Orbit_Desk",)), "from:lena_baker", []),
        (XSearch(allowed_handles=("@orbit_desk",)), "pictures OR bread", ["005"]),
        (XSearch(excluded_handles=("orbit_desk",)), "pictures", ["004"]),
        (XSearch(excluded_handles=("orbit_desk",)), "from:orbit_desk OR pictures", ["004"]),
        (XSearch(from_date="2024-01-15", to_date="2024-01-15"), "", ["008"]),
        (XSearch(from_date="2024-01-15", to_date="2024-01-15"), "since:2020-01-01 until:2030-01-01", ["008"]),
        (XSearch(favorites_min=990), "from:tea_and_code OR from:kim_transit", ["008"]),
        (XSearch(views_min=9100), "from:lena_baker", ["002"]),
        (XSearch(views_min=1), "from:mira_gardens", []),
    ],
)  # fmt: skip
def test_filters_of_the_caller(full: archive.Archive, wanted: XSearch, query: str, found: list[str]) -> None:
    assert search(full, query, wanted) == found


PIECES = st.sampled_from(
    ["(", ")", "-", '"', " ", " OR ", " AND ", "NOT", "NEAR", "*", "^", ":", "body:", "facts : any", "any", "f_orbit_desk", "pictures", "the",
     "#bread", "@kim_transit", "from:orbit_desk", "from:lena_baker", "min_faves:1", "until:2030-01-01", "since:2000-01-01", "'", ";", "\0", "\ud800", "🚆",
     "url:x", "within_time:9w", "since_id:1", "filter:replies", "静か"]
    + [name + ":" for name in OPERATORS]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(query=st.lists(PIECES, max_size=14).map("".join) | st.text(max_size=40), top=st.booleans())
def test_no_query_fails_or_escapes(full: archive.Archive, query: str, top: bool) -> None:
    scope = scope_of(XSearch(excluded_handles=("orbit_desk",), to_date="2024-06-01", favorites_min=3))
    with full.reading() as connection:
        for post in archive.keyword(connection, query, scope, 50, top=top, now_s=NOW_S):
            assert scope.allows(post)


# --------------------------------------------------------------------------------------------------------------- files


def test_an_x_archive_in_every_form(tmp_path: Path) -> None:
    folder = DATA / "x_archive"
    with zipfile.ZipFile(tmp_path / "twitter-2024.zip", "w", zipfile.ZIP_DEFLATED) as whole:
        for file in sorted((folder / "data").iterdir()):
            whole.write(file, f"data/{file.name}")
    told = []
    for number, path in enumerate((folder, folder / "data", tmp_path / "twitter-2024.zip")):
        store = archive.Archive(tmp_path / f"{number}.db")
        assert importing.import_posts(store, path).added == 4
        with store.reading() as connection:
            told.append(archive.keyword(connection, "", EVERYTHING, 9, top=False, now_s=NOW_S))
        store.close()
    assert told[0] == told[1] == told[2]
    bee, retweet, worms, tomatoes = told[0]
    assert (bee.author, bee.name, bee.likes, bee.reposts, bee.views) == (
        "mira_gardens",
        "Mira's Garden",
        900,
        120,
        None,
    )
    assert tomatoes.text == "Last basket of the year: 4 kg & still ripening. #tomatoes https://t.co/aaaa"
    assert tomatoes.links == ("https://seeds.example/heirloom", "https://t.co/aaaa")
    assert tomatoes.url == "https://x.com/mira_gardens/status/1050118621198921728"
    assert (worms.reply_to, worms.reply_to_author) == (tomatoes.id, "mira_gardens")
    assert worms.media == ("https://pics.example/media/worms.jpg",)
    assert {"media", "images", "replies", "mentions"} <= worms.kinds
    assert "nativeretweets" in retweet.kinds


def test_one_file_of_an_archive(store: archive.Archive, tmp_path: Path) -> None:
    assert importing.import_posts(store, DATA / "x_archive/data/tweets-part1.js").added == 1
    assert search(store, "from:mira_gardens") == ["011"], "the owner is told by account.js beside it"
    alone = tmp_path / "tweets.js"
    shutil.copy(DATA / "x_archive/data/tweets.js", alone)
    report = importing.import_posts(store, alone)
    assert (report.added, report.bad) == (0, 3)
    assert "account.js" in report.first_bad[0].reason
    assert importing.import_posts(store, alone, author="someone").added == 3
    assert len(search(store, "from:someone")) == 3


def test_a_page_of_the_api(store: archive.Archive, tmp_path: Path) -> None:
    assert importing.import_posts(store, DATA / "api_v2.json").added == 5
    with store.reading() as connection:
        (tides,) = archive.keyword(connection, "tide tables", EVERYTHING, 9, top=False, now_s=NOW_S)
    assert tides.text.startswith("Tide tables for the harbour are online. Bring boots & a lamp.")
    assert (tides.author, tides.name, tides.views, tides.conversation) == (
        "HarbourOffice",
        "Harbour Office",
        2300,
        "1800000000000000101",
    )
    assert tides.media == ("https://pics.example/media/harbour.jpg",)
    page = json.loads((DATA / "api_v2.json").read_text())
    lines = posts_file(tmp_path, page, {**page["data"][0], "author": page["includes"]["users"][0]}, page["data"][1])
    report = importing.import_posts(store, lines)
    assert (report.added, report.updated, report.unchanged, report.bad) == (0, 0, 5, 1)
    assert "includes.users" in report.first_bad[0].reason
    assert report.first_bad[0].line == 3


def test_an_array_of_posts(store: archive.Archive, tmp_path: Path) -> None:
    file = tmp_path / "posts.json"
    file.write_text(
        json.dumps([json.loads(line) for line in (DATA / "posts.jsonl").read_text().splitlines()], indent=2)
    )
    assert importing.import_posts(store, file).added == 10


def test_bad_lines_are_told_and_passed_over(store: archive.Archive, tmp_path: Path) -> None:
    good = {"id": 1, "author": "a", "text": "fine"}
    file = posts_file(
        tmp_path,
        '{"id": "1", "text": "cut',
        good,
        "",
        "[]",
        {**good, "id": None},
        {**good, "id": "2", "author": "not a handle"},
        {**good, "id": "3", "text": 5},
        {**good, "id": "4", "created_at": "soon"},
        "not json",
        {**good, "id": "5", "likes": "many", "views": -3, "url": "javascript:alert(1)", "reply_to": {"x": 1}},
    )
    report = importing.import_posts(store, file)
    assert (report.added, report.bad) == (2, 7)
    assert [one.line for one in report.first_bad] == [1, 4, 5, 6, 7]
    for one, word in zip(report.first_bad, ("JSON", "object", "`id`", "`author`", "`text`"), strict=True):
        assert word in one.reason
    with store.reading() as connection:
        post = archive.keyword(connection, "fine", EVERYTHING, 9, top=False, now_s=NOW_S)
    assert {(one.likes, one.views, one.url[:14], one.created_ms) for one in post} == {
        (None, None, "https://x.com/", None)
    }


def test_an_archive_that_was_cut_off(store: archive.Archive, tmp_path: Path) -> None:
    whole = (DATA / "x_archive/data/tweets.js").read_bytes()
    file = tmp_path / "tweets.js"
    file.write_bytes(whole[: len(whole) * 2 // 3])
    report = importing.import_posts(store, file, author="mira_gardens")
    assert report.added >= 1
    assert report.bad == 1
    assert "ends in the middle" in report.first_bad[0].reason


def test_a_bad_element_does_not_end_the_array(store: archive.Archive, tmp_path: Path) -> None:
    file = tmp_path / "posts.json"
    file.write_text(
        '[\n{"id": "1", "author": "a", "text": "one"},\n{"id": 2, oops},\n"text",\n12,\n{"id": "3", "author": "a", "text": "three"}]'
    )
    report = importing.import_posts(store, file)
    assert (report.added, [one.line for one in report.first_bad]) == (2, [3, 4, 5])


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_files_read_in_small_pieces(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def everything() -> list[Any]:
        files = [part for name in ("posts.jsonl", "api_v2.json", "x_archive") for part in reading.parts_of(DATA / name)]
        return [item for part in files for item in reading.read(part) if not isinstance(item, reading.Position)]

    whole = everything()
    monkeypatch.setattr(reading, "CHUNK", chunk)
    assert everything() == whole


def test_what_is_not_there_or_has_no_posts(store: archive.Archive, tmp_path: Path) -> None:
    with pytest.raises(XSearchError, match="no such file"):
        importing.import_posts(store, tmp_path / "none.jsonl")
    (tmp_path / "folder").mkdir()
    with pytest.raises(XSearchError, match=r"data/tweets\.js"):
        importing.import_posts(store, tmp_path / "folder")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as whole:
        whole.writestr("readme.txt", "nothing")
    with pytest.raises(XSearchError, match=r"data/tweets\.js"):
        importing.import_posts(store, tmp_path / "x.zip")
    (tmp_path / "empty.jsonl").write_text("")
    assert importing.import_posts(store, tmp_path / "empty.jsonl").added == 0


# ------------------------------------------------------------------------------------------------------- importing again


def test_importing_again_changes_nothing(store: archive.Archive) -> None:
    for _ in range(2):
        for name in ("posts.jsonl", "api_v2.json", "x_archive"):
            report = importing.import_posts(store, DATA / name)
    assert (report.added, report.updated, report.unchanged) == (0, 0, 4)
    assert counts(store) == (19, 8)
    assert search(store, "bread") == ["001"]


def test_importing_again_renews(store: archive.Archive, tmp_path: Path) -> None:
    first = {
        "id": "1742000000000000003",
        "author": "a",
        "text": "old words #one",
        "likes": 1,
        "views": 10,
        "created_at": "2024-01-02T02:06:00Z",
    }
    importing.import_posts(store, posts_file(tmp_path, first))
    renewed = {
        "id": "1742000000000000003",
        "author": "a",
        "text": "new words #two",
        "likes": 500,
        "created_at": "2024-03-01",
    }
    report = importing.import_posts(store, posts_file(tmp_path, renewed), embed=TextVectors())
    assert (report.added, report.updated) == (0, 1)
    assert search(store, "old") == search(store, "#one") == search(store, "until:2024-02-01") == []
    assert search(store, "new #two min_faves:500 since:2024-03-01 until:2024-03-02") == ["003"]
    with store.reading() as connection:
        (post,) = archive.keyword(connection, "", EVERYTHING, 5, top=False, now_s=NOW_S)
        connection.execute("INSERT INTO words(words) VALUES ('integrity-check')")
    assert post.views == 10, "what is not told anew stays"


def test_a_changed_text_gets_a_new_vector(store: archive.Archive, tmp_path: Path) -> None:
    embed = TextVectors()
    importing.import_posts(store, posts_file(tmp_path, {"id": "1", "author": "a", "text": "volcano"}), embed=embed)
    importing.import_posts(store, posts_file(tmp_path, {"id": "1", "author": "a", "text": "cheese"}), embed=embed)
    with store.reading() as connection:
        ((_, score),) = vectors.Sketches().search(connection, embed(["cheese"])[0], EVERYTHING, 3, -1)
    assert score > 0.99


def test_posts_of_the_same_moment_are_all_kept(store: archive.Archive, tmp_path: Path) -> None:
    posts = [{"id": f"n{index}", "author": "a", "text": f"post {index}"} for index in range(300)]
    assert len({key_of(post) for post in _plain(posts)}) <= 300
    assert importing.import_posts(store, posts_file(tmp_path, *posts)).added == 300
    assert counts(store) == (300, 1)
    assert search(store, "until:2030-01-01") == [], "their time is not known"
    assert len(search(store, "post", limit=400)) == 300


def _plain(values: list[dict[str, Any]]) -> list[Post]:
    from jubal.tools.x_search.records import items_of

    return [item for value in values for item in items_of(value, None) if isinstance(item, Post)]


def test_two_posts_with_one_key(store: archive.Archive) -> None:
    """Keys made from time and id may meet; neither post may be lost, then or when it is renewed."""
    made = _plain([{"id": "x", "author": "a", "text": "one", "created_at": 1_700_000_000}])[0]
    twin = replace(made, id=str(key_of(made)), text="two")
    with store.reading() as connection:
        archive.write(connection, [made])
        archive.write(connection, [twin])
        archive.write(connection, [replace(made, text="one again"), replace(twin, likes=5)])
    assert sorted(search(store, "one OR two")) == sorted(["x", twin.id[-3:]])


def test_unchanged_files_are_not_read_again(store: archive.Archive, tmp_path: Path) -> None:
    file = posts_file(tmp_path, {"id": "1", "author": "a", "text": "one"})
    assert not importing.import_posts(store, file, only_changed=True).skipped
    assert importing.import_posts(store, file, only_changed=True).skipped
    file.write_text(file.read_text() + '{"id": "2", "author": "a", "text": "two"}\n')
    report = importing.import_posts(store, file, only_changed=True)
    assert (report.skipped, report.added, report.unchanged) == (False, 1, 1)


def test_an_import_that_is_stopped_keeps_what_it_wrote(
    store: archive.Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CHUNK", 64)
    monkeypatch.setattr(importing, "BATCH", 5)
    posts = [{"id": str(index), "author": "a", "text": f"post {index}"} for index in range(50)]
    file = posts_file(tmp_path, *posts)
    stop, calls = threading.Event(), []

    def progress(what: str, done: int, total: int) -> None:
        calls.append((what, done, total))
        if done > total / 2:
            stop.set()

    with pytest.raises(importing.Stopped):
        importing.import_posts(store, file, stop=stop, progress=progress)
    assert 0 < counts(store)[0] < 50
    report = importing.import_posts(store, file, embed=TextVectors(), progress=progress)
    assert counts(store)[0] == 50
    assert report.embedded == 50
    assert calls[-1] == ("embedding", 50, 50)


def test_a_full_disk_or_broken_file_is_an_error_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "posts.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(XSearchError, match=r"posts\.db"):
        importing.import_posts(archive.Archive(tmp_path / "posts.db"), DATA / "posts.jsonl")
    folder = tmp_path / "folder.db"
    folder.mkdir()
    with pytest.raises(XSearchError, match=r"folder\.db"):
        importing.import_posts(archive.Archive(folder), DATA / "posts.jsonl")


def test_a_store_of_another_release_is_refused(store: archive.Archive) -> None:
    with store.reading() as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(XSearchError, match="another release"), archive.Archive(store.file).reading():
        pass


def test_the_file_is_for_its_owner_only(store: archive.Archive) -> None:
    counts(store)
    assert store.file.stat().st_mode & 0o777 == 0o600


def test_clear(store: archive.Archive) -> None:
    importing.import_posts(store, DATA / "posts.jsonl", embed=TextVectors())
    with store.reading() as connection:
        archive.clear(connection)
    assert counts(store) == (0, 0)
    assert search(store, "bread") == []
    assert importing.import_posts(store, DATA / "posts.jsonl").added == 10
    assert search(store, "bread") == ["001"]


# ------------------------------------------------------------------------------------------------------ users, threads


def test_users(full: archive.Archive) -> None:
    with full.reading() as connection:

        def found(query: str, scope: Scope = EVERYTHING) -> list[tuple[str, int]]:
            return [(author.handle, posts) for author, posts in archive.users(connection, query, scope, 5)]

        assert found("@HarbourOffice") == [("HarbourOffice", 3)]
        assert found("harbour office") == [("HarbourOffice", 3)]
        assert found("SØRENSEN") == found("Anna") == [("sail_anna", 2)]
        assert found("ferries") == [("HarbourOffice", 3)]
        assert found("mira garden") == [("mira_gardens", 4)]
        assert found("nobody") == found("@") == []
        assert found("anna", Scope(excluded=frozenset({"sail_anna"}))) == []


@pytest.mark.parametrize("ident", ["1742000000000000003", "1742100000000000004", "1742200000000000005"])
def test_a_thread_along_its_answers(full: archive.Archive, ident: str) -> None:
    with full.reading() as connection:
        posts = archive.thread(connection, ident, EVERYTHING, 30)
    assert [post.id[-3:] for post in posts or ()] == ["003", "004", "005"]


def test_a_thread_by_its_conversation(full: archive.Archive) -> None:
    with full.reading() as connection:
        posts = archive.thread(connection, "1800000000000000303", EVERYTHING, 30) or []
        assert [post.id[-3:] for post in posts] == ["101", "202", "303"]
        assert [post.id[-3:] for post in archive.thread(connection, "1800000000000000202", EVERYTHING, 2) or []] == [
            "101",
            "202",
        ]
        scope = Scope(excluded=frozenset({"sail_anna"}))
        assert [post.id[-3:] for post in archive.thread(connection, "1800000000000000101", scope, 9) or []] == [
            "101",
            "303",
        ]
        assert archive.thread(connection, "1800000000000000202", scope, 9) is None
        assert archive.thread(connection, "404", EVERYTHING, 9) is None


def test_a_thread_that_bites_its_tail(store: archive.Archive, tmp_path: Path) -> None:
    posts = [
        {"id": one, "author": "a", "text": "t", "reply_to": two}
        for one, two in (("1", "2"), ("2", "3"), ("3", "1"), ("4", "4"))
    ]
    importing.import_posts(store, posts_file(tmp_path, *posts))
    with store.reading() as connection:
        assert len(archive.thread(connection, "1", EVERYTHING, 9) or []) == 3
        assert len(archive.thread(connection, "4", EVERYTHING, 9) or []) == 1


# ------------------------------------------------------------------------------------------------------------ semantic


@pytest.mark.parametrize(
    ("query", "best"),
    [
        ("spacecraft landing on the lunar surface", "003"),
        ("overnight sleeper railway", "006"),
        ("programmer debugging a syntax error", "008"),
        ("insects in the garden in spring", "011"),
        ("neighbours learn to bake a loaf", "002"),
    ],
)
def test_semantic_search(full: archive.Archive, query: str, best: str) -> None:
    embed = TextVectors()
    with full.reading() as connection:
        vectors.embed_pending(connection, embed)
        found = vectors.Sketches().search(connection, embed([query])[0], EVERYTHING, 3, -1)
        assert archive.posts_of(connection, [found[0][0]])[0].id[-3:] == best
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)


def test_semantic_search_keeps_to_the_filters(store: archive.Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """With candidates by their signs, and without: as many as there are, all of them within the scope, none missing."""
    embed = _random_vectors()
    posts = [
        Post(str(index), f"u{index % 7}", f"text {index}", 1_700_000_000_000 + index * 3_600_000, "https://x.com/a/status/1", likes=index % 50, views=index)
        for index in range(500)
    ]  # fmt: skip
    scope = scope_of(
        XSearch(excluded_handles=("u3",), from_date="2023-11-16", to_date="2023-11-30", favorites_min=10, views_min=60)
    )
    fit = {post.id for post in posts if scope.allows(post)}
    with store.reading() as connection:
        archive.write(connection, posts)
        assert vectors.embed_pending(connection, embed) == 500
        query = embed(["q"])[0]
        exact = vectors.Sketches().search(connection, query, scope, 500, -1)
        assert {post.id for post in archive.posts_of(connection, [key for key, _ in exact])} == fit
        monkeypatch.setattr(vectors, "EXACT_MAX", 10)
        monkeypatch.setattr(vectors, "CANDIDATES", len(fit))
        monkeypatch.setattr(vectors, "BLOCK", 64)
        assert vectors.Sketches().search(connection, query, scope, 500, -1) == exact
        monkeypatch.setattr(vectors, "NEAR", 120)
        monkeypatch.setattr(vectors, "CANDIDATES", 60)
        near = vectors.Sketches().search(connection, query, scope, 5, -1)
        assert len({key for key, _ in near} & {key for key, _ in exact[:5]}) >= 4
        assert vectors.Sketches().search(connection, query, replace(scope, allowed=frozenset({"none"})), 5, -1) == []


def _random_vectors() -> Callable[[list[str]], np.ndarray[Any, np.dtype[np.float32]]]:
    def embed(texts: list[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        rows = np.stack([np.random.default_rng(sum(text.encode())).normal(size=192) for text in texts])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    return embed


def test_posts_without_words_have_no_vector(store: archive.Archive, tmp_path: Path) -> None:
    embed = TextVectors()
    report = importing.import_posts(
        store,
        posts_file(tmp_path, {"id": "1", "author": "a", "text": "  "}, {"id": "2", "author": "a", "text": "word"}),
        embed=embed,
    )
    assert report.embedded == 2
    with store.reading() as connection:
        assert archive.stats(connection, store.file).pending == 0
        assert len(vectors.Sketches().search(connection, embed(["word"])[0], EVERYTHING, 5, -1)) == 1
        assert vectors.embed_pending(connection, embed) == 0


def test_new_posts_are_found_by_a_sketch_that_was_loaded_before(store: archive.Archive, tmp_path: Path) -> None:
    embed, sketches = TextVectors(), vectors.Sketches()
    with store.reading() as connection:
        assert sketches.search(connection, embed(["word"])[0], EVERYTHING, 5, -1) == []
        importing.import_posts(store, posts_file(tmp_path, {"id": "2", "author": "a", "text": "word"}), embed=embed)
        sketches._next_load = 0  # the pause between two loads, which keeps a busy import from slowing searches
        assert len(sketches.search(connection, embed(["word"])[0], EVERYTHING, 5, -1)) == 1
