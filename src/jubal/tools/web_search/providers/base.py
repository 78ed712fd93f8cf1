"""The promise of what gives search results, and what its keepers share."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Final, Literal, Protocol, runtime_checkable

from jubal.tools.base import ToolFailed
from jubal.tools.web_search.domains import ANYWHERE, Domains

COUNT_MAX: Final = 30
"""Results of one search."""

LANGUAGES: Final = {
    "AR": "es", "AT": "de", "AU": "en", "BE": "nl", "BG": "bg", "BR": "pt", "CA": "en", "CH": "de", "CL": "es", "CN": "zh",
    "CO": "es", "CZ": "cs", "DE": "de", "DK": "da", "EE": "et", "ES": "es", "FI": "fi", "FR": "fr", "GB": "en", "GR": "el",
    "HK": "zh", "HU": "hu", "ID": "id", "IE": "en", "IL": "he", "IN": "en", "IT": "it", "JP": "ja", "KR": "ko", "LT": "lt",
    "LV": "lv", "MX": "es", "MY": "ms", "NL": "nl", "NO": "no", "NZ": "en", "PE": "es", "PH": "en", "PL": "pl", "PT": "pt",
    "RO": "ro", "RU": "ru", "SE": "sv", "SG": "en", "SI": "sl", "SK": "sk", "TH": "th", "TR": "tr", "TW": "zh", "UA": "uk",
    "US": "en", "VN": "vi", "ZA": "en",
}  # fmt: skip
"""The language most searched in, by ISO 3166 code. Other countries are searched without a wish for a place."""


class ProviderFailed(ToolFailed):
    """This provider can't answer now; another one may. The message is for the operator and the model, without secrets."""


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for. count: results wanted. country: ISO 3166 alpha-2. from_date, to_date: both included."""

    text: str
    count: int
    domains: Domains = ANYWHERE
    country: str | None = None
    safe: bool = True
    from_date: date | None = None
    to_date: date | None = None

    @property
    def with_sites(self) -> str:
        """The text with the domains as the operators that web search engines know."""
        sites = " OR ".join(f"site:{domain}" for domain in self.domains.allowed)
        parts = [self.text, f"({sites})" if len(self.domains.allowed) > 1 else sites]
        parts += [f"-site:{domain}" for domain in self.domains.excluded]
        return " ".join(part for part in parts if part)

    @property
    def language(self) -> str | None:
        return LANGUAGES.get(self.country or "")

    def span(self, today: date) -> Literal["day", "week", "month", "year"] | None:
        """The shortest span until today that holds all that is wanted, for engines that know no dates; None: any time."""
        if self.from_date is None:
            return None
        days = (today - self.from_date).days
        spans: tuple[tuple[int, Literal["day", "week", "month", "year"]], ...] = (
            (1, "day"), (7, "week"), (28, "month"), (365, "year"),
        )  # fmt: skip
        return next((span for most, span in spans if days <= most), None)

    def holds(self, published: date | None) -> bool:
        """Whether a result of that date is wanted. Unknown dates are: most pages tell none."""
        if published is None:
            return True
        return not ((self.from_date and published < self.from_date) or (self.to_date and published > self.to_date))


@dataclass(frozen=True, slots=True)
class Hit:
    """One result. text: a passage or summary. published: None where nobody tells."""

    url: str
    title: str = ""
    text: str = ""
    published: date | None = None


@dataclass(frozen=True, slots=True)
class ImageHit:
    """One picture. url: of the picture. page: where it was found."""

    url: str
    page: str
    title: str = ""


class SearchProvider(Protocol):
    """Made without I/O; `close` after the last search. Searches may run at the same time."""

    name: str

    async def ready(self) -> bool:
        """Whether it makes sense to ask, without asking: an empty index has no answer. Never raises."""
        ...

    async def search(self, query: Query) -> list[Hit]:
        """Results, best first, at most `query.count`. Domains and dates it may pass over: the caller filters again.

        Raises `ProviderFailed`.
        """
        ...

    async def close(self) -> None: ...


@runtime_checkable
class ImageProvider(Protocol):
    """A provider that finds pictures as well."""

    async def search_images(self, query: Query) -> list[ImageHit]:
        """Raises `ProviderFailed`."""
        ...


def day(text: object) -> date | None:
    """The date that ISO 8601 text begins with; None where it begins with none."""
    try:
        return date.fromisoformat(str(text)[:10])
    except ValueError:
        return None
