"""Which hosts a caller lets the model see. Enforced on our side, whatever a provider of results does with the same wish."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from jubal.web.fetch import FetchError

INDEX_SCHEME: Final = "index://"
"""Of pages that are only in the local index. Their addresses tell nothing of where the files are on this machine."""


class NotPermitted(FetchError):
    """The caller's domains do not include this one."""

    reason = "refused_address"


def host_of(url: str) -> str:
    """The host as the fetcher will understand it, in ASCII and lower case; "" where there is none."""
    import httpx2

    try:
        return httpx2.URL(url).raw_host.decode("ascii").lower().rstrip(".")
    except (httpx2.InvalidURL, ValueError, UnicodeError):
        return ""


def within(host: str, domain: str) -> bool:
    """Whether `host` is `domain` or below it."""
    return host == domain or host.endswith("." + domain)


def plain(domain: str) -> str:
    """One spelling for each domain: ASCII, lower case, no dots around."""
    domain = domain.strip().strip(".").lower()
    return host_of(f"http://{domain}/") or domain


@dataclass(frozen=True, slots=True)
class Domains:
    """A caller's wish. A domain stands for its subdomains too."""

    allowed: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()

    @classmethod
    def of(cls, allowed: tuple[str, ...], excluded: tuple[str, ...]) -> Domains:
        return cls(tuple(map(plain, allowed)), tuple(map(plain, excluded)))

    def permits(self, url: str) -> bool:
        if not self.allowed and not self.excluded:
            return True
        host = host_of(url)
        if self.allowed:
            return any(within(host, domain) for domain in self.allowed)
        return not any(within(host, domain) for domain in self.excluded)

    def check(self, url: str) -> None:
        """Raises `NotPermitted`."""
        if not self.permits(url):
            told = f"only {', '.join(self.allowed)} may be read" if self.allowed else "its domain is excluded"
            raise NotPermitted(f"The user does not want `{host_of(url)[:200]}` to be read: {told}.")


ANYWHERE: Final = Domains()
