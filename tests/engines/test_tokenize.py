"""Tokens of a text, from each engine that can tell them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from jubal.core.errors import BadRequest, EngineBroken, EngineUnavailable
from jubal.core.tokens import Token
from jubal.engines.echo import EchoEngine
from jubal.engines.llama_cpp.tokens import tokenize_body, tokens_of_llama
from jubal.engines.openai_compat import OpenAICompatEngine
from jubal.engines.openai_tokenize import _alphabet, read_tokens, tokens_of_vllm, where
from jubal.engines.tokenizer import Tokenizer

TEXT = "Hi 🦊 <|im_end|>\n日"
LLAMA = (
    '{"tokens":[{"id":26843,"piece":"Hi"},{"id":15107,"piece":[32,240,159]},{"id":116,"piece":[166]},'
    '{"id":228,"piece":[138]},{"id":216,"piece":" "},{"id":2,"piece":"<|im_end|>"},{"id":198,"piece":"\\n"},'
    '{"id":23274,"piece":[230,151]},{"id":115,"piece":[165]}]}'
)
"""Of SmolLM2, as llama.cpp sends it."""
TOKENS = (
    Token(26843, "Hi", b"Hi"),
    Token(15107, " \ufffd", b" \xf0\x9f"),
    Token(116, "\ufffd", b"\xa6"),
    Token(228, "\ufffd", b"\x8a"),
    Token(216, " ", b" "),
    Token(2, "<|im_end|>", b"<|im_end|>"),
    Token(198, "\n", b"\n"),
    Token(23274, "\ufffd", b"\xe6\x97"),
    Token(115, "\ufffd", b"\xa5"),
)

texts = st.text(st.characters(codec="utf-8"))

# ---------------------------------------------------------------------------------------------- llama.cpp


def test_llama() -> None:
    assert tokens_of_llama(LLAMA.encode()) == TOKENS
    assert b"".join(token.bytes for token in TOKENS) == TEXT.encode()
    assert tokens_of_llama(b'{"tokens":[]}') == ()
    assert json.loads(tokenize_body("x")) == {"content": "x", "add_special": False, "with_pieces": True}


@pytest.mark.parametrize(
    "body",
    ["", "[]", "{}", '{"tokens":[1,2]}', '{"tokens":[{"id":1}]}', '{"tokens":[{"id":1,"piece":[256]}]}',
     '{"tokens":[{"id":1,"piece":[-1]}]}', '{"tokens":[{"id":"a","piece":""}]}', '{"tokens":null}'],
)  # fmt: skip
def test_what_is_no_list_of_tokens(body: str) -> None:
    with pytest.raises(EngineBroken):
        tokens_of_llama(body.encode())


@given(st.binary(max_size=40))
def test_any_bytes_are_tokens_or_broken(body: bytes) -> None:
    for read in (tokens_of_llama, lambda body: read_tokens(body, "a")):
        try:
            read(body)
        except EngineBroken:
            pass


# ---------------------------------------------------------------------------------------------- vLLM


def vllm(tokens: list[int], strings: list[str] | None) -> bytes:
    return json.dumps(
        {"count": len(tokens), "max_model_len": 9, "tokens": tokens, "token_strs": strings}, ensure_ascii=False
    ).encode()


def test_vllm_with_a_byte_level_vocabulary() -> None:
    body = vllm([1, 2, 3, 4, 5], ["Hi", "ĠðŁ", "¦", "Ĭ", "Ċ"])
    assert [(one.id, one.bytes) for one in tokens_of_vllm(body, "Hi 🦊\n")] == [
        (1, b"Hi"),
        (2, b" \xf0\x9f"),
        (3, b"\xa6"),
        (4, b"\x8a"),
        (5, b"\n"),
    ]


def test_vllm_with_a_token_of_its_own_outside_the_alphabet() -> None:
    body = vllm([1, 2], ["<｜end｜>", "Ġa"])
    assert [one.text for one in tokens_of_vllm(body, "<｜end｜> a")] == ["<｜end｜>", " a"]


def test_vllm_with_sentence_pieces() -> None:
    body = vllm([1, 2, 3], ["▁Hi", "▁you", "<0x0A>"])
    assert tokens_of_vllm(body, " Hi you\n") == (
        Token(1, " Hi", b" Hi"),
        Token(2, " you", b" you"),
        Token(3, "\n", b"\n"),
    )


@given(texts, st.data())
def test_any_text_in_the_byte_level_alphabet_is_read_back(text: str, data: st.DataObject) -> None:
    letters = {byte: letter for letter, byte in _alphabet().items()}
    assert len(letters) == 256
    raw, cut = text.encode(), []
    while raw:
        size = data.draw(st.integers(1, len(raw)))
        cut.append(raw[:size])
        raw = raw[size:]
    strings = ["".join(letters[byte] for byte in one) for one in cut]
    told = tokens_of_vllm(vllm(list(range(len(cut))), strings), text)
    assert [one.bytes for one in told] == cut


@pytest.mark.parametrize(
    "body",
    [
        vllm([1], ["Hello"]),  # of another text
        vllm([1, 2], ["Hi"]),
        vllm([1], None),  # an older one: ids only
    ],
)
def test_nothing_is_guessed(body: bytes) -> None:
    with pytest.raises(EngineBroken):
        read_tokens(body, "Hi")


# ---------------------------------------------------------------------------------------------- on a socket


@asynccontextmanager
async def box(
    path: str, answer: object, status: int = 200, kind: str = "openai"
) -> AsyncIterator[tuple[Any, list[Any]]]:
    asked: list[Any] = []

    async def handle(request: web.Request) -> web.Response:
        asked.append(await request.json())
        return web.Response(text=answer if isinstance(answer, str) else json.dumps(answer), status=status)

    app = web.Application()
    app.router.add_post(path, handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    engine = OpenAICompatEngine("box", f"http://127.0.0.1:{runner.addresses[0][1]}/v1", kind=kind, api_key="k")
    await engine.start()
    try:
        yield engine, asked
    finally:
        await engine.close()
        await runner.cleanup()


async def test_a_llama_server() -> None:
    async with box("/tokenize", LLAMA) as (engine, asked):
        assert isinstance(engine, Tokenizer)
        assert await engine.tokenize("up", TEXT) == TOKENS
    assert asked[0]["content"] == asked[0]["prompt"] == TEXT


async def test_xai() -> None:
    answer = {"token_ids": [{"token_id": 4521, "string_token": "Hi", "token_bytes": [72, 105]}]}
    async with box("/v1/tokenize-text", answer, kind="xai") as (engine, asked):
        assert await engine.tokenize("grok-4", "Hi") == (Token(4521, "Hi", b"Hi"),)
    assert asked == [{"model": "grok-4", "text": "Hi"}]


@pytest.mark.parametrize(
    ("path", "answer", "status"),
    [
        ("/elsewhere", "", 200),
        ("/tokenize", "", 405),
        ("/tokenize", {"detail": "inputs: field required"}, 422),
        ("/tokenize", {"tokens": [1, 2]}, 200),
        ("/tokenize", "<html>", 200),
    ],
)
async def test_a_server_that_can_not(path: str, answer: object, status: int) -> None:
    async with box(path, answer, status) as (engine, _):
        with pytest.raises(BadRequest, match="The engine behind `up` can't tell its tokens") as caught:
            await engine.tokenize("up", "Hi")
    assert (caught.value.param, caught.value.code) == ("model", "tokenize_not_supported")


async def test_failures_are_the_engines() -> None:
    async with box("/tokenize", {}, 503) as (engine, _):
        with pytest.raises(EngineUnavailable):
            await engine.tokenize("up", "Hi")
    async with box("/tokenize", {}, 401) as (engine, _):
        with pytest.raises(EngineBroken, match="credentials"):
            await engine.tokenize("up", "Hi")
    with pytest.raises(EngineUnavailable):
        await engine.tokenize("up", "Hi")  # closed


def test_where() -> None:
    assert where("http://h/v1", "openai") == "http://h/tokenize"
    assert where("http://h/api", "openai") == "http://h/api/tokenize"
    assert where("https://h/v1", "xai") == "https://h/v1/tokenize-text"


# ---------------------------------------------------------------------------------------------- echo


@given(texts)
async def test_echo_has_a_token_for_each_word(text: str) -> None:
    engine = EchoEngine("e")
    assert isinstance(engine, Tokenizer)
    tokens = await engine.tokenize("m", text)
    assert b"".join(token.bytes for token in tokens).decode() == "".join(token.text for token in tokens) == text
    assert all(0 <= token.id < 2**31 for token in tokens)
