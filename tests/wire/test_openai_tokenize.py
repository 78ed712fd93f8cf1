"""POST /v1/tokenize-text on the wire."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jubal.core.errors import BadRequest
from jubal.core.tokens import Token
from jubal.wire.openai_tokenize import OpenAITokenize

DIALECT = OpenAITokenize()


def test_what_is_asked() -> None:
    asked = DIALECT.parse(b'{"model":"grok-4","text":"Hi \\u00e9","user":"u","made_up":1}')
    assert (asked.model, asked.text, asked.user) == ("grok-4", "Hi é", "u")
    assert DIALECT.parse(b'{"model":"m","text":"","user":null}').text == ""


@pytest.mark.parametrize(
    ("body", "param", "status"),
    [
        ({"text": "a"}, "model", 422),
        ({"model": "", "text": "a"}, "model", 400),
        ({"model": 1, "text": "a"}, "model", 422),
        ({"model": "m"}, "text", 422),
        ({"model": "m", "text": None}, "text", 422),
        ({"model": "m", "text": ["a"]}, "text", 422),
        ({"model": "m", "text": "a", "user": 7}, "user", 422),
    ],
)
def test_bad_input_names_the_field(body: dict[str, Any], param: str, status: int) -> None:
    with pytest.raises(BadRequest) as caught:
        DIALECT.parse(json.dumps(body).encode())
    reply = DIALECT.error(caught.value)
    assert (json.loads(reply.body)["error"]["param"], reply.status) == (param, status)


@given(st.binary(max_size=60))
def test_any_bytes_are_asked_or_a_bad_request(body: bytes) -> None:
    try:
        DIALECT.parse(body)
    except BadRequest:
        pass


def test_the_answer() -> None:
    asked = DIALECT.parse(b'{"model":"m","text":"Hi"}')
    assert json.loads(asked.whole((Token(4521, "Hi", b"Hi"), Token(7, "\ufffd", b"\xf0")))) == {
        "token_ids": [
            {"token_id": 4521, "string_token": "Hi", "token_bytes": [72, 105]},
            {"token_id": 7, "string_token": "\ufffd", "token_bytes": [240]},
        ]
    }
    assert json.loads(asked.whole(())) == {"token_ids": []}
