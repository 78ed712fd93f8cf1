from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jubal.agent.citations import Citer
from jubal.core.events import Citation, TextDelta
from jubal.core.server_tools import Source

SOURCES = [Source("https://a.test/(x)"), Source("https://b.test/")]
ONE, TWO = "[[1]](https://a.test/(x))", "[[2]](https://b.test/)"


def cite(*pieces: str) -> tuple[str, list[Citation]]:
    citer = Citer(SOURCES)
    events = [event for piece in pieces for event in citer.feed(TextDelta(piece))]
    events += citer.finish(0)
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    return text, [event for event in events if isinstance(event, Citation)]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("plain", "plain"),
        ("a [1].", f"a {ONE}."),
        ("a [[2]] b", f"a {TWO} b"),
        ("[1][2]", ONE + TWO),
        ("[[2]](https://b.test/) kept", f"{TWO} kept"),
        ("[2](https://else.test)", TWO),
        ("[9] [0] [] [x] [[", "[9] [0] [] [x] [["),
        ("array[1234]", "array[1234]"),
        ("ends with [1]", f"ends with {ONE}"),
        ("ends with [1", "ends with [1"),
        ("[link](https://x.test)", "[link](https://x.test)"),
    ],
)
def test_marks(written: str, read: str) -> None:
    assert cite(written)[0] == read
    assert cite(*written)[0] == read, "one character at a time"


@given(st.lists(st.text(alphabet="[]()12 xé", max_size=6), max_size=20))
def test_any_cut_gives_the_same(pieces: list[str]) -> None:
    pieces = [piece for piece in pieces if piece]
    text, citations = cite(*pieces)
    assert (text, citations) == cite(*"".join(pieces))
    for citation in citations:
        assert text[citation.start : citation.end] == f"[[{citation.number}]]({citation.source.url})"
