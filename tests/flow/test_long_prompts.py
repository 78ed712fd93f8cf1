"""A prompt of a million and a half tokens, through the whole server to another one."""

from __future__ import annotations

import asyncio
import hashlib
import random
from pathlib import Path

import aiohttp

from tests.fake_upstream import ending, piece, says, upstream
from tests.server import start, to_upstream

CHARACTERS = 6_000_000
"""A million and a half tokens, at four characters each."""


def long_text() -> str:
    """Never the same twice in a row, with characters of all widths and what JSON has to escape."""
    chance = random.Random(7)
    words = ["word", "Zażółć", "漢字", "😀", '"quoted"', "back\\slash", "tab\t", "line\n", "\u2028", "e\u0301"]
    parts: list[str] = []
    size = 0
    while size < CHARACTERS:
        part = f"{chance.choice(words)}{chance.randrange(10**6)} "
        parts.append(part)
        size += len(part)
    return "".join(parts)


async def test_a_prompt_of_a_million_tokens_reaches_the_engine_unharmed(tmp_path: Path) -> None:
    text = long_text()
    async with upstream(says(piece("read"), ending(prompt=1_500_000, completion=1))) as there:
        config = to_upstream(there.url, context=2_000_000) + "context = 2000000\n"
        server = await asyncio.to_thread(start, tmp_path, config=config)
        try:
            headers = {"authorization": f"Bearer {server.key}"}
            async with aiohttp.ClientSession(headers=headers) as session:
                for stream in (False, True):
                    body = {
                        "model": "grok-4",
                        "stream": stream,
                        "messages": [{"role": "system", "content": "Read."}, {"role": "user", "content": text}],
                    }
                    async with session.post(server.url + "/chat/completions", json=body) as answer:
                        assert answer.status == 200, await answer.text()
                        assert "read" in await answer.text()
                async with session.get(server.url + "/models") as listed:
                    (grok,) = (one for one in (await listed.json())["data"] if one["id"] == "grok-4")
                assert grok["context_length"] == 2_000_000
            rows = await asyncio.to_thread(server.usage)
        finally:
            server.kill()
        expected = hashlib.sha256(text.encode()).hexdigest()
        for sent in there.bodies:
            arrived = sent["messages"][-1]["content"]
            arrived = arrived if isinstance(arrived, str) else "".join(part["text"] for part in arrived)
            assert hashlib.sha256(arrived.encode()).hexdigest() == expected
        assert len(there.bodies) == 2
        assert [row["prompt_tokens"] for row in rows] == [1_500_000, 1_500_000]
