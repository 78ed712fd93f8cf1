"""The tool: what a model may call, and what it is told (xai-api.md 9.4)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Final

import msgspec

from jubal.core.generation import FunctionTool
from jubal.core.server_tools import CodeExecution, OutputFile, ToolKind
from jubal.tools.base import ToolFailed, ToolOutput
from jubal.tools.code_execution.forks import ForkSandbox
from jubal.tools.code_execution.layout import Kind
from jubal.tools.code_execution.limits import Limits
from jubal.tools.code_execution.sandbox import Interpreter, Ran, Sandbox, SandboxUnavailable

NAME: Final = "code_execution"
SCHEMA: Final = (
    '{"type":"object","properties":{"code":{"type":"string","description":"Python source code"}},'
    '"required":["code"],"additionalProperties":false}'
)
DESCRIPTION: Final = (
    "Run Python code and get what it prints and the value of its last expression. Variables, imports and files stay for the next "
    "call. numpy, pandas, scipy, sympy and matplotlib are installed. Open figures, and files written to the working folder, are "
    "returned. There is no network and no input."
)
ALIASES: Final = {"python": NAME, "run_python": NAME, "execute_python": NAME, "code_interpreter": NAME}
MIMES: Final = {
    "csv": "text/csv",
    "gif": "image/gif",
    "html": "text/html",
    "ipynb": "application/x-ipynb+json",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "json": "application/json",
    "md": "text/markdown",
    "parquet": "application/vnd.apache.parquet",
    "pdf": "application/pdf",
    "png": "image/png",
    "py": "text/x-python",
    "svg": "image/svg+xml",
    "txt": "text/plain",
    "webp": "image/webp",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "xml": "application/xml",
    "zip": "application/zip",
}


class _Arguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    code: str


class CodeExecutionFamily:
    """Python for models, in interpreters of one sandbox."""

    kind: ToolKind = "code_execution"
    aliases: Mapping[str, str] = ALIASES

    def __init__(self, sandbox: Sandbox, limits: Limits) -> None:
        self._sandbox = sandbox
        self._limits = limits

    def open(self, wanted: CodeExecution) -> CodeSession:
        return CodeSession(self._sandbox, self._limits)

    def status(self) -> str:
        """One line for /health and the log."""
        return self._sandbox.status()

    async def close(self) -> None:
        await self._sandbox.close()


def family(limits: Limits, kind: Kind = "bubblewrap") -> CodeExecutionFamily:
    """The tool with a sandbox of this machine's. Starts nothing: the first request that brings the tool does."""
    return CodeExecutionFamily(ForkSandbox(limits, kind), limits)


class CodeSession:
    """One request's interpreter: begun with the first call, kept for the later ones, replaced where a call ended it."""

    def __init__(self, sandbox: Sandbox, limits: Limits) -> None:
        self._sandbox = sandbox
        self._limits = limits
        self._interpreter: Interpreter | None = None
        self._lost: str | None = None
        self._turn = asyncio.Lock()
        self._closed = False

    async def functions(self) -> tuple[FunctionTool, ...]:
        self._sandbox.warm()  # the model takes longer to write code than the libraries to load
        return (FunctionTool(NAME, DESCRIPTION, SCHEMA),)

    async def call(self, name: str, arguments: str) -> ToolOutput:
        if name != NAME:
            raise ToolFailed(f"There is no function {name!r} here; there is {NAME}.")
        code = self._code(arguments)
        async with self._turn:
            if self._closed:
                raise ToolFailed("The session is closed.")
            return await self._run(code)

    def _code(self, arguments: str) -> str:
        try:
            code = msgspec.json.decode(arguments.encode("utf-8", "replace"), type=_Arguments).code
        except msgspec.DecodeError as error:
            raise ToolFailed(f'The arguments must be {{"code": "Python source code"}}: {error}') from None
        if len(code.encode()) > self._limits.code_bytes:
            raise ToolFailed(f"The code is too long: at most {self._limits.code_bytes} bytes.")
        return code

    async def _run(self, code: str) -> ToolOutput:
        await self._let_go_of_the_dead()  # it may have died since, of memory that a thread took
        before = self._lost
        try:
            if self._interpreter is None:
                self._interpreter = await self._sandbox.open()
            ran = await self._interpreter.run(code)
        except SandboxUnavailable as error:
            raise ToolFailed(str(error)) from error
        finally:
            await self._let_go_of_the_dead()
        self._lost = None if self._interpreter is not None else what_ended(ran, self._limits)
        return output(ran, self._limits, before)

    async def _let_go_of_the_dead(self) -> None:
        if self._interpreter is not None and not self._interpreter.alive:
            gone, self._interpreter = self._interpreter, None
            self._lost = "it was ended"
            await gone.close()

    async def close(self) -> None:
        self._closed = True
        interpreter, self._interpreter = self._interpreter, None
        if interpreter is not None:
            with contextlib.suppress(Exception):  # the promise of this method
                await interpreter.close()


def what_ended(ran: Ran, limits: Limits) -> str:
    """Why an interpreter is gone, as the end of a sentence."""
    match ran.end:
        case "timeout":
            return f"the code ran for more than {limits.timeout_s:g} s"
        case "memory":
            return f"the code took more than {limits.memory_mb} MiB of memory"
        case "disk":
            return f"the code wrote more than {limits.work_mb} MiB of files"
        case "cpu":
            return f"the code used more than {limits.cpu_s} s of processor time"
        case "output":
            return "the code printed without end"
        case "exited":
            code = ran.exit_code or 0
            return f"the code ended its process {f'by signal {-code}' if code < 0 else f'with exit code {code}'}"
        case _:
            return "the sandbox was restarted"


def output(ran: Ran, limits: Limits, before: str | None) -> ToolOutput:
    """before: why the interpreter of the call before is gone, which the model must know, as its variables are too."""
    error, stderr = ran.error, ran.stderr
    if ran.end != "done":
        error = f"The interpreter was ended: {what_ended(ran, limits)}. Its variables and files are lost."
    notes = [] if before is None else [f"[a new interpreter, without earlier variables and files: {before}]"]
    notes += [f"[{ran.note}]"] if ran.note else []
    notes += [f"[{ran.left_out} more files were not returned: too many or too large]"] if ran.left_out else []
    if notes:
        stderr = "\n".join([*notes, stderr]) if stderr else "\n".join(notes)
    files = tuple(OutputFile(name, data, mime(name)) for name, data in ran.files)
    told = {
        "stdout": ran.stdout,
        "stderr": stderr,
        "output_files": {file.name: {"mime_type": file.mime, "size": len(file.data)} for file in files},
        "error": error,
        "ret": ran.ret,
    }
    return ToolOutput(msgspec.json.encode(told).decode(), files=files)


def mime(name: str) -> str:
    """By the name alone; a table of our own, as the system's differ from machine to machine."""
    return MIMES.get(name.rpartition(".")[2].lower(), "application/octet-stream")
