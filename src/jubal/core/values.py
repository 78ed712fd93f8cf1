"""Dataclasses that nobody changes once they are made, and that cost little to make.

`@value(frozen=True, slots=True)` is `@dataclass(frozen=True, slots=True)` to a type checker, which refuses every assignment to a
field. A class that refuses them itself, at run time, sets its own fields by a call each: for the forty fields of a request that is
more than parsing its JSON takes, and an event is made for every token. So nothing is refused at run time. Equality and hash are as
ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as value
else:
    from dataclasses import dataclass

    def value(*, frozen: bool, slots: bool):
        """See above."""
        return dataclass(slots=slots, unsafe_hash=frozen)


__all__ = ["value"]
