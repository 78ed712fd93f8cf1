"""`jubal tools`: the tools that the server runs for the model, from the terminal."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from jubal import config
from jubal.cli.common import CommandError, ConfigOption, JsonOption, print_json, print_table, printable, table

if TYPE_CHECKING:
    from jubal.agent.toolbox import Toolbox, Workbench
    from jubal.core.events import ServerToolResult
    from jubal.core.generation import FunctionTool
    from jubal.core.server_tools import ServerTool

app = typer.Typer(no_args_is_help=True, help="Server-side tools: what the model may use while it answers.")

MAIN_ARGUMENT: Final = {"web_search": "query", "x_keyword_search": "query", "code_execution": "code"}
"""What a text alone stands for, by the function that a kind's own name stands for."""
FIRST_FUNCTION: Final = {"web_search": "web_search", "x_search": "x_keyword_search", "code_execution": "code_execution"}

Url = Annotated[str | None, typer.Option("--url", help="For mcp: the address of the server.")]


@app.command("list")
def list_(url: Url = None, as_json: JsonOption = False, config_file: ConfigOption = None) -> None:
    """List the functions of every tool that is available here."""
    found = asyncio.run(_functions(config.load(config_file), url))
    if as_json:
        print_json([view(kind, function) for kind, function in found])
        return
    print_table(
        table("tool", "function", "arguments", "description"),
        [
            (kind, function.name, ", ".join(_arguments(function)), function.description.split(". ")[0][:100])
            for kind, function in found
        ],
    )


@app.command("try")
def try_(
    name: Annotated[
        str, typer.Argument(help="A tool, such as web_search, or one of its functions, such as open_page.")
    ],
    text: Annotated[
        str, typer.Argument(help="What to search, or the code to run; or all arguments as JSON. `-`: from stdin.")
    ],
    url: Url = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FOLDER", help="Where files that it makes are written to.")
    ] = None,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """Run a tool once, as the model would, and print what the model would read."""
    result = asyncio.run(_try(config.load(config_file), name, sys.stdin.read() if text == "-" else text, url))
    if as_json:
        print_json(result_view(result))
    else:
        print(printable(result.output))
    for file in result.files if save else ():
        assert save is not None
        save.mkdir(parents=True, exist_ok=True)
        (save / Path(file.name).name).write_bytes(file.data)
        print(f"Wrote {save / Path(file.name).name}", file=sys.stderr)
    if not result.ok:
        raise typer.Exit(1)


async def _functions(settings: config.Settings, url: str | None) -> list[tuple[str, FunctionTool]]:
    from jubal.app import make_toolbox

    found: list[tuple[str, FunctionTool]] = []
    box = make_toolbox(settings)
    try:
        for kind, wanted in _wishes(box, url).items():
            async with box.open(_asked(wanted)) as bench:
                found += [(kind, function) for function in bench.functions]
    finally:
        await box.close()
    return found


async def _try(settings: config.Settings, name: str, text: str, url: str | None) -> ServerToolResult:
    """Raises `CommandError` where no tool or function has the name."""
    from jubal.app import make_toolbox

    box = make_toolbox(settings)
    try:
        wishes = _wishes(box, url)
        for kind, wanted in wishes.items():
            if name in wishes and name != kind:
                continue
            async with box.open(_asked(wanted)) as bench:
                function = _named(bench, FIRST_FUNCTION.get(name, name))
                if function is not None:
                    return await _run(bench, function, text)
                if bench.problems and name == kind:
                    raise CommandError(" ".join(bench.problems))
    finally:
        await box.close()
    raise CommandError(f"There is no tool `{name}` here. `jubal tools list` shows what there is.")


def _named(bench: Workbench, name: str) -> FunctionTool | None:
    return next((function for function in bench.functions if function.name == name), None)


async def _run(bench: Workbench, function: FunctionTool, text: str) -> ServerToolResult:
    from jubal.core.events import ToolCall

    call = bench.call_of(ToolCall("call_1", function.name, _given(function, text)))
    assert call is not None
    async with aclosing(bench.run_all([call])) as results:
        async for result in results:
            return result
    raise AssertionError("a call has a result")


def _given(function: FunctionTool, text: str) -> str:
    """The arguments: JSON as it is, else the text as the function's main one."""
    if text.lstrip().startswith("{") and function.name != "code_execution":
        return text
    names = _arguments(function)
    main = MAIN_ARGUMENT.get(function.name) or (names[0] if names else "")
    return json.dumps({main: text})


def _arguments(function: FunctionTool) -> list[str]:
    schema = json.loads(function.parameters or "{}")
    return list(schema.get("properties", {}))


def _wishes(box: Toolbox, url: str | None) -> dict[str, ServerTool]:
    """What to open of each kind that is there."""
    from jubal.core.server_tools import CodeExecution, Mcp, WebSearch, XSearch

    wishes: dict[str, ServerTool] = {
        "web_search": WebSearch(),
        "x_search": XSearch(),
        "code_execution": CodeExecution(),
    }
    if url is not None:
        wishes["mcp"] = Mcp("mcp", url)
    return {kind: wanted for kind, wanted in wishes.items() if kind in box.families}


def _asked(wanted: ServerTool) -> Any:
    from jubal.core.generation import Generation, Tools

    return Generation("", (), tools=Tools(server=(wanted,)))


def view(kind: str, function: FunctionTool) -> dict[str, object]:
    """As JSON shows a function."""
    return {
        "tool": kind,
        "name": function.name,
        "description": function.description,
        "parameters": json.loads(function.parameters or "{}"),
    }


def result_view(result: ServerToolResult) -> dict[str, object]:
    """As JSON shows a result. duration_ms: milliseconds. data: of files, in base64."""
    return {
        "tool": result.kind,
        "function": result.name,
        "ok": result.ok,
        "output": result.output,
        "duration_ms": round(result.seconds * 1000, 1),
        "sources": [{"url": source.url, "title": source.title} for source in result.sources],
        "files": [
            {"name": file.name, "mime": file.mime, "data": base64.b64encode(file.data).decode()}
            for file in result.files
        ],
    }
