"""What an update of the index did, and how it tells about it meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

PROBLEMS_MAX: Final = 50
"""Problems that are told one by one."""


class UpdateFailed(Exception):
    """Nothing could be read at all. The message says how to mend it."""


@dataclass(slots=True)
class Outcome:
    """Pages by what became of them. complete: False where a limit was met, so pages that were not seen are kept.

    skipped: not wanted there (robots.txt, noindex), or nothing that can be read as text. failed: could not be had this time.
    """

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    gone: int = 0
    skipped: int = 0
    failed: int = 0
    resumed: bool = False
    complete: bool = True
    problems: list[str] = field(default_factory=list)

    @property
    def seen(self) -> int:
        return self.new + self.changed + self.unchanged + self.skipped + self.failed

    def complain(self, what: str) -> None:
        self.failed += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(what)


Progress: TypeAlias = Callable[[int, int, str], None]
"""(done, known so far, what was just done)."""
