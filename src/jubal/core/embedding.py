"""Texts as vectors: what is asked, and what comes back."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from jubal.core.tally import CHARACTERS_PER_TOKEN

FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """One vector for each text, or for each list of token ids: exactly one of the two is filled, and no item of it is empty.

    model: the name the engine must use. tokens: ids of the vocabulary that the model's callers use.
    dimensions: length of the vectors; None: the model's own.
    user: the caller's opaque id of its end user.
    """

    model: str
    texts: tuple[str, ...] = ()
    tokens: tuple[tuple[int, ...], ...] = ()
    dimensions: int | None = None
    user: str | None = None

    @property
    def count(self) -> int:
        """How many vectors are asked for."""
        return len(self.texts) or len(self.tokens)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The vectors, in the order of the inputs, all of one length; each as little-endian 32-bit floats, all finite.

    prompt_tokens: of all inputs together. estimated: the engine did not tell them.
    """

    vectors: tuple[bytes, ...]
    prompt_tokens: int
    estimated: bool = False

    @property
    def dimensions(self) -> int:
        return len(self.vectors[0]) // FLOAT_BYTES


def pack(floats: Iterable[float]) -> bytes:
    """`floats` as a vector of `Embeddings`. What does not fit into 32 bits becomes infinite."""
    return _swapped(array("f", floats)).tobytes()


def unpack(vector: bytes) -> array[float]:
    """The floats of a vector of `Embeddings`. Raises `ValueError` where it ends in the middle of one."""
    return _swapped(array("f", vector))


def _swapped(floats: array[float]) -> array[float]:
    """From this machine's byte order to little-endian, or back."""
    if sys.byteorder == "big":
        floats.byteswap()
    return floats


def estimate_prompt(request: EmbeddingRequest) -> int:
    """Prompt tokens without a tokenizer, for rate limits and for engines that do not tell."""
    characters = sum(map(len, request.texts))
    return -(-characters // CHARACTERS_PER_TOKEN) + sum(map(len, request.tokens))
