"""The query language: what each operator means, that nothing is an error, and that trees come back from their text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jubal.tools.x_search.query import (
    DEPTH_MAX,
    EVERYTHING,
    OPERATORS,
    And,
    Count,
    Created,
    Field,
    IdRange,
    Node,
    Not,
    Or,
    Phrase,
    Within,
    Word,
    parse,
    render,
)

A, B, C = Word("a"), Word("b"), Word("c")


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("", EVERYTHING),
        ("a", A),
        ("a b", And((A, B))),
        ("a AND b", And((A, B))),
        ("a OR b c", Or((A, And((B, C))))),
        ("(a OR b) c", And((Or((A, B)), C))),
        ("a -b", And((A, Not(B)))),
        ("-(a b)", Not(And((A, B)))),
        ("-(-a)", A),
        ('"two  words"', Phrase("two words")),
        ("“two words”", Phrase("two words")),
        ('-"two words"', Not(Phrase("two words"))),
        ('"never closed', Phrase("never closed")),
        ("((a", A),
        ("a)) b", And((A, B))),
        ("OR a OR OR", A),
        ("-OR", Not(Word("OR"))),
        ("() -() \"\"", EVERYTHING),
        ("from:Alice", Field("from", "alice")),
        ("FROM:@alice", Field("from", "alice")),
        ('from:"alice"', Field("from", "alice")),
        ("to:bob", Field("to", "bob")),
        ("#Tag,", Field("#", "tag")),
        ("@Bob!", Field("@", "bob")),
        ("$TSLA", Field("$", "tsla")),
        ("$100", Word("$100")),
        ("lang:de", Field("lang", "de")),
        ("filter:links", Field("filter", "links")),
        ("-filter:replies", Not(Field("filter", "replies"))),
        ("is:retweet has:video_link", And((Field("filter", "nativeretweets"), Field("filter", "videos")))),
        ("conversation_id:12", Field("conversation_id", "12")),
        ("quoted_tweet_id:12", Field("quoted_tweet_id", "12")),
        ('url:"Example.org/a b"', Field("url", "example.org/a b")),
        ("url:https://example.org", Field("url", "https://example.org")),
        ("min_faves:5", Count("min_faves", 5)),
        ("min_reposts:5", Count("min_retweets", 5)),
        ("min_replies:0", Count("min_replies", 0)),
        ("since:2024-02-29", Created(1709164800, after=True)),
        ("until:2024-02-29", Created(1709164800, after=False)),
        ("since:2024-02-29_00:00:10_UTC", Created(1709164810, after=True)),
        ("until_time:10", Created(10, after=False)),
        ("within_time:2h", Within(7200)),
        ("since_id:7 max_id:9", And((IdRange(7, after=True), IdRange(9, after=False)))),
    ],
)  # fmt: skip
def test_operators(text: str, tree: Node) -> None:
    assert parse(text) == tree
    assert parse(render(tree)) == tree


@pytest.mark.parametrize(
    "text",
    ["foo:bar", "since:yesterday", "since:2023-02-29", "min_faves:many", "min_faves:-1", "filter:nonsense", "from:", "from:a.b",
     "lang:", "within_time:2y", "since_id:x", "http://a.b/c", ":", "a:b:c"],
)  # fmt: skip
def test_what_is_no_operator_is_a_plain_word(text: str) -> None:
    assert parse(text) == Word(text)


def test_deep_groups_are_read_flat() -> None:
    depth = DEPTH_MAX * 50
    assert parse("(" * depth + "a" + ")" * depth + " b") == And((A, B))
    assert parse("-(" * depth + "a") in (A, Not(A))


PIECES = st.sampled_from(
    ["(", ")", "-", '"', " ", "OR", " AND ", ":", "a", "b", "#t", "#İ", "@x", "$T", "“", "　", "\ud800", "\0", "2024-01-01", "7"]
    + [name + ":" for name in OPERATORS]
)  # fmt: skip


@given(st.text() | st.lists(PIECES, max_size=30).map("".join))
def test_any_text_has_a_tree_and_every_tree_a_text(text: str) -> None:
    tree = parse(text)
    assert parse(render(tree)) == tree
    _demand_normal(tree)


def _demand_normal(node: Node) -> None:
    match node:
        case And(parts):
            assert len(parts) != 1
            assert not any(isinstance(part, And) for part in parts)
            for part in parts:
                _demand_normal(part)
        case Or(parts):
            assert len(parts) > 1
            assert not any(isinstance(part, Or) or part == EVERYTHING for part in parts)
            for part in parts:
                _demand_normal(part)
        case Not(part):
            assert not isinstance(part, Not)
            assert part != EVERYTHING
            _demand_normal(part)
