"""Server-side tools with the embedded model, which knows no tools by itself: it has to call them, they run, and an answer follows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jubal.core.server_tools import CodeExecution
from jubal.tools.code_execution.family import CodeExecutionFamily
from jubal.tools.code_execution.limits import Limits
from tests.conftest import home_with_models
from tests.flow.test_agentic import sandboxed  # noqa: F401  a fixture
from tests.server import Server, jubal, running
from tests.tools import sandboxes
from tests.tools.data.site import TOPICS

pytestmark = pytest.mark.timeout(300)

PAGES = ("dns", "raft", "floating-point")
FORMS = ("tool_call", "tool_response", "<tool", '"arguments"')
"""How calls and results are written for the model, which must not show in what it says."""


@pytest.fixture(scope="module")
def server(models_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("embedded")
    home = home_with_models(folder / "home", models_home)
    notes = folder / "notes"
    notes.mkdir()
    for name in PAGES:
        title, text = TOPICS[name]
        (notes / f"{name}.html").write_text(f"<title>{title}</title><main><h1>{title}</h1><p>{text}</p></main>")
    added = jubal("index", "add", str(notes), "--base-url", "http://notes.test/", home=home)
    assert added.returncode == 0, added.stderr
    with running(home, config='[tools.web_search]\nprovider = "local"\n') as made:
        yield made


def ask(server: Server, question: str, tool: str, **fields: Any) -> dict[str, Any]:
    body = {
        "model": "grok-4",
        "messages": [{"role": "user", "content": question}],
        "tools": [{"type": tool}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "temperature": 0,
        "max_tokens": 48,
        "max_turns": 1,
        "include": ["code_execution_call_output"],
        **fields,
    }
    status, _, got = server.request("POST", "/v1/chat/completions", body, timeout=240)
    assert status == 200, got
    answer: dict[str, Any] = got
    return answer


def said(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    assert text.strip()
    assert not any(form in text for form in FORMS), text
    return text


async def run(code: str) -> tuple[Any, ...]:
    """What comes of it in a sandbox of the tests' own."""
    limits = Limits()
    async with sandboxes.sandbox(limits) as made:
        session = CodeExecutionFamily(made, limits).open(CodeExecution())
        try:
            answer = await session.call("code_execution", json.dumps({"code": code}))
        finally:
            await session.close()
    return came_of(answer.text)


def came_of(told: str) -> tuple[Any, ...]:
    ran = json.loads(told)
    return ran["stdout"], ran["ret"], ran["error"]


async def test_it_runs_code(server: Server, sandboxed: None) -> None:  # noqa: F811
    """What a model so small writes hangs on how the processor rounds, and may be no Python at all: but that is what runs."""
    answer = ask(server, "Run this Python code: print(12 * 7)", "code_execution")
    [call] = answer["choices"][0]["message"]["server_side_tool_calls"]
    assert (call["function"]["name"], call["status"]) == ("code_execution", "completed")
    assert came_of(call["output"]) == await run(json.loads(call["function"]["arguments"])["code"])
    said(answer)
    assert answer["usage"]["server_side_tool_usage_details"]["code_interpreter_calls"] == 1


def test_it_searches(server: Server) -> None:
    answer = ask(server, 'Use the query "raft".', "web_search")
    [call] = answer["choices"][0]["message"]["server_side_tool_calls"]
    assert (call["type"], call["status"]) == ("web_search_call", "completed")
    query = json.loads(call["function"]["arguments"])["query"]
    found = jubal("index", "search", "--json", "--", query, home=server.home)
    wanted = {one["url"] for one in json.loads(found.stdout)}
    cited = set(answer.get("citations") or ())
    assert cited <= wanted, "whatever it looked for"
    assert bool(cited) == bool(wanted)
    said(answer)
    assert answer["usage"]["server_side_tool_usage_details"]["web_search_calls"] == 1


def test_it_answers_after_a_call_also_where_it_may_call_again(server: Server, sandboxed: None) -> None:  # noqa: F811
    answer = ask(server, "Run this Python code: print(12 * 7)", "code_execution", max_turns=3)
    calls = answer["choices"][0]["message"]["server_side_tool_calls"]
    assert 1 <= len(calls) <= 3
    said(answer)
