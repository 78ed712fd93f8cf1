"""The tokens of a text from a server that speaks the OpenAI dialect, which has no call for that.

llama-server and vLLM have POST /tokenize beside /v1, xAI and Jubal have POST /v1/tokenize-text. vLLM tells a token as its
vocabulary spells it (`Ġhello`, `▁hello`); that is turned back into bytes and taken only where the bytes of all tokens are those
of the text: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from itertools import chain
from typing import Final

import msgspec
from yarl import URL

from jubal.core.errors import BadRequest, EngineBroken, JubalError
from jubal.core.hiding import Concealed
from jubal.core.tokens import Token
from jubal.engines.http_client import HttpClient, target_of
from jubal.engines.llama_cpp.tokens import tokens_of_llama
from jubal.engines.openai_compat import post_whole

WITHOUT: Final = frozenset({400, 404, 405, 422, 501})
"""What servers answer that have no such route, or one with other fields."""

# ---------------------------------------------------------------------------------------------- what is sent


def where(base_url: str, kind: str) -> str:
    """base_url: up to and with /v1."""
    if kind == "xai":
        return f"{base_url}/tokenize-text"
    return f"{base_url.removesuffix('/v1')}/tokenize"


def tokenize_body(model: str, text: str, kind: str) -> bytes:
    """llama-server reads `content`, vLLM `prompt`; both ignore the other's fields."""
    body: dict[str, object] = {"model": model}
    if kind == "xai":
        body["text"] = text
    else:
        body |= {"content": text, "add_special": False, "with_pieces": True}
        body |= {"prompt": text, "add_special_tokens": False, "return_token_strs": True}
    return msgspec.json.encode(body)


# ---------------------------------------------------------------------------------------------- what comes back


class _OfXai(msgspec.Struct, gc=False):
    token_id: int
    string_token: str
    token_bytes: list[int]


class _Xai(msgspec.Struct, gc=False):
    token_ids: list[_OfXai]


class _Vllm(msgspec.Struct, gc=False):
    tokens: list[int]
    token_strs: list[str]


def read_tokens(body: bytes, text: str) -> tuple[Token, ...]:
    """From any of the three answers. Raises `EngineBroken` for everything else."""
    for read in (tokens_of_llama, _tokens_of_xai, lambda body: tokens_of_vllm(body, text)):
        try:
            return read(body)
        except (EngineBroken, msgspec.DecodeError, UnicodeDecodeError, ValueError):
            continue
    raise EngineBroken("The engine answered no list of tokens that make up the text.")


def _tokens_of_xai(body: bytes) -> tuple[Token, ...]:
    told = msgspec.json.decode(body, type=_Xai).token_ids
    return tuple(Token(one.token_id, one.string_token, bytes(one.token_bytes)) for one in told)


def tokens_of_vllm(body: bytes, text: str) -> tuple[Token, ...]:
    """Raises `EngineBroken` where the strings are in no spelling that makes `text`."""
    told = msgspec.json.decode(body, type=_Vllm)
    wanted = text.encode()
    for spelling in SPELLINGS:
        raw = [spelling(token) for token in told.token_strs]
        if b"".join(raw) == wanted and len(raw) == len(told.tokens):
            return tuple(
                Token(number, data.decode(errors="replace"), data)
                for number, data in zip(told.tokens, raw, strict=True)
            )
    raise EngineBroken("The engine's tokens are spelled in a way that is not known here.")


def _byte_level(token: str) -> bytes:
    """GPT-2's: each character stands for a byte. A token of its own, such as `<|end|>`, may hold others."""
    alphabet = _alphabet()
    if all(character in alphabet for character in token):
        return bytes(alphabet[character] for character in token)
    return token.encode()


@cache
def _alphabet() -> dict[str, int]:
    """Bytes that are printable in Latin-1 are themselves; the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in set(printable))
    return dict(chain(((chr(byte), byte) for byte in printable), ((chr(256 + n), b) for n, b in enumerate(others))))


def _sentence_piece(token: str) -> bytes:
    """`▁` is a space, `<0x0A>` a byte."""
    if len(token) == len("<0x0A>") and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes.fromhex(token[3:5])
        except ValueError:
            pass
    return token.replace("▁", " ").encode()


SPELLINGS: Final[tuple[Callable[[str], bytes], ...]] = (_byte_level, _sentence_piece)

# ---------------------------------------------------------------------------------------------- one HTTP call


async def post_tokenize(
    client: HttpClient,
    base_url: str,
    model: str,
    text: str,
    *,
    kind: str = "openai",
    headers: Mapping[str, str],
    timeout_s: float,
    concealed: Concealed | None = None,
) -> tuple[Token, ...]:
    """One POST, not tried again. Raises core errors only; `BadRequest` where the server can't."""

    def refused(status: int, error: JubalError) -> JubalError:
        return cannot(model) if status in WITHOUT else error

    target, body = target_of(URL(where(base_url, kind)), headers), tokenize_body(model, text, kind)
    answer = await post_whole(client, target, body, timeout_s=timeout_s, concealed=concealed, refused=refused)
    try:
        return read_tokens(answer, text)
    except EngineBroken as error:
        raise cannot(model) from error


def cannot(model: str) -> BadRequest:
    return BadRequest(
        f"The engine behind `{model}` can't tell its tokens.", param="model", code="tokenize_not_supported"
    )
