"""The embedder that is there without a download, on its real weights."""

from __future__ import annotations

import asyncio
import math
import random
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from jubal.core.embedding import EmbeddingRequest, Embeddings, unpack
from jubal.core.errors import BadRequest, ContextTooLong, EngineUnavailable
from jubal.engines import cl100k, wordllama_engine
from jubal.engines.embedder import Embedder
from jubal.engines.wordllama_engine import CONTEXT, PART_INPUTS, PART_LENGTH, TextVectors, WordLlamaEmbedder, parts

PACKAGE = wordllama_engine._installed()


async def check_embedder(make: Callable[[], Awaitable[Embedder]], *, model: str = "m") -> None:
    """The promise of `Embedder`: raises AssertionError where one is broken.

    make: an embedder, started, that shortens vectors to 2 dimensions. It is closed here.
    """
    embedder = await make()
    try:
        assert isinstance(embedder, Embedder)
        await embedder.ready()
        assert embedder.status().state == "ready"
        weights = embedder.weights(model)
        assert weights.name
        assert weights.fingerprint.startswith("fp_")
        assert len(weights.fingerprint) == len("fp_") + 10
        three = await embedder.embed(EmbeddingRequest(model, ("one", "two", "three")))
        assert len(three.vectors) == 3
        assert {len(vector) for vector in three.vectors} == {three.dimensions * 4}
        assert three.prompt_tokens >= 3
        assert all(math.isfinite(number) for vector in three.vectors for number in unpack(vector))
        assert (await embedder.embed(EmbeddingRequest(model, ("two",)))).vectors == three.vectors[1:2]
        assert (await embedder.embed(EmbeddingRequest(model, ("one",), dimensions=2))).dimensions == 2
        answers = await asyncio.gather(
            *(embedder.embed(EmbeddingRequest(model, (text,))) for text in ("one", "two", "three"))
        )
        assert [answer.vectors[0] for answer in answers] == list(three.vectors)
    finally:
        await embedder.close()
    assert embedder.status().state == "stopped"
    with pytest.raises(EngineUnavailable):
        await embedder.embed(EmbeddingRequest(model, ("one",)))


@pytest.fixture
async def embedder() -> AsyncIterator[WordLlamaEmbedder]:
    one = WordLlamaEmbedder("words")
    await one.start()
    yield one
    await one.close()


def near(a: bytes, b: bytes) -> float:
    return sum(x * y for x, y in zip(unpack(a), unpack(b), strict=True))


def norm(vector: bytes) -> float:
    return math.sqrt(near(vector, vector))


async def embed(embedder: WordLlamaEmbedder, *texts: str, dimensions: int | None = None) -> Embeddings:
    return await embedder.embed(EmbeddingRequest("m", texts, dimensions=dimensions))


async def test_keeps_the_promise() -> None:
    async def make() -> WordLlamaEmbedder:
        one = WordLlamaEmbedder("words")
        await one.start()
        return one

    await check_embedder(make)


# Each pair says the same in other words; any text of another pair is about something else.
PAIRS = [
    ("A man is playing a guitar on the stage.", "The guitarist performs music at a concert."),
    ("The central bank raised interest rates again.", "Borrowing costs rose after the monetary policy decision."),
    ("Our dog had four puppies last night.", "The pet gave birth to small dogs yesterday."),
    ("Bake the bread in a hot oven for an hour.", "How to cook a loaf: recipe with flour and yeast."),
    ("The rocket carried a satellite into orbit.", "A spacecraft was launched into space this morning."),
    ("How do I sort a list in Python?", "Ordering the elements of an array in a programming language."),
    ("The patient was treated for a heart attack.", "Doctors in the hospital cared for someone with cardiac problems."),
]


@pytest.mark.parametrize(("dimensions", "right"), [(None, 7), (128, 7), (64, 6)])
async def test_similar_texts_are_nearer_than_unrelated_ones(
    embedder: WordLlamaEmbedder, dimensions: int | None, right: int
) -> None:
    """At 64 dimensions one of them is missed: that is what the model can do."""
    firsts = (await embed(embedder, *(first for first, _ in PAIRS), dimensions=dimensions)).vectors
    seconds = (await embed(embedder, *(second for _, second in PAIRS), dimensions=dimensions)).vectors
    nearest = [max(range(len(seconds)), key=lambda n: near(first, seconds[n])) for first in firsts]
    assert sum(index == found for index, found in enumerate(nearest)) >= right


@pytest.mark.parametrize("dimensions", [None, 256, 255, 128, 100, 64, 1])
async def test_a_shortened_vector_is_the_beginning_of_the_long_one_and_has_length_one(
    embedder: WordLlamaEmbedder, dimensions: int | None
) -> None:
    (whole,) = (await embed(embedder, "The quick brown fox.")).vectors
    (short,) = (await embed(embedder, "The quick brown fox.", dimensions=dimensions)).vectors
    size = dimensions or 256
    assert len(unpack(short)) == size
    assert norm(short) == pytest.approx(1, abs=1e-6)
    prefix = unpack(whole)[:size]
    scale = math.sqrt(sum(x * x for x in prefix))
    assert list(unpack(short)) == pytest.approx([x / scale for x in prefix], abs=1e-6)


@pytest.mark.parametrize("dimensions", [0, -1, 257, 1536])
async def test_other_dimensions_are_a_bad_request(embedder: WordLlamaEmbedder, dimensions: int) -> None:
    with pytest.raises(BadRequest, match="between 1 and 256") as caught:
        await embed(embedder, "a", dimensions=dimensions)
    assert (caught.value.param, caught.value.code) == ("dimensions", "dimensions_not_supported")


async def test_a_text_has_the_same_vector_in_any_company_and_in_any_process(embedder: WordLlamaEmbedder) -> None:
    random.seed(3)
    texts = ["".join(random.choices("abc äß 🦊中\n\x00", k=random.randrange(1, 300))) for _ in range(50)]
    together = (await embed(embedder, *texts)).vectors
    alone = [(await embed(embedder, text)).vectors[0] for text in texts]
    assert list(together) == alone
    again = WordLlamaEmbedder("again")
    await again.start()
    assert (await embed(again, *texts)).vectors == together
    await again.close()


# Numbers 0, 1, 100, 254 and 255 of what the library's own `embed(text, norm=True)` returned, release 0.4.0.post1.
THEIRS = {
    "hello world": [0.087173, 0.071858, -0.018563, 0.006748, -0.056287],
    "Grüße aus Köln": [-0.078012, 0.066036, -0.139707, -0.057598, 0.020833],
    "def f(x): return x": [0.0877, -0.021372, -0.068569, -0.03564, -0.015282],
    "🦊 fox": [0.096179, -0.135886, -0.017458, -0.081397, -0.123154],
    "a " * 400: [0.009366, 0.011585, -0.025924, -0.060142, -0.021637],
}


async def test_the_vectors_are_those_of_the_wordllama_library(embedder: WordLlamaEmbedder) -> None:
    ours = [unpack(vector) for vector in (await embed(embedder, *THEIRS)).vectors]
    for mine, theirs in zip(ours, THEIRS.values(), strict=True):
        assert [mine[place] for place in (0, 1, 100, 254, 255)] == pytest.approx(theirs, abs=2e-6)


async def test_counts_real_tokens(embedder: WordLlamaEmbedder) -> None:
    assert (await embed(embedder, "hello world")).prompt_tokens == 2
    assert (await embed(embedder, "hello world", "a")).prompt_tokens == 3
    assert not (await embed(embedder, "a")).estimated


async def test_token_ids_are_the_text_they_stand_for(embedder: WordLlamaEmbedder) -> None:
    """In cl100k_base, which is what clients have that send ids: langchain-openai does, for whatever model."""
    for ids, text in ((15339, 1917), "hello world"), ((9468, 99, 232), "\U0001f98a"), ((9468, 99), "\ufffd"):
        tokens = await embedder.embed(EmbeddingRequest("m", tokens=(ids,)))
        assert tokens.vectors == (await embed(embedder, text)).vectors
        assert tokens.prompt_tokens == len(ids)
    both = await embedder.embed(EmbeddingRequest("m", tokens=((15339,), (1917,)), dimensions=64))
    assert both.dimensions == 64
    assert both.vectors[0] != both.vectors[1]


async def test_a_list_of_ids_is_as_long_as_it_was_sent(embedder: WordLlamaEmbedder) -> None:
    """Clients cut their texts by these ids; that ours are more must not make the longest piece too long."""
    rare = 100_255
    fits = await embedder.embed(EmbeddingRequest("m", tokens=((rare,) * CONTEXT,)))
    assert fits.prompt_tokens == CONTEXT


async def test_ids_that_are_long_do_not_bring_more_text_than_a_text_may(embedder: WordLlamaEmbedder) -> None:
    vocabulary = cl100k.Vocabulary()
    longest = max(range(cl100k.TOKENS), key=lambda one: len(vocabulary.token(one)))
    with pytest.raises(ContextTooLong):
        await embedder.embed(EmbeddingRequest("m", tokens=((longest,) * CONTEXT,)))


@pytest.mark.parametrize("foreign", [100_256, 100_257, -1, 10**30])
async def test_token_ids_of_another_tokenizer_are_refused(embedder: WordLlamaEmbedder, foreign: int) -> None:
    with pytest.raises(BadRequest, match=f"{foreign} is none of the 100256") as caught:
        await embedder.embed(EmbeddingRequest("m", tokens=((5,), (5, foreign))))
    assert (caught.value.param, caught.value.code) == ("input[1]", "unknown_token")


async def test_markers_written_in_a_text_are_text(embedder: WordLlamaEmbedder) -> None:
    plain, struck = (await embed(embedder, "price", "<s>price</s>")).vectors
    assert plain != struck
    assert (await embed(embedder, "</s>")).prompt_tokens > 1


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (EmbeddingRequest("m", ("",)), "input"),
        (EmbeddingRequest("m", ("a", "")), "input[1]"),
        (EmbeddingRequest("m", tokens=((),)), "input"),
        (EmbeddingRequest("m", tokens=((5,), ())), "input[1]"),
        (EmbeddingRequest("m", ("a", "\ud83e")), "input[1]"),
    ],
)
async def test_nothing_to_embed_names_the_input(
    embedder: WordLlamaEmbedder, request_: EmbeddingRequest, param: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        await embedder.embed(request_)
    assert caught.value.param == param


@pytest.mark.parametrize("text", [" ", "\n", "\x00", "\ufeff", "\u202e", "🦊", "\U0010ffff", "a" * 10_000])
async def test_odd_texts_have_vectors_too(embedder: WordLlamaEmbedder, text: str) -> None:
    (vector,) = (await embed(embedder, text)).vectors
    assert norm(vector) == pytest.approx(1, abs=1e-6)


async def test_the_longest_input_fits_and_one_token_more_does_not(embedder: WordLlamaEmbedder) -> None:
    fits = await embed(embedder, "hello" + " hello" * (CONTEXT - 1))
    assert fits.prompt_tokens == CONTEXT
    assert norm(fits.vectors[0]) == pytest.approx(1, abs=1e-6)
    with pytest.raises(ContextTooLong, match=rf"`input\[1\]` has {CONTEXT + 1} tokens.*takes {CONTEXT}") as caught:
        await embed(embedder, "a", "hello" + " hello" * CONTEXT)
    assert (caught.value.param, caught.value.code) == ("input[1]", "context_length_exceeded")
    with pytest.raises(ContextTooLong) as caught:
        await embedder.embed(EmbeddingRequest("m", tokens=((5,) * (CONTEXT + 1),)))
    assert caught.value.param == "input"


async def test_a_huge_text_is_refused_without_being_tokenized(embedder: WordLlamaEmbedder) -> None:
    await embedder.ready()
    huge = "word " * 4_000_000
    began_s = time.process_time()  # of this process: a busy machine adds nothing to it
    with pytest.raises(ContextTooLong, match="at least 1250000 tokens"):
        await embed(embedder, huge)
    assert time.process_time() - began_s < 2, "tokenizing it takes ten"


async def test_the_window_can_be_set() -> None:
    one = WordLlamaEmbedder("words", context=4)
    await one.start()
    assert one.weights("m").context == 4
    assert (await embed(one, "a b c d")).prompt_tokens == 4
    with pytest.raises(ContextTooLong):
        await embed(one, "a b c d e")
    await one.close()


async def test_the_event_loop_goes_on_while_a_large_batch_is_worked_on(embedder: WordLlamaEmbedder) -> None:
    await embedder.ready()
    batch = tuple("The quick brown fox jumps over the lazy dog, and so on. " * 300 for _ in range(128))
    whole_s, here_s = time.process_time(), time.thread_time()
    work = asyncio.create_task(embedder.embed(EmbeddingRequest("m", batch)))
    turns = 0
    while not work.done():
        await asyncio.sleep(0.001)
        turns += 1
    whole_s, here_s = time.process_time() - whole_s, time.thread_time() - here_s
    assert (await work).prompt_tokens > 100_000
    assert turns > 3
    assert here_s < whole_s / 4, "the event loop's thread did the work"


async def test_a_small_request_does_not_wait_for_a_large_one(embedder: WordLlamaEmbedder) -> None:
    await embedder.ready()
    batch = tuple("The quick brown fox jumps over the lazy dog. " * 300 for _ in range(128))
    large = asyncio.create_task(embedder.embed(EmbeddingRequest("m", batch)))
    await asyncio.sleep(0.01)
    await embed(embedder, "small")
    assert not large.done()
    await large


async def test_whoever_leaves_stops_the_work(embedder: WordLlamaEmbedder) -> None:
    await embedder.ready()
    batch = tuple("The quick brown fox jumps over the lazy dog. " * 400 for _ in range(128))
    large = asyncio.create_task(embedder.embed(EmbeddingRequest("m", batch)))
    await asyncio.sleep(0.02)
    large.cancel()
    with pytest.raises(asyncio.CancelledError):
        await large
    after_s = time.process_time()
    await embed(embedder, "works on")  # after whatever is left in the queue
    after_s = time.process_time() - after_s
    eighth_s = time.process_time()
    await embed(embedder, *batch[:16])
    eighth_s = time.process_time() - eighth_s
    assert after_s < 4 * eighth_s, "half of the batch was worked on for nobody"


def test_parts_are_bounded_and_miss_nothing() -> None:
    random.seed(5)
    for _ in range(200):
        sizes = [
            random.choice([1, 100, PART_LENGTH // 3, PART_LENGTH, 2 * PART_LENGTH])
            for _ in range(random.randrange(1, 60))
        ]
        made = list(parts(EmbeddingRequest("m", tuple("x" * size for size in sizes))))
        assert [index for part in made for index in part] == list(range(len(sizes)))
        for part in made:
            assert 1 <= len(part) <= PART_INPUTS
            assert len(part) == 1 or sum(sizes[index] for index in part) <= PART_LENGTH


# ---------------------------------------------------------------------------------------------- its life


async def test_it_waits_for_itself_and_tells_how_far_it_is() -> None:
    one = WordLlamaEmbedder("words")
    assert one.status().state == "stopped"
    with pytest.raises(EngineUnavailable, match="not started"):
        await embed(one, "a")
    await one.start()
    assert one.status().state == "starting"
    assert (await embed(one, "a")).dimensions == 256
    assert one.status().state == "ready"
    await one.close()
    await one.close()
    assert one.status().state == "stopped"
    await one.start()
    assert (await embed(one, "a")).dimensions == 256
    await one.close()


async def test_closing_while_it_loads() -> None:
    one = WordLlamaEmbedder("words")
    await one.start()
    await one.close()
    assert one.status().state == "stopped"


async def test_closing_in_the_middle_of_a_batch_ends_it_with_an_error(embedder: WordLlamaEmbedder) -> None:
    await embedder.ready()
    batch = tuple("The quick brown fox jumps over the lazy dog. " * 400 for _ in range(128))
    large = [asyncio.create_task(embedder.embed(EmbeddingRequest("m", batch))) for _ in range(4)]
    await asyncio.sleep(0.02)
    await embedder.close()
    for ended in await asyncio.gather(*large[1:], return_exceptions=True):
        assert isinstance(ended, EngineUnavailable)
    await asyncio.gather(*large, return_exceptions=True)


async def test_missing_files_are_told_and_nothing_is_fetched(tmp_path: Path) -> None:
    one = WordLlamaEmbedder("words", folder=tmp_path)
    await one.start()
    with pytest.raises(EngineUnavailable, match="can't be loaded"):
        await one.ready()
    assert one.status().state == "failed"
    assert str(tmp_path) not in (one.status().reason or "")
    with pytest.raises(EngineUnavailable, match="can't be loaded"):
        await embed(one, "a")
    await one.close()


async def test_other_weights_are_refused(tmp_path: Path) -> None:
    """Vectors that were stored before would not fit to them."""
    for name in (wordllama_engine.WEIGHTS_FILE, wordllama_engine.TOKENIZER_FILE):
        (tmp_path / name).parent.mkdir()
        shutil.copy(PACKAGE / name, tmp_path / name)
    with (tmp_path / wordllama_engine.WEIGHTS_FILE).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x00")
    one = WordLlamaEmbedder("words", folder=tmp_path)
    await one.start()
    with pytest.raises(EngineUnavailable, match="another embedding model"):
        await one.ready()
    await one.close()


def test_it_needs_no_network_and_does_not_run_the_packages_code() -> None:
    """In a process of its own, where every socket but the event loop's own pair is an error."""
    code = (
        "import asyncio, logging, socket, sys\n"
        "def refuse(*_): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse\n"
        "from jubal.core.embedding import EmbeddingRequest\n"
        "from jubal.engines.wordllama_engine import WordLlamaEmbedder\n"
        "assert 'numpy' not in sys.modules and 'tokenizers' not in sys.modules\n"
        "async def main():\n"
        "    one = WordLlamaEmbedder('w')\n"
        "    await one.start()\n"
        "    made = await one.embed(EmbeddingRequest('m', ('hello',)))\n"
        "    await one.close()\n"
        "    assert len(made.vectors[0]) == 1024\n"
        "asyncio.run(main())\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'wordllama', 'requests', 'huggingface_hub', 'pydantic', 'httpx'}, loaded\n"
        "assert not logging.getLogger().handlers\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""


def test_it_does_not_grow_with_the_texts_it_has_seen() -> None:
    """The tokenizer's own cache keeps whole texts, since this vocabulary does not split at spaces: 120 MB after 10,000."""
    code = (
        "import asyncio, psutil\n"
        "from jubal.core.embedding import EmbeddingRequest\n"
        "from jubal.engines.wordllama_engine import WordLlamaEmbedder\n"
        "async def main():\n"
        "    one = WordLlamaEmbedder('w')\n"
        "    await one.start()\n"
        "    def texts(n): return tuple(f'{n} {k} {n * k} ' + 'and so on ' * 15 for k in range(128))\n"
        "    for n in range(20): await one.embed(EmbeddingRequest('m', texts(n)))\n"
        "    before = psutil.Process().memory_info().rss\n"
        "    for n in range(20, 120): await one.embed(EmbeddingRequest('m', texts(n)))\n"
        "    print((psutil.Process().memory_info().rss - before) / 1e6)\n"
        "    await one.close()\n"
        "asyncio.run(main())\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(ran.stdout) < 20


async def test_text_vectors_are_those_of_the_embedder() -> None:
    texts = ["a red bicycle", "une bicyclette rouge", "x " * 20_000]
    embedder = WordLlamaEmbedder("words")
    await embedder.start()
    try:
        made = await embedder.embed(EmbeddingRequest("words", texts=tuple(texts[:2])))
    finally:
        await embedder.close()
    rows = TextVectors()([*texts, "", "\ud800"])
    assert [row.astype("<f4").tobytes() for row in rows[:2]] == list(made.vectors)
    assert rows.shape == (5, 256)
    assert abs(float((rows[2] ** 2).sum()) - 1) < 1e-5, "a text that is too long is cut, not refused"
    assert not rows[3].any()
