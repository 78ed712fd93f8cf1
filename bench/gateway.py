"""What Jubal costs as a gateway: CPU, added latency, memory, beside no gateway at all and beside the floor (floor.py).

    bench/run.py --only gateway [--quick]

Jubal has its own CPU; the fake upstream and the load client share another. All are up the whole time, one is under load
at a time, and each round loads them one after the other, in turned order every second round. Jubal runs as a user
starts it, with all of its accounts at work: a key with ACLs, limits of key, team and model, a price, and a prepaid team, whose credit
is held and charged for each request. Records and charges are counted at the end.
"""

from __future__ import annotations

import json
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lab import BIN, PYTHON, BenchError, Lab, build, cpu_s, cpus, free_port, get, rss_mb, spread, table, tree, verdict

CHUNKS = 64
CONFIG = """
[engines.box]
kind = "openai"
base_url = "{upstream}"

[engines.local]  # in the place of the embedded engine: a gateway that serves no model itself
kind = "openai"
base_url = "{upstream}"

[models."bench"]
engine = "box"
upstream = "bench"
price = {{ input = 3.00, cached_input = 0.75, output = 15.00 }}
rpm = 1_000_000_000
tpm = 1_000_000_000_000

[tiers.standard]
rpm = 1_000_000_000
tpm = 1_000_000_000_000
"""
LIMITED = (
    "--acl",
    "api-key:endpoint:chat",
    "--acl",
    "api-key:model:bench",
    "--rpm",
    "1000000000",
    "--tpm",
    "1000000000000",
)
"""A key that may do just this: its limits are never reached, and counted all the same."""

Sample = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of load. body: which request; delay_us: between two chunks of a stream, 0: as fast as they go."""

    body: str
    connections: int
    seconds: float
    delay_us: int = 0


SCENARIOS = {
    "json64": Scenario("json", 64, 3),
    "json1": Scenario("json", 1, 2),
    "stream100": Scenario("sse", 100, 3),
    "paced100": Scenario("sse", 100, 3, delay_us=20_000),
    "prompt1mb": Scenario("big", 4, 2),
}


@dataclass
class Target:
    """Something to load. process None: the upstream itself."""

    name: str
    port: int
    process: subprocess.Popen[bytes] | None = None
    headers: tuple[str, ...] = ()
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    good: int = 0
    bad: int = 0
    why: str = ""
    rss_mb: float = 0


def write_bodies(folder: Path) -> None:
    asked = {
        "model": "bench",
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Write one short paragraph about a fox and a dog."},
        ],
        "temperature": 0.7,
        "max_tokens": 128,
    }
    passage = 'The quick brown fox — "jumps" over\n the lazy dog. ' * 20_000
    turns = [{"role": "user", "content": passage.encode()[: 1 << 20].decode(errors="ignore")}]
    for name, body in {
        "json": asked,
        "sse": {**asked, "stream": True, "stream_options": {"include_usage": True}},
        "big": {**asked, "messages": turns},
    }.items():
        (folder / f"{name}.body").write_text(json.dumps(body, ensure_ascii=False))


class GatewayBench:
    def __init__(self, lab: Lab, quick: bool) -> None:
        self.lab = lab
        self.scale, self.rounds = (0.4, 2) if quick else (1.0, 5)
        self.pins = cpus()
        self.gateway_cpu, self.harness_cpu = self.pins or (None, None)
        write_bodies(lab.folder)
        self.upstream = lab.start([str(BIN / "upstream")], "upstream.log", self.harness_cpu)
        self.upstream_port = self._upstream_port()

    def _upstream_port(self) -> int:
        for _ in range(500):
            if line := (self.lab.folder / "upstream.log").read_text().strip():
                return int(line)
            time.sleep(0.01)
        raise BenchError("The fake upstream did not start.")

    def direct(self) -> Target:
        return Target("direct", self.upstream_port)

    def floor(self) -> Target:
        port = free_port()
        command = [PYTHON, "-m", "uvicorn", "floor:app", "--app-dir", str(Path(__file__).parent), "--port", str(port)]
        command += ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "error"]
        address = f"http://127.0.0.1:{self.upstream_port}/v1/chat/completions"
        process = self.lab.start(command, "floor.log", self.gateway_cpu, {"UPSTREAM": address})
        self.lab.wait(process, f"http://127.0.0.1:{port}/health", "floor.log")
        return Target("floor", port, process)

    def jubal(self) -> Target:
        config = CONFIG.format(upstream=f"http://127.0.0.1:{self.upstream_port}/v1")
        process, port = self.lab.start_jubal(config, self.gateway_cpu)
        self.lab.wait(process, f"http://127.0.0.1:{port}/health", "jubal.log")
        self.lab.jubal("teams", "create", "--name", "bench", "--prepaid")
        self.lab.jubal("credits", "add", "--team", "bench", "--usd", "1000000")
        key = self.lab.make_key("--team", "bench", *LIMITED)
        return Target("jubal", port, process, (f"Authorization: Bearer {key}",))

    def run(self, targets: list[Target]) -> None:
        for target in targets:
            self.load(target, Scenario("json", 16, 2 * self.scale))
            self.load(target, Scenario("sse", 16, 1 * self.scale))
        for turn in range(self.rounds):
            for name, scenario in SCENARIOS.items():
                for target in targets if turn % 2 == 0 else targets[::-1]:
                    sample = self.lab.quietest(partial(self.load, target, scenario))
                    target.samples.setdefault(name, []).append(sample)
            print(f"gateway: round {turn + 1} of {self.rounds} done", file=sys.stderr, flush=True)
        for target in targets:
            if target.process:
                target.rss_mb = rss_mb(tree(target.process.pid))

    def load(self, target: Target, scenario: Scenario) -> Sample:
        get(f"http://127.0.0.1:{self.upstream_port}/set?chunks={CHUNKS}&delay_us={scenario.delay_us}")
        # a paced stream lasts 1.3 s whatever the scale
        seconds = max(scenario.seconds * self.scale, 2.5 if scenario.delay_us else 0.5)
        mode = "sse" if scenario.body == "sse" else "json"
        command = [
            str(BIN / "load"),
            str(target.port),
            "/v1/chat/completions",
            str(self.lab.folder / f"{scenario.body}.body"),
        ]
        command += [mode, str(scenario.connections), str(seconds), str(CHUNKS), *target.headers]
        before = cpu_s(tree(target.process.pid)) if target.process else 0
        client = self.lab.start(command, "load.log", self.harness_cpu)
        client.wait(seconds + 30)
        used = cpu_s(tree(target.process.pid)) - before if target.process else 0
        if client.returncode:
            raise BenchError(f"The load client failed: {self.lab.log('load.log')}")
        sample: Sample = json.loads(self.lab.log("load.log"))
        self.lab.stop(client)
        target.good += sample["good"]
        target.bad += sample["bad"]
        target.why = target.why or sample["why"]
        if not sample["good"]:
            log = self.lab.log(f"{target.name}.log") if target.process else ""
            raise BenchError(f"{target.name} gave no good answer: {target.why}. {log}")
        return {**sample, "gateway_cpu_s": used}


def on_record(home: Path) -> tuple[int, int]:
    """How many requests the server has on record and how many transfers of credit, read from its database beside it."""
    with closing(sqlite3.connect(f"file:{home / 'jubal.db'}?mode=ro", uri=True)) as database:
        counted = "SELECT (SELECT count(*) FROM usage), (SELECT count(*) FROM usage JOIN transfers ON id = request_id)"
        rows, paid = database.execute(counted).fetchone()
        return int(rows), int(paid)


def cpu_per_1k(s: Sample) -> float:
    return s["gateway_cpu_s"] * 1_000 / s["good"]


def cpu_per_100k_chunks(s: Sample) -> float:
    return s["gateway_cpu_s"] * 100_000 / s["chunks"]


def in_ms(what: str, share: str) -> Callable[[Sample], float]:
    return lambda s: s[what][share] / 1_000


@dataclass(frozen=True, slots=True)
class Figure:
    """One row. of: the figure of a sample. own: it means nothing without a gateway. added: less that without a gateway."""

    title: str
    scenario: str
    of: Callable[[Sample], float]
    limit: float | None = None
    digits: int = 2
    own: bool = False
    added: bool = False

    def values(self, target: Target, direct: Target) -> list[float]:
        """One per round."""
        values = [self.of(sample) for sample in target.samples[self.scenario]]
        if not self.added:
            return values
        return [value - self.of(base) for value, base in zip(values, direct.samples[self.scenario], strict=True)]

    def row(self, jubal: Target, floor: Target, direct: Target) -> list[str]:
        mine, least = self.values(jubal, direct), self.values(floor, direct)
        without = [] if self.own or self.added else self.values(direct, direct)
        ratio = statistics.median(a / b for a, b in zip(mine, least, strict=True)) if all(least) else None
        return [self.title, spread(mine, self.digits), *judged(statistics.median(mine), self.limit),
                spread(least, self.digits), f"{ratio:.2f}" if ratio else "-", spread(without, self.digits)]  # fmt: skip


FIGURES = [
    Figure("CPU s per 1,000 requests, 64 connections", "json64", cpu_per_1k, 0.20, 3, own=True),
    Figure("CPU s per 100,000 chunks, 100 streams", "stream100", cpu_per_100k_chunks, 1.2, own=True),
    Figure("added p50 latency, one client, ms", "json1", in_ms("latency", "p50"), 0.5, 3, added=True),
    Figure("CPU ms per request with a 1 MB prompt", "prompt1mb", cpu_per_1k, own=True),
    Figure("CPU s per 100,000 chunks, 100 streams at 50 chunks/s", "paced100", cpu_per_100k_chunks, own=True),
    Figure("chunk on its way, p50 ms, 100 streams at 50 chunks/s", "paced100", in_ms("chunk", "p50")),
    Figure("chunk on its way, p99 ms, 100 streams at 50 chunks/s", "paced100", in_ms("chunk", "p99")),
    Figure("first chunk, p50 ms, 100 streams as fast as they go", "stream100", in_ms("ttfb", "p50")),
    Figure("requests/s, 64 connections", "json64", lambda s: s["rps"], digits=0),
    Figure("p99 latency, 64 connections, ms", "json64", in_ms("latency", "p99")),
    Figure("chunks/s, 100 streams", "stream100", lambda s: s["chunks_per_s"], digits=0),
    Figure("p50 latency, one client, ms", "json1", in_ms("latency", "p50"), digits=3),
]


def judged(value: float, limit: float | None) -> tuple[str, str]:
    return ("", "") if limit is None else (f"<= {limit:g}", verdict(value, limit))


def report(direct: Target, floor: Target, jubal: Target) -> str:
    rows = [figure.row(jubal, floor, direct) for figure in FIGURES]
    memory = ["memory after the load, MB", f"{jubal.rss_mb:.0f}", *judged(jubal.rss_mb, 120)]
    rows.insert(3, [*memory, f"{floor.rss_mb:.0f}", f"{jubal.rss_mb / floor.rss_mb:.2f}", "-"])
    head = ["figure: median (min-max)", "Jubal", "target", "verdict", "floor", "Jubal / floor", "no gateway"]
    return table(head, rows)


def checks(bench: GatewayBench, targets: list[Target]) -> list[str]:
    lines = [f"{t.name}: {t.good:,} good answers, {t.bad:,} bad{f' ({t.why})' if t.why else ''}." for t in targets]
    (rows, paid), good = on_record(bench.lab.home), targets[-1].good
    same = "pass" if rows == paid == good else "MISS"
    lines.append(
        f"Durable record: {rows:,} usage rows and {paid:,} charges for {good:,} good answers, warm-up included: {same}."
    )
    books = bench.lab.jubal("credits", "check")
    lines.append(f"The books (`jubal credits check`): {'pass' if books['ok'] else f'MISS: {books}'}.")
    lines.append(bench.lab.quietness())
    if not bench.pins:
        lines.append("Only one CPU: nothing was pinned, and the harness took its share of every latency.")
    return lines


def run(quick: bool) -> str:
    """Runs the bench; its section of the results."""
    build()
    with Lab() as lab:
        bench = GatewayBench(lab, quick)
        direct, floor, jubal = bench.direct(), bench.floor(), bench.jubal()
        bench.run([direct, floor, jubal])
        pinned = "gateway and harness pinned to a CPU each" if bench.pins else "not pinned"
        return "\n\n".join([
            f"{bench.rounds} interleaved rounds, {pinned}. One worker; key check, ACLs, limits of key, team and model, credit of a"
            " prepaid team held and charged in the durable ledger.",
            report(direct, floor, jubal),
            "\n".join(f"- {line}" for line in checks(bench, [direct, floor, jubal])),
        ])  # fmt: skip
