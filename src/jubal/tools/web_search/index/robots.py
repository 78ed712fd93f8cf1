"""robots.txt as RFC 9309 has it: the longest rule that fits decides, `Allow` wins a draw, `*` and `$` are wild cards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

BYTES_MAX: Final = 512 << 10
AGENT: Final = "jubalbot"


@dataclass(frozen=True, slots=True)
class Rule:
    allows: bool
    path: str

    def fits(self, path: str) -> bool:
        """In linear time: rules are strangers' patterns."""
        ends = self.path.endswith("$")
        head, *rest = (self.path[:-1] if ends else self.path).split("*")
        if not path.startswith(head):
            return False
        at = len(head)
        for number, part in enumerate(rest, 1):
            if ends and number == len(rest):
                return len(path) - len(part) >= at and path.endswith(part)
            found = path.find(part, at)
            if found < 0:
                return False
            at = found + len(part)
        return not ends or at == len(path)


@dataclass(frozen=True, slots=True)
class Robots:
    """What one host lets us do. delay_s: between two requests; None: not told."""

    rules: tuple[Rule, ...] = ()
    delay_s: float | None = None

    def allows(self, path: str) -> bool:
        """path: with the query."""
        if path.partition("?")[0] == "/robots.txt":
            return True
        fitting = [rule for rule in self.rules if rule.fits(_plain(path))]
        if not fitting:
            return True
        return max(fitting, key=lambda rule: (len(rule.path), rule.allows)).allows


NOTHING_ALLOWED: Final = Robots((Rule(False, "/"),))
"""For a host whose robots.txt can't be had by a fault of its own."""


def parse(text: str, agent: str = AGENT) -> Robots:
    """The groups that name `agent`, else those for `*`. Lines that are not understood are passed over."""
    groups: dict[str, tuple[list[Rule], list[float]]] = {}
    names: list[str] = []
    in_rules = False
    for line in text.splitlines():
        field, colon, value = line.partition("#")[0].partition(":")
        field, value = field.strip().lower(), value.strip()
        if not colon:
            continue
        if field == "user-agent":
            if in_rules:
                names, in_rules = [], False
            names.append(value.partition("/")[0].lower())
            groups.setdefault(names[-1], ([], []))
            continue
        if field in ("allow", "disallow", "crawl-delay"):
            in_rules = True
        for name in names:
            _take(groups[name], field, value)
    rules, delays = groups.get(agent) or groups.get("*") or ([], [])
    return Robots(tuple(rules), max(delays, default=None))


def _take(group: tuple[list[Rule], list[float]], field: str, value: str) -> None:
    if field in ("allow", "disallow") and value:
        group[0].append(Rule(field == "allow", _plain(value)))
    elif field == "crawl-delay":
        try:
            delay = float(value)
        except ValueError:
            return
        if 0 <= delay < 86_400:
            group[1].append(delay)


def _plain(path: str) -> str:
    """One spelling for each path: percent signs resolved, but for those that stand for a separator or a wild card."""
    kept = path.replace("%2F", "%252F").replace("%2f", "%252F").replace("%2A", "%252A").replace("%24", "%2524")
    return unquote(kept)
