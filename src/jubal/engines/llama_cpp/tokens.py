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


def tokenize_body(text: str) -> bytes:
    """add_special: whether the text gets a token of its own at its beginning, as a prompt does."""
    return msgspec.json.encode({"content": text, "add_special": False, "with_pieces": True})


def tokens_of_llama(body: bytes) -> tuple[Token, ...]:
    """Raises `EngineBroken` where `body` is no list of tokens with their pieces."""
    try:
        return tuple(map(_token, _decode(body).tokens))
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise EngineBroken("The engine answered no list of tokens.") from error


def _token(told: _Piece) -> Token:
    raw = told.piece.encode() if isinstance(told.piece, str) else bytes(told.piece)
    return Token(told.id, raw.decode(errors="replace"), raw)
