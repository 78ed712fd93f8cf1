"""A scripted family of server tools, and the promise of `tools.base.ToolFamily` as checks that every family's test calls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from jubal.core.generation import FunctionTool
from jubal.core.server_tools import ToolKind
from jubal.tools.base import ToolFailed, ToolFamily, ToolOutput, ToolSession

PACKAGE: Final = Path(__file__).parent.parent
STOP_TIMEOUT_S: Final = 20.0
"""Until a call that was cut must have ended, on a busy machine."""


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


async def check_tools(
    family: ToolFamily[Any], wanted: Any, name: str, arguments: str, *, slow: tuple[str, str] | None = None
) -> None:
    """The promise of `tools.base.ToolFamily`: raises AssertionError where one is broken.

    wanted: what a caller may ask of it. name, arguments: a call that goes well, of a function that has to have an argument.
    slow: a call that takes longer than a second; None: there is none, and the good one is cut. The family is closed here.
    """
    before = asyncio.all_tasks()
    try:
        await _opens_without_work(family, wanted)
        session = family.open(wanted)
        try:
            required = await _tells_functions(session, name)
            outputs = await asyncio.gather(*(session.call(name, arguments) for _ in range(3)))
            assert all(output.text or output.found or output.files for output in outputs), "calls at the same time"
            await _says_what_to_mend(session, name, required)
            await _stops_when_cut(session, *(slow or (name, arguments)))
            assert await session.call(name, arguments), "it works on after a call that was cut"
        finally:
            await session.close()
            await session.close()
        await _is_closed_while_it_works(family.open(wanted), *(slow or (name, arguments)))
    finally:
        await family.close()
    async with asyncio.timeout(STOP_TIMEOUT_S):
        while any(_is_of_jubal(task) for task in asyncio.all_tasks() - before):  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(0.01)


def _is_of_jubal(task: asyncio.Task[Any]) -> bool:
    """Runs code of this package, and not of a server that a test has on the same loop."""
    code = getattr(task.get_coro(), "cr_code", None)
    return code is not None and PACKAGE in Path(code.co_filename).parents


async def _opens_without_work(family: ToolFamily[Any], wanted: Any) -> None:
    before = asyncio.all_tasks()
    sessions = [family.open(wanted) for _ in range(3)]
    assert asyncio.all_tasks() == before, "open begins nothing"
    for session in sessions:
        await session.close()
        await session.close()


async def _tells_functions(session: ToolSession, name: str) -> list[str]:
    """The arguments that the function of this name has to have."""
    functions = await session.functions()
    assert functions == await session.functions(), "the same each time"
    assert len({function.name for function in functions}) == len(functions)
    schemas = {function.name: json.loads(function.parameters or "{}") for function in functions}
    assert all(function.description for function in functions)
    assert all(schema["type"] == "object" for schema in schemas.values())
    required: list[str] = schemas[name]["required"]
    assert required
    return required


async def _says_what_to_mend(session: ToolSession, name: str, required: list[str]) -> None:
    for unfit in ("{", "[]", '"text"', "\ud800"):
        assert await _fails(session, name, unfit)
    for missing in required:
        said = await _fails(session, name, json.dumps(dict.fromkeys(set(required) - {missing}, "1")))
        assert missing in said, f"the argument `{missing}` is missing, and it said: {said}"
    said = await _fails(session, name, json.dumps({argument: {"un": "fit"} for argument in required}))
    assert any(argument in said for argument in required), said


async def _fails(session: ToolSession, name: str, unfit: str) -> str:
    try:
        output = await session.call(name, unfit)
    except ToolFailed as error:
        return str(error)
    raise AssertionError(f"{name}({unfit!r}) gave {output}")


async def _stops_when_cut(session: ToolSession, name: str, arguments: str) -> None:
    call = asyncio.ensure_future(session.call(name, arguments))
    await asyncio.sleep(0.05)
    call.cancel()
    done, _ = await asyncio.wait({call}, timeout=STOP_TIMEOUT_S)
    assert done, "a call that is cut ends soon"


async def _is_closed_while_it_works(session: ToolSession, name: str, arguments: str) -> None:
    """A request that is cut cancels its call, and closes the session at once."""
    await session.functions()
    call = asyncio.ensure_future(session.call(name, arguments))
    await asyncio.sleep(0.05)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    async with asyncio.timeout(STOP_TIMEOUT_S):
        await session.close()
