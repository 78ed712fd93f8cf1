"""The least a Python gateway can do on the same parts as Jubal: uvicorn in, aiohttp out, bytes passed as they come.

No key check, no decoding, no accounts. A figure divided by the floor's, taken in the same run, says what Jubal's own
work costs and means the same on any machine. Started by gateway.py; UPSTREAM is the address that requests go to.
"""

import os

import aiohttp

URL = os.environ["UPSTREAM"]
HEADERS = {"content-type": "application/json"}
TIMEOUT = aiohttp.ClientTimeout(total=120)


async def read_body(receive):
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


class Floor:
    session = None

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await self.live(receive, send)
        if scope["type"] != "http":
            raise RuntimeError(f"not served: {scope['type']}")
        if scope["method"] == "GET":  # only health
            return await self.say(send, 200, b"application/json", b"{}")
        async with self.session.post(URL, data=await read_body(receive), headers=HEADERS) as answer:
            kind = answer.headers.get("content-type", "application/json").encode()
            if not kind.startswith(b"text/event-stream"):
                return await self.say(send, answer.status, kind, await answer.read())
            await send({"type": "http.response.start", "status": answer.status, "headers": [(b"content-type", kind)]})
            async for data in answer.content.iter_any():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            return await send({"type": "http.response.body", "body": b""})

    async def say(self, send, status, kind, body):
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def live(self, receive, send):
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=TIMEOUT,
        ) as self.session:
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


app = Floor()
