"""Semantic search in the archive: one vector for each post, kept in the store as 16-bit floats.

What is searched is the sign of every number, 32 bytes a post, held in memory with what the filters need: posts outside of the
filters are left out first, the nearest by Hamming distance are kept, of them those whose signs fit the query's own numbers best,
and these are ranked by their vectors. Few posts are ranked by their vectors right away. docs/decisions/x_search.md has the figures.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from jubal.tools.x_search.archive import generation, writing
from jubal.tools.x_search.posts import Scope
from jubal.tools.x_search.query import EVERYTHING
from jubal.tools.x_search.terms import plan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Embed: TypeAlias = "Callable[[list[str]], NDArray[np.float32]]"
"""Texts to vectors of length one, a row for each; blocks. None of the texts is empty."""
Progress: TypeAlias = Callable[[int, int], None]
"""Done so far, and in all."""

EXACT_MAX: Final = 1_000
"""So many posts are ranked by their vectors without looking for candidates."""
NEAR: Final = 20_000
"""Of the posts, so many are kept whose signs differ least from the query's."""
CANDIDATES: Final = 600
"""Of those, so many whose signs fit the query's numbers best are ranked by their vectors, which lie on the disk."""
BATCH: Final = 1_024
"""Texts that are embedded, and written in a transaction, at a time."""
BLOCK: Final = 65_536
"""Posts whose distances are taken at a time: what that needs stays in the processor's cache."""
LOAD_ROWS: Final = 50_000
RELOAD_PART: Final = 20
"""While the store changes, its newest state is loaded so often that this takes one part in so many of the time."""
NOTHING: Final = b""
"""In the place of the bits of a post that has no words."""


def embed_pending(
    connection: sqlite3.Connection, embed: Embed, most: int | None = None, progress: Progress | None = None
) -> int:
    """Embeds posts that have no vector yet, newest first, at most so many; how many those were."""
    (left,) = connection.execute("SELECT count(*) FROM facet WHERE bits IS NULL").fetchone()
    total = left if most is None else min(left, most)
    done = 0
    while done < total:
        rows = connection.execute(
            "SELECT key, text FROM post WHERE key IN"
            " (SELECT key FROM facet INDEXED BY facet_pending WHERE bits IS NULL ORDER BY key DESC LIMIT ?)",
            (min(BATCH, total - done),),
        ).fetchall()
        if not rows:
            break
        _write_vectors(connection, rows, embed)
        done += len(rows)
        if progress is not None:
            progress(done, total)
    return done


def _write_vectors(connection: sqlite3.Connection, rows: Sequence[tuple[int, str]], embed: Embed) -> None:
    import numpy as np

    said = [row for row in rows if row[1].strip()]
    vectors = embed([text for _, text in said]) if said else np.zeros((0, 8), np.float32)
    bits = _signs(vectors)
    halves = vectors.astype("<f2")
    with writing(connection):
        # Only where the text is still the one that was embedded: an import may have changed it meanwhile.
        connection.executemany(
            "UPDATE facet SET bits = ? WHERE key = ? AND bits IS NULL",
            [(NOTHING, key) for key, text in rows if not text.strip()],
        )
        for (key, text), sign, half in zip(said, bits, halves, strict=True):
            same = connection.execute("SELECT text = ? FROM post WHERE key = ?", (text, key)).fetchone()
            if same and same[0]:
                connection.execute("UPDATE facet SET bits = ? WHERE key = ?", (sign.tobytes(), key))
                connection.execute("INSERT OR REPLACE INTO vector VALUES (?, ?)", (key, half.tobytes()))
        connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'generation'")


class Sketches:
    """Signs and filters of all posts that have vectors, as arrays in the order of keys; loaded when they are first needed, and
    again when the store has changed. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: _Arrays | None = None
        self._generation = -1
        self._next_load = 0.0

    def search(
        self, connection: sqlite3.Connection, query: NDArray[np.float32], scope: Scope, limit: int, score_min: float
    ) -> list[tuple[int, float]]:
        """Keys and cosines, best first."""
        arrays = self._current(connection)
        chosen = arrays.within(connection, scope)
        if len(chosen) > EXACT_MAX:
            chosen = arrays.fitting(query, arrays.nearest(query, chosen, NEAR), max(CANDIDATES, 4 * limit))
        return _ranked(connection, arrays.keys[chosen].tolist(), query, limit, score_min)

    def _current(self, connection: sqlite3.Connection) -> _Arrays:
        with self._lock:
            now = time.monotonic()
            if self._loaded is None or (now >= self._next_load and generation(connection) != self._generation):
                self._generation = generation(connection)
                self._loaded = _load(connection)
                taken = time.monotonic() - now
                self._next_load = now + taken * RELOAD_PART
            return self._loaded


class _Arrays:
    """Number i of each array, and of each row of bits, is about the post with keys[i]."""

    def __init__(self, keys: Any, authors: Any, likes: Any, views: Any, bits: Any) -> None:
        self.keys: NDArray[np.int64] = keys
        self._authors: NDArray[np.int32] = authors
        self._likes: NDArray[np.uint32] = likes
        self._views: NDArray[np.uint32] = views
        self._bits: NDArray[np.uint64] = bits

    def within(self, connection: sqlite3.Connection, scope: Scope) -> NDArray[np.intp]:
        """Indexes of the posts in the scope."""
        import numpy as np

        bounds = plan(EVERYTHING, scope, 0)
        first, last = np.searchsorted(self.keys, bounds.first), np.searchsorted(self.keys, bounds.last, side="right")
        part = slice(int(first), int(last))
        mask = np.ones(part.stop - part.start, np.bool_) if part.stop > part.start else np.zeros(0, np.bool_)
        for handles, wanted in ((scope.allowed, True), (scope.excluded, False)):
            if handles:
                mask &= self._by(_author_ids(connection, handles))[self._authors[part]] == wanted
        for least, counts in ((scope.likes_min, self._likes), (scope.views_min, self._views)):
            if least:
                mask &= counts[part] >= least
        chosen: NDArray[np.intp] = np.flatnonzero(mask) + part.start
        return chosen

    def _by(self, ids: list[int]) -> NDArray[np.bool_]:
        """By the author's row id, whether it is one of these."""
        import numpy as np

        last = max(int(self._authors.max(initial=0)), *ids, 0)
        table = np.zeros(last + 1, np.bool_)
        table[ids] = True
        return table

    def nearest(self, query: NDArray[np.float32], chosen: NDArray[np.intp], count: int) -> NDArray[np.intp]:
        """The chosen whose signs differ least from the query's: at least `count`, and all that are as near as those."""
        import numpy as np

        if len(chosen) <= count:
            return chosen
        signs = _signs(query[None, :]).view(np.uint64)[0]
        distances = np.zeros(len(chosen), np.uint16)
        whole = len(chosen) == len(self.keys)
        for first in range(0, len(chosen), BLOCK):
            block = slice(first, first + BLOCK)
            for column, sign in zip(self._bits, signs, strict=True):
                distances[block] += np.bitwise_count((column[block] if whole else column[chosen[block]]) ^ sign)
        nearest = np.cumsum(np.bincount(distances))
        limit = int(np.searchsorted(nearest, count))
        found: NDArray[np.intp] = chosen[np.flatnonzero(distances <= limit)]
        return found

    def fitting(self, query: NDArray[np.float32], chosen: NDArray[np.intp], count: int) -> NDArray[np.intp]:
        """The `count` of the chosen whose signs have the largest product with the query itself: what every byte of signs adds
        is looked up in a table."""
        import numpy as np

        if len(chosen) <= count:
            return chosen
        bits = np.ascontiguousarray(self._bits[:, chosen].T).view(np.uint8)
        padded = np.pad(query, (0, bits.shape[1] * 8 - len(query))).reshape(-1, 8)
        signs = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32) * 2 - 1
        products = (padded @ signs.T)[np.arange(bits.shape[1]), bits].sum(axis=1)
        found: NDArray[np.intp] = chosen[np.argpartition(-products, count)[:count]]
        return found


def _signs(vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
    """One bit for each number, padded to words of 64."""
    import numpy as np

    bits = np.packbits(vectors > 0, axis=1)
    return np.pad(bits, ((0, 0), (0, -bits.shape[1] % 8)))


def _author_ids(connection: sqlite3.Connection, handles: frozenset[str]) -> list[int]:
    rows = connection.execute(
        "SELECT id FROM author WHERE handle IN (SELECT value COLLATE NOCASE FROM json_each(?))",
        (json.dumps(sorted(handles)),),
    )
    return [ident for (ident,) in rows]


def _load(connection: sqlite3.Connection) -> _Arrays:
    import numpy as np

    parts: list[tuple[Any, ...]] = []
    rows = connection.execute(
        "SELECT key, author, min(coalesce(likes, 0), 4294967295), min(coalesce(views, 0), 4294967295), bits FROM facet"
        " WHERE length(bits) > 0 ORDER BY key"
    )
    while some := rows.fetchmany(LOAD_ROWS):
        keys, authors, likes, views, bits = zip(*some, strict=True)
        parts.append(
            (
                np.array(keys, np.int64),
                np.array(authors, np.int32),
                np.array(likes, np.uint32),
                np.array(views, np.uint32),
                np.frombuffer(b"".join(bits), np.uint64).reshape(len(some), -1).T,
            )
        )
    if not parts:
        none = np.zeros(0, np.int64)
        return _Arrays(none, none, none, none, np.zeros((1, 0), np.uint64))
    return _Arrays(*(np.concatenate(column, axis=-1) for column in zip(*parts, strict=True)))


def _ranked(
    connection: sqlite3.Connection, keys: list[int], query: NDArray[np.float32], limit: int, score_min: float
) -> list[tuple[int, float]]:
    import numpy as np

    rows = connection.execute(
        "SELECT key, f16 FROM vector WHERE key IN (SELECT value FROM json_each(?))", (json.dumps(keys),)
    ).fetchall()
    if not rows:
        return []
    vectors = np.frombuffer(b"".join(half for _, half in rows), "<f2").reshape(len(rows), -1)
    scores = vectors.astype(np.float32) @ query
    best = np.argsort(-scores, kind="stable")[:limit]
    return [(rows[index][0], float(scores[index])) for index in best.tolist() if scores[index] >= score_min]
