"""PDF files for tests, good and hostile, written by hand so that no library mends them."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Sequence


def written(objects: Sequence[bytes], *, more: bytes = b"", header: bytes = b"%PDF-1.7\n") -> bytes:
    """A file of these objects, numbered from 1; the first is the catalogue. more: for the trailer."""
    out, places = bytearray(header), []
    for number, one in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, one)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"trailer\n<< /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, more, start)
    return bytes(out)


def stream(data: bytes, more: bytes = b"") -> bytes:
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(data), more, data)


def shows(lines: Iterable[str]) -> bytes:
    """Page content: these lines."""
    shown = b"".join(b"(%s) Tj T*\n" % line.encode("latin-1") for line in lines)
    return b"BT /F1 12 Tf 14 TL 72 720 Td\n" + shown + b"ET"


def document(pages: Sequence[Sequence[str]], *, title: str = "", links: Sequence[str] = ()) -> bytes:
    """Pages of lines. links: notes of the first page."""
    return of_streams([stream(shows(lines)) for lines in pages], title=title, links=links)


def of_streams(
    streams: Sequence[bytes], *, title: str = "", links: Sequence[str] = (), forms: Sequence[bytes] = ()
) -> bytes:
    """A page for each content stream. forms: further objects, named X0, X1 … for all pages."""
    count = len(streams)
    first = 5
    kids = b" ".join(b"%d 0 R" % (first + 2 * index) for index in range(count))
    named = b" ".join(b"/X%d %d 0 R" % (index, first + 2 * count + index) for index in range(len(forms)))
    notes = b" ".join(
        b"<< /Type /Annot /Subtype /Link /Rect [0 0 9 9] /A << /S /URI /URI (%s) >> >>" % link.encode()
        for link in links
    )
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, count),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        b"<< /Title (%s) /CreationDate (D:20240229120000Z) >>" % title.encode(),
    ]
    for index, one in enumerate(streams):
        annotations = b"/Annots [%s]" % notes if index == 0 and links else b""
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R %s"
            b" /Resources << /Font << /F1 3 0 R >> /XObject << %s >> >> >>"
            % (first + 2 * index + 1, annotations, named)
        )
        objects.append(one)
    return written([*objects, *forms], more=b"/Info 4 0 R" if title else b"")


def encrypted(plain: bytes, password: str, *, algorithm: str = "AES-256") -> bytes:
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(plain)))
    writer.encrypt(user_password=password, owner_password="owner", algorithm=algorithm)
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


# ---------------------------------------------------------------------------------------------- hostile ones


def bomb(megabytes: int) -> bytes:
    """Compressed data, which becomes so much."""
    squeezer = zlib.compressobj(9)
    piece = b"(a) Tj " * (1 << 17)
    return b"".join(squeezer.compress(piece) for _ in range(megabytes * (1 << 20) // len(piece))) + squeezer.flush()


def inflates(megabytes: int) -> bytes:
    return of_streams([stream(bomb(megabytes), b"/Filter /FlateDecode")])


def inflates_twice(megabytes: int) -> bytes:
    return of_streams([stream(zlib.compress(bomb(megabytes), 9), b"/Filter [/FlateDecode /FlateDecode]")])


def laughs(depth: int = 9, width: int = 10) -> bytes:
    """Forms that each show the next one many times."""
    resources = (
        b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /Font << /F1 3 0 R >> /XObject << %s >> >>"
    )
    first = 7
    forms = []
    for level in range(depth):
        below = b"/X0 %d 0 R" % (first + level + 1) if level < depth - 1 else b""
        content = b"/X0 Do " * width if below else shows(["ha"])
        forms.append(stream(content, resources % below))
    return of_streams([stream(b"/X0 Do")], forms=forms)


def form_of_itself() -> bytes:
    resources = b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /X0 7 0 R >> >>"
    return of_streams([stream(b"/X0 Do")], forms=[stream(b"/X0 Do " * 100, resources)])


def tree_of_itself() -> bytes:
    return written([b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [2 0 R 2 0 R] /Count 99999999 >>"])


def deep(levels: int = 100_000) -> bytes:
    return of_streams([stream(b"[" * levels)])


def slow(pages: int) -> bytes:
    """The first page is short, each other one takes long."""
    long = stream(zlib.compress(shows(f"line {number}" for number in range(60_000))), b"/Filter /FlateDecode")
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R /Resources << /Font << /F1 3 0 R >> >> >>"
    kids = b" ".join(b"%d 0 R" % (6 + number) for number in range(pages + 1))
    return written(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, pages + 1),
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
            stream(shows(["quick"])),
            long,
            page % 4,
            *[page % 5] * pages,
        ]
    )


def padded(size: int) -> bytes:
    """A page behind a comment of this many bytes."""
    return written(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [4 0 R] /Count 1 >>",
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
            b"<< /Type /Page /Parent 2 0 R /Contents 5 0 R /Resources << /Font << /F1 3 0 R >> >> >>",
            stream(shows(["The walrus"])),
        ],
        header=b"%%PDF-1.7\n%%%s\n" % (b"x" * size),
    )


def points_back() -> bytes:
    """A table of objects that goes on with itself."""
    whole = document([["x"]])
    start = int(whole.rpartition(b"startxref\n")[2].split()[0])
    return whole.replace(b"/Root 1 0 R", b"/Root 1 0 R /Prev %d" % start)


HOSTILE = {
    "nothing behind the mark": b"%PDF-1.7\n",
    "noise": b"%PDF-1.7\n" + bytes(range(256)) * 400,
    "cut in the middle": document([["one", "two"]] * 9)[:900],
    "no pages": written([b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [] /Count 0 >>"]),
    "root is a number": written([b"42"]),
    "inflates": inflates(100),
    "inflates twice": inflates_twice(100),
    "laughs": laughs(),
    "form of itself": form_of_itself(),
    "tree of itself": tree_of_itself(),
    "deep": deep(),
    "points back": points_back(),
    "says it is long": of_streams([b"<< /Length 99999999999 >>\nstream\nBT ET\nendstream"]),
    "many pages of one": written(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [%s] /Count 200000 >>" % (b"3 0 R " * 200_000),
            b"<< /Type /Page >>",
        ]
    ),
    "unknown cipher": written(
        [b"<< /Type /Catalog /Pages 2 0 R >>"], more=b"/Encrypt << /Filter /Odd /V 99 >> /ID [<00> <00>]"
    ),
}
