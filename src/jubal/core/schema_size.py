"""What a JSON Schema costs whoever compiles it into an automaton: numbers that a few words of a schema can make huge.

    expansion(schema)    schemas in it once every reference is written out where it applies to the same value
    pattern_size(text)   states of a regular expression, its counted repetitions written out
    multiple_size(value) states that tell whether a number is a multiple

Each is computed in the time of reading, never by doing what it counts. `jubal.core.schema` holds them to bounds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Final, NamedTuple

ENDLESS: Final = 10**12
"""In place of any larger number: they are only compared, and must not grow to thousands of digits."""

_PIECE: Final = re.compile(
    r"\[\^?\]?(?:\\.|[^\]\\])*\]?"  # a class, or one without its end
    r"|\\[pP]\{[^}]*\}|\\x\{[^}]*\}|\\u\{[^}]*\}|\\."  # an escape
    r"|\(\?[:=!<P>]*|[()|]"
    r"|\{(?P<least>\d*)(?P<more>,?)(?P<most>\d*)\}\??|(?P<some>[*+?])\??"
    r"|.",
    re.DOTALL,
)


class PatternSize(NamedTuple):
    """states: characters, all repetitions written out. optional: pieces with `?` or `*`, likewise: where many follow each other,
    an automaton is in all of them at once."""

    states: int
    optional: int

    def __add__(self, other: PatternSize) -> PatternSize:  # type: ignore[override]  # of sizes, not of tuples
        return PatternSize(min(self.states + other.states, ENDLESS), min(self.optional + other.optional, ENDLESS))

    def times(self, count: int) -> PatternSize:
        return PatternSize(min(self.states * count, ENDLESS), min(self.optional * count, ENDLESS))


NOTHING: Final = PatternSize(0, 0)


def pattern_size(pattern: str) -> PatternSize:
    """Also of what is no regular expression: it is read as far as it looks like one."""
    open_groups: list[PatternSize] = []
    group = last = NOTHING
    for piece in _PIECE.finditer(pattern):
        text = piece[0]
        if text.startswith("("):
            open_groups.append(group + last)
            group = last = NOTHING
        elif text == ")" and open_groups:
            group, last = open_groups.pop(), group + last
        elif piece["some"] is not None:
            last = last + PatternSize(0, int(piece["some"] != "+"))
        elif piece["more"] is not None:
            last = _repeated(last, piece["least"], piece["more"], piece["most"])
        else:
            group, last = group + last, PatternSize(0 if text == "|" else 1, 0)
    total = group + last
    for outer in open_groups:
        total = total + outer
    return total


def _repeated(piece: PatternSize, least: str, more: str, most: str) -> PatternSize:
    """`{3}`, `{3,}` and `{3,5}` of it; anything else in braces is text."""
    if not (least or most) or len(least) > 12 or len(most) > 12:
        return piece.times(ENDLESS if len(least) > 12 or len(most) > 12 else 1)
    low = int(least or 0)
    high = int(most) if most else low + (1 if more else 0)
    return piece.times(max(low, high, 1))


def multiple_size(value: float) -> int:
    """Remainders that an automaton reading decimal digits must tell apart. Twos and fives cost next to nothing: they are seen in
    the last digits."""
    try:
        digits = int("".join(map(str, Decimal(repr(value)).as_tuple().digits)) or 0)
    except (InvalidOperation, ValueError):
        return ENDLESS
    for prime in (2, 5):
        while digits and digits % prime == 0:
            digits //= prime
    return min(digits, ENDLESS)


def expansion(outgoing: Mapping[int, Iterable[int]]) -> int:
    """The largest tree that a walk from one node makes, each node counted as often as it is come by. outgoing: without a way back
    to the same node."""
    size: dict[int, int] = {}
    for start in outgoing:
        _measure(start, outgoing, size)
    return max(size.values(), default=0)


def _measure(start: int, outgoing: Mapping[int, Iterable[int]], size: dict[int, int]) -> None:
    """Without recursion: chains of references are as long as their document."""
    stack: list[tuple[int, Callable[[], int | None]]] = [(start, _next_of(outgoing, start))]
    while stack:
        node, following = stack[-1]
        if node in size:
            stack.pop()
        elif (inner := following()) is None:
            size[node] = min(1 + sum(size[one] for one in outgoing[node]), ENDLESS)
            stack.pop()
        elif inner not in size:
            stack.append((inner, _next_of(outgoing, inner)))


def _next_of(outgoing: Mapping[int, Iterable[int]], node: int) -> Callable[[], int | None]:
    ways = iter(outgoing[node])
    return lambda: next(ways, None)
