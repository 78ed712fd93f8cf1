"""POST /v1/embeddings: the OpenAI dialect as xAI speaks it (seed, "Embeddings"; xai-api.md 13)."""

from __future__ import annotations

import base64
from typing import Final, Literal, TypeAlias

import msgspec

from jubal.core.embedding import EmbeddingRequest, Embeddings, unpack
from jubal.core.errors import BadRequest, JubalError, Undecodable
from jubal.wire import openai_errors
from jubal.wire.base import ErrorReply
from jubal.wire.decode import decode

Encoding: TypeAlias = Literal["float", "base64"]

INPUTS_MAX: Final = 128
"""xAI's; OpenAI takes 2,048."""
INTEGER_MAX: Final = 2**31 - 1
"""Of token ids and dimensions: what every engine and gRPC can hold."""

# ---------------------------------------------------------------------------------------------- the request


class _Request(msgspec.Struct):
    """The body. Unknown fields are ignored, null means unset (xai-api.md 3). preview: without a documented meaning."""

    model: str
    input: str | list[str | int | list[int]]
    encoding_format: str | None = None
    dimensions: int | None = None
    user: str | None = None
    preview: bool | None = None


_DECODER: Final = msgspec.json.Decoder(_Request)
_encode: Final = msgspec.json.Encoder().encode


def _request(asked: _Request) -> EmbeddingRequest:
    if not asked.model:
        raise BadRequest("`model` must not be empty.", param="model", code="empty_value")
    if asked.dimensions is not None and not 1 <= asked.dimensions <= INTEGER_MAX:
        raise BadRequest(f"`dimensions` must be between 1 and {INTEGER_MAX}.", param="dimensions", code="out_of_range")
    texts, tokens = _inputs(asked.input)
    return EmbeddingRequest(asked.model, texts, tokens, asked.dimensions, asked.user)


def _inputs(given: str | list[str | int | list[int]]) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Texts or lists of token ids, one of the two. A flat list of ids is one input."""
    if not given:
        raise _empty("input")
    if isinstance(given, str):
        return (given,), ()
    if isinstance(given[0], int):
        return (), (_token_ids("input", given),)
    if len(given) > INPUTS_MAX:
        raise BadRequest(f"`input` takes up to {INPUTS_MAX} items, got {len(given)}.", param="input", code="too_many")
    if isinstance(given[0], str):
        return tuple(_text(index, item) for index, item in enumerate(given)), ()
    return (), tuple(_token_ids(f"input[{index}]", item) for index, item in enumerate(given))


def _text(index: int, item: str | int | list[int]) -> str:
    where = f"input[{index}]"
    if not isinstance(item, str):
        raise _mixed(where, "string")
    if not item:
        raise _empty(where)
    return item


def _token_ids(where: str, given: str | int | list[int] | list[str | int | list[int]]) -> tuple[int, ...]:
    if not isinstance(given, list):
        raise _mixed(where, "list of token ids")
    if not given:
        raise _empty(where)
    ids = []
    for index, one in enumerate(given):
        if not isinstance(one, int):
            raise _mixed(f"{where}[{index}]", "token id")
        if not 0 <= one <= INTEGER_MAX:
            param = f"{where}[{index}]"
            raise BadRequest(
                f"`{param}` must be a token id, between 0 and {INTEGER_MAX}.", param=param, code="out_of_range"
            )
        ids.append(one)
    return tuple(ids)


def _empty(where: str) -> BadRequest:
    return BadRequest(f"`{where}` must not be empty.", param=where, code="empty_value")


def _mixed(where: str, first: str) -> Undecodable:
    return Undecodable(f"`{where}`: expected a {first} like the first item.", param=where, code="invalid_type")


def _encoding(wanted: str | None) -> Encoding:
    match wanted:
        case None | "float":
            return "float"
        case "base64":
            return "base64"
    raise BadRequest(
        f"`encoding_format` must be float or base64, got `{wanted[:64]}`.",
        param="encoding_format",
        code="invalid_value",
    )


# ---------------------------------------------------------------------------------------------- the answer


def _vector(vector: bytes, encoding: Encoding) -> str | list[float]:
    """base64 is of little-endian 32-bit floats, which a vector already is."""
    return base64.b64encode(vector).decode() if encoding == "base64" else unpack(vector).tolist()


class EmbeddingsAsked:
    """A parsed request."""

    __slots__ = ("_encoding", "request")

    def __init__(self, asked: _Request) -> None:
        self.request = _request(asked)
        self._encoding = _encoding(asked.encoding_format)

    def whole(self, model: str, embeddings: Embeddings, cost_ticks: int | None) -> bytes:
        """The body of the answer. model: the resolved public name. cost_ticks: None where nobody prices it."""
        tokens = embeddings.prompt_tokens
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        if cost_ticks is not None:
            usage["cost_in_usd_ticks"] = cost_ticks
        return _encode(
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": index, "embedding": _vector(vector, self._encoding)}
                    for index, vector in enumerate(embeddings.vectors)
                ],
                "model": model,
                "usage": usage,
            }
        )


class OpenAIEmbeddings:
    """The dialect. It has no stream."""

    endpoint = "embed"
    body = _Request

    def parse(self, body: bytes) -> EmbeddingsAsked:
        """Raises `BadRequest`; `Undecodable` where a field is missing or has the wrong type."""
        return EmbeddingsAsked(decode(_DECODER, body))

    def error(self, error: JubalError) -> ErrorReply:
        return openai_errors.reply(error)
