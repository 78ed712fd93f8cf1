"""The service Tokenize."""

from __future__ import annotations

from jubal.core.errors import BadRequest
from jubal.core.tokens import Token
from jubal.wire.xai_grpc.decode import decode
from jubal.wire.xai_grpc.pb import Proto, tokenize


def asked(body: bytes) -> tuple[str, str]:
    """Model and text of a TokenizeTextRequest. Raises `BadRequest`."""
    request = decode(tokenize.TokenizeTextRequest, body)
    if not request.model:
        raise BadRequest("`model` must not be empty.", param="model", code="empty_value")
    return request.model, request.text


def answer(model: str, tokens: tuple[Token, ...]) -> Proto:
    """model: its resolved name."""
    return tokenize.TokenizeTextResponse(
        model=model,
        tokens=[
            tokenize.Token(token_id=token.id, string_token=token.text, token_bytes=token.bytes) for token in tokens
        ],
    )
