"""Answers to repeatable requests, kept in memory and given again to the same team (docs/decisions/response_cache.md).

An answer is kept as its events, so a stream can be answered from a whole one and the other way round.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Final, TypeAlias

from jubal.core.events import Event, Finished, FinishReason, ReasoningDelta, Started, TextDelta, ToolCall, UsageSoFar
from jubal.core.generation import Generation, ImagePart
from jubal.core.usage import Usage

Piece: TypeAlias = TextDelta | ReasoningDelta | ToolCall
GOOD: Final = frozenset({"stop", "tool_calls"})
ENTRY_OVERHEAD_BYTES: Final = 512
"""For the key, the entry and its place in the table: more than was measured, so that the bound holds."""
PIECES_MAX: Final = 1 << 20
"""More pieces of one answer are not gathered: it would not be kept anyway."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A whole answer. pieces: its text, thoughts and calls in order, joined where they follow each other. usage: what it took
    when it was made."""

    fingerprint: str
    pieces: tuple[Piece, ...]
    reasons: tuple[FinishReason, ...]
    usage: Usage
    estimated: bool
    stops: tuple[str | None, ...] = ()


def key_of(generation: Generation, *, model: str, fingerprint: str, team_id: str) -> bytes | None:
    """Names everything that an answer depends on, and whose it is; None for what is not repeatable.

    model: the resolved public name. All fields but those that change nothing in the answer count, also ones that are added to
    `Generation` later: a representation of dataclasses of plain values has no two readings.
    """
    sampling = generation.sampling
    if not generation.cache or (sampling.temperature != 0 and sampling.seed is None):
        return None
    if generation.tools.server:  # what they find changes
        return None
    if any(message.has_image for message in generation.messages) and not _holds_its_images(generation):
        return None
    asked = replace(generation, model=model, live=False, user=None, cache_key=None, priority=False)
    return hashlib.sha256(repr((team_id, fingerprint, asked)).encode("utf-8", "surrogatepass")).digest()


def _holds_its_images(generation: Generation) -> bool:
    """What is behind an address may change; a data URL is the image."""
    return all(
        part.url.startswith("data:")
        for message in generation.messages
        for part in message.parts
        if isinstance(part, ImagePart)
    )


class Recorder:
    """Feeds on the events of one answer; `kept` is there once it is whole and good, and nothing in it is of an unknown kind."""

    __slots__ = ("_fingerprint", "_odd", "_pieces", "kept")

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self._pieces: list[Piece] = []
        self._odd = False
        self.kept: Kept | None = None

    def see(self, event: Event) -> None:
        kind = type(event)
        if kind is TextDelta or kind is ReasoningDelta or kind is ToolCall:
            self._pieces.append(event)  # type: ignore[arg-type]
            self._odd = self._odd or len(self._pieces) > PIECES_MAX
        elif isinstance(event, Started):
            self._odd = event.fingerprint != self._fingerprint  # a fallback's answer is not this engine's
        elif isinstance(event, Finished):
            if not self._odd and GOOD.issuperset(event.reasons):
                self.kept = Kept(
                    self._fingerprint, _joined(self._pieces), event.reasons, event.usage, event.estimated, event.stops
                )
        elif kind is not UsageSoFar:
            self._odd = True


def _joined(pieces: list[Piece]) -> tuple[Piece, ...]:
    """The same answer in fewer pieces: what follows each other of one kind and choice becomes one."""
    joined: list[Piece] = []
    group: list[Piece] = []
    for piece in pieces:
        if group and (type(piece) is not type(group[0]) or piece.choice != group[0].choice or type(piece) is ToolCall):
            joined.append(_one(group))
            group = []
        group.append(piece)
    if group:
        joined.append(_one(group))
    return tuple(joined)


def _one(group: list[Piece]) -> Piece:
    match group:
        case [only]:
            return only
        case [TextDelta(choice=choice), *_]:
            texts = [piece for piece in group if isinstance(piece, TextDelta)]
            likely = tuple(token for piece in texts for token in piece.logprobs)
            return TextDelta("".join(piece.text for piece in texts), choice, likely)
        case _:
            thoughts = [piece for piece in group if isinstance(piece, ReasoningDelta)]
            return ReasoningDelta("".join(piece.text for piece in thoughts), group[0].choice)


def size_bytes(value: object) -> int:
    """Memory of `value` and all that it holds."""
    size = sys.getsizeof(value)
    if isinstance(value, tuple):
        return size + sum(map(size_bytes, value))
    if is_dataclass(value):
        return size + sum(size_bytes(getattr(value, one.name)) for one in fields(value))
    return size


class ResponseCache:
    """The least recently used goes first. Belongs to one event loop.

    entries_max, bytes_max: both hold at any time. ttl_s: how long an answer is kept. clock: monotonic seconds.
    """

    def __init__(
        self, *, entries_max: int, bytes_max: int, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._ttl_s = ttl_s
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[Kept, int, float]] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Kept | None:
        found = self._entries.get(key)
        if found is None:
            return None
        if self._clock() >= found[2]:
            self._forget(key)
            return None
        self._entries.move_to_end(key)
        return found[0]

    def put(self, key: bytes, kept: Kept) -> None:
        """One that is larger than the whole bound is not kept."""
        size = size_bytes(kept) + ENTRY_OVERHEAD_BYTES
        if key in self._entries:
            self._forget(key)
        if size > self._bytes_max:
            return
        while self._entries and (len(self._entries) >= self._entries_max or self.bytes + size > self._bytes_max):
            self._forget(next(iter(self._entries)))
        self._entries[key] = (kept, size, self._clock() + self._ttl_s)
        self.bytes += size

    def _forget(self, key: bytes) -> None:
        self.bytes -= self._entries.pop(key)[1]
