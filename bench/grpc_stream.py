"""What a streamed chunk costs by gRPC, beside the same stream by chat SSE: server CPU, the same words, turn by turn.

    python bench/grpc_stream.py [--rounds 5]

fast: the echo engine says 2,000 words as fast as they are taken. paced: an upstream says 200 words, one each 4 ms, to eight
clients at once, so that each chunk is a wake-up of its own. A chunk here is one that the engine made: what piles up leaves
together, by SSE in one write and by gRPC in one message. The client is not measured.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil

from jubal.wire.xai_grpc import pb

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.fake_upstream import ending, piece, says, upstream
from tests.server import ECHO, Server, running, to_upstream

FAST_WORDS, FAST_STREAMS = 2_000, 100
PACED_WORDS, PACED_PAUSE_S, PACED_CLIENTS = 200, 0.004, 8


def by_sse(server: Server, text: str) -> None:
    body = {"model": "grok-4", "messages": [{"role": "user", "content": text}], "stream": True}
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    headers = {"authorization": f"Bearer {server.key}", "content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    data = connection.getresponse().read()
    connection.close()
    if not data.endswith(b"data: [DONE]\n\n"):
        raise SystemExit(f"the stream did not end well: {data[-200:]!r}")


def by_grpc(server: Server, text: str) -> None:
    message = pb.chat.Message(role=pb.chat.ROLE_USER, content=[pb.chat.Content(text=text)])
    body = pb.chat.GetCompletionsRequest(model="grok-4", messages=[message]).SerializeToString()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_stream("/xai_api.Chat/GetCompletionChunk")
        last = b""
        for last in call(body, metadata=(("authorization", f"Bearer {server.key}"),)):  # noqa: B007
            pass
    if not pb.chat.GetChatCompletionChunk.FromString(last).outputs[0].finish_reason:
        raise SystemExit("the stream did not end well")


def cpu_us(server: Server, work: Callable[[], object]) -> float:
    process = psutil.Process(server.process.pid)
    before = process.cpu_times()
    work()
    after = process.cpu_times()
    return (after.user + after.system - before.user - before.system) * 1e6


def fast(rounds: int) -> Iterator[tuple[float, float]]:
    """CPU microseconds of a chunk by SSE and by gRPC, for each round."""
    text = " ".join(["word"] * FAST_WORDS)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "home", config=ECHO, grpc=True) as server:
        for _ in range(rounds + 1):
            yield tuple(  # type: ignore[misc]
                cpu_us(server, lambda ask=ask: [ask(server, text) for _ in range(FAST_STREAMS)])  # type: ignore[misc]
                / (FAST_WORDS * FAST_STREAMS)
                for ask in (by_sse, by_grpc)
            )


def paced(rounds: int) -> Iterator[tuple[float, float]]:
    """The same."""
    with (
        paced_upstream() as url,
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder) / "home", config=to_upstream(url), grpc=True) as server,
        ThreadPoolExecutor(PACED_CLIENTS) as pool,
    ):
        for _ in range(rounds + 1):
            yield tuple(  # type: ignore[misc]
                cpu_us(server, lambda ask=ask: list(pool.map(lambda _: ask(server, "hi"), range(PACED_CLIENTS))))  # type: ignore[misc]
                / (PACED_WORDS * PACED_CLIENTS)
                for ask in (by_sse, by_grpc)
            )


@contextmanager
def paced_upstream() -> Iterator[str]:
    """An upstream in a thread of its own."""
    started: list[str] = []
    ready, over = threading.Event(), threading.Event()

    async def serve() -> None:
        frames = [piece("word ")] * PACED_WORDS + [ending(1, PACED_WORDS)]
        async with upstream(says(*frames, pause_s=PACED_PAUSE_S)) as one:
            started.append(one.url)
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    ready.wait()
    try:
        yield started[0]
    finally:
        over.set()
        thread.join()


def memory_mib(*, grpc_on: bool) -> float:
    """Resident set of a server on the echo engine after one request by each way that it has."""
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "home", config=ECHO, grpc=grpc_on) as server:
        by_sse(server, "hi")
        if grpc_on:
            by_grpc(server, "hi")
        return float(psutil.Process(server.process.pid).memory_info().rss) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    for name, measure in (("fast", fast), ("paced", paced)):
        took = list(measure(rounds))[1:]  # the first warms up
        sse, rpc = (statistics.median(column) for column in zip(*took, strict=True))
        ratio = statistics.median(two / one for one, two in took)
        print(f"{name}: {sse:.1f} us a chunk by SSE, {rpc:.1f} us by gRPC, ratio {ratio:.2f}")
    print(f"memory: {memory_mib(grpc_on=False):.0f} MiB without gRPC, {memory_mib(grpc_on=True):.0f} MiB with")


if __name__ == "__main__":
    main()
