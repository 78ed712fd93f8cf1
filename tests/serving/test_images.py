"""Images of a prompt: what is refused, naming the field, and what reaches the engine."""

from __future__ import annotations

import asyncio
import base64
import struct
from dataclasses import replace

import pytest

from jubal.core.errors import BadRequest, EngineUnavailable
from jubal.core.generation import Generation, ImagePart, Message, TextPart
from jubal.core.tally import estimate_prompt
from jubal.serving import images as limits
from jubal.serving.images import Images
from jubal.testing import ScriptedEngine
from jubal.web.fetch import Fetched, SafeFetcher
from tests.core.test_picture import picture
from tests.serving.test_pipeline import GOOD, pipeline, run
from tests.web.servers import GOOD as SITE
from tests.web.servers import Connector, Names, Site, gives, sends_to, site, words

WHERE = "messages[0].content[1].image_url.url"
PNG = picture("PNG")


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def shows(*urls: str) -> Generation:
    return Generation("grok-4", (Message("user", (TextPart("look"), *map(ImagePart, urls))),))


def png_of(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0) + b"\0" * 8


def urls_of(generation: Generation) -> list[str]:
    return [part.url for message in generation.messages for part in message.parts if isinstance(part, ImagePart)]


# ---------------------------------------------------------------------------------------------- data URLs


async def test_a_request_without_images_goes_through_as_it_is() -> None:
    asked = Generation("grok-4", (Message("user", (TextPart("hi"),)),))
    assert await Images().checked(asked) is asked


@pytest.mark.parametrize(
    ("kind", "told"),
    [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("JPEG", "image/jpg"), ("WEBP", "image/webp"), ("PNG", "image/PNG")],
)
async def test_a_data_url_goes_on_byte_for_byte_and_its_size_is_known(kind: str, told: str) -> None:
    url = data_url(picture(kind, (900, 500)), told)
    checked = await Images().checked(shows(url))
    (_, image) = checked.messages[0].parts
    assert isinstance(image, ImagePart)
    assert (image.url, image.size) == (url, (900, 500))
    assert estimate_prompt(checked) == estimate_prompt(shows(url)) + 5 * 256, "six tiles instead of one"


async def test_the_estimate_has_an_end() -> None:
    big = await Images().checked(shows(data_url(png_of(9000, 9000))))
    one = estimate_prompt(shows("data:x"))
    assert estimate_prompt(big) == one - 256 + 1792
    (text, image) = big.messages[0].parts
    assert isinstance(image, ImagePart)
    low = replace(big, messages=(Message("user", (text, replace(image, detail="low"))),))
    assert estimate_prompt(low) == one


BAD = {
    "data:image/png,abc": ("invalid_image_url", "base64"),
    "data:image/png;base64": ("invalid_image_url", "base64"),
    "data:;base64,AAAA": ("invalid_image_url", "base64"),
    "data:text/html;base64,AAAA": ("invalid_image_url", "base64"),
    "data:image/png;base64,": ("invalid_base64", "base64"),
    "data:image/png;base64,A": ("invalid_base64", "base64"),
    "data:image/png;base64,====": ("invalid_base64", "base64"),
    "data:image/png;base64,AAA*": ("invalid_base64", "base64"),
    "data:image/png;base64,AA==AAAA": ("invalid_base64", "base64"),
    "data:image/png;base64,AAAA\nAAAA": ("invalid_base64", "base64"),
    "data:image/png;base64,AAAé": ("invalid_base64", "base64"),
    data_url(PNG)[:-3]: ("invalid_base64", "base64"),
    data_url(b"no image at all"): ("unsupported_image", "JPEG, PNG or WebP"),
    data_url(b"GIF89a" + b"\0" * 50, "image/gif"): ("unsupported_image", "JPEG, PNG or WebP"),
    data_url(PNG, "image/jpeg"): ("image_type_mismatch", "says image/jpeg and holds image/png"),
    data_url(picture("WEBP"), "image/png"): ("image_type_mismatch", "says image/png and holds image/webp"),
    data_url(PNG[:20]): ("invalid_image", "broken"),
    data_url(picture("JPEG")[:30], "image/jpeg"): ("invalid_image", "broken"),
    data_url(png_of(7, 1000)): ("image_too_small", "7 x 1000"),
    data_url(png_of(22, 23)): ("image_too_small", "22 x 23"),
    data_url(png_of(0, 0)): ("image_too_small", "0 x 0"),
    data_url(png_of(10_001, 10_000)): ("image_too_large", "100,000,000"),
    data_url(png_of(0xFFFF_FFFF, 0xFFFF_FFFF)): ("image_too_large", "100,000,000"),
}


@pytest.mark.parametrize("url", BAD)
async def test_data_urls_that_are_refused(url: str) -> None:
    code, said = BAD[url]
    with pytest.raises(BadRequest) as caught:
        await Images().checked(shows(url))
    assert (caught.value.param, caught.value.code) == (WHERE, code)
    assert said in caught.value.message
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(("width", "height"), [(8, 64), (22, 24), (10_000, 10_000)])
async def test_sizes_at_the_bounds(width: int, height: int) -> None:
    assert await Images().checked(shows(data_url(png_of(width, height))))


async def test_the_largest_data_url() -> None:
    most = limits.INLINE_BYTES_MAX
    body = picture("JPEG") + b"\0" * most
    for length in (most - 1, most):
        assert await Images().checked(shows(data_url(body[:length], "image/jpeg")))
    for length in (most + 1, most + 2, most + 3):
        with pytest.raises(BadRequest, match="20 MiB") as caught:
            await Images().checked(shows(data_url(body[:length], "image/jpeg")))
        assert caught.value.code == "image_too_large"


async def test_too_many_bytes_in_all_names_the_image_that_is_too_much() -> None:
    url = data_url(PNG + b"\0" * (limits.INLINE_BYTES_MAX - len(PNG)))
    assert await Images().checked(shows(url, url, url))
    with pytest.raises(BadRequest, match="64 MiB") as caught:
        await Images().checked(shows(url, url, url, url))
    assert caught.value.param == "messages[0].content[4].image_url.url"


async def test_a_size_that_stands_far_behind_the_beginning_is_found() -> None:
    data = picture("JPEG", icc_profile=b"p" * 150_000)
    checked = await Images().checked(shows(data_url(data, "image/jpeg")))
    image = checked.messages[0].parts[1]
    assert isinstance(image, ImagePart)
    assert image.size == (64, 48)


async def test_a_dialect_may_have_its_own_words_for_the_place() -> None:
    asked = Generation("m", (Message("user", (ImagePart("data:image/png;base64,A", where="input[3].image"),)),))
    with pytest.raises(BadRequest) as caught:
        await Images().checked(asked)
    assert caught.value.param == "input[3].image"


# ---------------------------------------------------------------------------------------------- addresses


def fetching(*sites: Site, names: Names | None = None) -> tuple[Images, Connector]:
    connector = Connector(*sites)
    allowed = [one.place for one in sites]
    agent = "JubalImageFetch/test"
    return Images(
        lambda: SafeFetcher(allowed, user_agent=agent, resolver=names or Names(), backend=connector)
    ), connector


async def test_an_address_becomes_a_data_url_of_what_stands_there() -> None:
    jpeg = picture("JPEG")
    async with site(a=gives(jpeg, content_type="application/octet-stream"), b=sends_to("/a")) as one:
        images, _ = fetching(one)
        checked = await images.checked(shows(f"{one.url}/a", data_url(PNG), f"{one.url}/b", f"{one.url}/a"))
        await images.close()
    assert urls_of(checked) == [data_url(jpeg, "image/jpeg"), data_url(PNG), *[data_url(jpeg, "image/jpeg")] * 2]
    assert len(one.requests) == 3, "each address once, and a redirect"
    headers = one.requests[0][1]
    assert headers["user-agent"] == "JubalImageFetch/test"
    assert headers["accept"] == "image/jpeg, image/png, image/webp"


async def refusal(images: Images, *urls: str) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        await images.checked(shows(*urls))
    await images.close()
    assert caught.value.param == WHERE
    return caught.value


async def test_what_stands_there_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FETCHED_BYTES_MAX", 5000)
    async with site(
        page=gives(b"<html>", content_type="image/png"), small=gives(png_of(4, 4)), large=gives(PNG * 10), gone=gives(status=404),
        away=sends_to("http://10.0.0.1/a.png"),
    ) as one:  # fmt: skip
        for path, code, said in (
            ("page", "unsupported_image", "not the address of a JPEG, PNG or WebP"),
            ("small", "image_too_small", "4 x 4"),
            ("large", "image_not_fetched", "larger than 5,000 bytes"),
            ("gone", "image_not_fetched", "HTTP status 404"),
            ("none", "image_not_fetched", "HTTP status 404"),
            ("away", "image_not_fetched", "`10.0.0.1` is not a public address"),
        ):
            images, connector = fetching(one)
            error = await refusal(images, f"{one.url}/{path}")
            assert error.code == code
            assert said in error.message
            assert connector.escaped == []


@pytest.mark.parametrize(
    "host",
    words(
        """127.0.0.1 10.0.0.1 169.254.169.254 192.168.1.1 [::1] [::ffff:10.0.0.1] [fd00::1] inner.test mixed.test 127.0.0.2"""
    ),
)
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_private_addresses_are_not_asked(scheme: str, host: str) -> None:
    images, connector = fetching(names=Names(inner_test=[["10.0.0.1"]], mixed_test=[["8.8.8.8", "10.0.0.1"]]))
    error = await refusal(images, f"{scheme}://{host}/a.png")
    assert "is not a public address" in error.message
    assert connector.escaped == []


async def test_other_ports_and_names_that_are_none() -> None:
    assert "Port 22" in (await refusal(fetching()[0], "https://8.8.8.8:22/a.png")).message
    assert "can't be reached" in (await refusal(fetching()[0], "https://nowhere.test/a.png")).message
    assert "not fetched here" in (await refusal(Images(), "https://nowhere.test/a.png")).message


async def test_a_slow_one_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FETCH_TIMEOUT_S", 0.9)
    fake = Slow()
    async with site(a=fake.handle) as one:
        error = await refusal(fetching(one)[0], f"{one.url}/a")
        await asyncio.wait_for(one.left.wait(), 60)
    assert "0.9 s" in error.message


class Slow:
    """Answers when told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.open = 0
        self.most = 0

    async def handle(self, request: object) -> object:
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await self.go.wait()
        finally:
            self.open -= 1
        return await gives(PNG)(request)  # type: ignore[arg-type]


async def test_several_at_a_time_but_not_all() -> None:
    slow = Slow()
    handlers = {f"p{number}": slow.handle for number in range(20)}
    async with site(**handlers) as one:  # type: ignore[arg-type]
        images, _ = fetching(one)
        task = asyncio.create_task(images.checked(shows(*(f"{one.url}/p{number}" for number in range(20)))))
        async with asyncio.timeout(60):
            while slow.open < limits.FETCHES_AT_ONCE:
                await asyncio.sleep(0.01)
            slow.go.set()
            checked = await task
        await images.close()
    assert slow.most == limits.FETCHES_AT_ONCE
    assert urls_of(checked) == [data_url(PNG)] * 20


async def test_the_first_that_fails_ends_the_others() -> None:
    slow = Slow()
    async with site(a=slow.handle) as one:  # type: ignore[arg-type]
        images, _ = fetching(one)
        with pytest.raises(BadRequest) as caught:
            await images.checked(shows(f"{one.url}/a", f"{one.url}/none"))
        assert caught.value.param == "messages[0].content[2].image_url.url"
        await asyncio.wait_for(one.left.wait(), 60)
        await images.close()


async def test_one_request_does_not_flood_others() -> None:
    images, connector = fetching()
    with pytest.raises(BadRequest) as caught:
        await images.checked(shows(*(f"https://a.test/{number}" for number in range(limits.FETCHED_MAX + 1))))
    assert caught.value.code == "too_many_images"
    assert caught.value.param == f"messages[0].content[{limits.FETCHED_MAX + 1}].image_url.url"
    assert connector.escaped == []


async def test_fetched_bytes_count_in_all_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ALL_BYTES_MAX", 3 * len(PNG) - 1)

    class Instant:
        async def get(self, url: str, **options: object) -> Fetched:
            return Fetched(url, 200, "", PNG, {})

        async def close(self) -> None: ...

    images = Images(Instant)  # type: ignore[arg-type]
    assert await images.checked(shows("https://a.test/1", data_url(PNG)))
    with pytest.raises(BadRequest, match="more than"):
        await images.checked(shows("https://a.test/1", "https://a.test/2", data_url(PNG)))
    with pytest.raises(BadRequest, match="more than"):
        await images.checked(shows(*["https://a.test/1"] * 3))


# ---------------------------------------------------------------------------------------------- in the pipeline


async def test_the_engine_gets_data_urls_and_is_not_asked_where_one_is_missing() -> None:
    engine = ScriptedEngine(GOOD)
    made, log = pipeline(engine)
    async with site(a=gives(PNG)) as one:
        made._images, _ = fetching(one)
        await run(made, shows(f"{one.url}/a"))
        assert urls_of(engine.turns[0]) == [data_url(PNG)]
        with pytest.raises(BadRequest):
            await run(made, shows(f"{one.url}/none"))
    assert len(engine.turns) == 1
    assert len(log.rows) == 1, "no engine was asked"


async def test_a_fallback_that_sees_nothing_is_not_asked() -> None:
    seeing, blind, other = (
        ScriptedEngine((EngineUnavailable("x"),), name=name) for name in ("seeing", "blind", "other")
    )
    blind._weights = replace(blind.weights(""), input=("text",))
    made, _ = pipeline(seeing, blind, other)
    with pytest.raises(EngineUnavailable):
        await run(made, shows(data_url(PNG)))
    assert [len(engine.turns) for engine in (seeing, blind, other)] == [1, 0, 1]
    with pytest.raises(EngineUnavailable):
        await run(made)
    assert [len(engine.turns) for engine in (seeing, blind, other)] == [2, 1, 2]


async def test_a_caller_that_leaves_ends_the_fetch() -> None:
    engine = ScriptedEngine(GOOD)
    made, log = pipeline(engine)
    slow = Slow()
    async with site(a=slow.handle) as one:  # type: ignore[arg-type]
        made._images, _ = fetching(one)
        task = asyncio.create_task(run(made, shows(f"http://{SITE}:{one.port}/a")))
        while not slow.open:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(one.left.wait(), 60)
    assert not engine.turns
    assert not log.rows
