"""cl100k_base, the vocabulary of OpenAI's embedding models: token ids back to text.

Clients that send ids instead of text made them with it, whatever model they ask (langchain-openai does so by default).
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterable
from importlib import resources
from itertools import accumulate
from typing import Final

TOKENS: Final = 100_256
"""Ids are 0 to one less. Those above mark ends and gaps, and say nothing about a text."""


class Vocabulary:
    """About 1.2 MB. The file has the length of each token in a byte, then the tokens' bytes, in the order of their ids."""

    def __init__(self) -> None:
        packed = resources.files(__package__).joinpath("vocabularies/cl100k_base.zlib").read_bytes()
        whole = zlib.decompress(packed)
        self._bytes = whole[TOKENS:]
        self._begins = array("I", accumulate(whole[:TOKENS], initial=0))

    def token(self, one: int) -> bytes:
        """one: 0 to `TOKENS` - 1."""
        return self._bytes[self._begins[one] : self._begins[one + 1]]

    def text(self, ids: Iterable[int]) -> str:
        """Bytes that are no UTF-8, as at the ends of a text that was cut between two ids, become U+FFFD."""
        return b"".join(map(self.token, ids)).decode("utf-8", "replace")
