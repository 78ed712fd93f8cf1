"""Vectors by a GGUF model: llama.cpp in a child process that does nothing else, over its /v1/embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import aiohttp

from jubal.core.embedding import EmbeddingRequest, Embeddings
from jubal.core.errors import BadRequest, ContextTooLong, EngineBroken, EngineUnavailable
from jubal.engines.base import EngineStatus, Weights
from jubal.engines.llama_cpp.engine import LIFE_NEWS_S, URL, LlamaEngine, ask_tokens, target_on_child
from jubal.engines.llama_cpp.tokens import count_of_tokens, tokenize_body, vocabulary_of
from jubal.engines.openai_embeddings import post_embeddings

PART_INPUTS: Final = 16
"""Inputs of one request to llama.cpp: those of others get their turn in between."""


class LlamaEmbedder:
    """engine: made with `embedding=True`; its child's life is its own, only what the child is asked is told here.

    Vectors have length one and the model's own number of dimensions. They are not shortened: whether the first few of a model's
    dimensions mean anything alone depends on how it was trained, which its file does not tell.
    """

    kind = "llama"

    def __init__(self, engine: LlamaEngine) -> None:
        self.name = engine.name
        self.slots = engine.slots
        self.engine = engine
        self._target = target_on_child("/v1/embeddings")

    async def start(self) -> None:
        await self.engine.start()

    async def ready(self) -> None:
        await self.engine.ready()

    async def close(self) -> None:
        await self.engine.close()

    def status(self) -> EngineStatus:
        return self.engine.status()

    def weights(self, model: str) -> Weights:
        return replace(self.engine.weights(model), tools=False, json=False)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        async with self.engine.child() as (session, _, _):
            await self._check(session, request)
        vectors: list[bytes] = []
        tokens = 0
        for part in _parts(request):
            made = await self._ask(part)
            vectors += made.vectors
            tokens += made.prompt_tokens
        return Embeddings(tuple(vectors), tokens)

    async def _ask(self, part: EmbeddingRequest) -> Embeddings:
        """Tried once more if the child dies over it."""
        for last_try in (False, True):
            async with self.engine.child() as (_, process, life):
                try:
                    made = await post_embeddings(
                        self.engine.client, self._target, part, timeout_s=self.engine.timeout_s
                    )
                except (EngineUnavailable, EngineBroken):
                    if last_try or not await process.over(life, LIFE_NEWS_S):
                        raise
                else:
                    process.progressed()
                    return made
        raise AssertionError("the last try returns or raises")

    async def _check(self, session: aiohttp.ClientSession, request: EmbeddingRequest) -> None:
        """Refuses inputs that the model can't take, naming them."""
        window = self.engine.weights(request.model).context or 0
        for index, text in enumerate(request.texts):
            where = _where(request, index)
            try:
                size = len(text.encode())
            except UnicodeEncodeError as error:  # half a surrogate pair
                raise BadRequest(f"`{where}` is not valid Unicode.", param=where, code="invalid_value") from error
            if (
                size + SPECIAL_TOKENS_MAX > window
            ):  # a token stands for a byte at least, so no shorter one can be too long
                body = tokenize_body(text, special=True, pieces=False)
                _demand_fit(request, where, count_of_tokens(await ask_tokens(session, "/tokenize", body)), window)
        if not request.tokens:
            return
        known = await self._vocabulary(session)
        for index, ids in enumerate(request.tokens):
            where = _where(request, index)
            _demand_fit(request, where, len(ids), window)
            foreign = next((one for one in ids if not 0 <= one < known), None)
            if foreign is not None:
                raise BadRequest(
                    f"`{where}`: {foreign} is none of the {known} token ids of the model `{request.model}`. "
                    "Send the text itself.",
                    param=where,
                    code="unknown_token",
                )

    async def _vocabulary(self, session: aiohttp.ClientSession) -> int:
        """How many tokens the model knows."""
        try:
            async with session.get(f"{URL}/v1/models", timeout=aiohttp.ClientTimeout(total=30)) as response:
                return vocabulary_of(await response.read())
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineUnavailable("The engine can't be reached.") from error


SPECIAL_TOKENS_MAX: Final = 4
"""What a tokenizer adds to an input at its beginning and end, at most."""


def _parts(request: EmbeddingRequest) -> Iterator[EmbeddingRequest]:
    for first in range(0, request.count, PART_INPUTS):
        few = slice(first, first + PART_INPUTS)
        yield replace(request, texts=request.texts[few], tokens=request.tokens[few])


def _demand_fit(request: EmbeddingRequest, where: str, tokens: int, window: int) -> None:
    if tokens > window:
        raise ContextTooLong(
            f"`{where}` has {tokens} tokens; the model `{request.model}` takes {window} for each input.",
            param=where,
            code="context_length_exceeded",
        )


def _where(request: EmbeddingRequest, index: int) -> str:
    return "input" if request.count == 1 else f"input[{index}]"
