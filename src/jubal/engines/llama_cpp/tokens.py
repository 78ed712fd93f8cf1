"""llama.cpp's answer to POST /tokenize, asked with `with_pieces`: {"tokens": [{"id": 198, "piece": "\\n"}, …]}."""

from __future__ import annotations

from typing import Final

import msgspec

from jubal.core.errors import EngineBroken
from jubal.core.tokens import Token


class _Piece(msgspec.Struct, gc=False):
    """piece: bytes as numbers where they are no whole characters."""

    id: int
    piece: str | list[int]


class _Answer(msgspec.Struct, gc=False):
    tokens: list[_Piece]


_decode: Final = msgspec.json.Decoder(_Answer).decode


def tokenize_body(text: str, *, special: bool = False, pieces: bool = True) -> bytes:
    """special: with the tokens that a prompt gets at its beginning and end. pieces: with what each token stands for."""
    return msgspec.json.encode({"content": text, "add_special": special, "with_pieces": pieces})


class _Ids(msgspec.Struct, gc=False):
    tokens: list[int]


def count_of_tokens(body: bytes) -> int:
    """How many tokens an answer without pieces lists. Raises `EngineBroken`."""
    try:
        return len(msgspec.json.decode(body, type=_Ids).tokens)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineBroken("The engine answered no list of tokens.") from error


def tokens_of_llama(body: bytes) -> tuple[Token, ...]:
    """Raises `EngineBroken` where `body` is no list of tokens with their pieces."""
    try:
        return tuple(map(_token, _decode(body).tokens))
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise EngineBroken("The engine answered no list of tokens.") from error


def _token(told: _Piece) -> Token:
    raw = told.piece.encode() if isinstance(told.piece, str) else bytes(told.piece)
    return Token(told.id, raw.decode(errors="replace"), raw)


class _Meta(msgspec.Struct, gc=False):
    n_vocab: int


class _Listed(msgspec.Struct, gc=False):
    meta: _Meta


class _Models(msgspec.Struct, gc=False):
    data: list[_Listed]


def vocabulary_of(body: bytes) -> int:
    """How many tokens the model knows, of llama.cpp's answer to GET /v1/models. Raises `EngineBroken`."""
    try:
        return msgspec.json.decode(body, type=_Models).data[0].meta.n_vocab
    except (msgspec.DecodeError, UnicodeDecodeError, IndexError) as error:
        raise EngineBroken("The engine does not tell what it has loaded.") from error
