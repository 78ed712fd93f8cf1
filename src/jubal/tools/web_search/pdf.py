"""PDF files of strangers to text. Reading runs in worker processes only (worker.py), which have a limit on memory and are killed
where they take too long; what is bounded here is bounded so that a good part of a large file is still read."""

from __future__ import annotations

import contextlib
import io
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pypdf import PageObject, PdfReader

MARK: Final = b"%PDF-"
MARK_WITHIN: Final = 1_024
"""Readers look for the mark this far, as some files begin with other bytes."""
PAGES_MAX: Final = 1_000
STREAM_BYTES_MAX: Final = 24 << 20
"""Of one stream after decompression, also of one that says nothing of its size."""
AGAIN_S: Final = 0.5
"""The signal that time is up comes again, should the library have swallowed it."""


class Unfit(Exception):
    """It is no PDF that text can be had of. The message says why."""


class _Late(BaseException):
    """Time is up. No library catches it."""


@dataclass(slots=True)
class _Read:
    """What was read until now. broken: pages that could not be read. chars: of all texts."""

    title: str = ""
    published: str | None = None
    pages: int = 0
    broken: int = 0
    texts: list[str] = field(default_factory=list)
    chars: int = 0
    links: dict[str, tuple[str, str, bool]] = field(default_factory=dict)


def is_pdf(body: bytes, content_type: str) -> bool:
    """content_type counts only where other bytes stand before the mark: many servers tell a wrong one."""
    if body.startswith(MARK):
        return True
    return content_type.lower().startswith("application/pdf") and MARK in body[:MARK_WITHIN]


def read(body: bytes, *, seconds: float, chars_max: int, links_max: int, headings: bool) -> dict[str, Any]:
    """As parsing.read gives it. headings: each page begins with its number. seconds: then what was read by then is all.

    Raises `Unfit`, and what the library raises for a broken file.
    """
    from pypdf import apply_configuration

    found = _Read()
    with contextlib.suppress(_Late), _within(seconds), apply_configuration(**_limits()):
        _read(body, found, chars_max, links_max)
    if not "".join(found.texts):
        raise Unfit(_why_nothing(found, seconds))
    return {
        "kind": "text",
        "title": found.title,
        "text": _joined(found, headings=headings)[:chars_max],
        "links": list(found.links.values()),
        "published": found.published,
    }


def _why_nothing(found: _Read, seconds: float) -> str:
    if len(found.texts) < min(found.pages or 1, PAGES_MAX):
        return f"nothing of it could be read within {seconds:g} s"
    if found.broken:
        return f"{found.broken:,} of its {found.pages:,} pages are broken or too large, and the others hold no text"
    return f"no text is in its {found.pages:,} pages: they may be pictures"


def _limits() -> dict[str, Any]:
    return {
        "disable_legacy_handling": True,
        "jbig2dec_binary": None,  # no program is started for a stranger's file
        "maximum_declared_stream_length": STREAM_BYTES_MAX,
        "array_based_stream_maximum_output_length": STREAM_BYTES_MAX,
        "lzw_maximum_output_length": STREAM_BYTES_MAX,
        "run_length_maximum_output_length": STREAM_BYTES_MAX,
        "zlib_maximum_output_length": STREAM_BYTES_MAX,
        "brotli_maximum_output_length": STREAM_BYTES_MAX,
        "stream_decoding_work_maximum_length": 4 * STREAM_BYTES_MAX,
    }


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raises `_Late` inside when the time is up."""

    def late(number: int, frame: FrameType | None) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, late)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, left)  # the worker's own


def _read(body: bytes, found: _Read, chars_max: int, links_max: int) -> None:
    """Fills `found` page by page."""
    from pypdf import PdfReader

    reader = PdfReader(io.BytesIO(body), strict=False)
    if reader.is_encrypted and not _opened(reader):
        raise Unfit("it is protected by a password")
    found.pages = len(reader.pages)
    if not found.pages:
        raise Unfit("it has no pages")
    _about(reader, found)
    for number in range(min(found.pages, PAGES_MAX)):
        try:
            page = reader.pages[number]
            text = _text(page)
            if len(found.links) < links_max:
                _add_links(page, found.links, links_max)
        except Exception:  # noqa: BLE001  the library raises many kinds, and the other pages may be whole
            text, found.broken = "", found.broken + 1
        found.texts.append(text)
        found.chars += len(text)
        if found.chars >= chars_max:
            return


def _opened(reader: PdfReader) -> bool:
    """Many files are encrypted with an empty password, so that they can be read and not changed."""
    try:
        return bool(reader.decrypt(""))
    except Exception:  # noqa: BLE001  an unknown cipher, or broken numbers in it
        return False


def _about(reader: PdfReader, found: _Read) -> None:
    with contextlib.suppress(Exception):  # whatever is wrong with it, the text is what counts
        about = reader.metadata
        if about is not None:
            found.title = " ".join(str(about.title or "").split())[:300]
            stamp = about.creation_date
            found.published = stamp.date().isoformat() if stamp is not None else None


def _text(page: PageObject) -> str:
    return page.extract_text().encode("utf-8", "replace").decode().replace("\0", "").strip()


def _add_links(page: PageObject, links: dict[str, tuple[str, str, bool]], most: int) -> None:
    """(address, words, whether to follow) of each that leads to the web."""
    with contextlib.suppress(Exception):
        for note in page.annotations or ():
            address = str(note.get_object().get("/A", {}).get_object().get("/URI", "")).partition("#")[0]
            if address.startswith(("http://", "https://")) and len(address) <= 2_000 and len(links) < most:
                links.setdefault(address, (address, "", True))


def _joined(found: _Read, *, headings: bool) -> str:
    texts = [f"## Page {number}\n\n{text}" if headings else text for number, text in enumerate(found.texts, 1) if text]
    if len(found.texts) < found.pages:
        texts.append(f"(Only the first {len(found.texts):,} of {found.pages:,} pages were read.)")
    if found.broken:
        texts.append(f"({found.broken:,} pages could not be read.)")
    return "\n\n".join(texts)
