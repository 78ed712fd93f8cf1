"""The web tools that a model may call: search, open a page, find in a page, and, where pictures may be searched, those."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Annotated, Final, TypeVar
from urllib.parse import urljoin

import msgspec
from msgspec import Meta

from jubal.core.errors import BadRequest
from jubal.core.generation import FunctionTool
from jubal.core.server_tools import Source, ToolKind, WebSearch
from jubal.tools.base import Found, ToolFailed, ToolOutput
from jubal.tools.web_search.domains import INDEX_SCHEME, Domains
from jubal.tools.web_search.extractor import Link, Unreadable
from jubal.tools.web_search.pages import Page, PageReader, complaint
from jubal.tools.web_search.providers.base import COUNT_MAX, Hit, Query, day
from jubal.tools.web_search.providers.chain import Chain
from jubal.tools.web_search.providers.local import LocalIndex
from jubal.web.fetch import FetchError

COUNT_DEFAULT: Final = 6
PART_CHARS: Final = 8_000
"""Of a page that is opened: one part of it, about 2,000 tokens."""
HIT_CHARS_MAX: Final = 1_200
LINKS_SHOWN: Final = 40
FINDINGS_MAX: Final = 10
AROUND_CHARS: Final = 300
"""Shown before and after what was found in a page."""
LINKS_MAX: Final = 10
"""Pages or feeds that a caller may give to begin with."""

_WORD = re.compile(r"\w+", re.UNICODE)


class SearchArguments(msgspec.Struct, frozen=True):
    query: Annotated[str, Meta(min_length=1, max_length=2_000)]
    num_results: int | None = None


class OpenArguments(msgspec.Struct, frozen=True):
    url: Annotated[str, Meta(min_length=1, max_length=8_192)]
    page: Annotated[int, Meta(ge=1)] = 1


class FindArguments(msgspec.Struct, frozen=True):
    url: Annotated[str, Meta(min_length=1, max_length=8_192)]
    pattern: Annotated[str, Meta(min_length=1, max_length=500)]


Arguments = TypeVar("Arguments", SearchArguments, OpenArguments, FindArguments)

_URL = '"url":{"type":"string","description":"The address, beginning with http:// or https://"}'
_QUERY = '"query":{"type":"string","description":"What to look for, in a few words","maxLength":100}'
_EXAMPLE = '{"query": "weather in Oslo"}'


def schema(properties: str, required: str) -> str:
    return f'{{"type":"object","properties":{{{properties}}},"required":[{required}],"additionalProperties":false}}'


ALIASES: Final = {
    "web_search_with_snippets": "web_search",
    "search_web": "web_search",
    "browse_page": "open_page",
    "open_url": "open_page",
    "web_fetch": "open_page",
    "find_in_page": "open_page_with_find",
}


class WebTools:
    """The family. local: the index that pages may also be opened from; None where it is not to be used."""

    kind: ToolKind = "web_search"
    aliases: Mapping[str, str] = ALIASES

    def __init__(self, chain: Chain, pages: PageReader, local: LocalIndex | None = None) -> None:
        self.chain = chain
        self.pages = pages
        self.local = local

    def open(self, wanted: WebSearch) -> WebSession:
        """Raises `BadRequest` for links that the caller's own domains exclude, and too many of them."""
        domains = Domains.of(wanted.allowed_domains, wanted.excluded_domains)
        if len(wanted.links) > LINKS_MAX:
            raise BadRequest(
                f"`links` may hold {LINKS_MAX} addresses, got {len(wanted.links)}.", param="tools", code="too_many"
            )
        for link in wanted.links:
            if not domains.permits(link):
                raise BadRequest(
                    f"`links`: `{link[:200]}` is not within the domains of the same request.",
                    param="tools",
                    code="invalid_value",
                )
        return WebSession(self, wanted, domains)

    async def close(self) -> None:
        await self.chain.close()
        await self.pages.close()


class WebSession:
    """One request's view of the web."""

    def __init__(self, family: WebTools, wanted: WebSearch, domains: Domains) -> None:
        self._family = family
        self._wanted = wanted
        self._domains = domains
        self._count_max = min(wanted.results_max or COUNT_MAX, COUNT_MAX)

    # ------------------------------------------------------------------------------------------------ functions

    async def functions(self) -> tuple[FunctionTool, ...]:
        number = f'"num_results":{{"type":"integer","minimum":1,"maximum":{self._count_max}}}'
        search = "Search the web. Gives titles, addresses and passages of pages."
        if self._wanted.links:
            search = "Search the user's feeds and pages, and the web. Gives titles, addresses and passages."
        opened = "Read a page of the web, with its links. Long pages come in parts: ask for the next with `page`."
        if self._wanted.images:
            opened += " Pictures can't be looked at here, only their captions read."
        tools = [
            FunctionTool(
                "web_search",
                search + self._told_domains,
                schema(f"{_QUERY},{number}", '"query"'),
                example=_EXAMPLE,
            ),
            FunctionTool("open_page", opened, schema(f'{_URL},"page":{{"type":"integer","minimum":1}}', '"url"')),
            FunctionTool(
                "open_page_with_find",
                "Find words in a page of the web. Gives the places where they stand.",
                schema(f'{_URL},"pattern":{{"type":"string","description":"The words to find"}}', '"url","pattern"'),
            ),
        ]
        if self._wanted.image_search and self._family.chain.has_images:
            what = "Search pictures. Gives their titles and addresses; they can't be looked at here."
            tools.append(FunctionTool("search_images", what, schema(f"{_QUERY},{number}", '"query"')))
        return tuple(tools)

    @property
    def _told_domains(self) -> str:
        if self._domains.allowed:
            return f" Only {', '.join(self._domains.allowed)}."
        return f" Not {', '.join(self._domains.excluded)}." if self._domains.excluded else ""

    async def call(self, name: str, arguments: str) -> ToolOutput:
        match name:
            case "web_search":
                return await self._search(_read(arguments, SearchArguments))
            case "open_page":
                return await self._open(_read(arguments, OpenArguments))
            case "open_page_with_find":
                return await self._find(_read(arguments, FindArguments))
            case "search_images" if self._wanted.image_search and self._family.chain.has_images:
                return await self._search_images(_read(arguments, SearchArguments))
        raise ToolFailed(f"there is no function `{name}`.")

    async def close(self) -> None:
        """Nothing is held: pages and connections are the family's."""

    # --------------------------------------------------------------------------------------------------- search

    def _query(self, asked: SearchArguments) -> Query:
        count = max(1, min(asked.num_results or min(COUNT_DEFAULT, self._count_max), self._count_max))
        at = self._wanted.location
        return Query(
            " ".join(asked.query.split()),
            count,
            self._domains,
            at.country.upper() if at and at.country else None,
            self._wanted.safe_search,
            day(self._wanted.from_date),
            day(self._wanted.to_date),
        )

    async def _search(self, asked: SearchArguments) -> ToolOutput:
        query = self._query(asked)
        first = await self._from_links(query)
        if len(first) >= query.count:
            return _results(query, "the given links", first)
        try:
            name, hits = await self._family.chain.search(query)
        except ToolFailed:
            if not first:
                raise
            return _results(query, "the given links", first)
        seen = {hit.url for hit in first}
        hits = first + [hit for hit in hits if hit.url not in seen]
        return _results(query, f"the given links and {name}" if first else name, hits[: query.count])

    async def _search_images(self, asked: SearchArguments) -> ToolOutput:
        query = self._query(asked)
        name, hits = await self._family.chain.search_images(query)
        if not hits:
            return ToolOutput(f"No pictures of {query.text} were found, by {name}.")
        found = tuple(Found(Source(hit.page or hit.url, hit.title), f"Picture: {hit.url}") for hit in hits)
        return ToolOutput(f"{len(found)} pictures, by {name}:", found)

    async def _from_links(self, query: Query) -> list[Hit]:
        """What the caller's own feeds and pages say about the query, best first; their newest entries where no word fits."""
        hits: list[Hit] = []
        for link in self._wanted.links:
            try:
                page = await self._family.pages.read(link, self._domains)
            except (FetchError, Unreadable, ToolFailed):
                continue  # the others may do
            hits += _hits_of(page, query)
        wanted = [hit for hit in hits if self._domains.permits(hit.url) and query.holds(hit.published)]
        words = _words(query.text)
        scored = [(len(words & _words(f"{hit.title} {hit.text}")), hit) for hit in wanted]
        fitting = sorted((one for one in scored if one[0]), key=lambda one: -one[0])
        if fitting:
            return [hit for _, hit in fitting][: query.count]
        return sorted(wanted, key=lambda hit: hit.published or date.min, reverse=True)[: query.count]

    # ---------------------------------------------------------------------------------------------------- pages

    async def _page(self, url: str) -> Page:
        """From the web, or, where it can't be had there, from the index. Raises `ToolFailed`."""
        url = url.strip()
        if "://" not in url and not url.startswith(("/", ".")) and "." in url.partition("/")[0]:
            url = f"https://{url}"  # models leave it away
        try:
            if url.startswith(INDEX_SCHEME):
                raise Unreadable("it is not in the index")
            return await self._family.pages.read(url, self._domains)
        except (FetchError, Unreadable, ToolFailed) as error:
            kept = await self._indexed(url)
            if kept is not None:
                return kept
            if isinstance(error, ToolFailed):
                raise ToolFailed(f"{url[:500]} could not be opened. {error}") from error
            raise complaint(url, error) from error

    async def _indexed(self, url: str) -> Page | None:
        url = url.partition("#")[0]
        if self._family.local is None or not self._domains.permits(url):
            return None
        kept = await self._family.local.page(url)
        if kept is None:
            return None
        title, text, links = kept
        return Page(url, title, text, tuple(Link(urljoin(url, link)) for link in links))

    async def _open(self, asked: OpenArguments) -> ToolOutput:
        page = await self._page(asked.url)
        parts = parts_of(page.text)
        if asked.page > len(parts):
            raise ToolFailed(f"{page.url} has {len(parts)} parts; there is no part {asked.page}.")
        text = parts[asked.page - 1] or "(no text)"
        if len(parts) > 1:
            text += f"\n\n(Part {asked.page} of {len(parts)}.{' Ask for the next with `page`.' if asked.page < len(parts) else ''})"
        if links := self._shown_links(page):
            text += f"\n\nLinks of this page:\n{links}"
        return ToolOutput(found=(Found(Source(page.url, page.title), text),))

    def _shown_links(self, page: Page) -> str:
        """Numbered, absolute, none that the model may not open."""
        links = [link for link in page.links if link.url != page.url and self._domains.permits(link.url)]
        lines = [
            f"({number}) {link.words} {link.url}".replace("  ", " ")
            for number, link in enumerate(links[:LINKS_SHOWN], 1)
        ]
        if len(links) > LINKS_SHOWN:
            lines.append(f"… and {len(links) - LINKS_SHOWN} more")
        return "\n".join(lines)

    async def _find(self, asked: FindArguments) -> ToolOutput:
        page = await self._page(asked.url)
        places = findings(page.text, asked.pattern)
        if not places:
            said = f"`{asked.pattern}` does not stand in this page, which has {len(page.text):,} characters."
            return ToolOutput(found=(Found(Source(page.url, page.title), said),))
        parts = parts_of(page.text)
        shown = [
            f"- (part {_part_at(parts, min(start + AROUND_CHARS, end))}) … {page.text[start:end].strip()} …"
            for start, end in places
        ]
        return ToolOutput(found=(Found(Source(page.url, page.title), "\n\n".join(shown)),))


# ------------------------------------------------------------------------------------------------------------ helpers


def _read(arguments: str, kind: type[Arguments]) -> Arguments:
    """Raises `ToolFailed`. Numbers may come as text: small models write them so."""
    try:
        return msgspec.convert(msgspec.json.decode(arguments or "{}"), kind, strict=False)
    except msgspec.ValidationError as error:
        raise ToolFailed(f"the arguments do not fit: {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, UnicodeEncodeError, RecursionError):
        raise ToolFailed("the arguments must be a JSON object.") from None


def _results(query: Query, by: str, hits: Sequence[Hit]) -> ToolOutput:
    if not hits:
        return ToolOutput(f"No results for {query.text}, by {by}. Try other words.")
    found = []
    for hit in hits:
        head = f"Date: {hit.published}\n" if hit.published else ""
        found.append(Found(Source(hit.url, hit.title), head + hit.text[:HIT_CHARS_MAX]))
    return ToolOutput(f"{len(found)} result{'' if len(found) == 1 else 's'}, by {by}:", tuple(found))


def _hits_of(page: Page, query: Query) -> list[Hit]:
    if page.entries:
        return [Hit(one.url, one.title, one.text, day(one.published)) for one in page.entries]
    places = findings(page.text, query.text)
    start = places[0][0] if places else 0
    return [Hit(page.url, page.title, page.text[start : start + HIT_CHARS_MAX], page.published)]


def _words(text: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(text) if len(word) > 2}


def parts_of(text: str) -> list[str]:
    """The text in parts of at most `PART_CHARS`, cut at ends of paragraphs, lines or words. At least one."""
    parts, start = [], 0
    while len(text) - start > PART_CHARS:
        least = start + PART_CHARS // 2
        cuts = (text.rfind(mark, least, start + PART_CHARS) for mark in ("\n\n", "\n", " "))
        end = next((cut for cut in cuts if cut > 0), start + PART_CHARS)
        parts.append(text[start:end])
        start = end
    parts.append(text[start:])
    return parts


def _part_at(parts: Sequence[str], place: int) -> int:
    """The number of the part that holds this place of the text."""
    for number, part in enumerate(parts, 1):
        if place < len(part):
            return number
        place -= len(part)
    return len(parts)


def findings(text: str, pattern: str) -> list[tuple[int, int]]:
    """(start, end) of what stands around each place of the words, or, where they nowhere stand together, of the paragraphs that
    hold at least half of them. Case and the kind of space do not matter; `a|b` finds both. Overlapping places are one."""
    places: list[tuple[int, int]] = []
    for one in pattern.split("|"):
        words = one.split()
        if words:
            places += [
                (found.start(), found.end())
                for found in re.finditer(r"\s+".join(map(re.escape, words)), text, re.IGNORECASE)
            ]
    if not places:
        places = _paragraphs_with(text, _words(pattern))
    merged: list[tuple[int, int]] = []
    for start, end in sorted(places):
        start, end = max(0, start - AROUND_CHARS), min(len(text), end + AROUND_CHARS)
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        elif len(merged) < FINDINGS_MAX:
            merged.append((start, end))
        else:
            break
    return merged


def _paragraphs_with(text: str, words: set[str]) -> list[tuple[int, int]]:
    """Of paragraphs that hold at least half of `words`: their beginnings."""
    found = []
    for paragraph in re.finditer(r"\S[^\n]*(?:\n(?!\n)[^\n]*)*", text):
        held = len(words & _words(paragraph[0]))
        if held and held * 2 >= len(words):
            found.append((held, (paragraph.start(), min(paragraph.end(), paragraph.start() + AROUND_CHARS))))
    found.sort(key=lambda one: -one[0])
    return [place for _, place in found[:3]]
