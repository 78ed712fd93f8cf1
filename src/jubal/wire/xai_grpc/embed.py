"""The service Embedder."""

from __future__ import annotations

import base64

from jubal.core.embedding import EmbeddingRequest, Embeddings, unpack
from jubal.core.errors import BadRequest
from jubal.wire.openai_embeddings import INPUTS_MAX
from jubal.wire.xai_grpc.decode import decode, wrong
from jubal.wire.xai_grpc.pb import Proto, embed


class EmbedAsked:
    """A parsed EmbedRequest. Raises `BadRequest`."""

    __slots__ = ("_base64", "request")

    def __init__(self, body: bytes) -> None:
        asked = decode(embed.EmbedRequest, body)
        if not asked.model:
            raise BadRequest("`model` must not be empty.", param="model", code="empty_value")
        if not 1 <= len(asked.input) <= INPUTS_MAX:
            raise wrong("input", f"needs 1 to {INPUTS_MAX} elements")
        if asked.encoding_format not in (embed.FORMAT_INVALID, embed.FORMAT_FLOAT, embed.FORMAT_BASE64):
            raise wrong("encoding_format", "must be float or base64")
        self._base64 = asked.encoding_format == embed.FORMAT_BASE64
        texts = tuple(_text(f"input[{index}]", one) for index, one in enumerate(asked.input))
        self.request = EmbeddingRequest(asked.model, texts, user=asked.user or None)

    def whole(self, request_id: str, model: str, fingerprint: str, embeddings: Embeddings) -> Proto:
        """An EmbedResponse: one vector for each input. base64 is of little-endian 32-bit floats, which a vector already is."""
        answer = embed.EmbedResponse(id=request_id, model=model, system_fingerprint=fingerprint)
        answer.usage.num_text_embeddings = len(embeddings.vectors)
        for index, vector in enumerate(embeddings.vectors):
            made = answer.embeddings.add(index=index).embeddings.add()
            if self._base64:
                made.base64_array = base64.b64encode(vector).decode()
            else:
                made.float_array.extend(unpack(vector))
        return answer


def _text(where: str, item: Proto) -> str:
    if item.WhichOneof("input") == "image_url":
        raise wrong(f"{where}.image_url", "images can't be embedded here")
    if not item.string:
        raise BadRequest(f"`{where}.string` must not be empty.", param=f"{where}.string", code="empty_value")
    text: str = item.string
    return text
