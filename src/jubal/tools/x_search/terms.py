"""What of a post goes into the full-text index, and how a query becomes an expression of it.

The index has three columns. `body`: the text. `links`: the addresses in it. `facts`: one made-up word for every other thing
that is searched by, such as `f_alice` for its author; so a whole query with all its filters is one expression that the index
answers by merging lists, newest first, without looking at a row.

Counts are there as powers of four (`likes_3`: at least 64), which narrow; the exact number is checked in the row.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from jubal.tools.x_search.posts import SNOWFLAKE_EPOCH_MS, Post, Scope, time_of_id
from jubal.tools.x_search.query import (
    TAG,
    And,
    Count,
    CountName,
    Created,
    Field,
    FieldName,
    IdRange,
    Node,
    Not,
    Or,
    Phrase,
    Within,
    Word,
)

ANY: Final = "any"
"""The fact that every post has: what is taken from where a query only negates."""
POWERS_MAX: Final = 20
KEY_BITS: Final = 22
KEY_MIN, KEY_MAX = -(1 << 63), (1 << 63) - 1
TIMELESS_BELOW: Final = (-SNOWFLAKE_EPOCH_MS + 1) << KEY_BITS
"""Keys below are those of posts whose time is not known."""

COUNT_COLUMN: Final[dict[CountName, str]] = {
    "min_faves": "likes",
    "min_retweets": "reposts",
    "min_replies": "replies",
    "min_views": "views",
}
FACT: Final[dict[FieldName, str]] = {
    "from": "f_", "to": "t_", "lang": "l_", "filter": "is_", "conversation_id": "c_", "quoted_tweet_id": "q_",
    "#": "h_", "@": "m_", "$": "s_",
}  # fmt: skip
REPLY: Final = "r_"
"""Begins the fact of which post a post answers."""

_UNSPACED: Final = re.compile("([぀-ヿ㐀-䶿一-鿿豈-﫿])")
"""Kana and Han: written without spaces, so that each character is made a word."""
_PICTURE: Final = re.compile("[\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff]")
_MENTION: Final = re.compile(r"(?<![A-Za-z0-9_@])@([A-Za-z0-9_]{1,50})")
_CASHTAG: Final = re.compile(r"(?<![A-Za-z0-9_$])\$([A-Za-z]{1,6}(?:[._][A-Za-z]{1,2})?)(?![A-Za-z0-9_])")
_HASHTAG: Final = re.compile(r"(?<![\w&/])" + TAG.pattern)


def body_of(text: str) -> str:
    """A text as the index reads it, and a query just so: every picture and every unspaced character a word of its own."""
    text = _UNSPACED.sub(r" \1 ", text)
    return _PICTURE.sub(lambda match: f" xe{ord(match[0]):x} ", text)


def has_words(text: str) -> bool:
    """Whether the index finds a word in it: letters, digits, `_` (its tokenizer is unicode61)."""
    return any(
        char == "_" or unicodedata.category(char)[0] in "LN" or unicodedata.category(char) == "Co" for char in text
    )


def facts_of(post: Post) -> str:
    """Everything of a post that is searched by, but its text, links and exact time. The same post gives the same facts."""
    facts = [ANY, FACT["from"] + post.author.lower()]
    facts += _entities(post.text)
    facts += [FACT["filter"] + kind for kind in sorted(post.kinds)]
    for name, value in (
        ("to", post.reply_to_author),
        ("lang", post.lang),
        ("conversation_id", post.conversation),
        ("quoted_tweet_id", post.quoted),
    ):
        if value:
            facts.append(FACT[name] + word_of(value))  # type: ignore[index]
    if post.reply_to:
        facts.append(REPLY + word_of(post.reply_to))
    for column in COUNT_COLUMN.values():
        facts += [f"{column}_{power}" for power in range(powers(getattr(post, column) or 0))]
    return " ".join(facts)


def _entities(text: str) -> list[str]:
    found = {FACT["#"] + tag.lower() for tag in _HASHTAG.findall(text)}
    found |= {FACT["@"] + handle.lower() for handle in _MENTION.findall(text)}
    found |= {FACT["$"] + ticker.lower() for ticker in _CASHTAG.findall(text)}
    return sorted(found)


def kinds_of(text: str) -> set[str]:
    """The kinds that a text alone shows."""
    kinds = {"hashtags"} if _HASHTAG.search(text) else set()
    kinds |= {"mentions"} if _MENTION.search(text) else set()
    kinds |= {"cashtags"} if _CASHTAG.search(text) else set()
    return kinds | ({"links"} if "http://" in text or "https://" in text else set())


def word_of(ident: str) -> str:
    """An id as part of one word of the index, different for different ids."""
    return re.sub(r"[^a-z0-9]", lambda match: f"_{ord(match[0]):x}_", ident.lower())


def powers(count: int) -> int:
    """How many powers of four, 1 included, are not above a count: at most `POWERS_MAX`."""
    return min(POWERS_MAX, (max(count, 0).bit_length() + 1) // 2)


def key_of(post: Post) -> int:
    """Where a post stands among all others, oldest first: its id where that tells its time, else made from time and id."""
    told = time_of_id(post.id)
    if told is not None and post.created_ms is not None and told // 1000 == post.created_ms // 1000:
        return int(post.id)
    low = hash_of(post.id) & ((1 << KEY_BITS) - 1)
    return max(KEY_MIN, min(KEY_MAX - (1 << KEY_BITS), key_at(post.created_ms or 0))) + low


def key_at(ms: int) -> int:
    """The smallest key of a millisecond."""
    return (ms - SNOWFLAKE_EPOCH_MS) << KEY_BITS


def hash_of(text: str) -> int:
    """The same in every process."""
    value = 0xCBF29CE484222325
    for byte in text.encode(errors="replace"):
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


# ------------------------------------------------------------------------------------------------------- the queries


def quoted(column: str, text: str) -> str:
    escaped = text.encode("utf-8", "replace").decode().replace("\0", " ").replace('"', '""')
    return f'{column} : "{escaped}"'


def fact(word: str) -> str:
    return quoted("facts", word)


@dataclass(slots=True)
class Plan:
    """How to find the posts of a query. match: expression of the index, "" for every post. First and last key, both included.

    where: conditions on the row `p` that are still to be checked, with their values.
    """

    match: str = ""
    first: int = KEY_MIN
    last: int = KEY_MAX
    where: list[str] = field(default_factory=list)
    values: list[object] = field(default_factory=list)

    def and_match(self, expression: str | None) -> None:
        if expression:
            self.match = f"({self.match}) AND ({expression})" if self.match else expression

    def and_where(self, condition: str, values: Iterable[object] = ()) -> None:
        self.where.append(condition)
        self.values.extend(values)


def plan(query: Node, scope: Scope, now_s: int) -> Plan:
    """The query within the scope. Its own bounds can only narrow those of the scope: both are conditions of the same AND."""
    made = scoped(scope)
    for part in query.parts if isinstance(query, And) else (query,):
        _conjunct(made, part, now_s)
    return made


def scoped(scope: Scope) -> Plan:
    """Everything in the scope."""
    made = Plan()
    if scope.allowed:
        made.and_match(" OR ".join(fact(FACT["from"] + handle) for handle in sorted(scope.allowed)))
    if scope.excluded:
        excluded = " OR ".join(fact(FACT["from"] + handle) for handle in sorted(scope.excluded))
        made.and_match(f"{fact(ANY)} NOT ({excluded})")
    if scope.since_ms is not None or scope.until_ms is not None:
        made.first = TIMELESS_BELOW if scope.since_ms is None else key_at(scope.since_ms)
    if scope.until_ms is not None:
        made.last = key_at(scope.until_ms) - 1
    for name, least in (("min_faves", scope.likes_min), ("min_views", scope.views_min)):
        _conjunct(made, Count(name, least), 0)  # type: ignore[arg-type]
    return made


def _conjunct(made: Plan, node: Node, now_s: int) -> None:
    match node:
        case Created(second, True):
            made.first = max(made.first, _bounded(key_at(second * 1000)))
        case Created(second, False):
            made.first = max(made.first, TIMELESS_BELOW)
            made.last = min(made.last, _bounded(key_at(second * 1000) - 1))
        case Within(seconds):
            made.first = max(made.first, _bounded(key_at((now_s - seconds) * 1000)))
        case _:
            made.and_match(_wider(node))
            if not _exact(node):
                values: list[object] = []
                made.and_where(_condition(node, now_s, values), values)


def _bounded(key: int) -> int:
    return max(KEY_MIN, min(KEY_MAX, key))


def _exact(node: Node) -> bool:
    """Whether the index alone can tell."""
    match node:
        case And(parts) | Or(parts):
            return all(map(_exact, parts))
        case Not(part):
            return _exact(part)
        case Count(_, least):
            return least == 0
        case _:
            return isinstance(node, Word | Phrase | Field)


def _wider(node: Node) -> str | None:
    """An expression that finds all that the node means, and nothing more where the index can tell. None: every post."""
    match node:
        case Word(text) | Phrase(text):
            body = body_of(text)
            return quoted("body", body) if has_words(body) else None
        case Field("url", value):
            return quoted("links", value) if has_words(value) else None
        case Field(name, value):
            ident = name in ("conversation_id", "quoted_tweet_id", "lang", "to")
            return fact(FACT[name] + (word_of(value) if ident else value))
        case Count(name, least):
            return fact(f"{COUNT_COLUMN[name]}_{powers(least) - 1}") if least else None
        case And(parts):
            return _all(parts)
        case Or(parts):
            return _any(parts)
        case Not(part):
            inner = _wider(part) if _exact(part) else None
            return f"{fact(ANY)} NOT ({inner})" if inner else None
        case _:
            return None


def _all(parts: tuple[Node, ...]) -> str | None:
    """AND, with what is negated taken away at once from the rest."""
    without = [part.part for part in parts if isinstance(part, Not) and _exact(part)]
    there = [expression for part in parts if not isinstance(part, Not) and (expression := _wider(part))]
    gone = [expression for part in without if (expression := _wider(part))]
    found = " AND ".join(f"({one})" for one in there)
    if not gone:
        return found or None
    return f"({found or fact(ANY)}) NOT ({' OR '.join(f'({one})' for one in gone)})"


def _any(parts: tuple[Node, ...]) -> str | None:
    """OR. A word without letters asks for nothing, and what is beside it was meant; any other part without bound takes all."""
    found = []
    for part in parts:
        expression = _wider(part)
        if expression is not None:
            found.append(f"({expression})")
        elif not isinstance(part, Word | Phrase):
            return None
    return " OR ".join(found) or None


def _condition(node: Node, now_s: int, values: list[object]) -> str:
    """The node as a condition on the row `p`, which takes the values."""
    match node:
        case And(parts):
            return "(" + " AND ".join(_condition(part, now_s, values) for part in parts) + ")"
        case Or(parts):
            meant = [part for part in parts if not isinstance(part, Word | Phrase) or _wider(part)]
            return "(" + " OR ".join(_condition(part, now_s, values) for part in meant or parts) + ")"
        case Not(part):
            if isinstance(part, Word | Phrase | Field) and _wider(part) is None:
                return "1"
            return f"NOT {_condition(part, now_s, values)}"
        case Count(name, least):
            values.append(least)
            return f"(coalesce(p.{COUNT_COLUMN[name]}, 0) >= ?)"
        case Created(second, after):
            values.append(_bounded(key_at(second * 1000)))
            return "(p.key >= ?)" if after else f"(p.key < ? AND p.key >= {TIMELESS_BELOW})"
        case Within(seconds):
            values.append(_bounded(key_at((now_s - seconds) * 1000)))
            return "(p.key >= ?)"
        case IdRange(ident, after):
            values.append(ident)
            number = (
                "(SELECT CASE WHEN id NOT GLOB '*[^0-9]*' THEN CAST(id AS INTEGER) END FROM post WHERE key = p.key)"
            )
            return f"(coalesce({number} {'>' if after else '<='} ?, 0))"
        case _:
            expression = _wider(node)
            if expression is None:
                return "1"
            values.append(expression)
            return "(p.key IN (SELECT rowid FROM words WHERE words MATCH ?))"
