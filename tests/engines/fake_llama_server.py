"""A stand-in for the llama.cpp child, to be run as a process: it listens on the same socket and can misbehave.

    python fake_llama_server.py '{"socket": …}' [--ready-after S] [--never-ready] [--exit TEXT] [--ignore-sigterm]
                                [--pieces N] [--pause S] [--hang] [--deaf-by FILE] [--die-after N] [--once FILE]

--hang: requests get no answer, /health does. --deaf-by: nothing is answered any more once FILE is there.
--die-after: exits in the middle of an answer. --once: the misbehaviour is for the first process only; FILE remembers it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

PROPS = {
    "default_generation_settings": {
        "n_ctx": 1024,
        "params": {"temperature": 0.800000011920929, "top_p": 0.949999988079071},
    },
    "chat_template_caps": {"supports_tools": False, "supports_tool_calls": False},
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("args", type=json.loads)
    parser.add_argument("--ready-after", type=float, default=0)
    parser.add_argument("--never-ready", action="store_true")
    parser.add_argument("--exit")
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument("--pieces", type=int, default=3)
    parser.add_argument("--pause", type=float, default=0)
    parser.add_argument("--hang", action="store_true")
    parser.add_argument("--deaf-by", type=Path)
    parser.add_argument("--die-after", type=int)
    parser.add_argument("--once", type=Path)
    flags = parser.parse_args()
    if flags.once is not None:
        if flags.once.exists():
            flags.exit, flags.never_ready, flags.hang, flags.deaf_by, flags.die_after = (
                None,
                False,
                False,
                None,
                None,
            )
        flags.once.touch()
    threading.Thread(target=end_with_parent, daemon=True).start()
    if flags.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if flags.exit is not None:
        print("loading", flush=True)
        print(flags.exit, file=sys.stderr, flush=True)
        os._exit(1)
    asyncio.run(serve(flags))


def end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


async def serve(flags: argparse.Namespace) -> None:
    started = time.monotonic()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(
                (int(line.split(":")[1]) for line in head.split("\r\n") if line.lower().startswith("content-length")), 0
            )
            body = await reader.readexactly(length)
            age = time.monotonic() - started
            if flags.deaf_by is not None and flags.deaf_by.exists():
                await asyncio.sleep(3600)
            path = head.split(" ")[1]
            if path == "/health":
                ready = not flags.never_ready and age >= flags.ready_after
                send(writer, 200 if ready else 503, {"status": "ok" if ready else "loading"})
            elif path == "/props":
                send(writer, 200, PROPS)
            elif path == "/tokenize":
                send(
                    writer,
                    200,
                    {
                        "tokens": [
                            {"id": n, "piece": word} for n, word in enumerate(json.loads(body)["content"].split())
                        ]
                    },
                )
            elif flags.hang:
                await asyncio.sleep(3600)
            else:
                await chat(writer, flags, json.loads(body))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_unix_server(answer, flags.args["socket"])
    async with server:
        await server.serve_forever()


def send(writer: asyncio.StreamWriter, status: int, body: object) -> None:
    data = json.dumps(body).encode()
    writer.write(
        b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(data)) + data
    )


async def chat(writer: asyncio.StreamWriter, flags: argparse.Namespace, body: dict) -> None:
    """Says the system prompt back, and then so many pieces."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
    frames = [{"choices": [{"index": 0, "delta": {"content": f"{number} "}}]} for number in range(flags.pieces)]
    frames.insert(0, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]})
    frames.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    usage = {"prompt_tokens": len(body["messages"]), "completion_tokens": flags.pieces, "total_tokens": 0}
    frames.append({"choices": [], "usage": usage})
    for number, frame in enumerate(frames):
        if flags.die_after is not None and number == flags.die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        writer.write(b"data: " + json.dumps(frame).encode() + b"\n\n")
        await writer.drain()
        await asyncio.sleep(flags.pause)
    writer.write(b"data: [DONE]\n\n")


if __name__ == "__main__":
    main()
