"""WordLlama in process: static word vectors and their mean. The embedder that is there without a download.

The `wordllama` package is only the carrier of weights and tokenizer; its code is never imported. That code brings a download
client, sets up the root logger, and pads a batch to its longest text: one long text among 64 takes gigabytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jubal.core.embedding import EmbeddingRequest, Embeddings
from jubal.core.errors import BadRequest, ContextTooLong, EngineUnavailable
from jubal.engines import cl100k
from jubal.engines.base import EngineStatus, Weights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PACKAGE: Final = "wordllama"
WEIGHTS_NAME: Final = "l2_supercat_256"
WEIGHTS_FILE: Final = f"weights/{WEIGHTS_NAME}.safetensors"
WEIGHTS_SHA256: Final = "64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5"
TOKENIZER_FILE: Final = "tokenizers/l2_supercat_tokenizer_config.json"
TOKENIZER_SHA256: Final = "bf467c9e0f536bda271283c6ef85eb1a943e3196b621c8a912d64953b205df83"
"""Of the file without the line end that some releases of the package add."""
DIMENSIONS_MAX: Final = 256
"""Trained at 64, 128 and 256 (Matryoshka): the first numbers of a vector are a vector of their own, at any length."""
CONTEXT: Final = 8_192
"""A mean has no window. This one bounds time and memory, and is what callers of hosted services are used to."""
TOKEN_CHARACTERS_MAX: Final = 16
"""No token of the vocabulary is longer, so a text of n characters has at least n / 16."""
MARKER_LAST: Final = 2
"""Ids 0 to 2 are <unk>, <s> and </s>, and say nothing about a text."""
PART_INPUTS: Final = 16
PART_LENGTH: Final = 1 << 16
SLICE_TOKENS: Final = 2_048
"""Rows that are summed in 32 bits, and held in memory, at a time."""


class WordLlamaEmbedder:
    """Vectors of length one. folder: where the package's files are; None: where it is installed.

    context: longest input in tokens; None: `CONTEXT`.
    """

    kind = "wordllama"
    slots = 32
    """Requests that take turns at the one thread; there is no use in more than that."""

    def __init__(self, name: str, *, context: int | None = None, folder: Path | None = None) -> None:
        self.name = name
        self._context = context or CONTEXT
        self._folder = folder
        self._thread: ThreadPoolExecutor | None = None
        self._loading: asyncio.Task[None] | None = None
        self._model: _Model | None = None
        self._failure: str | None = None

    async def start(self) -> None:
        if self._thread is None:
            self._failure = None
            self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"jubal-{self.name}")
            self._loading = asyncio.create_task(self._load(self._thread))

    async def _load(self, thread: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._model = await loop.run_in_executor(
                thread, lambda: _Model(self._folder or _installed(), self._context)
            )
        except EngineUnavailable as error:
            self._failure = error.message

    async def ready(self) -> None:
        if self._loading is None:
            raise EngineUnavailable(f"The engine `{self.name}` is not started.")
        await asyncio.shield(self._loading)
        if self._failure is not None:
            raise EngineUnavailable(self._failure)

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        loading, self._loading = self._loading, None
        if loading is not None:
            await asyncio.wait((loading,))
        self._model = None
        if thread is not None:
            await asyncio.to_thread(thread.shutdown)

    def status(self) -> EngineStatus:
        if self._thread is None:
            return EngineStatus("stopped")
        if self._failure is not None:
            return EngineStatus("failed", self._failure)
        return (
            EngineStatus("starting", "The weights are being loaded.") if self._model is None else EngineStatus("ready")
        )

    def weights(self, model: str) -> Weights:
        return Weights(f"{PACKAGE}-{WEIGHTS_NAME}", f"fp_{WEIGHTS_SHA256[:10]}", self._context)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        dimensions = _dimensions(request)
        await self.ready()
        loop = asyncio.get_running_loop()
        vectors: list[bytes] = []
        tokens = 0
        for part in parts(request):
            if self._thread is None or self._model is None:
                raise EngineUnavailable(f"The engine `{self.name}` is stopped.")
            some, used = await loop.run_in_executor(self._thread, self._model.embed, request, part, dimensions)
            vectors += some
            tokens += used
        return Embeddings(tuple(vectors), tokens)


def parts(request: EmbeddingRequest) -> Iterator[range]:
    """The inputs in turns at the thread: a few, or a single long one. Nobody holds it for long, and whoever leaves is gone soon."""
    first = length = 0
    for index, size in enumerate(map(len, request.texts or request.tokens)):
        if index > first and (index - first == PART_INPUTS or length + size > PART_LENGTH):
            yield range(first, index)
            first = index
            length = 0
        length += size
    yield range(first, request.count)


def _dimensions(request: EmbeddingRequest) -> int:
    wanted = request.dimensions
    if wanted is None:
        return DIMENSIONS_MAX
    if not 1 <= wanted <= DIMENSIONS_MAX:
        raise BadRequest(
            f"`dimensions` must be between 1 and {DIMENSIONS_MAX} for the model `{request.model}`, got {wanted}.",
            param="dimensions",
            code="dimensions_not_supported",
        )
    return wanted


def _installed() -> Path:
    """The package's folder, found without importing it. Raises `EngineUnavailable`."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise EngineUnavailable(f"The package `{PACKAGE}`, which holds the embedding model, is not installed.")
    return Path(spec.submodule_search_locations[0])


class _Model:
    """Weights and tokenizer. Made and used on the embedder's thread only. Raises `EngineUnavailable` where files are amiss."""

    def __init__(self, folder: Path, context: int) -> None:
        self._context = context
        self._vocabulary: cl100k.Vocabulary | None = None
        try:
            weights, tokenizer = folder / WEIGHTS_FILE, (folder / TOKENIZER_FILE).read_bytes().rstrip()
            with weights.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if (digest, hashlib.sha256(tokenizer).hexdigest()) != (WEIGHTS_SHA256, TOKENIZER_SHA256):
                raise EngineUnavailable(
                    f"The package `{PACKAGE}` holds another embedding model than the one Jubal knows: its vectors would not "
                    "fit to those that were made before. Install the release that Jubal's constraints file names."
                )
            from safetensors import safe_open
            from tokenizers import Tokenizer

            with safe_open(weights, framework="np") as tensors:
                # Kept in the 16 bits it has: half the memory, and the tokenizer is the slower half of the work anyway.
                self._table: NDArray[np.float16] = tensors.get_tensor("embedding.weight")
        except OSError as error:  # its text would tell callers where we are installed
            raise EngineUnavailable(
                f"The embedding model can't be loaded: the files of the package `{PACKAGE}` are missing or can't be read."
            ) from error
        except ImportError as error:
            raise EngineUnavailable(f"The embedding model can't be loaded: {error}.") from error
        self._tokenizer = Tokenizer.from_buffer(tokenizer)
        self._tokenizer.encode_special_tokens = True  # "<s>" in a text is three characters, and no marker
        # It would keep the last 10,000 texts of its callers, in 120 MB. They hardly ever come again.
        self._tokenizer.model._resize_cache(0)

    def embed(self, request: EmbeddingRequest, part: range, dimensions: int) -> tuple[list[bytes], int]:
        """The vectors of the inputs in `part`, and how many tokens those have. Raises `BadRequest` naming the input.

        Lists of ids are in the vocabulary that callers have, and count as they are sent: its tokens are longer than ours.
        """
        if request.tokens:
            texts = [self._text_of_ids(request, index) for index in part]
            return [self._vector(ids, dimensions) for ids in self._ids(texts)], sum(
                len(request.tokens[index]) for index in part
            )
        all_ids = self._ids_of_texts(request, part)
        return [self._vector(ids, dimensions) for ids in all_ids], sum(map(len, all_ids))

    def rows(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of short texts, many at a time. Of one that is too long, its beginning."""
        import numpy as np

        cut = [text[: self._context * 4].encode("utf-8", "replace").decode() for text in texts]
        found = np.empty((len(cut), DIMENSIONS_MAX), np.float32)
        for index, ids in enumerate(self._ids(cut)):
            found[index] = np.frombuffer(self._vector(ids[: self._context], DIMENSIONS_MAX), "<f4") if ids else 0
        return found

    def _ids_of_texts(self, request: EmbeddingRequest, part: range) -> list[list[int]]:
        texts = []
        for index in part:
            text = request.texts[index]
            self._demand_fit(request, index, -(-len(text) // TOKEN_CHARACTERS_MAX), "at least ")
            _demand_unicode(request, index, text)
            texts.append(text)
        all_ids = self._ids(texts)
        for index, ids in zip(part, all_ids, strict=True):
            self._demand_fit(request, index, len(ids))
            _demand_some(request, index, ids)
        return all_ids

    def _ids(self, texts: list[str]) -> list[list[int]]:
        # `encode` would hold the interpreter's lock, for half a second on a megabyte; the batch call lets go of it.
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _text_of_ids(self, request: EmbeddingRequest, index: int) -> str:
        """Raises `BadRequest` for an id that the callers' vocabulary has not."""
        ids = request.tokens[index]
        self._demand_fit(request, index, len(ids))
        _demand_some(request, index, ids)
        foreign = next((one for one in ids if not 0 <= one < cl100k.TOKENS), None)
        if foreign is not None:
            where = _where(request, index)
            raise BadRequest(
                f"`{where}`: {foreign} is none of the {cl100k.TOKENS} token ids of cl100k_base. Send the text itself.",
                param=where,
                code="unknown_token",
            )
        if self._vocabulary is None:  # few callers send ids
            self._vocabulary = cl100k.Vocabulary()
        text = self._vocabulary.text(ids)
        self._demand_fit(request, index, -(-len(text) // TOKEN_CHARACTERS_MAX), "at least ")  # an id can be 128 spaces
        return text

    def _demand_fit(self, request: EmbeddingRequest, index: int, tokens: int, about: str = "") -> None:
        if tokens > self._context:
            where = _where(request, index)
            raise ContextTooLong(
                f"`{where}` has {about}{tokens} tokens; the model `{request.model}` takes {self._context} for each input.",
                param=where,
                code="context_length_exceeded",
            )

    def _vector(self, ids: list[int], dimensions: int) -> bytes:
        """The mean of the tokens' rows, brought to length one; so it may as well be their sum."""
        import numpy as np

        rows = np.array(ids, np.int32)
        rows = rows[rows > MARKER_LAST]
        total = np.zeros(dimensions)
        for first in range(0, len(rows), SLICE_TOKENS):
            total += self._table[rows[first : first + SLICE_TOKENS]][:, :dimensions].astype(np.float32).sum(axis=0)
        length = float(np.sqrt(np.square(total).sum())) or 1.0
        return (total / length).astype("<f4").tobytes()


def _demand_some(request: EmbeddingRequest, index: int, ids: Sequence[int]) -> None:
    if not ids:
        where = _where(request, index)
        raise BadRequest(f"`{where}` must not be empty.", param=where, code="empty_value")


def _demand_unicode(request: EmbeddingRequest, index: int, text: str) -> None:
    """Half a surrogate pair is a character in Python, and none in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        where = _where(request, index)
        raise BadRequest(f"`{where}` is not valid Unicode.", param=where, code="invalid_value") from error


def _where(request: EmbeddingRequest, index: int) -> str:
    return "input" if request.count == 1 else f"input[{index}]"


class TextVectors:
    """The same vectors for whoever is in a thread already, as an import of posts or an index is: texts in, one row for each.

    Made without I/O; the weights are loaded at the first call. Safe to use from several threads.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._model: _Model | None = None

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of length one; of a text without words, zeros. Of a long text the first `CONTEXT` tokens count.

        Raises `EngineUnavailable`.
        """
        with self._lock:
            if self._model is None:
                self._model = _Model(self._folder or _installed(), CONTEXT)
        return self._model.rows(texts)
