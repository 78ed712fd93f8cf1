"""What is learned of an upstream from its list of models, over a real socket."""

from __future__ import annotations

import asyncio

import pytest

from jubal.engines.openai_compat import OpenAICompatEngine
from jubal.engines.openai_embeddings import OpenAIEmbedder
from jubal.engines.upstream import UpstreamProbe, read_models
from tests.fake_upstream import Behaviour, hangs_before_headers, lists, refuses, says_body, upstream
from tests.server import Server, free_port


def test_names_and_windows_as_servers_write_them() -> None:
    body = b"""{"object": "list", "data": [
        {"id": "vllm", "max_model_len": 4096, "permission": [{}]}, {"id": "aggregator", "context_length": 8192},
        {"id": "other", "context_window": 16384}, {"id": "silent"}, {"id": "zero", "max_model_len": 0},
        {"id": "grok-4-0709", "aliases": ["grok-4"], "context_length": 256000}, {"id": "llama3:latest"}]}"""
    assert read_models(body) == {
        "vllm": 4096,
        "aggregator": 8192,
        "other": 16384,
        "silent": None,
        "zero": None,
        "grok-4-0709": 256_000,
        "grok-4": 256_000,
        "llama3:latest": None,
        "llama3": None,
    }


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"data": [{"name": "x"}]}',
        b'{"data": [{"id": "x", "max_model_len": "many"}]}',
        b"[" * 99999,
    ],
)
async def test_what_is_no_list(body: bytes) -> None:
    async with upstream(refuses(500), models=says_body(body)) as there:
        probe = UpstreamProbe(there.url)
        status = await probe.probe()
    assert status.state == "ready"
    assert "base_url" in (status.reason or "")
    assert probe.unlisted(frozenset({"x"})) == []


@pytest.mark.parametrize(
    ("models", "state", "reason"),
    [
        (refuses(401), "failed", "refused our key"),
        (refuses(403), "ready", "refused our key for its list"),
        (refuses(404), "ready", ""),
        (refuses(429), "ready", ""),
        (refuses(501), "ready", ""),
        (refuses(302, None, location="http://127.0.0.1:1/"), "ready", ""),
        (refuses(500), "failed", "HTTP 500"),
        (refuses(503), "failed", "HTTP 503"),
        (hangs_before_headers(), "failed", "no answer within 0.3 s"),
        (lists("a"), "ready", ""),
    ],
)
async def test_how_it_is(models: Behaviour, state: str, reason: str) -> None:
    async with upstream(refuses(500), models=models) as there:
        probe = UpstreamProbe(there.url, api_key="sk-up", timeout_s=0.3 if "0.3" in reason else 60)
        status = await probe.probe()
        assert there.asked_for_models[0]["authorization"] == "Bearer sk-up"
        assert len(there.asked_for_models) == 1
    assert status.state == state
    assert reason in (status.reason or "")
    assert "sk-up" not in (status.reason or "")


async def test_nobody_there_and_somebody_who_hangs_up() -> None:
    assert (
        await UpstreamProbe(f"http://127.0.0.1:{free_port()}/v1").probe()
    ).reason == "The upstream can't be reached."

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        status = await UpstreamProbe(f"http://127.0.0.1:{port}/v1").probe()
    assert status.state == "failed"


async def test_what_is_learned_changes_what_the_engines_say_of_themselves() -> None:
    async with upstream(refuses(500), models=lists({"id": "up", "max_model_len": 4096}, "other")) as there:
        probe = UpstreamProbe(there.url)
        engine = OpenAICompatEngine("box", there.url, facts=probe.facts)
        embedder = OpenAIEmbedder("box", there.url, facts=probe.facts)
        told = OpenAICompatEngine("box", there.url, context=99, facts=probe.facts)
        before = engine.weights("up")
        assert (before.context, engine.status().state) == (None, "stopped")
        await engine.start()
        await probe.probe()
        assert engine.weights("up").context == embedder.weights("up").context == 4096
        assert engine.weights("up").fingerprint == before.fingerprint
        assert engine.weights("up") is engine.weights("up")
        assert engine.weights("other").context is None
        assert told.weights("up").context == 99, "the configuration wins"
        assert probe.unlisted(frozenset({"up", "typo", "other"})) == ["typo"]
        assert engine.status().state == "ready"
        there.models = refuses(401)
        await probe.probe()
        assert engine.status() == embedder.status() == probe.facts.status
        assert engine.weights("up").context == 4096, "what was learned stays"
        await engine.close()


async def test_a_real_server_lists_its_models_with_their_real_window(real_server: Server) -> None:
    probe = UpstreamProbe(real_server.url, api_key=real_server.key)
    assert (await probe.probe()).state == "ready"
    listed = real_server.request("GET", "/v1/models/grok-4")[2]
    assert probe.facts.contexts["grok-4"] == probe.facts.contexts["grok-4-latest"] == listed["context_length"]
    assert probe.unlisted(frozenset({"grok-4", "typo"})) == ["typo"]
    refused = await UpstreamProbe(real_server.url, api_key="xai-nobody").probe()
    assert refused.state == "failed"
    assert "refused our key" in (refused.reason or "")
