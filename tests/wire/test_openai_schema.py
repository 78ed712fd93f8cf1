"""The answers that the renderers write by hand, against the structs that the OpenAPI document describes them by."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

import jsonschema
import pytest

from jubal.core import errors
from jubal.core.embedding import Embeddings
from jubal.core.events import Event, Failed
from jubal.core.model import Model, Weights
from jubal.core.money import Price
from jubal.core.tokens import Token
from jubal.wire import openai_errors, openai_models, rich_models
from jubal.wire.base import Asked
from jubal.wire.openai_chat import OpenAIChat
from jubal.wire.openai_completions import OpenAICompletions
from jubal.wire.openai_embeddings import OpenAIEmbeddings
from jubal.wire.openai_schema import OPERATIONS
from jubal.wire.openai_tokenize import OpenAITokenize
from tests import chat_table, completions_table
from tests.openapi_schemas import Described, fold
from tests.wire.test_openai_chat_server_tools import EVENTS as SERVED

USAGE = b'"stream":true,"stream_options":{"include_usage":true}'
CHAT = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"logprobs":true,"top_logprobs":5,%b}'
TEXT = b'{"model":"m","prompt":"hi","echo":false,"logprobs":5,%b}'
FULL = Model(
    "grok-4",
    "local",
    "grok-4",
    aliases=("grok-4-0709",),
    context=256_000,
    input=("text", "image"),
    reasoning=True,
    price=Price.from_usd_per_million(3.00, 0.75, 15.00),
    description="The big one.",
)
MODELS = ((FULL, Weights("w", "fp_1f7c0b93de", 8_192)), (Model("bare", "local", "x"), Weights("w", "fp_1f7c0b93de")))


@pytest.fixture
def described() -> Described:
    return Described(OPERATIONS)


def _frames(asked: Asked, events: tuple[Event, ...]) -> Iterator[str]:
    renderer = asked.renderer()
    stream = b"".join(renderer.feed(event) for event in events).decode()
    return (frame.removeprefix("data: ") for frame in stream.split("\n\n") if frame not in ("", "data: [DONE]"))


def _check_rows(described: Described, asked: Asked, answers: Iterable[Iterable[Event]], whole: str, chunk: str) -> None:
    for events in answers:
        described.check(whole, asked.whole(fold(events)))
        for frame in _frames(asked, tuple(events)):
            described.check(chunk, frame)


def test_chat_completions_whole_and_streamed(described: Described) -> None:
    for more in (b"", b',"service_tier":"priority","include":["web_search_call_output"]'):
        asked = OpenAIChat().parse(CHAT % (USAGE + more))
        answers = [*(row.events for row in chat_table.TABLE), SERVED]
        _check_rows(described, asked, answers, "ChatCompletion", "ChatCompletionChunk")
    assert described.seen == described.fields("ChatCompletion", "ChatCompletionChunk"), "all that is described is there"


def test_text_completions_whole_and_streamed(described: Described) -> None:
    asked = OpenAICompletions().parse(TEXT % USAGE)
    answers = [row.events for row in completions_table.TABLE]
    _check_rows(described, asked, answers, "TextCompletion", "TextCompletionChunk")
    never = described.fields("ServerToolUsage") | {"CompletionUsage.server_side_tool_usage_details"}
    assert described.seen == described.fields("TextCompletion", "TextCompletionChunk") - never


def test_a_stream_that_breaks(described: Described) -> None:
    broken = (chat_table.START, Failed(errors.EngineBroken("It broke.", param="messages")))
    for frame in _frames(OpenAIChat().parse(CHAT % USAGE), broken):
        described.check("ErrorBody", frame)
    assert described.seen == described.fields("ErrorBody")


def test_deferred(described: Described) -> None:
    deferral = OpenAIChat().parse(CHAT % b'"deferred":true').deferral
    assert deferral is not None
    described.check("DeferredCompletion", deferral(chat_table.ID))


def test_embeddings(described: Described) -> None:
    made = Embeddings((b"\0\0\x80\x3f" * 2, b"\0\0\0\0" * 2), 7)
    for encoding in (b"float", b"base64"):
        asked = OpenAIEmbeddings().parse(b'{"model":"m","input":["a","b"],"encoding_format":"%b"}' % encoding)
        described.check("EmbeddingList", asked.whole("m", made, 5))
        described.check("EmbeddingList", asked.whole("m", made, None))
    assert described.seen == described.fields("EmbeddingList")


def test_tokens(described: Described) -> None:
    answer = OpenAITokenize().parse(b'{"model":"m","text":"a"}').whole((Token(7, "\ufffd", b"\xf0"),))
    described.check("TokenList", answer)
    assert described.seen == described.fields("TokenList")


@pytest.mark.parametrize(
    ("name", "module", "listing", "single"),
    [
        ("ModelList", openai_models, "listing", "single"),
        ("LanguageModelList", rich_models, "language_listing", "language_single"),
        ("EmbeddingModelList", rich_models, "embedding_listing", "embedding_single"),
    ],
)
def test_models(described: Described, name: str, module: object, listing: str, single: str) -> None:
    described.check(name, getattr(module, listing)(MODELS))
    for model, weights in MODELS:
        card = "ModelCard" if name == "ModelList" else name.removesuffix("List")
        described.check(card, getattr(module, single)(model, weights))
    assert described.seen == described.fields(name)


def test_every_error_that_has_a_status_is_described_where_work_is_done() -> None:
    chat = next(operation for operation in OPERATIONS if operation.name == "createChatCompletion")
    met = {shape.status for shape in openai_errors.SHAPES.values()} - {405}
    assert met <= chat.answers.keys(), "405 is an answer to other methods than the one described"


def test_the_check_itself_fails_for_what_is_not_described(described: Described) -> None:
    with pytest.raises(jsonschema.ValidationError):
        described.check("ErrorBody", '{"error":{"message":"m","type":"t","code":"c","more":1}}')
    with pytest.raises(jsonschema.ValidationError):
        described.check("ErrorBody", '{"error":{"message":"m","type":"t"}}')


def test_every_reference_leads_somewhere() -> None:
    schemas = Described(OPERATIONS).schemas
    assert set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(schemas))) <= schemas.keys()
    assert not [name for name in schemas if name.startswith("_") or "." in name]
