"""POST /v1/tokenize-text: xAI's (xai-api.md 14)."""

from __future__ import annotations

from typing import Final

import msgspec

from jubal.core.errors import BadRequest, JubalError
from jubal.core.tokens import Token
from jubal.wire import openai_errors
from jubal.wire.base import ErrorReply
from jubal.wire.decode import decode


class _Request(msgspec.Struct):
    """The body. Unknown fields are ignored, null means unset (xai-api.md 3)."""

    model: str
    text: str
    user: str | None = None


_DECODER: Final = msgspec.json.Decoder(_Request)
_encode: Final = msgspec.json.Encoder().encode


class TokenizeAsked:
    """A parsed request. model: as the caller wrote it. text: may be empty."""

    __slots__ = ("model", "text", "user")

    def __init__(self, asked: _Request) -> None:
        if not asked.model:
            raise BadRequest("`model` must not be empty.", param="model", code="empty_value")
        self.model = asked.model
        self.text = asked.text
        self.user = asked.user

    def whole(self, tokens: tuple[Token, ...]) -> bytes:
        """The body of the answer."""
        return _encode(
            {
                "token_ids": [
                    {"token_id": token.id, "string_token": token.text, "token_bytes": list(token.bytes)}
                    for token in tokens
                ]
            }
        )


class OpenAITokenize:
    """The dialect. It has no stream."""

    endpoint = "tokenize"
    body = _Request

    def parse(self, body: bytes) -> TokenizeAsked:
        """Raises `BadRequest`; `Undecodable` where a field is missing or has the wrong type."""
        return TokenizeAsked(decode(_DECODER, body))

    def error(self, error: JubalError) -> ErrorReply:
        return openai_errors.reply(error)
