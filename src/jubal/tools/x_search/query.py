"""The query language of X's keyword search: text to a tree, and back.

Parsing never fails: an operator that is unknown, or whose value can't be read, is a plain word. AND, which is also what a space
means, binds tighter than OR; `-` negates a word, a phrase, an operator or a group. Dates are UTC days.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, TypeAlias, get_args

DEPTH_MAX: Final = 20
"""Groups within groups; brackets of deeper ones are read as spaces."""
NUMBER_DIGITS_MAX: Final = 18
SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}

FieldName: TypeAlias = Literal[
    "from", "to", "lang", "filter", "conversation_id", "quoted_tweet_id", "url", "#", "@", "$"
]
CountName: TypeAlias = Literal["min_faves", "min_retweets", "min_replies", "min_views"]
FilterName: TypeAlias = Literal[
    "links", "media", "images", "videos", "replies", "nativeretweets", "quote", "verified", "hashtags", "mentions",
    "cashtags",
]  # fmt: skip
FILTERS: Final[tuple[FilterName, ...]] = get_args(FilterName)


@dataclass(frozen=True, slots=True)
class Word:
    """A run of characters without spaces, brackets and quotes. It may have no letter at all, and then asks for nothing."""

    text: str


@dataclass(frozen=True, slots=True)
class Phrase:
    """Words that stand together in this order; never empty, single spaces between them."""

    text: str


@dataclass(frozen=True, slots=True)
class Field:
    """Something about a post that it has or has not. value: lower case; handles without `@`, entities without their sign."""

    name: FieldName
    value: str


@dataclass(frozen=True, slots=True)
class Count:
    """At least so many likes, reposts, replies or views."""

    name: CountName
    least: int


@dataclass(frozen=True, slots=True)
class Created:
    """second: Unix time. after: written in that second or later, else before it."""

    second: int
    after: bool


@dataclass(frozen=True, slots=True)
class Within:
    """Written in the last so many seconds."""

    seconds: int


@dataclass(frozen=True, slots=True)
class IdRange:
    """after: ids above this one (`since_id:`), else this one and those below (`max_id:`)."""

    id: int
    after: bool


@dataclass(frozen=True, slots=True)
class And:
    """All of them; none at all is every post. Never one part alone, and no And among them."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Any of them. At least two parts, and no Or among them."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """Never of a Not."""

    part: Node


Leaf: TypeAlias = Word | Phrase | Field | Count | Created | Within | IdRange
Node: TypeAlias = Leaf | And | Or | Not
EVERYTHING: Final = And(())


def all_of(parts: Iterable[Node]) -> Node:
    """And in its normal form."""
    flat: list[Node] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, And) else (part,))
    return flat[0] if len(flat) == 1 else And(tuple(flat))


def any_of(parts: Iterable[Node]) -> Node:
    """Or in its normal form. A part that asks for nothing is left out: what is beside it was meant."""
    flat: list[Node] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, Or) else () if part == EVERYTHING else (part,))
    return EVERYTHING if not flat else flat[0] if len(flat) == 1 else Or(tuple(flat))


def none_of(part: Node) -> Node:
    """Not in its normal form. Of what asks for nothing it asks for nothing either."""
    return part.part if isinstance(part, Not) else part if part == EVERYTHING else Not(part)


# ----------------------------------------------------------------------------------------------------------- parsing


_TOKEN: Final = re.compile(
    r'(?P<minus>-+)(?=[^\s)])|(?P<open>\()|(?P<close>\))|"(?P<quoted>[^"]*)"?|(?P<word>[^\s()"]+)'
)
_QUOTES: Final = str.maketrans("“”„«»", '"""""')
_TRAILING: Final = ".,;:!?'’…"


def parse(text: str) -> Node:
    """The tree of a query. Never raises."""
    return _Parser(text.translate(_QUOTES)).run()


class _Parser:
    """One pass over the tokens, with a stack of open groups; each is a list of alternatives, each of those a list of parts."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_TOKEN.finditer(text))
        self._groups: list[tuple[bool, list[list[Node]]]] = [(False, [[]])]
        self._ignored = 0
        self._minus = False

    def run(self) -> Node:
        index = 0
        while index < len(self._tokens):
            index += self._take(index)
        while len(self._groups) > 1:
            self._close()
        return _alternatives(self._groups[0][1])

    def _take(self, index: int) -> int:
        """Reads the token at `index`; how many were used up."""
        token = self._tokens[index]
        match token.lastgroup:
            case "minus":
                self._minus = True
                return 1
            case "open":
                self._open()
            case "close":
                self._close_or_ignore()
            case "quoted":
                if words := " ".join(token["quoted"].split()):
                    self._add(Phrase(words))
            case _:
                return self._word(index)
        self._minus = False
        return 1

    def _word(self, index: int) -> int:
        text = self._tokens[index]["word"]
        used = 1
        if text == "OR" and not self._minus:
            self._groups[-1][1].append([])
        elif text != "AND" or self._minus:
            leaf = self._quoted_value(index, text)
            if leaf is not None:
                used = 2
            self._add(leaf or leaf_of(text))
        self._minus = False
        return used

    def _quoted_value(self, index: int, text: str) -> Leaf | None:
        """`url:"a b"` is one operator, where the quote follows at once."""
        if not text.endswith(":") or index + 1 == len(self._tokens):
            return None
        following = self._tokens[index + 1]
        if following.lastgroup != "quoted" or following.start() != self._tokens[index].end():
            return None
        leaf = leaf_of(text + " ".join(following["quoted"].split()))
        return None if isinstance(leaf, Word) else leaf

    def _add(self, node: Node) -> None:
        self._groups[-1][1][-1].append(none_of(node) if self._minus else node)

    def _open(self) -> None:
        if len(self._groups) > DEPTH_MAX:
            self._ignored += 1
        else:
            self._groups.append((self._minus, [[]]))

    def _close_or_ignore(self) -> None:
        if self._ignored:
            self._ignored -= 1
        elif len(self._groups) > 1:
            self._close()

    def _close(self) -> None:
        negated, alternatives = self._groups.pop()
        inner = _alternatives(alternatives)
        self._groups[-1][1][-1].append(none_of(inner) if negated else inner)


def _alternatives(alternatives: list[list[Node]]) -> Node:
    return any_of(all_of(parts) for parts in alternatives)


# --------------------------------------------------------------------------------------------------------- operators


TAG: Final = re.compile(r"[#＃]([^\s!-/:-@\[-^`{-~＃＠…‘’“”«»、。！？]+)")
"""Any script with its marks, and `_`; no other punctuation."""
_HANDLE: Final = re.compile(r"@?([A-Za-z0-9_]{1,50})")
_CASHTAG: Final = re.compile(r"\$([A-Za-z]{1,6}(?:[._][A-Za-z]{1,2})?)")
_DATE: Final = re.compile(r"(\d{4}-\d{1,2}-\d{1,2})(?:_(\d{1,2}:\d{2}:\d{2})(?:_UTC)?)?", re.IGNORECASE)
_NUMBER: Final = re.compile(rf"[0-9]{{1,{NUMBER_DIGITS_MAX}}}")
_SECOND: Final = re.compile(r"-?[0-9]{1,11}")
_ID: Final = re.compile(r"[0-9]{1,18}|[1-8][0-9]{18}")
_SPAN: Final = re.compile(r"([0-9]{1,9})([smhdw])")
_LANGUAGE: Final = re.compile(r"[a-z]{2,3}(?:-[a-z0-9]{2,8})?")
_IDENT: Final = re.compile(r"[a-z0-9_-]{1,64}")


def leaf_of(text: str) -> Leaf:
    """What one word of a query asks for: an operator, an entity, or just the word."""
    name, colon, value = text.partition(":")
    if colon and (make := OPERATORS.get(name.lower())):
        return make(value) or Word(text)
    return _entity(text.rstrip(_TRAILING)) or Word(text)


def _entity(text: str) -> Leaf | None:
    if match := TAG.fullmatch(text):
        return Field("#", match[1].lower())
    if text.startswith("@") and (match := _HANDLE.fullmatch(text)):
        return Field("@", match[1].lower())
    if match := _CASHTAG.fullmatch(text):
        return Field("$", match[1].lower())
    return None


def _matched(name: FieldName, pattern: re.Pattern[str]) -> Callable[[str], Leaf | None]:
    def make(value: str) -> Leaf | None:
        match = pattern.fullmatch(value.lower())
        return Field(name, match[match.lastindex or 0]) if match else None

    return make


def _url(value: str) -> Leaf | None:
    return Field("url", value.lower()) if value.strip() else None


def _filtered(names: dict[str, FilterName]) -> Callable[[str], Leaf | None]:
    def make(value: str) -> Leaf | None:
        found = names.get(value.lower())
        return Field("filter", found) if found else None

    return make


def _count(name: CountName) -> Callable[[str], Leaf | None]:
    return lambda value: Count(name, int(value)) if _NUMBER.fullmatch(value) else None


def _date(after: bool) -> Callable[[str], Leaf | None]:
    def make(value: str) -> Leaf | None:
        match = _DATE.fullmatch(value)
        if match is None:
            return None
        try:
            moment = datetime.strptime(f"{match[1]} {match[2] or '0:00:00'}", "%Y-%m-%d %H:%M:%S")
        except ValueError:
            return None
        return Created(int(moment.replace(tzinfo=UTC).timestamp()), after)

    return make


def _second(after: bool) -> Callable[[str], Leaf | None]:
    return lambda value: Created(int(value), after) if _SECOND.fullmatch(value) else None


def _id_range(after: bool) -> Callable[[str], Leaf | None]:
    return lambda value: IdRange(int(value), after) if _ID.fullmatch(value) else None


def _within(value: str) -> Leaf | None:
    match = _SPAN.fullmatch(value.lower())
    return Within(int(match[1]) * SECONDS[match[2]]) if match else None


_NAMES: Final[dict[str, FilterName]] = {
    **{name: name for name in FILTERS},
    "link": "links", "image": "images", "photos": "images", "twimg": "images", "video": "videos", "native_video": "videos",
    "consumer_video": "videos", "pro_video": "videos", "video_link": "videos", "reply": "replies", "quotes": "quote",
    "retweets": "nativeretweets", "retweet": "nativeretweets", "reposts": "nativeretweets", "blue_verified": "verified",
}  # fmt: skip
"""Every word that says one of the filters, for all of filter:, is: and has:."""

OPERATORS: Final[dict[str, Callable[[str], Leaf | None]]] = {
    "from": _matched("from", _HANDLE),
    "to": _matched("to", _HANDLE),
    "lang": _matched("lang", _LANGUAGE),
    "filter": _filtered(_NAMES),
    "is": _filtered(_NAMES),
    "has": _filtered(_NAMES),
    "conversation_id": _matched("conversation_id", _IDENT),
    "quoted_tweet_id": _matched("quoted_tweet_id", _IDENT),
    "quotes_of_tweet_id": _matched("quoted_tweet_id", _IDENT),
    "url": _url,
    "min_faves": _count("min_faves"),
    "min_likes": _count("min_faves"),
    "min_retweets": _count("min_retweets"),
    "min_reposts": _count("min_retweets"),
    "min_replies": _count("min_replies"),
    "min_views": _count("min_views"),
    "since": _date(after=True),
    "until": _date(after=False),
    "since_time": _second(after=True),
    "until_time": _second(after=False),
    "since_id": _id_range(after=True),
    "max_id": _id_range(after=False),
    "within_time": _within,
}
"""Name in lower case to what makes a leaf of the value, or None where it can't be read."""


# --------------------------------------------------------------------------------------------------------- rendering


def render(node: Node) -> str:
    """A query that parses to the same tree, for every tree that `parse` made."""
    match node:
        case And(parts):
            return " ".join(f"({render(part)})" if isinstance(part, Or) else render(part) for part in parts)
        case Or(parts):
            return " OR ".join(map(render, parts))
        case Not(part):
            return f"-({render(part)})" if isinstance(part, And | Or) else f"-{render(part)}"
        case Word(text):
            return text
        case Phrase(text):
            return f'"{text}"'
        case Field("#" | "@" | "$" as sign, value):
            return f"{sign}{value}"
        case Field("url", value):
            return f'url:"{value}"'
        case Field(name, value):
            return f"{name}:{value}"
        case Count(name, least):
            return f"{name}:{least}"
        case Created(second, after):
            return f"{'since' if after else 'until'}_time:{second}"
        case Within(seconds):
            return f"within_time:{seconds}s"
        case IdRange(ident, after):
            return f"{'since' if after else 'max'}_id:{ident}"
