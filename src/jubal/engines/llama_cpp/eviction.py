"""Which models to keep in memory where not all of them fit: pure functions of who is loaded, at work and waited for.

Requests for models that are not loaded are served oldest first. Room is made for the oldest by unloading models that nobody
uses, the least recently used one first. Where that is not enough, the least recently used busy ones are closed to new requests
until they are idle: a busy model is never unloaded, and one that is always busy can't keep the others out for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tenant:
    """A model that may be loaded.

    size: bytes that it takes, or would take. running: requests at work in it. waiting_since: when the oldest request that waits
    for it came, None where none does. used: when a request last began. Times are of one clock. preload: wanted from the start,
    as long as nothing has to go for it.
    """

    name: str
    size: int
    loaded: bool = False
    running: int = 0
    waiting_since: float | None = None
    used: float = 0.0
    preload: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, all by name; then decide again, until there is nothing to do.

    refuse: those that can never fit. unload: all of them before anything else. load: and let those in who wait for it. admit:
    loaded ones whose waiting requests may begin. closed: those that take no new request. settle: the rest of those to be
    preloaded does not fit, and is loaded when it is asked for.
    """

    refuse: tuple[str, ...] = ()
    unload: tuple[str, ...] = ()
    load: str | None = None
    admit: tuple[str, ...] = ()
    closed: frozenset[str] = frozenset()
    settle: bool = False

    @property
    def idle(self) -> bool:
        """There is nothing to do."""
        return not (self.refuse or self.unload or self.load or self.admit or self.settle)


def decide(tenants: Sequence[Tenant], limit: int) -> Plan:
    """The next step towards serving everybody with at most `limit` bytes loaded.

    More is loaded only while models at work have grown beyond what was known of them; a single one is left alone then.
    """
    refuse = tuple(one.name for one in tenants if not one.loaded and one.size > limit and _wanted(one))
    wanted = [one for one in tenants if one.name not in refuse]
    head = min((one for one in wanted if _waited_for(one) and not one.loaded), key=_since, default=None)
    loaded = [one for one in wanted if one.loaded]
    victims = _victims(loaded, head, limit)
    closed = frozenset(one.name for one in victims)
    admit = tuple(one.name for one in loaded if _waited_for(one) and (one.name not in closed or _before(one, head)))
    unload = tuple(one.name for one in victims if not one.running and one.name not in admit)
    if unload or refuse:
        return Plan(refuse, unload, None, admit, closed)
    used = sum(one.size for one in loaded)
    if head is not None:
        fits = used + head.size <= limit
        return Plan(refuse, load=head.name if fits else None, admit=admit, closed=closed)
    preload = next((one for one in wanted if one.preload and not one.loaded), None)
    if preload is None:
        return Plan(refuse, admit=admit, closed=closed)
    fits = used + preload.size <= limit
    return Plan(refuse, load=preload.name if fits else None, admit=admit, closed=closed, settle=not fits)


def _victims(loaded: Sequence[Tenant], head: Tenant | None, limit: int) -> list[Tenant]:
    """Those that have to go for `head`, or because they have grown beyond the limit: idle ones first, then the busy."""
    excess = sum(one.size for one in loaded) + (head.size if head else 0) - limit
    candidates = sorted(loaded, key=lambda one: (one.running > 0, one.used))
    if head is None:
        candidates = candidates[:-1]  # a single model may be larger than was thought
    victims = []
    for one in candidates:
        if excess <= 0:
            break
        victims.append(one)
        excess -= one.size
    return victims


def _wanted(tenant: Tenant) -> bool:
    return tenant.preload or _waited_for(tenant)


def _waited_for(tenant: Tenant) -> bool:
    return tenant.waiting_since is not None


def _since(tenant: Tenant) -> float:
    return tenant.waiting_since or 0.0


def _before(tenant: Tenant, head: Tenant | None) -> bool:
    return head is not None and _since(tenant) < _since(head)
