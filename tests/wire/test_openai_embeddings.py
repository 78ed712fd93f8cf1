"""The embeddings dialect: what it takes, what it refuses, that nothing makes it fall over, and that its answers lose no bit."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jubal.core import errors
from jubal.core.embedding import EmbeddingRequest, Embeddings, estimate_prompt, pack, unpack
from jubal.core.errors import BadRequest
from jubal.wire import openai_errors
from jubal.wire.openai_embeddings import EmbeddingsAsked, OpenAIEmbeddings

DIALECT = OpenAIEmbeddings()


def parse(**fields: Any) -> EmbeddingsAsked:
    return DIALECT.parse(json.dumps({"model": "m", "input": "hi", **fields}).encode())


GOOD: list[tuple[dict[str, Any], EmbeddingRequest]] = [
    ({}, EmbeddingRequest("m", ("hi",))),
    ({"input": ["a", "b"]}, EmbeddingRequest("m", ("a", "b"))),
    ({"input": [" "]}, EmbeddingRequest("m", (" ",))),
    ({"input": ["x"] * 128}, EmbeddingRequest("m", ("x",) * 128)),
    ({"input": [1, 2, 3]}, EmbeddingRequest("m", tokens=((1, 2, 3),))),
    ({"input": [7] * 1000}, EmbeddingRequest("m", tokens=((7,) * 1000,))),
    ({"input": [[1], [2, 3]]}, EmbeddingRequest("m", tokens=((1,), (2, 3)))),
    ({"dimensions": 64, "user": "u", "encoding_format": "base64"}, EmbeddingRequest("m", ("hi",), (), 64, "u")),
    (dict.fromkeys(["dimensions", "user", "encoding_format", "preview"]) | {"made_up": [1], "stream": True}, EmbeddingRequest("m", ("hi",))),
    ({"input": "\x00 \U0001f98a"}, EmbeddingRequest("m", ("\x00 \U0001f98a",))),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "request_"), GOOD)
def test_every_form_of_input(fields: dict[str, Any], request_: EmbeddingRequest) -> None:
    assert parse(**fields).request == request_
    assert request_.count == len(request_.texts) + len(request_.tokens)


BAD: list[tuple[dict[str, Any], str, int]] = [
    ({"model": None}, "model", 422),
    ({"model": 7}, "model", 422),
    ({"model": ""}, "model", 400),
    ({"input": None}, "input", 422),
    ({"input": 7}, "input", 422),
    ({"input": {"text": "a"}}, "input", 422),
    ({"input": ""}, "input", 400),
    ({"input": []}, "input", 400),
    ({"input": ["x"] * 129}, "input", 400),
    ({"input": [[1]] * 129}, "input", 400),
    ({"input": [""]}, "input[0]", 400),
    ({"input": ["a", ""]}, "input[1]", 400),
    ({"input": [[]]}, "input[0]", 400),
    ({"input": [[1], []]}, "input[1]", 400),
    ({"input": [None]}, "input[0]", 422),
    ({"input": ["a", None]}, "input[1]", 422),
    ({"input": ["a", 1]}, "input[1]", 422),
    ({"input": ["a", [1]]}, "input[1]", 422),
    ({"input": [1, "a"]}, "input[1]", 422),
    ({"input": [1, [1]]}, "input[1]", 422),
    ({"input": [[1], 2]}, "input[1]", 422),
    ({"input": [[1], "a"]}, "input[1]", 422),
    ({"input": [[1, "a"]]}, "input[0][1]", 422),
    ({"input": [[1, [2]]]}, "input[0][1]", 422),
    ({"input": [True]}, "input[0]", 422),
    ({"input": [1.5]}, "input[0]", 422),
    ({"input": [1, -1]}, "input[1]", 400),
    ({"input": [[1], [2, -1]]}, "input[1][1]", 400),
    ({"input": [2**31]}, "input[0]", 400),
    ({"encoding_format": "int8"}, "encoding_format", 400),
    ({"encoding_format": 7}, "encoding_format", 422),
    ({"dimensions": 0}, "dimensions", 400),
    ({"dimensions": -3}, "dimensions", 400),
    ({"dimensions": 2**31}, "dimensions", 400),
    ({"dimensions": 1.5}, "dimensions", 422),
    ({"dimensions": "64"}, "dimensions", 422),
    ({"dimensions": True}, "dimensions", 422),
    ({"user": 7}, "user", 422),
    ({"preview": "yes"}, "preview", 422),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param", "status"), BAD, ids=[f"{param}-{n}" for n, (_, param, _) in enumerate(BAD)]
)
def test_bad_input_names_the_field(fields: dict[str, Any], param: str, status: int) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(**fields)
    reply = DIALECT.error(caught.value)
    error = json.loads(reply.body)["error"]
    assert (error["param"], reply.status, error["type"]) == (param, status, "invalid_request_error")
    assert f"`{param}`" in error["message"]
    assert len(error["message"]) < 300


@pytest.mark.parametrize("missing", ["model", "input"])
def test_a_missing_field_is_named(missing: str) -> None:
    body = {"model": "m", "input": "hi"}
    del body[missing]
    with pytest.raises(BadRequest) as caught:
        DIALECT.parse(json.dumps(body).encode())
    assert (caught.value.param, caught.value.code) == (missing, "missing_field")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 200_000,
        b'{"input":' + b"[" * 200_000,
        b'{"model":"m","input":"\\ud800"}',
        b'{"model":"m","input":[1%b]}' % (b"0" * 5000),
        b"null",
        b"[]",
        b'"x"',
        b"{}",
    ],
)
def test_what_is_no_request_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(BadRequest):
        DIALECT.parse(body)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=10,
)
fields = st.sampled_from(["model", "input", "encoding_format", "dimensions", "user", "preview", "x"])


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(fields, values, max_size=5), st.booleans())
def test_any_json_is_a_request_or_a_bad_request(body: dict[str, Any], filled: bool) -> None:
    if filled:
        body = {"model": "m", "input": "hi", **body}
    try:
        asked = DIALECT.parse(json.dumps(body).encode()).request
    except BadRequest as error:
        assert 400 <= openai_errors.reply(error).status < 500
    else:
        assert asked.count
        assert all(asked.texts)
        assert all(asked.tokens)
        assert not (asked.texts and asked.tokens)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_request_or_a_bad_request(body: bytes) -> None:
    try:
        DIALECT.parse(body)
    except BadRequest:
        pass


# ---------------------------------------------------------------------------------------------- the answer


def test_the_whole_body() -> None:
    answer = json.loads(parse().whole("grok-embed", Embeddings((pack([0.5, -2]), pack([1, 0])), 9), 18))
    assert answer == {
        "object": "list",
        "model": "grok-embed",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.5, -2.0]},
            {"object": "embedding", "index": 1, "embedding": [1.0, 0.0]},
        ],
        "usage": {"prompt_tokens": 9, "total_tokens": 9, "cost_in_usd_ticks": 18},
    }
    unpriced = json.loads(parse().whole("m", Embeddings((pack([1]),), 2, estimated=True), None))
    assert unpriced["usage"] == {"prompt_tokens": 2, "total_tokens": 2}


@given(
    st.lists(
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
        min_size=1,
        max_size=4,
    )
)
def test_both_encodings_say_the_same_numbers_to_the_last_bit(vectors: list[list[float]]) -> None:
    embeddings = Embeddings(tuple(map(pack, vectors)), 1)
    plain = json.loads(parse(encoding_format="float").whole("m", embeddings, None))["data"]
    coded = json.loads(parse(encoding_format="base64").whole("m", embeddings, None))["data"]
    assert [item["embedding"] for item in plain] == vectors
    for item, vector in zip(coded, vectors, strict=True):
        raw = base64.b64decode(item["embedding"], validate=True)
        assert raw == struct.pack("<3f", *vector)
        assert list(unpack(raw)) == vector


def test_vectors_are_little_endian() -> None:
    assert pack([1.0]) == b"\x00\x00\x80\x3f"
    assert Embeddings((pack([1.0, 2.0, 3.0]),), 1).dimensions == 3


def test_estimates_a_quarter_of_the_characters_and_every_token() -> None:
    assert estimate_prompt(EmbeddingRequest("m", ("hello", "you"))) == 2
    assert estimate_prompt(EmbeddingRequest("m", tokens=((1, 2), (3,)))) == 3


def test_errors_are_those_of_the_openai_family() -> None:
    reply = DIALECT.error(errors.AtCapacity("full"))
    assert reply.status == 498
    assert json.loads(reply.body)["error"]["type"] == "capacity_error"
