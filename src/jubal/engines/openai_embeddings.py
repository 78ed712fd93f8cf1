"""Embedders that speak the OpenAI dialect: vLLM, SGLang, TEI, Ollama, llama-server, any provider.

Three layers, each usable alone: `embeddings_body` and `read_embeddings` translate and do no I/O; `post_embeddings` does one
HTTP call; `OpenAIEmbedder` adds where to send it, with which key, and when to try again.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec
from yarl import URL

from jubal.core.embedding import FLOAT_BYTES, EmbeddingRequest, Embeddings, estimate_prompt, pack, unpack
from jubal.core.errors import AtCapacity, BadRequest, ContextTooLong, EngineBroken, EngineUnavailable, JubalError
from jubal.core.hiding import Concealed
from jubal.engines.base import EngineStatus, Weights
from jubal.engines.http_client import HttpClient, Target, target_of
from jubal.engines.openai_compat import (
    COUNT_MAX,
    _reported,
    post_whole,
    retry_delay_s,
    upstream_fingerprint,
    upstream_headers,
    upstream_secrets,
)

if TYPE_CHECKING:
    from jubal.engines.upstream import UpstreamFacts

Encoding: TypeAlias = Literal["base64", "float"]

NONSENSE: Final = "engine_nonsense"
STOPPED: Final = "engine_stopped"
HOPELESS: Final = frozenset({"engine_credentials", "engine_model_not_found", NONSENSE, STOPPED})
"""Codes of failures that the next try would meet again."""

# ---------------------------------------------------------------------------------------------- request -> body


def embeddings_body(request: EmbeddingRequest, encoding: Encoding) -> bytes:
    """float is what a server does that is not asked: some refuse the field."""
    body: dict[str, object] = {"model": request.model, "input": request.texts or request.tokens}
    if encoding == "base64":
        body["encoding_format"] = encoding
    if request.dimensions is not None:
        body["dimensions"] = request.dimensions
    if request.user is not None:
        body["user"] = request.user
    return msgspec.json.encode(body)


# ---------------------------------------------------------------------------------------------- body -> vectors


class _Item(msgspec.Struct, gc=False):
    embedding: str | list[float]
    index: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None


class _Answer(msgspec.Struct, gc=False):
    data: list[_Item] = []
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw()  # `Raw | None` would take nothing but null


_decode: Final = msgspec.json.Decoder(_Answer).decode


def read_embeddings(body: bytes, request: EmbeddingRequest) -> Embeddings:
    """Raises `EngineBroken` where the body is not one good vector for each input, and the error that an error body stands for."""
    try:
        answer = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _nonsense("something that is not a list of embeddings") from error
    if bytes(answer.error) not in (b"", b"null"):  # a Raw equals no bytes
        raise _named(_reported(503, body), request)
    vectors = tuple(_vector(item.embedding) for item in _in_order(answer.data, request.count))
    lengths = {len(vector) // FLOAT_BYTES for vector in vectors}
    if len(lengths) != 1 or 0 in lengths:
        raise _nonsense(f"vectors of {', '.join(map(str, sorted(lengths)))} dimensions")
    if request.dimensions is not None and lengths != {request.dimensions}:
        raise BadRequest(
            f"`dimensions`: the model `{request.model}` has {lengths.pop()}, and its engine does not shorten them.",
            param="dimensions",
            code="dimensions_not_supported",
        )
    told = answer.usage.prompt_tokens if answer.usage is not None else None
    if told is None or not 1 <= told <= COUNT_MAX:  # Ollama and others send no count, or zero
        return Embeddings(vectors, estimate_prompt(request), estimated=True)
    return Embeddings(vectors, told)


def _in_order(items: list[_Item], count: int) -> list[_Item]:
    """By index; as they came where none has one."""
    if len(items) != count:
        raise _nonsense(f"{len(items)} vectors for {count} inputs")
    if all(item.index is None for item in items):
        return items
    by_index = {item.index: item for item in items}
    if by_index.keys() != set(range(count)):
        raise _nonsense("vectors whose numbers are not those of the inputs")
    return [by_index[index] for index in range(count)]


def _vector(embedding: str | list[float]) -> bytes:
    try:
        vector = base64.b64decode(embedding, validate=True) if isinstance(embedding, str) else pack(embedding)
        # One that is not finite makes the sum so, and the sum of finite 32-bit floats can't overflow.
        if math.isfinite(sum(unpack(vector))):
            return vector
    except (binascii.Error, ValueError) as error:
        raise _nonsense("a vector that is not base64 of 32-bit floats") from error
    raise _nonsense("a vector with a number that is not finite")


def _nonsense(what: str) -> EngineBroken:
    return EngineBroken(f"The engine answered {what}.", code=NONSENSE)


# ---------------------------------------------------------------------------------------------- one HTTP call


async def post_embeddings(
    client: HttpClient,
    target: Target,
    request: EmbeddingRequest,
    *,
    encoding: Encoding = "base64",
    timeout_s: float,
    concealed: Concealed | None = None,
) -> Embeddings:
    """One POST. timeout_s: for all of it. Raises core errors only. When it is cancelled the connection is cut at once."""

    def refused(status: int, error: JubalError) -> JubalError:
        return _named(error, request)

    body = embeddings_body(request, encoding)
    answer = await post_whole(client, target, body, timeout_s=timeout_s, concealed=concealed, refused=refused)
    return read_embeddings(answer, request)


def _named(error: JubalError, request: EmbeddingRequest) -> JubalError:
    """With the field of an embedding request at fault, as far as the engine's words tell."""
    if isinstance(error, ContextTooLong):
        error.param = "input"
    elif isinstance(error, BadRequest) and request.dimensions is not None and "dimension" in error.message.lower():
        error.param = "dimensions"
    return error


# ---------------------------------------------------------------------------------------------- the embedder


class OpenAIEmbedder:
    """Any server with an OpenAI-compatible /v1/embeddings.

    base_url: up to and with /v1. retries: further tries after one that failed. context: longest input in tokens if the operator
    tells, else None. facts: what somebody else learns of the server meanwhile.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        *,
        kind: str = "openai",
        api_key: str | None = None,
        timeout_s: float = 600,
        retries: int = 3,
        context: int | None = None,
        facts: UpstreamFacts | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.name = name
        self.kind = kind
        self._base_url = base_url.rstrip("/")
        self._target = target_of(URL(self._base_url + "/embeddings"), upstream_headers(api_key))
        self._concealed = upstream_secrets(api_key, base_url)
        self._timeout_s = timeout_s
        self._retries = retries
        self._context = context
        self._facts = facts
        self._sleep = sleep
        self._encoding: Encoding = "base64"
        self._client: HttpClient | None = None

    async def start(self) -> None:
        if self._client is None:
            self._client = HttpClient(URL(self._base_url))

    async def ready(self) -> None:
        """At once: whether the other side answers is seen when it is asked."""

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def status(self) -> EngineStatus:
        if self._facts is not None and self._facts.status.state == "failed":
            return self._facts.status  # also before the first request: somebody else asked
        if self._client is None:
            return EngineStatus("stopped")
        return EngineStatus("ready") if self._facts is None else self._facts.status

    def weights(self, model: str) -> Weights:
        context = self._context
        if context is None and self._facts is not None:
            context = self._facts.contexts.get(model)
        return Weights(model, upstream_fingerprint(self._base_url, model), context)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """One that failed in the middle is asked for again as well: nothing of it was passed on."""
        for attempt in range(self._retries + 1):
            try:
                return await self._ask(request)
            except (EngineUnavailable, EngineBroken, AtCapacity) as error:
                delay = retry_delay_s(attempt, error.retry_after_s, random.random())  # noqa: S311
                if error.code in HOPELESS or attempt == self._retries or delay is None:
                    raise
            await self._sleep(delay)
        raise AssertionError("the last try returns or raises")

    async def _ask(self, request: EmbeddingRequest) -> Embeddings:
        if self._encoding == "base64":
            try:
                return await self._post(request)
            except BadRequest as error:
                if "encoding_format" not in error.message:
                    raise
                self._encoding = "float"  # a server that does not know base64: lists of numbers from now on
        return await self._post(request)

    async def _post(self, request: EmbeddingRequest) -> Embeddings:
        if self._client is None:
            raise EngineUnavailable(f"The engine `{self.name}` is not started.", code=STOPPED)
        return await post_embeddings(
            self._client,
            self._target,
            request,
            encoding=self._encoding,
            timeout_s=self._timeout_s,
            concealed=self._concealed,
        )
