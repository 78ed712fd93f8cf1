from __future__ import annotations

import csv
import json
import re

import pytest

from jubal.accounts import usage
from jubal.accounts.store import Store
from jubal.cli.usage import PARTS
from tests.accounts.conftest import usage_row
from tests.cli.conftest import Cli
from tests.server import Server


@pytest.fixture(scope="module")
def used(echo_server: Server) -> Cli:
    """A home whose server was asked three things by two keys."""
    cli = Cli(echo_server.home)
    other = cli.json("keys", "create", "--name", "other")
    for text, key in (("one", echo_server.key), ("one two", other["key"]), ("one two three", echo_server.key)):
        assert cli("chat", "-m", text, "--url", echo_server.url, "--key", key).stdout == f"{text}\n"
    return cli


def test_rows(used: Cli) -> None:
    rows = used.json("usage")
    assert [row["completion_tokens"] for row in rows] == [1, 2, 3], "newest last"
    row = rows[0]
    assert set(row) >= {
        "request_id", "model", "status", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens",
        "cost_in_usd_ticks", "key_id", "team_id", "engine", "endpoint", "stream", "latency_ms", "first_token_ms",
        "created", "error_code",
    }  # fmt: skip
    assert (row["model"], row["status"], row["engine"], row["endpoint"]) == ("grok-4", "ok", "local", "chat")
    assert (row["stream"], row["error_code"]) == (True, None)
    assert row["cost_in_usd_ticks"] == row["prompt_tokens"] * 30_000 + row["completion_tokens"] * 150_000
    assert 0 < row["first_token_ms"] <= row["latency_ms"] < 10_000


def test_the_newest(used: Cli) -> None:
    assert [row["completion_tokens"] for row in used.json("usage", "--limit", "2")] == [2, 3]


def test_of_a_key(used: Cli) -> None:
    (other,) = (key for key in used.json("keys", "list") if key["name"] == "other")
    for text in (other["id"], other["id"][:8], "other"):
        assert [row["completion_tokens"] for row in used.json("usage", "--key", text)] == [2]


def test_of_a_team(used: Cli) -> None:
    used.json("teams", "create", "--name", "idle")
    assert used.json("usage", "--team", "idle") == []
    assert len(used.json("usage", "--team", "default")) == 3


def test_of_what_is_not_there(used: Cli) -> None:
    for args in (["--key", "nobody"], ["--team", "nobody"]):
        done = used("usage", *args)
        assert done.exit_code == 1
        assert "nobody" in done.stderr


def test_for_people(used: Cli) -> None:
    shown = used("usage").stdout
    assert len(re.findall(r"grok-4 +ok", shown)) == 3
    assert re.search(r"\n3 requests: [\d,]+ prompt tokens \(0 cached\), 6 answer tokens, 0\.\d{6} USD\n$", shown)


def test_on_a_narrow_terminal_requests_are_told_apart(used: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids of one minute begin alike, and no command takes the beginning of one."""
    monkeypatch.setattr("jubal.cli.usage.short", lambda ident: ident[:8])  # as on such a terminal
    shown = used("usage").stdout
    assert all(row["request_id"] in shown for row in used.json("usage"))


def test_usage_outlives_its_key(used: Cli) -> None:
    (other,) = (key for key in used.json("keys", "list") if key["name"] == "other")
    used.json("keys", "delete", other["id"])
    assert [row["completion_tokens"] for row in used.json("usage", "--key", other["id"])] == [2]


def test_sums(used: Cli) -> None:
    rows = used.json("usage")
    for by in ("hour", "day", "key", "model", "team"):
        sums = used.json("usage", "--by", by)
        assert sum(one["requests"] for one in sums) == 3
        assert sum(one["cost_in_usd_ticks"] for one in sums) == sum(row["cost_in_usd_ticks"] for row in rows)
        assert all(one[by] for one in sums)
    assert len(used.json("usage", "--by", "day", "--by", "key")) == 2
    assert used.json("usage", "--by", "model", "--since", "2199-01-01") == []
    lines = used("usage", "--by", "model", "--csv").stdout.splitlines()
    assert lines[0].startswith("model,requests,failed")
    assert lines[1].startswith("grok-4,3,0")
    assert "grok-4" in used("usage", "--by", "model").stdout
    assert used("usage", "--by", "moon").exit_code == 1
    assert used("usage", "--by", "hour", "--by", "day").exit_code == 1
    assert used("usage", "--since", "7d").exit_code == 1, "goes with --by"
    assert used("usage", "--by", "day", "--limit", "3").exit_code == 1, "goes without"


def test_export(used: Cli) -> None:
    rows = used.json("usage")
    assert [json.loads(line) for line in used("usage", "export").stdout.splitlines()] == rows
    assert len(used("usage", "export", "--key", "first").stdout.splitlines()) == 2
    table = list(csv.DictReader(used("usage", "export", "--format", "csv").stdout.splitlines()))
    assert [row["request_id"] for row in table] == [row["request_id"] for row in rows]
    assert used("usage", "export", "--since", "2199-01-01").stdout == ""


def test_what_a_request_cost_is_told_in_parts(cli: Cli) -> None:
    """Each adds up to its cost, tools included, so that an export can be compared with an invoice."""
    parts = dict.fromkeys(PARTS, 10) | {"tools": '{"web_search": [2, 100], "mcp": [1, 0]}', "cost_in_usd_ticks": 150}
    cli("teams", "list")
    with Store.open(f"sqlite:///{cli.home}/jubal.db") as store:
        store.transact(usage.record, [usage_row("new", **parts), usage_row("old release")])
    new, old = cli.json("usage")
    assert new["tool_calls"] == 3
    assert new["tools"] == {"web_search": {"calls": 2, "ticks": 100}, "mcp": {"calls": 1, "ticks": 0}}
    assert sum(new[part] for part in PARTS) + 100 == new["cost_in_usd_ticks"]
    assert (old["tool_calls"], old["tools"], old["input_ticks"]) == (0, {}, None)
    table = list(csv.DictReader(cli("usage", "export", "--format", "csv").stdout.splitlines()))
    assert [json.loads(row["tools"]) for row in table] == [new["tools"], {}]
    assert [row["input_ticks"] for row in table] == ["10", ""]


def test_recount(used: Cli) -> None:
    before = used.json("usage", "--by", "hour", "--by", "key")
    assert used.json("usage", "recount")["sums"] == len(before)
    assert used.json("usage", "--by", "hour", "--by", "key") == before
