"""X search over a made-up archive: how long imports and searches take, and what the candidates of semantic search miss.

`python bench/x_search.py --posts 1000000 --home FOLDER` writes the posts once, imports them once, and then searches. The words are
those of the embedding model's vocabulary, common ones more often (Zipf), in topics; counts are log-normal; ids hold their time.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jubal.core.server_tools import XSearch
from jubal.engines.wordllama_engine import TOKENIZER_FILE, TextVectors, _installed
from jubal.tools.x_search import archive, importing, vectors
from jubal.tools.x_search.posts import SNOWFLAKE_EPOCH_MS, scope_of

START_MS = 1_672_531_200_000
"""2023-01-01."""
STEP_MS = 60_000
TOPICS = 2_000
TOPIC_WORDS = 40
AUTHORS = 50_000
LANGUAGES = ["en"] * 8 + ["es", "ja", "de", "fr"]
ROUNDS = 40


def vocabulary() -> list[str]:
    tree = json.loads((_installed() / TOKENIZER_FILE).read_text())
    words = sorted(
        (token[1:], ident)
        for token, ident in tree["model"]["vocab"].items()
        if token[:1] == "▁" and token[1:].isalpha() and token[1:].isascii() and token[1:].islower() and len(token) > 3
    )
    return [word for word, _ in sorted(words, key=lambda one: one[1])]


class Corpus:
    """The same posts for the same seed."""

    def __init__(self, seed: int = 1) -> None:
        self.random = random.Random(seed)
        self.words = vocabulary()
        weights = 1 / np.arange(3, len(self.words) + 3)
        self.cumulative = np.cumsum(weights).tolist()
        self.topics = [self.random.sample(self.words, TOPIC_WORDS) for _ in range(TOPICS)]

    def text(self, topic: int) -> str:
        size = self.random.randint(6, 28)
        common = self.random.choices(self.words, cum_weights=self.cumulative, k=size)
        special = self.random.choices(self.topics[topic], k=size)
        return " ".join(one if self.random.random() < 0.5 else two for one, two in zip(common, special, strict=True))

    def posts(self, count: int) -> Iterator[dict[str, Any]]:
        ids: list[str] = []
        for index in range(count):
            ms = START_MS + index * STEP_MS + self.random.randrange(STEP_MS)
            ident = str((ms - SNOWFLAKE_EPOCH_MS) << 22 | self.random.randrange(1 << 22))
            topic = min(int(self.random.paretovariate(0.7)) - 1, TOPICS - 1)
            text = self.text(topic)
            if self.random.random() < 0.25:
                text += f" #{self.topics[topic][0]}"
            if self.random.random() < 0.3:
                text = f"@user{min(int(self.random.paretovariate(0.6)), AUTHORS)} {text}"
            if self.random.random() < 0.35:
                text += f" https://example.org/{self.random.choice(self.words)}/{index}"
            likes = int(self.random.lognormvariate(1.5, 2))
            post = {
                "id": ident, "author": f"user{min(int(self.random.paretovariate(0.6)), AUTHORS)}", "text": text,
                "created_at": ms, "likes": likes, "reposts": likes // 5, "replies": likes // 9,
                "views": likes * self.random.randint(20, 200), "lang": self.random.choice(LANGUAGES),
            }  # fmt: skip
            if ids and self.random.random() < 0.2:
                post["reply_to"] = ids[-self.random.randint(1, min(len(ids), 1000))]
            ids.append(ident)
            del ids[:-1000]
            yield post


def write_corpus(file: Path, count: int) -> None:
    with file.open("w") as out:
        for post in Corpus().posts(count):
            out.write(json.dumps(post) + "\n")


def import_corpus(store: archive.Archive, file: Path) -> None:
    """Without vectors, then the vectors alone, each timed."""
    for name, embed in (("import", None), ("vectors", TextVectors())):
        start = time.perf_counter()
        report = importing.import_posts(store, file, embed=embed, only_changed=embed is not None)
        taken = time.perf_counter() - start
        print(
            f"{name}: {taken:.1f} s, {(report.added or report.embedded) / taken:,.0f} posts/s, peak memory {_peak_mb()} MB",
            flush=True,
        )


def _now() -> tuple[float, float]:
    """Wall and processor time, seconds: on a busy machine only the second can be compared."""
    return time.perf_counter(), time.process_time()


def _since(start: tuple[float, float]) -> tuple[float, float]:
    """Milliseconds of both."""
    wall, busy = _now()
    return (wall - start[0]) * 1000, (busy - start[1]) * 1000


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


Case = Callable[[random.Random, Corpus], tuple[str, bool, XSearch]]


def _date(random_: random.Random) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(START_MS / 1000 + random_.randrange(600) * 86_400))


CASES: dict[str, Case] = {
    "two words, latest": lambda r, c: (" ".join(r.sample(c.topics[r.randrange(50)], 2)), False, XSearch()),
    "two words, top": lambda r, c: (" ".join(r.sample(c.topics[r.randrange(50)], 2)), True, XSearch()),
    "very common word, latest": lambda r, c: (c.words[r.randrange(5)], False, XSearch()),
    "very common word, top": lambda r, c: (c.words[r.randrange(5)], True, XSearch()),
    "from: word min_faves:": lambda r, c: (f"from:user{r.randint(1, 50)} {c.words[r.randrange(30)]} min_faves:50", False, XSearch()),
    "#tag lang: -filter:links": lambda r, c: (f"#{c.topics[r.randrange(20)][0]} lang:en -filter:links", False, XSearch()),
    "@name since: until:": lambda r, c: (f"@user{r.randint(1, 500)} since:2023-03-01 until:2024-01-01", False, XSearch()),
    "phrase OR word -word": lambda r, c: (f'"{c.words[r.randrange(20)]} {c.words[r.randrange(20)]}" OR {r.choice(c.words)} -{c.words[0]}', False, XSearch()),
    "common word in 5 handles and dates": lambda r, c: (c.words[r.randrange(20)], False, XSearch(allowed_handles=tuple(f"user{r.randint(1, 2000)}" for _ in range(5)), from_date="2023-02-01", to_date="2024-06-01")),
    "everything min_faves:1000, top": lambda r, c: ("min_faves:1000", True, XSearch()),
    "everything, excluded handles, likes": lambda r, c: ("-filter:replies", False, XSearch(excluded_handles=("user1", "user2"), favorites_min=500)),
    "(word OR min_replies:) mixed": lambda r, c: (f"{c.words[r.randrange(100)]} ({r.choice(c.words)} OR min_replies:200)", False, XSearch()),
}  # fmt: skip


def search_all(store: archive.Archive) -> None:
    corpus, random_ = Corpus(), random.Random(2)
    with store.reading() as connection:
        for name, case in CASES.items():
            times, found = [], 0
            for _ in range(ROUNDS):
                query, top, wanted = case(random_, corpus)
                start = _now()
                found += len(archive.keyword(connection, query, scope_of(wanted), 20, top=top, now_s=int(time.time())))
                times.append(_since(start))
            _tell(name, times, found)
        _users_and_threads(connection, random_)
        _semantic(connection, corpus, random_)


def _users_and_threads(connection: Any, random_: random.Random) -> None:
    everything = scope_of(XSearch())
    ids = [
        row[0] for row in connection.execute("SELECT id FROM post WHERE reply_to IS NOT NULL LIMIT 20000").fetchall()
    ]
    for name, work in {
        "users": lambda: archive.users(connection, f"user{random_.randint(1, AUTHORS)}", everything, 5),
        "thread": lambda: archive.thread(connection, random_.choice(ids), everything, 30) or [],
    }.items():
        times, found = [], 0
        for _ in range(ROUNDS):
            start = _now()
            found += len(work())
            times.append(_since(start))
        _tell(name, times, found)


def _semantic(connection: Any, corpus: Corpus, random_: random.Random) -> None:
    embed, sketches = TextVectors(), vectors.Sketches()
    cases = {
        "semantic, all": XSearch(),
        "semantic, two months": XSearch(from_date="2023-06-01", to_date="2023-07-31"),
        "semantic, 10 handles": XSearch(allowed_handles=tuple(f"user{index}" for index in range(100, 110))),
        "semantic, excluded, likes": XSearch(excluded_handles=("user1",), favorites_min=100),
    }
    start = time.perf_counter()
    sketches.search(connection, embed(["a"])[0], scope_of(XSearch()), 10, -1)
    print(
        f"first semantic search (weights and signs are loaded): {time.perf_counter() - start:.1f} s, peak memory {_peak_mb()} MB"
    )
    for name, wanted in cases.items():
        times, found = [], 0
        for _ in range(ROUNDS):
            text = corpus.text(random_.randrange(TOPICS))
            start = _now()
            keys = [key for key, _ in sketches.search(connection, embed([text])[0], scope_of(wanted), 10, -1)]
            found += len(archive.posts_of(connection, keys))
            times.append(_since(start))
        _tell(name, times, found)
    print(f"recall@10 of semantic, all: {_recall(connection, corpus, random_, embed, sketches):.3f}")


def _recall(
    connection: Any, corpus: Corpus, random_: random.Random, embed: TextVectors, sketches: vectors.Sketches
) -> float:
    queries = embed([" ".join(corpus.text(random_.randrange(TOPICS)).split()[: 3 + index % 10]) for index in range(50)])
    best: list[list[tuple[float, int]]] = [[] for _ in queries]
    rows = connection.execute("SELECT key, f16 FROM vector")
    while some := rows.fetchmany(20_000):
        keys = [key for key, _ in some]
        scores = (
            np.frombuffer(b"".join(half for _, half in some), "<f2").reshape(len(some), -1).astype(np.float32)
            @ queries.T
        )
        for index in range(len(queries)):
            top = np.argpartition(-scores[:, index], min(10, len(some) - 1))[:10]
            best[index] = sorted(best[index] + [(float(scores[one, index]), keys[one]) for one in top], reverse=True)[
                :10
            ]
    everything = scope_of(XSearch())
    hits = [
        len({key for _, key in exact} & {key for key, _ in sketches.search(connection, query, everything, 10, -1)})
        for query, exact in zip(queries, best, strict=True)
    ]
    return statistics.mean(hits) / 10


def _tell(name: str, times: list[tuple[float, float]], found: int) -> None:
    ordered = sorted(wall for wall, _ in times)
    cpu = statistics.median(busy for _, busy in times)
    print(
        f"{name:40} p50 {ordered[len(ordered) // 2]:7.1f} ms  p95 {ordered[int(len(ordered) * 0.95)]:7.1f} ms  processor p50 {cpu:6.1f} ms  found {found / len(times):.1f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--posts", type=int, default=1_000_000)
    parser.add_argument("--home", type=Path, required=True, help="A scratch folder; about 3 GB for a million posts.")
    args = parser.parse_args()
    args.home.mkdir(parents=True, exist_ok=True)
    file = args.home / f"posts-{args.posts}.jsonl"
    store = archive.Archive(args.home / f"posts-{args.posts}.db")
    if not file.exists():
        write_corpus(file, args.posts)
    with store.reading() as connection:
        empty = archive.is_empty(connection)
    if empty:
        import_corpus(store, file)
    with store.reading() as connection:
        print(archive.stats(connection, store.file))
    search_all(store)
    store.close()


if __name__ == "__main__":
    main()
