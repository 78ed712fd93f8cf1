"""Server-side tools: what each takes, what the loop around them adds to a turn, and fifty agentic requests at a time.

Corpora are generated: pages and posts of the embedding model's vocabulary, the same ones each time. The model is a script, so what
is measured is Jubal and its tools. Loopback only.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import tools
import web_search
import x_search
from jubal.agent import loop
from jubal.agent.toolbox import Toolbox
from jubal.core.events import TextDelta, ToolCall, TurnEnded
from jubal.core.generation import Bounds, Generation, Message, TextPart, Tools
from jubal.core.server_tools import WebSearch
from jubal.core.usage import Usage
from jubal.serving.admission import Admission
from jubal.testing import ScriptedEngine
from jubal.testing.tools import ScriptedTools
from jubal.tools.base import ToolOutput
from jubal.tools.x_search import archive, vectors
from jubal.tools.x_search.posts import scope_of
from lab import JUBAL, BenchError, Lab, rss_mb, table, tree, verdict

AT_ONCE = 50
TURNS = 20
"""Of calls, in an answer whose loop is measured."""
LOOP_MS_MAX = 2.0
SEARCH_MS_MAX = 20.0
CODE_MS_MAX = 40.0
CODE_COLD_S_MAX = 2.5
POSTS_MS_MAX = 50.0


def run(quick: bool) -> str:
    """The section of results.md."""
    load = os.getloadavg()[0]
    with Lab() as lab:
        rows = [
            *sandbox_rows(20 if quick else 100),
            *web_rows(lab.folder / "pages", 60 if quick else 400),
            *post_rows(lab.folder, 2_000 if quick else 50_000),
            loop_row(20 if quick else 100),
        ]
        together = concurrent(lab, 1 if quick else 5)
    head = ["figure", "median", "p95", "target", "verdict of the median"]
    return (
        f"Load of the machine when it began: {load:.1f}. A model that follows a script; the tools are real.\n\n"
        f"{table(head, rows)}\n\n{together}"
    )


def row(name: str, times: list[float], unit: str, target: float | None = None) -> list[str]:
    ordered = sorted(times)
    middle, late = statistics.median(ordered), ordered[int(len(ordered) * 0.95)]
    judged = ["", ""] if target is None else [f"<= {target:g} {unit}", verdict(middle, target)]
    return [name, f"{middle:,.2f} {unit}", f"{late:,.2f} {unit}", *judged]


# ---------------------------------------------------------------------------------------------- the tools


def sandbox_rows(rounds: int) -> list[list[str]]:
    """code_execution with its libraries."""
    return asyncio.run(_sandbox_rows(rounds))


async def _sandbox_rows(rounds: int) -> list[list[str]]:
    from jubal.tools.code_execution.forks import ForkSandbox
    from jubal.tools.code_execution.limits import Limits
    from jubal.tools.code_execution.sandbox import SandboxUnavailable

    made = ForkSandbox(Limits())
    try:
        began = time.perf_counter()
        await made.check()
        cold_s = time.perf_counter() - began
        times = [await tools.one_session(made) for _ in range(rounds)]
    except SandboxUnavailable as error:
        return [["code_execution", f"not here: {error}", "", "", ""]]
    finally:
        await made.close()
    first, later, _ = (list(column) for column in zip(*times, strict=True))
    return [
        row("code_execution, cold start", [cold_s], "s", CODE_COLD_S_MAX),
        row("code_execution, a request's first call, warm", first, "ms", CODE_MS_MAX),
        row("code_execution, later calls", later, "ms", CODE_MS_MAX),
    ]


def write_pages(folder: Path, count: int) -> None:
    """Pages of 60 paragraphs each, in topics."""
    folder.mkdir()
    corpus, dice = x_search.Corpus(), random.Random(3)
    for number in range(count):
        topic = dice.randrange(100)
        paragraphs = "".join(f"<p>{corpus.text(topic).capitalize()}.</p>" for _ in range(60))
        title = " ".join(corpus.topics[topic][:4])
        (folder / f"{number}.html").write_text(
            f"<!doctype html><title>{title} {number}</title><main><h1>{title}</h1>{paragraphs}</main>"
        )


def web_rows(folder: Path, pages: int) -> list[list[str]]:
    """web_search over an index of pages that were crawled on loopback."""
    write_pages(folder, pages)
    corpus, dice = x_search.Corpus(), random.Random(4)
    questions = [" ".join(dice.sample(corpus.topics[dice.randrange(100)], 3)) for _ in range(web_search.QUESTIONS_MAX)]
    figures = web_search.measure(folder, questions)
    middle, late = figures["search_p50_ms"], figures["search_p95_ms"]
    return [
        [f"web_search, local index of {figures['pages']:.0f} pages", f"{middle:.2f} ms", f"{late:.2f} ms", f"<= {SEARCH_MS_MAX:g} ms", verdict(middle, SEARCH_MS_MAX)],
        ["open_page, one page as Markdown", f"{figures['read_markdown_ms']:.2f} ms", "", "", ""],
        ["crawling, pages a second", f"{figures['crawl_pages_per_s']:.0f}", "", "", ""],
    ]  # fmt: skip


def post_rows(folder: Path, posts: int) -> list[list[str]]:
    """x_search over an archive that was imported."""
    file, store = folder / "posts.jsonl", archive.Archive(folder / "posts.db")
    x_search.write_corpus(file, posts)
    x_search.import_corpus(store, file)
    corpus, dice = x_search.Corpus(), random.Random(2)
    rows = []
    try:
        with store.reading() as connection:
            times = [_keyword_ms(connection, corpus, dice, case) for case in x_search.CASES.values() for _ in range(10)]
            rows.append(row(f"x_search, keyword, {posts:,} posts", times, "ms", POSTS_MS_MAX))
            embed, sketches = x_search.TextVectors(), vectors.Sketches()
            times = [_semantic_ms(connection, corpus, dice, embed, sketches) for _ in range(41)][
                1:
            ]  # the first one loads
            rows.append(row(f"x_search, semantic, {posts:,} posts", times, "ms", POSTS_MS_MAX))
    finally:
        store.close()
    return rows


def _keyword_ms(connection: Any, corpus: Any, dice: random.Random, case: x_search.Case) -> float:
    query, top, wanted = case(dice, corpus)
    began = time.perf_counter()
    archive.keyword(connection, query, scope_of(wanted), 20, top=top, now_s=int(time.time()))
    return (time.perf_counter() - began) * 1_000


def _semantic_ms(connection: Any, corpus: Any, dice: random.Random, embed: Any, sketches: vectors.Sketches) -> float:
    text = corpus.text(dice.randrange(100))
    began = time.perf_counter()
    found = sketches.search(connection, embed([text])[0], scope_of(x_search.XSearch()), 10, -1)
    archive.posts_of(connection, [key for key, _ in found])
    return (time.perf_counter() - began) * 1_000


# ---------------------------------------------------------------------------------------------- the loop


def loop_row(rounds: int) -> list[str]:
    """An answer of many turns, each with a call of a tool that does nothing, less an answer without tools; per turn."""
    plain = [asyncio.run(_answer_ms(0)) for _ in range(rounds)]
    looped = [asyncio.run(_answer_ms(TURNS)) for _ in range(rounds)]
    least = statistics.median(plain)
    return row("the agent's loop, per turn with a call", [(one - least) / TURNS for one in looped], "ms", LOOP_MS_MAX)


async def _answer_ms(turns: int) -> float:
    calls = [
        (ToolCall(f"call_{number}", "nothing", f'{{"n":{number}}}'), TurnEnded(("tool_calls",), Usage(10, 1)))
        for number in range(turns)
    ]
    engine = ScriptedEngine(*calls, (TextDelta("done"), TurnEnded(("stop",), Usage(10, 1))))
    box = Toolbox({"web_search": ScriptedTools({"nothing": ToolOutput("nothing")})})
    wanted = Tools(server=(WebSearch(),)) if turns else Tools()
    asked = Generation("m", (Message("user", (TextPart("hi"),)),), bounds=Bounds(turns_max=turns + 1), tools=wanted)
    began = time.perf_counter()
    door = Admission("m", 1, 1)
    async with door.door(background=False) as place, aclosing(loop.run(asked, engine, box, place)) as events:
        async for _ in events:
            pass
    taken = (time.perf_counter() - began) * 1_000
    if len(engine.turns) != turns + 1:
        raise BenchError(f"the loop made {len(engine.turns)} turns instead of {turns + 1}")
    return taken


# ---------------------------------------------------------------------------------------------- many at a time


class Model(BaseHTTPRequestHandler):
    """Searches, runs code, answers: which of them, the conversation tells."""

    protocol_version = "HTTP/1.1"
    turns = (
        ("web_search", {"query": "raft consensus"}),
        ("code_execution", {"code": "sum(range(1000))"}),
        None,
    )

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        made = sum(1 for message in body["messages"] if message.get("tool_calls"))
        turn = self.turns[min(made, len(self.turns) - 1)]
        delta: dict[str, Any] = {"content": "It is so [1]."}
        if turn is not None:
            function = {"name": turn[0], "arguments": json.dumps(turn[1])}
            delta = {"tool_calls": [{"index": 0, "id": f"call_{made}", "function": function}]}
        frames: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": delta}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls" if turn else "stop"}]},
            {"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}},
        ]
        sent = b"".join(b"data: " + json.dumps(frame).encode() + b"\n\n" for frame in frames) + b"data: [DONE]\n\n"
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("content-length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)


class Listener(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


@contextmanager
def model() -> Iterator[str]:
    with Listener(("127.0.0.1", 0), Model) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


def concurrent(lab: Lab, rounds: int) -> str:
    """Fifty requests at a time, each with a search and a run of code, on a server as a user starts it."""
    with model() as url:
        config = (
            f'[engines.box]\nkind = "openai"\nbase_url = "{url}"\n[models."grok-4"]\nengine = "box"\nupstream = "m"\n'
            '[tools.web_search]\nprovider = "local"\n[tools.code_execution]\nsessions_max = 16\n'
        )
        lab.home.mkdir(exist_ok=True)
        command = [JUBAL, "index", "add", str(lab.folder / "pages")]
        done = subprocess.run(command, env={**os.environ, "JUBAL_HOME": str(lab.home)}, capture_output=True, text=True)
        if done.returncode:
            raise BenchError(f"jubal index add failed: {done.stderr[-2000:]}")
        server, port = lab.start_jubal(config)
        lab.wait(server, f"http://127.0.0.1:{port}/health", "jubal.log")
        key = lab.make_key()
        _one(port, key)  # the interpreter starts
        idle = rss_mb(tree(server.pid)[:1])
        with ThreadPoolExecutor(AT_ONCE) as threads:
            times = list(threads.map(lambda _: _one(port, key), range(AT_ONCE * rounds)))
        after = rss_mb(tree(server.pid)[:1])
        everything = rss_mb(tree(server.pid))
        lab.stop(server)
    good = sorted(taken for taken, ok in times if ok)
    told = "pass" if len(good) == len(times) else "MISS"
    if not good:
        raise BenchError("no agentic request was answered well")
    rows = [
        ["answered well", f"{len(good)} of {len(times)}: {told}"],
        ["p50, s", f"{statistics.median(good):.2f}"],
        ["p95, s", f"{good[int(len(good) * 0.95)]:.2f}"],
        ["memory of the server before and after, MB", f"{idle:.0f}, {after:.0f}"],
        ["with its sandbox and its workers after, MB (shared pages counted in each)", f"{everything:.0f}"],
    ]
    return (
        f"{AT_ONCE} agentic requests at a time, each of three turns with a search and a run of code, at most 16 interpreters:\n\n"
        + table(["figure", "value"], rows)
    )


def _one(port: int, key: str) -> tuple[float, bool]:
    """Seconds, and whether both tools ran well and an answer came."""
    body = {
        "model": "grok-4",
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "web_search"}, {"type": "code_execution"}],
    }
    connection = HTTPConnection("127.0.0.1", port, timeout=300)
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    began = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    answer = json.loads(connection.getresponse().read())
    taken = time.perf_counter() - began
    connection.close()
    message = answer["choices"][0]["message"] if "choices" in answer else {}
    calls = message.get("server_side_tool_calls", ())
    return taken, [one["status"] for one in calls] == ["completed"] * 2 and message["content"].startswith("It is so")
