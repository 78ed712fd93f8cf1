"""Bytes of strangers to titles, text, links and entries. Runs in worker processes only (worker.py): it is heavy to import, and what
it reads is not to be trusted. Results are plain objects, ready for JSON."""

from __future__ import annotations

import re
from datetime import UTC, date
from email.utils import parsedate_to_datetime
from html import unescape
from typing import Any, Final
from urllib.parse import urljoin, urlsplit
from xml.etree import ElementTree
from xml.parsers.expat import ParserCreate

from jubal.tools.web_search import pdf

TEXT_CHARS_MAX: Final = 2_000_000
LINKS_MAX: Final = 5_000
ENTRIES_MAX: Final = 2_000
TITLE_CHARS_MAX: Final = 300
URL_CHARS_MAX: Final = 2_000
SNIFFED_BYTES: Final = 1_024
PDF_TIME: Final = 0.75
"""Of the time that there is: then what was read of a PDF goes out."""

_FEED = re.compile(rb"<\s*(rss|feed|rdf:RDF)[\s>]")
_SITEMAP = re.compile(rb"<\s*(urlset|sitemapindex)[\s>]")
_HTML = re.compile(rb"<\s*(!doctype\s+html|html|head|body)[\s>]", re.IGNORECASE)
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)
_SPACES = re.compile(r"[ \t]+(?=\n)|[ \t]{2,}(?=\S)")
_LINES = re.compile(r"\n{3,}")
_MARKUP = re.compile(r"<[^>]{0,2000}>")


def read(body: bytes, url: str, content_type: str, style: str, seconds: float) -> dict[str, Any]:
    """A page. content_type: with its parameters. style: "markdown" (slow, for reading), "text" (fast, for searching).

    kind tells what it was: html, text (a PDF's too), feed, sitemap, or binary, which has nothing else. seconds: that whoever asks
    will wait. Raises `pdf.Unfit`.
    """
    if pdf.is_pdf(body, content_type):
        return _pdf(body, style, seconds)
    media = content_type.partition(";")[0].strip().lower()
    head = body[:SNIFFED_BYTES]
    if b"\0" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return {"kind": "binary"}
    if media not in ("text/html", "application/xhtml+xml") and not media.startswith("text/markdown"):
        if _FEED.search(head):
            return _feed(body, url)
        if _SITEMAP.search(head):
            return _sitemap(body)
    text = decoded(body, content_type)
    if media in ("text/html", "application/xhtml+xml") or (media in ("", "text/plain") and _HTML.search(head)):
        return _html(text, url, style)
    if media and not media.startswith("text/") and not media.endswith(("json", "xml", "javascript")):
        return {"kind": "binary"}
    return {"kind": "text", "title": _first_line(text), "text": text[:TEXT_CHARS_MAX]}


def _pdf(body: bytes, style: str, seconds: float) -> dict[str, Any]:
    limits: dict[str, int] = {"chars_max": TEXT_CHARS_MAX, "links_max": LINKS_MAX}
    found = pdf.read(body, seconds=seconds * PDF_TIME, headings=style == "markdown", **limits)
    return found | {"title": found["title"] or _first_line(found["text"].removeprefix("## Page 1"))}


def decoded(body: bytes, content_type: str) -> str:
    """By the header, else as browsers guess."""
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    named = _CHARSET.search(content_type) or _CHARSET.search(body[:SNIFFED_BYTES].decode("latin-1"))
    encoding = named[1] if named else (detect_encoding(body[: 64 << 10]) or "utf-8")
    try:
        return str(bytes_to_str(body, encoding)).replace("\r\n", "\n")
    except (LookupError, ValueError):
        return body.decode("utf-8", "replace").replace("\r\n", "\n")


# ------------------------------------------------------------------------------------------------------------ HTML


def _html(text: str, url: str, style: str) -> dict[str, Any]:
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(text)
    metas = _metas(tree)
    robots = f"{metas.get('robots', '')},{metas.get('jubalbot', '')}".lower()
    written = _markdown(text, url) if style == "markdown" else ""
    title = tree.css_first("title")
    return {
        "kind": "html",
        "title": _line(title.text() if title else "") or _line(metas.get("og:title", "")),
        "text": (written or _plain_text(text))[:TEXT_CHARS_MAX],
        "links": _links(tree, url),
        "published": _published(metas, tree),
        "noindex": "noindex" in robots or "none" in re.split(r"[,\s]+", robots),
        "nofollow": "nofollow" in robots or "none" in re.split(r"[,\s]+", robots),
    }


def _markdown(text: str, url: str) -> str:
    import trafilatura

    written = trafilatura.extract(
        text, url=url, output_format="markdown", include_comments=False, include_tables=True, include_images=False,
        include_formatting=True,
    )  # fmt: skip
    return (written or "").strip()


def _plain_text(text: str) -> str:
    """The main content; everything where there is none to be made out."""
    from resiliparse.extract.html2text import extract_plain_text

    found = extract_plain_text(text, main_content=True, preserve_formatting=True, alt_texts=False, comments=False)
    if len(found) < 80:
        found = extract_plain_text(text, main_content=False, preserve_formatting=True, alt_texts=True) or found
    return _LINES.sub("\n\n", _SPACES.sub("", found)).strip()


def _metas(tree: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for meta in tree.css("meta"):
        name = meta.attributes.get("name") or meta.attributes.get("property") or meta.attributes.get("itemprop")
        if name:
            found.setdefault(name.lower(), meta.attributes.get("content") or "")
    return found


def _published(metas: dict[str, str], tree: Any) -> str | None:
    names = ("article:published_time", "date", "dc.date", "dc.date.issued", "datepublished", "article:modified_time")
    for name in names:
        if found := _day(metas.get(name, "")):
            return found
    stamp = tree.css_first("article time[datetime], main time[datetime]")
    return _day(stamp.attributes.get("datetime") or "") if stamp else None


def _links(tree: Any, url: str) -> list[tuple[str, str, bool]]:
    """(address without its fragment, words, whether robots may follow) of each, once, in order."""
    based = tree.css_first("base[href]")
    base = urljoin(url, based.attributes.get("href") or "") if based else url
    found: dict[str, tuple[str, str, bool]] = {}
    for anchor in tree.css("a[href], area[href]"):
        target = _address(base, anchor.attributes.get("href") or "")
        if target is None:
            continue
        words = _line(anchor.text() or anchor.attributes.get("title") or "")[:120]
        follow = "nofollow" not in (anchor.attributes.get("rel") or "").lower()
        if target not in found or (words and not found[target][1]):
            found[target] = (target, words, follow)
        if len(found) >= LINKS_MAX:
            break
    return list(found.values())


def _address(base: str, target: str) -> str | None:
    """Absolute, http or https, without fragment; None for what can't be fetched."""
    try:
        joined = urljoin(base, target.strip()).partition("#")[0]
        parts = urlsplit(joined)
    except ValueError:
        return None
    fits = parts.scheme in ("http", "https") and parts.netloc and "@" not in parts.netloc
    return joined if fits and len(joined) <= URL_CHARS_MAX else None


# ----------------------------------------------------------------------------------------------- feeds and sitemaps


def _tree(body: bytes) -> ElementTree.Element | None:
    """The root; None where it is not well formed or declares entities, which make small files large."""
    declared: list[str] = []
    first = ParserCreate()
    first.EntityDeclHandler = lambda name, *rest: declared.append(name)
    try:
        first.Parse(body, True)
        return None if declared else ElementTree.fromstring(body)  # noqa: S314
    except Exception:  # noqa: BLE001  expat, its encodings and the tree builder raise several kinds
        return None


def _feed(body: bytes, url: str) -> dict[str, Any]:
    """RSS 0.9 to 2.0, RDF and Atom."""
    root = _tree(body)
    if root is None:
        return {"kind": "binary"}
    entries: list[dict[str, Any]] = []
    for node in root.iter():
        if _name(node) in ("item", "entry") and len(entries) < ENTRIES_MAX:
            entry = _entry(node, url)
            if entry["url"]:
                entries.append(entry)
    channel = next((node for node in root.iter() if _name(node) == "channel"), root)
    lines = [f"- {one['title']} ({one['url']})" for one in entries]
    return {
        "kind": "feed",
        "title": _child_text(channel, "title"),
        "text": "\n".join(lines)[:TEXT_CHARS_MAX],
        "links": [(one["url"], one["title"][:120], True) for one in entries],
        "entries": entries,
    }


def _entry(node: ElementTree.Element, base: str) -> dict[str, Any]:
    link = _child_text(node, "link")
    for child in node:
        if _name(child) == "link" and child.get("href") and child.get("rel", "alternate") == "alternate":
            link = child.get("href", "")
    stamps = ("pubDate", "published", "updated", "date")
    texts = (_child_text(node, name) for name in ("encoded", "content", "description", "summary"))
    return {
        "title": _line(_stripped(_child_text(node, "title"))),
        "url": _address(base, link) or "",
        "text": _stripped(next((text for text in texts if text), ""))[:4_000],
        "published": next((day for name in stamps if (day := _day(_child_text(node, name)))), None),
    }


def _sitemap(body: bytes) -> dict[str, Any]:
    root = _tree(body)
    if root is None:
        return {"kind": "binary"}
    found = [(node.text or "").strip() for node in root.iter() if _name(node) == "loc"]
    links = [(one, "", True) for text in found if (one := _address("", text))]
    return {"kind": "sitemap", "links": links, "index": _name(root) == "sitemapindex"}


def _name(node: ElementTree.Element) -> str:
    return node.tag.rpartition("}")[2] if isinstance(node.tag, str) else ""


def _child_text(node: ElementTree.Element, name: str) -> str:
    """The text of the first child of that name, what is marked up in it included."""
    for child in node:
        if _name(child) == name:
            return "".join(child.itertext()).strip()
    return ""


def _stripped(text: str) -> str:
    """Feeds hold HTML as text, often escaped."""
    return " ".join(unescape(_MARKUP.sub(" ", unescape(text))).split())


# ----------------------------------------------------------------------------------------------------------- words


def _day(text: str) -> str | None:
    """`YYYY-MM-DD` of an ISO 8601 or RFC 5322 date, in UTC where it tells its zone."""
    text = text.strip()
    try:
        return date.fromisoformat(text[:10]).isoformat()
    except ValueError:
        pass
    try:
        stamp = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):
        return None
    return (stamp.astimezone(UTC) if stamp.tzinfo else stamp.replace(tzinfo=UTC)).date().isoformat()


def _line(text: str) -> str:
    return " ".join(text.split())[:TITLE_CHARS_MAX]


def _first_line(text: str) -> str:
    """A text's title: its first line that says something, without a heading's marks."""
    for line in text[:4_000].splitlines():
        if words := line.strip().lstrip("#=*- ").strip():
            return _line(words)[:120]
    return ""
