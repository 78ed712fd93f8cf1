"""The promise that every family of server tools keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

from jubal.core.generation import FunctionTool
from jubal.core.server_tools import OutputFile, Source, ToolKind

Wanted = TypeVar("Wanted", contravariant=True)


class ToolFailed(Exception):
    """A call could not do what it was called for. The message is for the model, and perhaps for the caller: no secrets."""


class ToolSetupError(Exception):
    """A family can't work as it is configured. The message names the key and what was expected."""


@dataclass(frozen=True, slots=True)
class Found:
    """One thing that a call found. text: what the model reads of it; the toolbox puts number, title and address before it."""

    source: Source
    text: str = ""


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """What a call gave. text: for the model, before what was found. files: for the caller."""

    text: str = ""
    found: tuple[Found, ...] = ()
    files: tuple[OutputFile, ...] = ()


class ToolSession(Protocol):
    """A family at work for one request; it may keep state from call to call."""

    async def functions(self) -> tuple[FunctionTool, ...]:
        """What the model may call. Raises `ToolFailed` where that can't be told, as of a remote server that is away."""
        ...

    async def call(self, name: str, arguments: str) -> ToolOutput:
        """Runs one call. arguments: JSON text as the model wrote it; unfit arguments are a `ToolFailed` that says what to mend.

        Calls may run at the same time, unless the family makes them wait for each other. Cancelling ends the work before the
        cancellation is passed on. Time and size are bounded by the toolbox; a family may have tighter bounds of its own.
        """
        ...

    async def close(self) -> None:
        """Frees everything that the request held. Never raises; runs also after a cancellation."""
        ...


class ToolFamily(Protocol, Generic[Wanted]):
    """One kind of server tool, shared by all requests. Made without I/O; `close` after the last session."""

    kind: ToolKind

    def open(self, wanted: Wanted) -> ToolSession:
        """A session with the caller's wishes, such as `core.server_tools.WebSearch`. No I/O.

        Raises `BadRequest` for wishes that can't be met here.
        """
        ...

    async def close(self) -> None: ...


@runtime_checkable
class Starting(Protocol):
    """A family that has work to do before the first session."""

    async def start(self) -> None:
        """Begins it and returns soon. Raises `ToolSetupError`."""
        ...


@runtime_checkable
class Reporting(Protocol):
    """A family that can tell what it runs on."""

    def status(self) -> str:
        """One line for /health: no secret, no path of this machine. No I/O."""
        ...


@runtime_checkable
class Aliased(Protocol):
    """A family whose functions models also know by other names, from other services, and call so although only ours were offered.

    aliases: such a name, and the function that it stands for.
    """

    @property
    def aliases(self) -> Mapping[str, str]: ...
