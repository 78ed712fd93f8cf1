"""The SSE reader against the writer, and against what servers really send."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jubal.core.errors import EngineBroken
from jubal.core.hiding import Concealed
from jubal.engines import sse as reader
from jubal.wire import sse as writer

SECRET = b"secret-of-an-engine"
payloads = st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"").replace(b"\r", b"")), max_size=6)


@given(payloads, st.data())
def test_reads_what_is_written_in_any_cut(payloads: list[bytes], data: st.DataObject) -> None:
    wire = b"".join(writer.data(payload) for payload in payloads)
    decoder = reader.SSEDecoder()
    seen = []
    while wire:
        size = data.draw(st.integers(1, len(wire)))
        seen += decoder.feed(wire[:size])
        wire = wire[size:]
    assert seen + decoder.finish() == payloads


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("wire", "payloads"),
    [
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"data:a\n\n", [b"a"]),
        (b"data:  a\n\n", [b" a"]),
        (b": comment\n\ndata: a\n\n", [b"a"]),
        (b"event: message\nid: 7\ndata: a\nretry: 10\n\n", [b"a"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data\n\n", [b""]),
        (b"\n\n\n\ndata: a\n\n\n", [b"a"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"data: a\n\ndata: b", [b"a", b"b"]),
        (b"data: a\n\ndata: b\r\n", [b"a", b"b"]),
    ],
)
def test_what_servers_send(wire: bytes, payloads: list[bytes], size: int) -> None:
    decoder = reader.SSEDecoder()
    seen = []
    for place in range(0, len(wire), size):
        seen += decoder.feed(wire[place : place + size])
    assert seen + decoder.finish() == payloads


@given(st.lists(st.sampled_from([b"\n", b"\r", b"\r\n", b"data: ", b"a", SECRET]), max_size=30), st.data())
def test_a_cut_makes_no_difference(parts: list[bytes], data: st.DataObject) -> None:
    wire = b"".join(parts)
    decoder, at_once = (reader.SSEDecoder(Concealed(SECRET.decode())) for _ in range(2))
    expected = at_once.feed(wire) + at_once.finish()
    seen = []
    while wire:
        size = data.draw(st.integers(1, min(4, len(wire))))
        seen += decoder.feed(wire[:size])
        wire = wire[size:]
    assert seen + decoder.finish() == expected
    assert not any(SECRET in payload for payload in expected)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b""])
def test_a_long_event_in_small_pieces_is_gone_through_once(line_end: bytes) -> None:
    """Not with each piece, which takes minutes for the longest event there may be."""

    class Counting:
        seen = 0

        def out_of(self, data: bytes) -> bytes:
            self.seen += len(data)
            return data

    counting = Counting()
    decoder = reader.SSEDecoder(counting)  # type: ignore[arg-type]
    piece = b"data: " + b"x" * 250 + line_end
    for _ in range(4_000):
        assert decoder.feed(piece) == []
    (event,) = decoder.feed(b"\n\n")
    assert event.count(b"x") == 4_000 * 250
    assert counting.seen <= 2 * 4_000 * len(piece)


def test_an_event_without_end_is_given_up() -> None:
    decoder = reader.SSEDecoder()
    with pytest.raises(EngineBroken):
        for _ in range(18):
            decoder.feed(b"x" * (1 << 20))
