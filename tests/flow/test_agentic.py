"""Server-side tools end to end: a really started server, real tools, and a model that follows a script (tests/agentic.py)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from jubal.core.money import exact_usd
from tests.agentic import DIALECTS, QUESTION, Dialect, World, ask, calls, rows, text, world
from tests.fake_upstream import dies_after, piece
from tests.server import Server
from tests.tools import sandboxes

PER_PROMPT, PER_ANSWER, FEE = 30_000, 150_000, 50_000_000
"""Ticks: grok-4's price per token, and per call of web_search, x_search and code_execution."""
WEB = {"type": "web_search"}
SEARCH = ("web_search", {"query": "0.1 binary fraction"})
PAGE = "floating-point.html"

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("agentic")) as made:
        yield made


@pytest.fixture(scope="module")
def sandboxed() -> None:
    """Skips with the reason where no sandbox runs."""

    async def check() -> None:
        async with sandboxes.sandbox():
            pass

    asyncio.run(check())


each_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
each_way = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
CHAT, RESPONSES, MESSAGES, GRPC = DIALECTS


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.02)


def make_team(server: Server, name: str, ticks: int) -> str:
    """The key of a prepaid team."""
    server.command("teams", "create", "--name", name, "--prepaid")
    server.command("credits", "add", "--team", name, "--usd", exact_usd(ticks))
    key: str = server.command("keys", "create", "--name", "k", "--team", name)["key"]
    return key


# ---------------------------------------------------------------------------------------------- the whole way


@each_way
@each_dialect
def test_searches_opens_a_page_and_answers_with_citations(here: World, dialect: Dialect, stream: bool) -> None:
    page = f"{here.site.url}/{PAGE}"
    here.script(
        calls(SEARCH, prompt=100, completion=11),
        calls(("browse_page", {"url": page}), prompt=300, completion=12),
        text(
            "It has no exact binary fraction [1]. Use decimals for money [1]. [77] is nothing.",
            prompt=500,
            completion=25,
        ),
    )
    body = dialect.body(QUESTION, [{"type": "web_search", "allowed_domains": ["127.0.0.2"]}])
    answer = ask(here.server, dialect, body, stream=stream)

    assert [(one.name, one.ok) for one in answer.served] == [("web_search", True), ("open_page", True)]
    assert answer.mine == []
    searched, opened = here.told()
    assert page in searched
    assert "sixteen decimal digits" in opened
    number = next(
        line[1 : line.index("]")] for line in searched.splitlines() if line.startswith("[") and "Floating" in line
    )
    assert opened.startswith(f"[{number}]"), "the same page keeps its number"
    first = next(line for line in searched.splitlines() if line.startswith("http"))
    mark = f"[[1]]({first})"
    assert answer.text == f"It has no exact binary fraction {mark}. Use decimals for money {mark}. [77] is nothing."
    assert answer.cited == [first, first]
    if answer.spans is not None:
        assert [answer.text[start:end] for start, end, _ in answer.spans] == [mark, mark]
    addresses = [line for line in searched.splitlines() if line.startswith("http")]
    if answer.citations is not None:
        assert answer.citations == addresses
    usage = answer.usage
    if dialect is not MESSAGES:
        assert usage["num_sources_used"] == len(addresses)
    details = usage.get("server_side_tool_usage_details") or usage["server_tool_use"]
    assert (details["web_search_calls"], details["x_search_calls"], details["code_interpreter_calls"]) == (2, 0, 0)
    assert (
        usage.get("prompt_tokens", usage.get("input_tokens")),
        usage.get("completion_tokens", usage.get("output_tokens")),
    ) == (900, 48)
    assert answer.cost == 900 * PER_PROMPT + 48 * PER_ANSWER + 2 * FEE


def test_what_the_client_is_told_is_what_is_charged(here: World, sandboxed: None) -> None:
    """Answer, usage row, ledger: the same to the tick, fees of three tools included; a failed call and MCP are free."""
    credit, cost = 10**11, 4000 * PER_PROMPT + 36 * PER_ANSWER + 3 * FEE
    key = make_team(here.server, "exact", credit)
    here.script(
        calls(
            ("web_search", {"query": "raft leader election"}),
            ("x_keyword_search", {"query": "from:lena_baker sourdough"}),
            ("code_execution", {"code": "print(6 * 7)"}),
            ("box.add", {"a": 2, "b": 3}),
            ("open_page", {"url": f"{here.site.url}/no-such-page.html"}),
            prompt=1000,
            completion=33,
        ),
        text("Done.", prompt=3000, completion=3),
    )
    tools = [WEB, {"type": "x_search"}, {"type": "code_execution"}, here.mcp]
    for dialect in DIALECTS:
        answer = ask(here.server, dialect, dialect.body(QUESTION, tools), key=key)
        assert {one.name: one.ok for one in answer.served} == {
            "web_search": True,
            "x_keyword_search": True,
            "code_execution": True,
            "box.add": True,
            "open_page": False,
        }
        raft, post, code, added, missing = here.told()
        assert "majority vote" in raft
        assert "sourdough" in post
        assert json.loads(code)["stdout"] == "42\n"
        assert added == "5"
        assert missing.startswith("The call failed: ")
        details = answer.usage.get("server_side_tool_usage_details") or answer.usage["server_tool_use"]
        kinds = ("web_search", "x_search", "code_interpreter", "mcp")
        assert [details[f"{kind}_calls"] for kind in kinds] == [1, 1, 1, 1]
        assert answer.cost == cost
        row = _row(here.server, answer.request_id)
        assert (row["status"], row["prompt_tokens"], row["completion_tokens"]) == ("ok", 4000, 36)
        assert row["cost_in_usd_ticks"] == cost
        assert json.loads(row["tools"]) == {
            "web_search": [1, FEE],
            "x_search": [1, FEE],
            "code_execution": [1, FEE],
            "mcp": [1, 0],
        }
    assert here.server.command("credits", "show", "--team", "exact")["balance_ticks"] == credit - len(DIALECTS) * cost
    history = here.server.command("credits", "history", "--team", "exact", "--usage")
    assert [abs(one["ticks"]) for one in history if one["kind"] == "usage"] == [cost] * len(DIALECTS)
    assert here.server.command("credits", "check") == {"ok": True, "mismatches": []}


# ---------------------------------------------------------------------------------------------- functions of the client


@each_way
@each_dialect
def test_a_clients_call_ends_the_turn_and_its_follow_up_goes_on(here: World, dialect: Dialect, stream: bool) -> None:
    here.script(
        calls(SEARCH, ("save_note", {"what": "decimals"}), prompt=100, completion=10),
        text("Saved [1].", prompt=400, completion=4),
    )
    body = dialect.body(QUESTION, [WEB, dialect.function("save_note")])
    answer = ask(here.server, dialect, body, stream=stream)
    assert [(one.name, one.ok) for one in answer.served] == [("web_search", True)], "what ours found is told"
    [(_, name, arguments)] = answer.mine
    assert (name, arguments) == ("save_note", {"what": "decimals"})
    assert answer.reason in ("tool_calls", "tool_use", "completed")
    assert answer.cost == 100 * PER_PROMPT + 10 * PER_ANSWER + FEE
    assert len(here.there.bodies) == 1

    after = ask(here.server, dialect, dialect.follow_up(body, answer, "note 7"), stream=stream)
    assert after.text.startswith("Saved ")
    messages = here.there.bodies[-1]["messages"]
    assert any(one["role"] == "tool" and "note 7" in str(one["content"]) for one in messages)
    known = {one["id"] for message in messages for one in message.get("tool_calls", ())}
    answered = [one["tool_call_id"] for one in messages if one["role"] == "tool"]
    assert len(answered) == len(set(answered)), "no result twice"
    assert set(answered) == known, "a model must be given a result for each call in its history, and no other"


# ---------------------------------------------------------------------------------------------- choices and bounds


@each_dialect
def test_tool_choice(here: World, dialect: Dialect) -> None:
    here.script(calls(SEARCH), text("ok"))
    ask(here.server, dialect, dialect.body(QUESTION, [WEB], tool_choice="required"))
    assert [body["tool_choice"] for body in here.there.bodies] == ["required", "auto"], "demanded once"

    here.script(calls(("save_note", {"what": "x"})), text("ok"))
    tools = [WEB, dialect.function("save_note")]
    answer = ask(here.server, dialect, dialect.body(QUESTION, tools, tool_choice=dialect.choice("save_note")))
    assert here.there.bodies[0]["tool_choice"] == {"type": "function", "function": {"name": "save_note"}}
    assert [name for _, name, _ in answer.mine] == ["save_note"]

    here.script(text("ok"))
    answer = ask(here.server, dialect, dialect.body(QUESTION, [WEB], tool_choice="none"))
    assert answer.text == "ok"
    assert here.functions() == []
    assert answer.cost == 200 * PER_PROMPT + 20 * PER_ANSWER


def test_a_server_tool_can_be_demanded_by_its_type(here: World) -> None:
    for dialect in (CHAT, RESPONSES):
        here.script(calls(("open_page", {"url": f"{here.site.url}/udp.html"})), text("ok"))
        answer = ask(here.server, dialect, dialect.body(QUESTION, [WEB], tool_choice={"type": "web_search"}))
        assert [body["tool_choice"] for body in here.there.bodies] == ["required", "auto"]
        assert [one.name for one in answer.served] == ["open_page"]


@each_dialect
def test_turns_are_bounded_and_the_last_one_has_to_answer(here: World, dialect: Dialect) -> None:
    first, second, third = (calls(("web_search", {"query": f"raft {number}"})) for number in range(3))
    here.script(first, second, text("enough"))
    answer = ask(here.server, dialect, dialect.body(QUESTION, [WEB], max_turns=2))
    assert [body.get("tool_choice") for body in here.there.bodies] == ["auto", "auto", "none"]
    assert answer.text == "enough"
    assert len(answer.served) == 2
    here.script(first, second, third)  # for ever
    answer = ask(here.server, dialect, dialect.body(QUESTION, [WEB], max_turns=2))
    assert len(here.there.bodies) == 3
    assert len(answer.served) == 2
    assert answer.reason in ("length", "incomplete", "pause_turn")
    assert answer.cost == 300 * PER_PROMPT + 30 * PER_ANSWER + 2 * FEE


def test_the_calls_of_a_request_are_bounded(here: World) -> None:
    many = [("x_user_search", {"query": "lena"})] * 66
    here.script(calls(*many), text("ok"))
    answer = ask(here.server, CHAT, CHAT.body(QUESTION, [{"type": "x_search"}]))
    assert [one.ok for one in answer.served].count(False) == 2
    assert here.told()[-1] == "The call failed: this request may call no more tools. Answer with what you know."
    assert here.there.bodies[1]["tool_choice"] == "none"
    assert answer.usage["server_side_tool_usage_details"]["x_search_calls"] == 64


def test_a_call_that_can_not_be_read_is_told_to_the_model(here: World) -> None:
    here.script(calls(("web_search", '{"query": '), ("invented", {})), text("sorry"))
    answer = ask(here.server, CHAT, CHAT.body(QUESTION, [WEB]))
    assert answer.text == "sorry"
    assert [(one.name, one.ok) for one in answer.served] == [("web_search", False)]
    broken, unknown = here.told()
    assert "JSON object" in broken
    assert "no function `invented`" in unknown


def test_allowed_domains_hold_for_every_function(here: World) -> None:
    here.script(
        calls(
            SEARCH,
            ("open_page", {"url": f"{here.site.url}/{PAGE}"}),
            ("open_page_with_find", {"url": f"{here.site.url}/{PAGE}", "pattern": "decimals"}),
            ("open_page", {"url": f"{here.other.url}/{PAGE}"}),
        ),
        text("ok"),
    )
    asked_before = len(here.site.asked)
    answer = ask(here.server, CHAT, CHAT.body(QUESTION, [{**WEB, "filters": {"allowed_domains": ["127.0.0.3"]}}]))
    assert [one.ok for one in answer.served] == [True, False, False, True]
    assert answer.citations
    assert all(url.startswith(here.other.url) for url in answer.citations)
    assert len(here.site.asked) == asked_before, "nothing went there"


@pytest.mark.parametrize(
    ("search", "offered", "choice"),
    [
        ({"mode": "on", "sources": [{"type": "web"}]}, ["web_search", "open_page", "open_page_with_find"], "required"),
        ({"mode": "auto", "sources": [{"type": "web"}]}, ["web_search", "open_page", "open_page_with_find"], "auto"),
        ({"mode": "off"}, [], None),
    ],
    ids=["on", "auto", "off"],
)
def test_search_parameters(here: World, search: dict[str, Any], offered: list[str], choice: str | None) -> None:
    here.script(calls(("web_search", {"query": "raft", "num_results": 9})) if offered else text("ok"), text("ok"))
    search = {**search, "max_search_results": 2}
    answer = ask(here.server, CHAT, CHAT.body(QUESTION, [], search_parameters=search))
    assert here.functions() == offered
    assert here.there.bodies[0].get("tool_choice") == choice
    assert len(answer.citations or ()) == (2 if offered else 0)
    if offered:
        here.script(calls(SEARCH), text("ok"))
        answer = ask(
            here.server, CHAT, CHAT.body(QUESTION, [], search_parameters={**search, "return_citations": False})
        )
        assert answer.citations is None
        assert answer.usage["num_sources_used"] == 2


def test_outputs_are_told_on_include_only(here: World, sandboxed: None) -> None:
    def turns() -> None:
        here.script(calls(SEARCH, ("code_execution", {"code": "'seen' + str(1)"})), text("ok"))

    tools = [WEB, {"type": "code_interpreter"}]
    for stream in (False, True):
        turns()
        answer = ask(here.server, CHAT, CHAT.body(QUESTION, tools), stream=stream)
        assert [one.output for one in answer.served] == [None, None]
        turns()
        body = CHAT.body(QUESTION, tools, include=["code_execution_call_output"])
        answer = ask(here.server, CHAT, body, stream=stream)
        assert "seen1" in {one.name: one.output for one in answer.served}["code_execution"]
        turns()
        coded = [WEB, {"type": "code_execution"}]
        answer = ask(here.server, GRPC, GRPC.body(QUESTION, coded), stream=stream)
        assert [one.output for one in answer.served] == [None, None]
        turns()
        wanted = ["INCLUDE_OPTION_CODE_EXECUTION_CALL_OUTPUT", "INCLUDE_OPTION_WEB_SEARCH_CALL_OUTPUT"]
        answer = ask(here.server, GRPC, GRPC.body(QUESTION, coded, include=wanted), stream=stream)
        outputs = {one.name: one.output for one in answer.served}
        assert "seen1" in outputs["code_execution"]
        assert outputs["web_search"] is None, "only sealed"
        assert any(output.message.encrypted_content for output in answer.items)
        turns()
        answer = ask(here.server, RESPONSES, RESPONSES.body(QUESTION, tools), stream=stream)
        assert [one.output for one in answer.served] == [None, None]
        turns()
        include = ["web_search_call.action.sources", "code_interpreter_call.outputs"]
        answer = ask(here.server, RESPONSES, RESPONSES.body(QUESTION, tools, include=include), stream=stream)
        outputs = {one.name: one.output for one in answer.served}
        assert all(source["url"].startswith("http") for source in outputs["web_search"])
        assert "seen1" in outputs["code_execution"][0]["logs"]


def test_code_keeps_its_variables_and_its_plots_come_back(here: World, sandboxed: None) -> None:
    plot = "import matplotlib.pyplot as plt\nplt.plot([1, 2], [x, 4])"
    here.script(calls(("python", {"code": "x = 41 + 1"})), calls(("python", {"code": plot + "\nprint(x)"})), text("ok"))
    body = RESPONSES.body(QUESTION, [{"type": "code_interpreter"}], include=["code_interpreter_call.outputs"])
    answer = ask(here.server, RESPONSES, body)
    logs, image = answer.served[1].output
    assert json.loads(logs["logs"].partition("\n\nFile made")[0])["stdout"] == "42\n"
    assert image["url"].startswith("data:image/png;base64,")


# ---------------------------------------------------------------------------------------------- while it runs


@each_dialect
def test_a_call_is_told_before_its_result(here: World, dialect: Dialect) -> None:
    """And a quick tool's result before a slow one's end."""
    here.close_gate()
    here.entered.clear()
    here.script(calls(("box.gate", {}), ("box.add", {"a": 1, "b": 1})), text("ok"))
    stream = dialect.stream(here.server, dialect.body(QUESTION, [here.mcp]))
    begun = ended = 0
    events = []
    try:
        for event in stream:
            events.append(event)
            begun += dialect.begins(event)
            if dialect.ends(event):
                ended += dialect.ends(event)
                if ended == 1:
                    assert begun == 2
                    assert here.entered.wait(30)
                    here.open_gate()
        answer = dialect.folded(events)
    finally:
        here.open_gate()
        stream.close()
    assert [one.ok for one in answer.served] == [True, True]
    assert answer.text == "ok"
    assert here.told() == ["the gate is open", "2"], "results stand in the order of the calls"


@pytest.mark.parametrize("dialect", [CHAT, GRPC], ids=lambda dialect: dialect.name)
def test_a_client_that_leaves_stops_running_code_at_once(here: World, sandboxed: None, dialect: Dialect) -> None:
    root = here.server.process.pid
    code = "import ctypes, time\nctypes.CDLL(None).prctl(15, b'busy-bee', 0, 0, 0)\nwhile True: time.sleep(0.01)"
    here.script(calls(("code_execution", {"code": code}), prompt=70, completion=7))
    stream = dialect.stream(here.server, dialect.body(QUESTION, [{"type": "code_execution"}]))
    next(event for event in stream if dialect.begins(event))
    until(lambda: bool(_named(root, "busy-bee")))
    running = _named(root, "busy-bee")
    stream.close()
    until(lambda: sandboxes.gone(running))
    row = _row(here.server, stream.request_id)
    assert (row["status"], row["prompt_tokens"], row["completion_tokens"]) == ("cancelled", 70, 7)
    assert row["cost_in_usd_ticks"] == 70 * PER_PROMPT + 7 * PER_ANSWER, "no fee for a run that did not end"
    assert len(here.there.bodies) == 1


def _named(root: int, name: str) -> set[int]:
    """The processes below one that have this name."""
    found = set()
    for pid in sandboxes.below(root):
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).name() == name:
                found.add(pid)
    return found


def _row(server: Server, request_id: str) -> dict[str, Any]:
    until(lambda: bool(rows(server, request_id)))
    [row] = rows(server, request_id)
    return row


@pytest.mark.parametrize("dialect", [MESSAGES, GRPC], ids=lambda dialect: dialect.name)
def test_a_client_that_leaves_stops_a_remote_tool(here: World, dialect: Dialect) -> None:
    here.close_gate()
    here.entered.clear()
    here.script(calls(("box.gate", {}), prompt=70, completion=7))
    stream = dialect.stream(here.server, dialect.body(QUESTION, [here.mcp]))
    assert here.entered.wait(30)
    stream.close()
    try:
        assert _row(here.server, stream.request_id)["status"] == "cancelled"
    finally:
        here.open_gate()
    assert len(here.there.bodies) == 1


@each_way
@each_dialect
def test_an_upstream_that_dies_in_its_second_turn(here: World, dialect: Dialect, stream: bool) -> None:
    here.script(calls(SEARCH, prompt=70, completion=7), dies_after(piece("I fou")))
    body = dialect.body(QUESTION, [WEB])
    if stream:
        events = dialect.stream(here.server, body)
        answer, request_id = dialect.folded(list(events)), events.request_id
        events.close()
        assert answer.error["code" if "code" in answer.error else "type"] in (
            "engine_broken",
            "api_error",
            "server_error",
            "UNAVAILABLE",
        )
        assert answer.text == "I fou"
    else:
        reply = dialect.call(here.server, body)
        assert reply.error in ("502", "UNAVAILABLE"), reply
        request_id = reply.request_id
    row = _row(here.server, request_id)
    assert (row["status"], row["error_code"], row["cost_in_usd_ticks"]) == ("failed", "EngineBroken", 0)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (70, 8) if stream else row["prompt_tokens"] >= 70


# ---------------------------------------------------------------------------------------------- credit


def test_little_credit_is_not_overspent_by_agentic_requests(here: World) -> None:
    """docs/decisions/ledger.md: within four steps and eight calls a team's credit never goes below zero."""
    here.script(
        calls(*[("web_search", {"query": f"raft {number}"}) for number in range(2)], prompt=2000, completion=10),
        calls(("open_page", {"url": f"{here.site.url}/raft.html"}), prompt=4000, completion=10),
        text("Leaders are elected.", prompt=6000, completion=20),
    )
    cost = 12_000 * PER_PROMPT + 40 * PER_ANSWER + 3 * FEE
    credit = 10 * cost
    key = make_team(here.server, "little credit", credit)
    body = CHAT.body(QUESTION, [WEB], max_tokens=50)

    def request(_: int) -> tuple[int, Any]:
        status, _, got = here.server.request("POST", "/v1/chat/completions", body, key=key)
        return status, got

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(request, range(24)))
    good = [got for status, got in answers if status == 200]
    refused = [got for status, got in answers if status == 429]
    assert len(good) + len(refused) == 24
    assert 1 <= len(good) <= 10
    assert {got["usage"]["cost_in_usd_ticks"] for got in good} == {cost}
    assert {got["error"]["code"] for got in refused} == {"insufficient_quota"}
    after = here.server.command("credits", "show", "--team", "little credit")
    assert after["balance_ticks"] == credit - len(good) * cost >= 0
    assert here.server.command("credits", "check") == {"ok": True, "mismatches": []}


def test_more_steps_than_are_held_for_are_charged_in_full(here: World) -> None:
    here.script(
        *[calls(("web_search", {"query": f"raft {number}"}), prompt=20_000, completion=10) for number in range(7)],
        text("ok", prompt=20_000, completion=10),
    )
    key = make_team(here.server, "many steps", 2 * 10**10)
    answer = ask(here.server, CHAT, CHAT.body(QUESTION, [WEB], max_tokens=50), key=key)
    assert answer.cost == 160_000 * PER_PROMPT + 80 * PER_ANSWER + 7 * FEE
    assert here.server.command("credits", "show", "--team", "many steps")["balance_ticks"] == 2 * 10**10 - answer.cost
    assert here.server.command("credits", "check") == {"ok": True, "mismatches": []}


# ---------------------------------------------------------------------------------------------- a busy engine


def test_an_engine_with_one_place_serves_others_while_a_tool_runs(tmp_path: Path) -> None:
    """And nobody waits in vain once the tool's request was answered, or its client left."""
    with world(tmp_path, max_concurrency=1, max_queued=1) as here:
        here.script(calls(("box.gate", {})), text("after the gate"))
        slow = CHAT.stream(here.server, CHAT.body(QUESTION, [here.mcp]))
        left = CHAT.stream(here.server, CHAT.body(QUESTION, [here.mcp]))
        events = iter(slow)
        seen = [next(event for event in events if CHAT.begins(event))]
        next(event for event in left if CHAT.begins(event))
        here.script(text("at once"))
        for dialect in DIALECTS:
            assert ask(here.server, dialect, dialect.body(QUESTION, [])).text == "at once"
        left.close()
        here.script(text("after the gate"))
        here.open_gate()
        seen += list(events)
        slow.close()
        assert CHAT.folded(seen).text == "after the gate"
        until(lambda: _engine(here)["running"] == 0)
        assert ask(here.server, CHAT, CHAT.body(QUESTION, [])).text == "after the gate"
        assert (_engine(here)["running"], _engine(here)["queued"]) == (0, 0)


def _engine(here: World) -> dict[str, Any]:
    """What /health says of it."""
    _, _, told = here.server.request("GET", "/health", key=None)
    box: dict[str, Any] = told["engines"]["box"]
    return box
