"""Types and sizes out of the first bytes, against files that an image library wrote."""

from __future__ import annotations

import io
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jubal.core.picture import picture_size, picture_type


def picture(kind: str = "PNG", size: tuple[int, int] = (64, 48), mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.effect_noise(size, 50).convert(mode).save(out, kind, **options)
    return out.getvalue()


EXIF = Image.Exif()
EXIF[0x010E] = "x" * 60_000

MADE = [
    ("image/png", picture("PNG")),
    ("image/png", picture("PNG", mode="RGBA")),
    ("image/png", picture("PNG", mode="P")),
    ("image/jpeg", picture("JPEG")),
    ("image/jpeg", picture("JPEG", progressive=True)),
    ("image/jpeg", picture("JPEG", mode="L")),
    ("image/jpeg", picture("JPEG", exif=EXIF, icc_profile=b"p" * 150_000, comment=b"\xff\xc0 no frame")),
    ("image/webp", picture("WEBP")),
    ("image/webp", picture("WEBP", lossless=True)),
    ("image/webp", picture("WEBP", mode="RGBA")),
    ("image/webp", picture("WEBP", exif=EXIF)),
]


@pytest.mark.parametrize(("kind", "data"), MADE)
def test_type_and_size(kind: str, data: bytes) -> None:
    assert picture_type(data) == kind
    assert picture_size(data) == (64, 48)


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (16383, 2), (300, 257)])
@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("JPEG", {}), ("WEBP", {}), ("WEBP", {"lossless": True})])
def test_sizes(kind: str, options: dict[str, Any], size: tuple[int, int]) -> None:
    assert picture_size(picture(kind, size, **options)) == size


def test_an_extended_webp_tells_the_size_of_its_canvas() -> None:
    data = picture("WEBP", (600, 300), exif=EXIF)
    assert data[12:16] == b"VP8X"
    assert picture_size(data) == (600, 300)


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a" + b"\0" * 20, b"<svg/>", b"RIFF\0\0\0\0WAVE", b"BM" + b"\0" * 60, b"\xff\xd8"]
)
def test_what_is_none_of_them(data: bytes) -> None:
    assert picture_type(data) is None
    assert picture_size(data) is None


@pytest.mark.parametrize(("kind", "data"), MADE)
def test_the_beginning_of_a_file_never_tells_a_wrong_size(kind: str, data: bytes) -> None:
    for end in range(0, min(len(data), 300)):
        assert picture_size(data[:end]) in (None, (64, 48))


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8\xff" + b"\xff" * 50,
        b"\xff\xd8\xff\xe0\0\0" + b"\xff" * 50,
        b"\xff\xd8\xff\xe0\0\x01" * 9,
        b"\x89PNG\r\n\x1a\n" + b"\0" * 40,
    ],
)
def test_broken_files(data: bytes) -> None:
    assert picture_size(data) is None


@given(
    st.sampled_from(
        [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"RIFF\0\0\0\0WEBPVP8X", b"RIFF\0\0\0\0WEBPVP8L"]
    ),
    st.binary(),
)
def test_no_bytes_break_it(start: bytes, rest: bytes) -> None:
    size = picture_size(start + rest)
    assert size is None or (size[0] >= 0 and size[1] >= 0)


def test_a_size_may_be_a_lie() -> None:
    assert picture_size(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 1 << 31, 1)) == (1 << 31, 1)
