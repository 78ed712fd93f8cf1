"""The vocabulary that clients of OpenAI's embeddings make their token ids with."""

from __future__ import annotations

import base64
import hashlib

import pytest

from jubal.engines.cl100k import TOKENS, Vocabulary

PUBLISHED_SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
"""Of cl100k_base.tiktoken: a line for each token, its base64 and its id. tiktoken checks the same."""


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary()


def test_it_is_the_published_one(vocabulary: Vocabulary) -> None:
    lines = (base64.b64encode(vocabulary.token(one)) + b" %d\n" % one for one in range(TOKENS))
    assert hashlib.sha256(b"".join(lines)).hexdigest() == PUBLISHED_SHA256


@pytest.mark.parametrize(
    ("ids", "text"),
    [((), ""), ((15339, 1917), "hello world"), ((9468, 99, 232), "\U0001f98a"), ((9468,), "\ufffd"), ((0, 1), '!"')],
)
def test_text(vocabulary: Vocabulary, ids: tuple[int, ...], text: str) -> None:
    assert vocabulary.text(ids) == text
