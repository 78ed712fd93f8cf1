"""A model that can be foretold, behind a really started server: what it says follows from what it is asked.

An upstream of `tests/fake_upstream.py`, so that everything between client and engine is the real thing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

from aiohttp import web

from tests.fake_upstream import Behaviour, Upstream, ending, piece, says, upstream

ARGUMENTS: dict[str, dict[str, Any]] = {
    "box.add": {"a": 20, "b": 22},
    "code_execution": {"code": "print(6 * 7)"},
    "get_weather": {"location": "Oslo"},
}
"""What it calls functions of these names with. Others get `ADA`."""
ADA = {"name": "Ada", "age": 36}
TALK = ("Hello", " there", ", friend.")
PROMPT, ANSWERED = 11, 7
"""Tokens that each of its turns reports."""


def calls(*functions: tuple[str, dict[str, Any]], first: int = 1) -> Behaviour:
    """An upstream that wants these functions called. first: number of the first call's id."""
    made = [
        {"index": n, "id": f"call_{first + n}", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for n, (name, arguments) in enumerate(functions)
    ]
    frame = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": None, "tool_calls": made}}]}
    return says(b"data: " + json.dumps(frame).encode() + b"\n\n", ending(PROMPT, ANSWERED, "tool_calls"))


def _tells(*pieces: str) -> Behaviour:
    return says(*map(piece, pieces), ending(PROMPT, ANSWERED))


def behaviour_for(body: dict[str, Any]) -> Behaviour:
    """Calls each function that it was given once and in one turn, then tells the results; a schema gets Ada.

    A function called final_result, which is how pydantic-ai asks for an object, is called after the others.
    """
    asked = [tool["function"]["name"] for tool in body.get("tools") or ()]
    results = [str(message["content"]) for message in body["messages"] if message["role"] == "tool"]
    wanted = asked if body.get("tool_choice", "auto") != "none" else []
    first = [name for name in wanted if name != "final_result"] or wanted
    if first and not results:
        return calls(*((name, ARGUMENTS.get(name, ADA)) for name in first))
    if "final_result" in wanted:
        return calls(("final_result", ADA), first=9)
    if (body.get("response_format") or {}).get("type") in ("json_schema", "json_object"):
        text = json.dumps(ADA)
        return _tells(text[:9], text[9:])
    if results:
        return _tells("It says: ", " and ".join(results), ".")
    return _tells(*TALK)


def scripted() -> Behaviour:
    async def behave(there: Upstream, request: web.Request) -> web.StreamResponse:
        return await behaviour_for(there.bodies[-1])(there, request)

    return behave


@contextlib.contextmanager
def in_a_thread(behaviour: Behaviour) -> Iterator[Upstream]:
    """A running upstream whose event loop is in a thread of its own, for tests that have none."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="scripted upstream")
    thread.start()
    one = upstream(behaviour)
    try:
        yield asyncio.run_coroutine_threadsafe(one.__aenter__(), loop).result(60)
        asyncio.run_coroutine_threadsafe(one.__aexit__(None, None, None), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()
