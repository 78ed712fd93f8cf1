"""Images on a whole server: what a scripted upstream really gets, and the real llama.cpp with a projector."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
from pathlib import Path
from typing import Any

from tests.conftest import home_with_models
from tests.core.test_picture import picture
from tests.engines.tiny_projector import TOKENS, write_projector
from tests.fake_upstream import ending, piece, says, upstream
from tests.server import ECHO, Server, running, to_upstream
from tests.web.servers import Site, gives, site

PNG, JPEG = picture("PNG"), picture("JPEG", (300, 200))
EMBEDDING_LENGTH = 576
"""SmolLM2-135M's."""


def data_url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def shows(*urls: str, **fields: Any) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url, "detail": "high"}} for url in urls]
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, *parts]}], **fields}


def images_of(body: dict[str, Any]) -> list[str]:
    return [part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url"]


def seeing(url: str, *allowed: str) -> str:
    more = f"\n[fetch]\nallow_private_hosts = {json.dumps(allowed)}\n"
    return to_upstream(url) + 'input = ["text", "image"]\n' + more


async def test_the_bytes_reach_the_upstream(tmp_path: Path) -> None:
    async with upstream(says(piece("a cat"), ending())) as up, site(cat=gives(JPEG)) as one:
        with running(tmp_path / "home", config=seeing(up.url, one.place)) as server:
            png = data_url(PNG, "image/png")
            status, _, body = await asyncio.to_thread(server.chat, shows(png, f"{one.url}/cat"))
            assert (status, body["choices"][0]["message"]["content"]) == (200, "a cat")
            assert body["usage"]["prompt_tokens_details"]["image_tokens"] == 0, "the engine does not tell"
            status, _, text = await asyncio.to_thread(server.chat, shows(png, stream=True))
            assert status == 200
            assert b"a cat" in text
    assert images_of(up.bodies[0]) == [png, data_url(JPEG, "image/jpeg")]
    assert base64.b64decode(images_of(up.bodies[0])[1].partition(",")[2]) == JPEG
    first, second, _ = up.bodies[0]["messages"][0]["content"]
    assert first == {"type": "text", "text": "What is it?"}
    assert second == {"type": "image_url", "image_url": {"url": png, "detail": "high"}}
    assert images_of(up.bodies[1]) == [png]
    [(_, headers)] = one.requests
    assert headers["user-agent"].startswith("JubalImageFetch/")
    assert "authorization" not in headers


async def test_what_is_refused_reaches_nobody(tmp_path: Path) -> None:
    """The site that must not be asked is on loopback, and on no allow list."""
    async with (
        upstream(says(ending())) as up,
        site(cat=gives(JPEG), page=gives(b"<html>")) as one,
        site(cat=gives(JPEG)) as closed,
    ):
        one.handlers["/away"] = gives(status=302, location=f"{closed.url}/cat")
        with running(tmp_path / "home", config=seeing(up.url, one.place)) as server:
            for url, code in (
                (f"{closed.url}/cat", "image_not_fetched"),
                (f"http://localhost:{closed.port}/cat", "image_not_fetched"),
                (f"{one.url}/away", "image_not_fetched"),
                (f"{one.url}/none", "image_not_fetched"),
                (f"{one.url}/page", "unsupported_image"),
                ("data:image/png;base64,AAAA", "unsupported_image"),
                ("data:image/png;base64,*", "invalid_base64"),
                (data_url(PNG, "image/webp"), "image_type_mismatch"),
            ):
                for stream in (False, True):
                    status, headers, body = await asyncio.to_thread(server.chat, shows(url, stream=stream))
                    assert (status, body["error"]["code"]) == (400, code), url
                    assert body["error"]["param"] == "messages[0].content[1].image_url.url"
                    assert headers["content-type"] == "application/json"
            assert server.usage() == []
    assert up.bodies == []
    assert closed.requests == []


async def test_messages_of_anthropics_dialect_are_checked_alike_and_named_in_its_words(tmp_path: Path) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PNG).decode()}

    def asks(server: Server, source: dict[str, Any]) -> tuple[int, Any]:
        messages = [{"role": "user", "content": [{"type": "image", "source": source}]}]
        body = {"model": "grok-4", "max_tokens": 9, "system": "Be brief.", "messages": messages}
        status, _, answer = server.request("POST", "/v1/messages", body)
        return status, answer

    async with upstream(says(piece("a"), ending())) as up, site(cat=gives(JPEG)) as one:
        with running(tmp_path / "home", config=seeing(up.url, one.place)) as server:
            assert (await asyncio.to_thread(asks, server, source))[0] == 200
            assert (await asyncio.to_thread(asks, server, {"type": "url", "url": f"{one.url}/cat"}))[0] == 200
            for bad, field in (
                ({**source, "media_type": "image/webp"}, "data"),
                ({"type": "url", "url": f"{one.url}/none"}, "url"),
            ):
                status, body = await asyncio.to_thread(asks, server, bad)
                assert status == 400
                assert f"`messages[0].content[0].source.{field}`" in body["error"]["message"]
    shown = [body["messages"][1]["content"][0]["image_url"]["url"] for body in up.bodies]
    assert shown == [data_url(PNG, "image/png"), data_url(JPEG, "image/jpeg")]


async def test_the_older_key_opens_as_well(tmp_path: Path) -> None:
    async with upstream(says(piece("a"), ending())) as up, site(cat=gives(PNG)) as one:
        config = to_upstream(up.url) + f'\n[tools.web_search]\nallow_private_hosts = ["{one.place}"]\n'
        with running(tmp_path / "home", config=config) as server:
            assert (await asyncio.to_thread(server.chat, shows(f"{one.url}/cat")))[0] == 200
    assert images_of(up.bodies[0]) == [data_url(PNG, "image/png")]


async def test_a_client_that_leaves_ends_the_fetch(tmp_path: Path) -> None:
    """Before its time is over: another one that began earlier, and whose client stays, goes on."""

    async def never(request: object) -> Any:
        await asyncio.sleep(3600)

    async def fetched(server: Server, there: Site) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        body = json.dumps({"model": "grok-4", **shows(f"{there.url}/cat")})
        headers = {"authorization": f"Bearer {server.key}", "content-type": "application/json"}
        await asyncio.to_thread(connection.request, "POST", "/v1/chat/completions", body, headers)
        async with asyncio.timeout(60):
            while not there.requests:
                await asyncio.sleep(0.01)
        return connection

    async with upstream(says(ending())) as up, site(cat=never) as one, site(cat=never) as other:
        with running(tmp_path / "home", config=seeing(up.url, one.place, other.place)) as server:
            stays = await fetched(server, other)
            leaves = await fetched(server, one)
            leaves.close()
            await asyncio.wait_for(one.left.wait(), 60)
            assert not other.left.is_set()
            stays.close()
    assert up.bodies == []


def refused_as_blind(server: Server, weights: str) -> None:
    status, _, body = server.chat(shows(data_url(PNG, "image/png")))
    assert status == 400
    assert body["error"]["code"] == "images_not_supported"
    assert "grok-4" in body["error"]["message"]
    assert weights in body["error"]["message"]
    listed = {model["id"]: model for model in server.request("GET", "/v1/language-models")[2]["models"]}
    assert listed["grok-4"]["input_modalities"] == ["text"]


def test_engines_that_read_text_only_name_the_model(tmp_path: Path, real_server: Server) -> None:
    refused_as_blind(real_server, "SmolLM2")
    with running(tmp_path / "home", config=ECHO) as server:
        status, _, body = server.chat(shows(data_url(PNG, "image/png")))
        assert (status, body["error"]["code"]) == (400, "images_not_supported")


async def test_llama_cpp_with_a_projector_reads_the_image(tmp_path: Path, models_home: Path) -> None:
    """Its weights are random, so what it says of the image means nothing; that the image is in the prompt does."""
    write_projector(tmp_path / "eye.gguf", EMBEDDING_LENGTH)
    home = home_with_models(tmp_path / "home", models_home)
    config = f'[engines.local]\nkind = "llama"\nmodel = "smollm2-135m"\nmmproj = "{tmp_path / "eye.gguf"}"\ncontext = 512\nslots = 1\n'
    async with site(cat=gives(JPEG)) as one:
        config += f'[fetch]\nallow_private_hosts = ["{one.place}"]\n'
        with running(home, config=config) as server:

            def asks(*urls: str, **fields: Any) -> tuple[int, Any]:
                status, _, body = server.chat(shows(*urls, max_tokens=4, temperature=0, **fields))
                return status, body

            status, blind = await asyncio.to_thread(asks)
            assert status == 200
            prompt = blind["usage"]["prompt_tokens"]
            png = data_url(PNG, "image/png")
            for urls in ([png], [f"{one.url}/cat"], [png, png]):
                status, body = await asyncio.to_thread(asks, *urls)
                assert status == 200, body
                assert body["usage"]["prompt_tokens"] == prompt + TOKENS * len(urls)
            status, body = await asyncio.to_thread(asks, png, data_url(picture("WEBP"), "image/webp"))
            assert (status, body["error"]["code"]) == (400, "unsupported_image"), "llama.cpp decodes no WebP"
            assert body["error"]["param"] == "messages[0].content[2].image_url.url"
            tool = {
                "type": "function",
                "function": {"name": "paint", "parameters": {"type": "object", "additionalProperties": False}},
            }
            status, body = await asyncio.to_thread(asks, png, tools=[tool], tool_choice="required")
            assert status == 200, body
            assert body["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "paint"
            with_tool = body["usage"]["prompt_tokens"]
            status, body = await asyncio.to_thread(asks, tools=[tool], tool_choice="required")
            assert with_tool == body["usage"]["prompt_tokens"] + TOKENS, "prompted tools leave the image in"
            listed = server.request("GET", "/v1/language-models/grok-4")[2]
            assert listed["input_modalities"] == ["text", "image"]
