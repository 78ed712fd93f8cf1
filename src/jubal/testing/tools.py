"""A scripted family of server tools."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from jubal.core.generation import FunctionTool
from jubal.core.server_tools import ToolKind
from jubal.tools.base import ToolFailed, ToolOutput


class ScriptedTools:
    """Functions whose outputs are given by name: an output, an exception to raise, seconds to wait, or a callable of the
    arguments. Keeps what it was called with, and what was cut.

    away: why its functions can't be told. aliases: other names of its functions.
    """

    def __init__(
        self,
        outputs: Mapping[str, ToolOutput | Exception | float | Callable[[str], ToolOutput]],
        kind: ToolKind = "web_search",
        *,
        away: str | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.kind: ToolKind = kind
        self.calls: list[tuple[str, str]] = []
        self.wanted: list[Any] = []
        self.cut = 0
        self.running = 0
        self.running_most = 0
        self.open_sessions = 0
        self._outputs = outputs
        self._away = away
        self.aliases: Mapping[str, str] = dict(aliases or {})

    def open(self, wanted: object) -> ScriptedTools:
        self.wanted.append(wanted)
        self.open_sessions += 1
        return self

    async def functions(self) -> tuple[FunctionTool, ...]:
        if self._away is not None:
            raise ToolFailed(self._away)
        return tuple(FunctionTool(name, f"Does {name}.") for name in self._outputs)

    async def call(self, name: str, arguments: str) -> ToolOutput:
        self.calls.append((name, arguments))
        self.running += 1
        self.running_most = max(self.running_most, self.running)
        try:
            output = self._outputs[name]
            if isinstance(output, float):
                await asyncio.sleep(output)
                return ToolOutput(f"waited {output}")
            await asyncio.sleep(0)
            if isinstance(output, Exception):
                raise output
            return output if isinstance(output, ToolOutput) else output(arguments)
        except asyncio.CancelledError:
            self.cut += 1
            raise
        finally:
            self.running -= 1

    async def close(self) -> None:
        self.open_sessions -= 1
