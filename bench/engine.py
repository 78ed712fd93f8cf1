"""The embedded engine through Jubal beside llama.cpp's own server: same weights, same parameters, same prompts.

    bench/run.py --only engine [--quick]

Both servers are up, one answers at a time, in turned order every second round; a ratio is that of two neighbours. Not
pinned: the engine takes all cores, as it does for a user, and Jubal and this client share them with it on both sides.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import psutil

from jubal import config
from jubal.engines import weights
from jubal.engines.llama_cpp import child
from lab import JUBAL, PYTHON, BenchError, Lab, spread, table, tree, verdict

TOKENS = 128
FIRST_TOKENS = 8  # asked for where only the first matters: a single one may hold no visible text
STREAMS = 4
PREFIX_TOKENS = 2_000
RATE_RATIO_MIN, SOONER_MIN, READY_MAX_S = 0.97, 5, 3  # what Jubal must reach
REQUEST_TIMEOUT_S = 120
DEFAULT_MODEL = "smollm2-135m"
CHILD_MODULE = "jubal.engines.llama_cpp.child"
MODEL = "grok-4-fast-non-reasoning"
SYSTEM = "You are a helpful assistant."
WORDS = [
    "river",
    "stone",
    "garden",
    "window",
    "silver",
    "letter",
    "morning",
    "engine",
    "yellow",
    "market",
    "winter",
    "paper",
    "story",
    "music",
    "island",
    "travel",
]


@dataclass(frozen=True, slots=True)
class Answer:
    """One streamed answer; times in seconds since the request was sent."""

    first_s: float
    last_s: float
    prompt: int
    completion: int
    cached: int


@dataclass
class Server:
    name: str
    port: int
    key: str = ""

    def ask(self, question: str, tokens: int, before: str = SYSTEM) -> Answer:
        """Streams one answer and checks that it is whole."""
        body = {
            "model": MODEL,
            "messages": [{"role": "system", "content": before}, {"role": "user", "content": question}],
            "max_tokens": tokens, "temperature": 0, "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_TIMEOUT_S)
        headers = {"content-type": "application/json", "authorization": f"Bearer {self.key}"}
        began = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        pieces = []
        while data := response.read1(65536):
            pieces.append((time.perf_counter() - began, data))
        connection.close()
        if response.status != 200:
            raise BenchError(f"{self.name} answered {response.status}: {pieces[0][1][:500] if pieces else ''!r}")
        return self._parse(pieces)

    def _parse(self, pieces: list[tuple[float, bytes]]) -> Answer:
        """After the clock has stopped: reading JSON in between would take CPU from the engine."""
        text_times, usage, done, rest = [], {}, False, b""
        for at, data in pieces:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                done = done or line.strip() == b"data: [DONE]"
                if not line.startswith(b"data: {"):
                    continue
                event: dict[str, Any] = json.loads(line[6:])
                usage = event.get("usage") or usage
                choice = event["choices"][0] if event.get("choices") else {"delta": {}}
                # the finish counts too: a model may have nothing to say, and then that is its first token
                if (
                    choice["delta"].get("content")
                    or choice["delta"].get("reasoning_content")
                    or choice.get("finish_reason")
                ):
                    text_times.append(at)
        if not (done and text_times and usage):
            raise BenchError(f"{self.name}: not a whole answer: {b''.join(d for _, d in pieces)[-500:]!r}")
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Answer(text_times[0], text_times[-1], usage["prompt_tokens"], usage["completion_tokens"], cached)


def question(seed: int) -> str:
    """A short prompt that no server has seen and that no model of this size answers in a few words."""
    one, two, three = random.Random(seed).sample(WORDS, 3)
    return f"Write a long and detailed tale, number {seed}, about a {one}, a {two} and a {three}."


def prefix(seed: int) -> str:
    """About PREFIX_TOKENS tokens that begin unlike any other prefix."""
    pick = random.Random(seed)
    return f"Words for tales, list {pick.random()}: " + " ".join(pick.choices(WORDS, k=PREFIX_TOKENS))


def single_rate(server: Server, seed: int) -> float:
    answer = server.ask(question(seed), TOKENS)
    return answer.completion / answer.last_s


def concurrent_rate(server: Server, seed: int) -> float:
    began = time.perf_counter()
    with ThreadPoolExecutor(STREAMS) as pool:
        answers = list(pool.map(lambda i: server.ask(question(seed * 100 + i), TOKENS), range(STREAMS)))
    return sum(answer.completion for answer in answers) / (time.perf_counter() - began)


def first_token_ms(server: Server, seed: int) -> float:
    return server.ask(question(seed), FIRST_TOKENS).first_s * 1_000


def prefix_pair(server: Server, seed: int) -> tuple[Answer, Answer]:
    """A prefix never seen, and the same again under another question."""
    text = prefix(seed)
    return server.ask(question(seed), FIRST_TOKENS, text), server.ask(question(-seed), FIRST_TOKENS, text)


# ---- starting both -------------------------------------------------------------------------------------------------


def model_file() -> Path:
    """The default model's file in the user's own Jubal home, fetched as `jubal models pull` does where it is missing."""
    models = config.load(environ={k: v for k, v in os.environ.items() if k != "JUBAL_CONFIG"}).models_home
    if weights.resolve(models, DEFAULT_MODEL) is None:
        subprocess.run([JUBAL, "models", "pull", DEFAULT_MODEL], check=True, stdout=sys.stderr)
    file = weights.resolve(models, DEFAULT_MODEL)
    if file is None:
        raise BenchError(f"{DEFAULT_MODEL} is not in {models}: run `jubal models pull {DEFAULT_MODEL}`.")
    return file


def start_jubal(lab: Lab) -> tuple[Server, psutil.Process, list[float]]:
    """Jubal with its defaults, stopped once and started again: the server, its engine, seconds to ready of both starts."""
    file = model_file()
    (lab.home / "models").mkdir(parents=True)
    (lab.home / "models" / file.name).symlink_to(file)
    times: list[float] = []
    process = None
    for _ in range(2):
        if process:
            lab.stop(process)
        began = time.monotonic()
        process, port = lab.start_jubal("")
        lab.wait(process, f"http://127.0.0.1:{port}/health", "jubal.log")
        times.append(time.monotonic() - began)
    engines = [member for member in tree(process.pid) if CHILD_MODULE in member.cmdline()]
    if len(engines) != 1:
        raise BenchError(f"Expected one process of {CHILD_MODULE} below Jubal, found {len(engines)}.")
    return Server("jubal", port, lab.make_key()), engines[0], times


def start_plain(lab: Lab, engine: psutil.Process) -> Server:
    """llama.cpp's own server with the arguments of Jubal's engine, but a TCP port in the place of its private socket."""
    arguments = {**json.loads(engine.cmdline()[-1]), "socket": "127.0.0.1"}
    process = lab.start([PYTHON, str(Path(__file__)), json.dumps(arguments)], "plain.log")
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        if found := re.search(r"^ADDRESS http://127\.0\.0\.1:(\d+)$", lab.log("plain.log"), re.MULTILINE):
            port = int(found[1])
            lab.wait(process, f"http://127.0.0.1:{port}/health", "plain.log")
            return Server("llama.cpp", port)
        time.sleep(0.05)
    raise BenchError(f"llama.cpp's server did not start: {lab.log('plain.log')}")


def serve_plain(arguments: str) -> None:
    """The process that is llama.cpp's own server: prints its address and waits to be ended by a signal.

    Its parameters are set by the very code that sets those of Jubal's engine: they can't drift apart.
    """
    server = child.serve(msgspec.json.decode(arguments, type=child.ServerArgs))
    print(f"ADDRESS {server.listening_address}", flush=True)
    signal.pause()


# ---- rounds --------------------------------------------------------------------------------------------------------


Measure = Callable[[Server, int], float]


class EngineBench:
    def __init__(self, lab: Lab, jubal: Server, plain: Server, quick: bool) -> None:
        self.lab, self.jubal, self.plain = lab, jubal, plain
        self.rounds, self.prefixes = (5, 2) if quick else (15, 5)
        self._seed = random.SystemRandom().randrange(10**6) * 1_000  # no two runs ask the same

    def seed(self) -> int:
        self._seed += 1
        return self._seed

    def pair(self, measure: Measure, turned: bool) -> tuple[float, float]:
        """Jubal's figure and llama.cpp's for the same prompts, one right after the other."""
        seed = self.seed()
        servers = [self.plain, self.jubal] if turned else [self.jubal, self.plain]
        taken = {server.name: measure(server, seed) for server in servers}
        return taken[self.jubal.name], taken[self.plain.name]

    def pairs(self, measure: Measure) -> list[tuple[float, float]]:
        return [self.lab.quietest(partial(self.pair, measure, turn % 2 == 1)) for turn in range(self.rounds)]

    def prefix_pairs(self, server: Server) -> list[tuple[Answer, Answer]]:
        return [self.lab.quietest(lambda: prefix_pair(server, self.seed())) for _ in range(self.prefixes)]

    def same_prompts(self) -> str:
        """Do both servers see the same tokens? If not, the ratios compare different work."""
        ours, theirs = (server.ask(question(self.seed()), 1) for server in (self.jubal, self.plain))
        same = "the same" if ours.prompt == theirs.prompt else "NOT the same"
        return f"Prompt tokens of one question: {ours.prompt} through Jubal, {theirs.prompt} at llama.cpp's server: {same}."


def rate_row(title: str, pairs: list[tuple[float, float]]) -> list[str]:
    ratios = [ours / theirs for ours, theirs in pairs]
    ours, theirs = zip(*pairs, strict=True)
    middle = statistics.median(ratios)
    return [
        title,
        spread(ours, 1),
        spread(theirs, 1),
        spread(ratios, 3),
        f">= {RATE_RATIO_MIN}",
        verdict(middle, RATE_RATIO_MIN, at_most=False),
    ]


def first_row(title: str, pairs: list[tuple[float, float]]) -> list[str]:
    ours, theirs = zip(*pairs, strict=True)
    return [title, spread(ours, 0), spread(theirs, 0), spread([a / b for a, b in pairs], 2), "", ""]


def prefix_rows(ours: list[tuple[Answer, Answer]], theirs: list[tuple[Answer, Answer]]) -> list[list[str]]:
    sooner = [cold.first_s / warm.first_s for cold, warm in ours]
    rows = []
    for place, title in enumerate(("cold", "repeated")):
        mine, plain = ([pair[place].first_s * 1_000 for pair in pairs] for pairs in (ours, theirs))
        rows.append(
            [f"first token, {PREFIX_TOKENS:,}-word prefix, {title}, ms", spread(mine, 0), spread(plain, 0), "", "", ""]
        )
    plain_sooner = [cold.first_s / warm.first_s for cold, warm in theirs]
    limit = verdict(statistics.median(sooner), SOONER_MIN, at_most=False)
    rows.append(["cold / repeated", spread(sooner, 1), spread(plain_sooner, 1), "", f">= {SOONER_MIN}", limit])
    return rows


def run(quick: bool) -> str:
    """Runs the bench; its section of the results."""
    with Lab() as lab:
        jubal, engine, ready_s = start_jubal(lab)
        plain = start_plain(lab, engine)
        bench = EngineBench(lab, jubal, plain, quick)
        for server in (jubal, plain):  # warm-up
            concurrent_rate(server, bench.seed())
        rows = [
            rate_row(f"tokens/s, one stream of {TOKENS}", bench.pairs(single_rate)),
            rate_row(f"tokens/s, {STREAMS} streams of {TOKENS}", bench.pairs(concurrent_rate)),
            first_row("first token, short prompt, ms", bench.pairs(first_token_ms)),
            *prefix_rows(bench.prefix_pairs(jubal), bench.prefix_pairs(plain)),
        ]
        for title, seconds in zip(("first", "second"), ready_s, strict=True):
            judged = [f"<= {READY_MAX_S}", verdict(seconds, READY_MAX_S)]
            rows.append([f"`jubal serve` to ready, {title} start, s", f"{seconds:.2f}", "", "", *judged])
        head = [
            "figure: median (min-max)",
            "through Jubal",
            "llama.cpp's server",
            "neighbours' ratio",
            "target",
            "verdict",
        ]
        shown = {name: value for name, value in json.loads(engine.cmdline()[-1]).items() if not isinstance(value, str)}
        notes = [bench.same_prompts(), f"Engine parameters: {shown}.", lab.quietness()]
        lines = "\n".join(f"- {note}" for note in notes)
        return f"{bench.rounds} interleaved rounds, not pinned.\n\n{table(head, rows)}\n\n{lines}"


if __name__ == "__main__":
    serve_plain(sys.argv[1])
