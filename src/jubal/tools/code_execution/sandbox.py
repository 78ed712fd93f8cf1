"""The promise of a sandbox, whatever it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

End: TypeAlias = Literal["done", "timeout", "memory", "disk", "cpu", "output", "exited", "lost"]
"""How a piece of code ended. done: it ran to its end or raised. lost: the sandbox itself went away. After all but `done` the
interpreter is gone, and what it held."""


class SandboxUnavailable(Exception):
    """No code can be run on this machine, or not now. The message says why and how to mend it."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What one piece of code did. ret: repr of its last expression. error: its traceback. Both "" where there is none.

    exit_code: of an interpreter that ended; negative: the signal that ended it. files: names relative to the working folder,
    and content, of what was made or changed. left_out: how many more there are. note: what else there is to say.
    """

    end: End
    stdout: str = ""
    stderr: str = ""
    ret: str = ""
    error: str = ""
    exit_code: int | None = None
    files: tuple[tuple[str, bytes], ...] = ()
    left_out: int = 0
    note: str = ""


class Interpreter(Protocol):
    """One session: an interpreter that keeps its state from call to call."""

    async def run(self, code: str) -> Ran:
        """Runs one piece of code; one at a time. Cancelling ends the interpreter before the cancellation is passed on."""
        ...

    @property
    def alive(self) -> bool:
        """Whether another piece of code can be run here."""
        ...

    async def close(self) -> None:
        """Ends it and all that it started. Returns when they are gone. Never raises; may be called twice."""
        ...


class Sandbox(Protocol):
    """Shared by all sessions. Made without I/O."""

    def warm(self) -> None:
        """Begins what a first session would otherwise wait for. Does not block, and never raises."""
        ...

    async def open(self) -> Interpreter:
        """A fresh interpreter. Waits for its turn where too many are open. Raises `SandboxUnavailable`."""
        ...

    def status(self) -> str:
        """One line for people: which sandbox, and how it is."""
        ...

    async def close(self) -> None:
        """Ends every interpreter."""
        ...
