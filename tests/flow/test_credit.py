"""Money on really started servers: two gateways on one store, kill -9 under load, deferred answers, invoices."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from jubal.accounts.presence import BOOT_ID
from jubal.core.money import exact_usd
from tests.server import ECHO, Server, jubal, running, start

KILLS = int(os.environ.get("JUBAL_TEST_KILLS", "4"))
WORDS = 100
TEXT = "a " * (WORDS - 1) + "a"
ASKED = {"messages": [{"role": "user", "content": TEXT}], "max_tokens": WORDS}
COST = WORDS * 30_000 + WORDS * 150_000
PROMPT_CEILING = (len(TEXT) + 48 + 8) * 30_000
CEILING = PROMPT_CEILING + WORDS * 150_000
MORE = "[tiers.small]\nmonthly_credit_usd = 0.003\n[tiers.flat]\nrequest_usd = 0.03\n[tiers.capped]\npostpaid_cap_usd = 0.003\n"


@pytest.fixture(params=["sqlite", "postgres"])
def store_config(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A configuration whose store other gateways can share."""
    url = f"sqlite:///{tmp_path}/shared.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    return f'{ECHO}[store]\nurl = "{url}"\n{MORE}'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("credit") / "home", config=ECHO + MORE) as server:
        yield server


_names = iter(f"team {n}" for n in range(1000))


def make_team(server: Server, *args: str, ticks: int = 0) -> tuple[str, str]:
    """A team's name, and a key of it."""
    name = next(_names)
    made = server.command("teams", "create", "--name", name, *args)
    assert made["name"] == name
    if ticks:
        server.command("credits", "add", "--team", name, "--usd", exact_usd(ticks))
    return name, server.command("keys", "create", "--name", "k", "--team", name)["key"]


def ask(server: Server, key: str, **fields: object) -> tuple[int, dict[str, str], Any]:
    return server.request("POST", "/v1/chat/completions", {"model": "grok-4", **ASKED, **fields}, key=key)


def show(server: Server, team: str) -> dict[str, Any]:
    found: dict[str, Any] = server.command("credits", "show", "--team", team)
    return found


def in_order(server: Server) -> None:
    assert server.command("credits", "check") == {"ok": True, "mismatches": []}


def test_fifty_requests_on_credit_for_ten_through_two_gateways(store_config: str, tmp_path: Path) -> None:
    with running(tmp_path / "one", config=store_config) as one, running(tmp_path / "two", config=store_config) as two:
        credit = 9 * COST + CEILING
        team, key = make_team(one, "--prepaid", ticks=credit)
        assert show(one, team)["available_ticks"] == credit
        begin = threading.Barrier(50)

        def request(n: int) -> tuple[int, dict[str, str], Any]:
            begin.wait()
            return ask((one, two)[n % 2], key)

        with ThreadPoolExecutor(50) as threads:
            answers = list(threads.map(request, range(50)))
        good = [body for status, _, body in answers if status == 200]
        refused = [(headers, body["error"]) for status, headers, body in answers if status == 429]
        assert len(good) + len(refused) == 50
        assert 1 <= len(good) <= 10
        assert {body["usage"]["cost_in_usd_ticks"] for body in good} == {COST}
        for headers, error in refused:
            assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
            assert "jubal credits add" in error["message"]
            assert headers["x-should-retry"] == "false"
        after = show(one, team)
        assert after["balance_ticks"] == credit - len(good) * COST >= 0
        assert one.stop() == 0
        assert two.stop() == 0
        after = show(one, team)
        assert (after["reserved_ticks"], after["available_ticks"]) == (0, credit - len(good) * COST)
        rows = [row for row in one.usage() if row["cost_in_usd_ticks"]]
        assert sum(row["cost_in_usd_ticks"] for row in rows) == len(good) * COST
        in_order(one)


@pytest.mark.timeout(60 + 30 * KILLS)
def test_killed_again_and_again_under_load_the_books_balance(store_config: str, tmp_path: Path) -> None:
    """What clients got whole is charged, nothing is charged twice, and no credit stays in dead gateways' reserves."""
    home = tmp_path / "home"
    dice = random.Random(11)
    server = start(home, config=store_config)
    try:
        # Each gateway that is killed leaves an eighth of what was there set aside until its lease ends, in a minute.
        team, key = make_team(server, "--prepaid", ticks=10**15)
        other = server.command("keys", "create", "--name", "postpaid")["key"]
        got: dict[str, int] = {}
        for _ in range(KILLS):
            stop = threading.Event()

            def load(n: int, stop: threading.Event = stop, asked: Server = server) -> None:
                while not stop.is_set():
                    try:
                        status, headers, body = ask(asked, key if n % 2 else other, stream=n % 3 == 0)
                    except OSError:
                        return
                    except Exception:
                        continue
                    if status == 200 and isinstance(body, dict):
                        got[headers["x-request-id"]] = body["usage"]["cost_in_usd_ticks"]

            threads = [threading.Thread(target=load, args=(n,)) for n in range(8)]
            wanted, until = len(got) + 2, time.monotonic() + 60
            for thread in threads:
                thread.start()
            while len(got) < wanted:
                assert time.monotonic() < until
                time.sleep(0.01)
            time.sleep(dice.random() / 2)
            server.process.send_signal(signal.SIGKILL)
            server.process.wait(60)
            stop.set()
            for thread in threads:
                thread.join(60)
            in_order(server)
            server = start(home, config=store_config, port=server.port)
        assert ask(server, key)[0] == 200
        charged = {row["request_id"]: row["cost_in_usd_ticks"] for row in server.usage()}
        assert len(got) > KILLS
        assert got.items() <= charged.items()
        in_order(server)
        stuck = show(server, team)
        assert stuck["balance_ticks"] - stuck["reserved_ticks"] <= stuck["available_ticks"]
        assert server.stop() == 0
    finally:
        server.kill()


@pytest.mark.skipif(not BOOT_ID.exists(), reason="the kernel has no name for its boot, so nobody is sure of a death")
def test_gateways_that_are_killed_keep_nothing_from_their_team(store_config: str, tmp_path: Path) -> None:
    """What it had reserved is back before its lease could end, so the last of the credit pays for the last request."""
    home = tmp_path / "home"
    server = start(home, config=store_config)
    try:
        team, key = make_team(server, "--prepaid", ticks=4 * COST + CEILING)
        for left in range(4, -1, -1):
            assert ask(server, key)[0] == 200
            server.kill()
            server = start(home, config=store_config, port=server.port)
            until = time.monotonic() + 40
            while (found := show(server, team))["reserved_ticks"]:
                assert time.monotonic() < until, "it is there for as long as its lease"
                time.sleep(0.1)
            assert found["available_ticks"] == left * COST + CEILING - COST
        in_order(server)
        assert server.stop() == 0
        assert not list((home / "gateways").iterdir())
    finally:
        server.kill()


def test_an_answer_is_cut_to_what_credit_allows_or_refused(server: Server) -> None:
    team, key = make_team(server, "--prepaid")
    status, _, body = ask(server, key)
    assert (status, body["error"]["type"]) == (429, "insufficient_quota")
    server.command("credits", "add", "--team", team, "--usd", exact_usd(PROMPT_CEILING + 20 * 150_000))
    time.sleep(0.3)  # a refusal is believed for 0.2 s
    assert ask(server, key)[0] == 429, "the caller's own bound is not cut"
    status, _, body = ask(server, key, max_tokens=None)
    assert status == 200
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 20
    assert show(server, team)["balance_ticks"] == PROMPT_CEILING - WORDS * 30_000
    status, _, body = server.request(
        "POST", "/v1/chat/completions", {"model": "grok-4", **ASKED, "stream": True}, key=key
    )
    assert status == 429, "before the first byte of a stream too"
    in_order(server)


def test_a_team_without_limits_needs_no_credit_and_owes(server: Server) -> None:
    status, _, body = ask(server, server.key)
    assert status == 200
    default = show(server, "default")
    assert default["available_ticks"] is None
    assert default["owed_ticks"] >= body["usage"]["cost_in_usd_ticks"] == COST


def test_tiers(server: Server) -> None:
    for tier in ("small", "capped"):
        team, key = make_team(server, "--tier", tier)  # 30,000,000 ticks: one request costs 18,000,000
        assert ask(server, key)[0] == 200
        assert ask(server, key)[0] == 429
        found = show(server, team)
        assert (found["available_ticks"] + found["reserved_ticks"], found["spent_this_month_ticks"]) == (
            12_000_000,
            COST,
        )
    team, key = make_team(server, "--tier", "flat")
    assert ask(server, key)[2]["usage"]["cost_in_usd_ticks"] == 300_000_000
    assert server.command("teams", "set-tier", team, "public-beta")["tier"] == "public-beta"
    assert show(server, team)["grant_usd"] == "25.00"
    wrong = jubal("teams", "set-tier", team, "gold", home=server.home)
    assert (wrong.returncode, "public-beta" in wrong.stderr) == (1, True)
    in_order(server)


def test_a_tier_that_was_renamed_while_teams_have_it(tmp_path: Path) -> None:
    """They are refused, and say why; whoever runs the server is told at its start."""
    home = tmp_path / "home"
    with running(home, config=ECHO + MORE) as server:
        team, key = make_team(server, "--tier", "capped")
        assert ask(server, key)[0] == 200
    with running(home, config=ECHO + MORE.replace("tiers.capped", "tiers.renamed")) as server:
        status, _, body = ask(server, key)
        assert (status, body["error"]["code"]) == (403, "tier_unknown")
        assert "teams are of a tier that is not configured" in server.log.read_text()
        assert "capped" in server.log.read_text()
        assert show(server, team)["available_ticks"] == 0
        server.command("teams", "set-tier", team, "renamed")
        until = time.monotonic() + 60
        while ask(server, key)[0] == 403:
            assert time.monotonic() < until
            time.sleep(0.1)
        in_order(server)


def test_a_deferred_answer_is_checked_at_once_and_charged_once(server: Server) -> None:
    team, key = make_team(server, "--prepaid")
    assert ask(server, key, deferred=True)[0] == 429
    server.command("credits", "add", "--team", team, "--usd", exact_usd(CEILING))
    time.sleep(0.3)
    status, _, body = ask(server, key, deferred=True)
    assert status == 200
    path = f"/v1/chat/deferred-completion/{body['request_id']}"
    until = time.monotonic() + 60
    while (answer := server.request("GET", path, key=key))[0] == 202 and time.monotonic() < until:
        time.sleep(0.05)
    assert answer[0] == 200, answer
    assert show(server, team)["balance_ticks"] == CEILING - COST
    in_order(server)


def test_embeddings_are_held_and_charged_too(server: Server) -> None:
    team, key = make_team(server, "--prepaid")
    asked = {"model": "grok-embedding-small", "input": ["one two three"]}
    assert server.request("POST", "/v1/embeddings", asked, key=key)[0] == 429
    server.command("credits", "add", "--team", team, "--usd", "0.001")
    time.sleep(0.3)
    status, _, body = server.request("POST", "/v1/embeddings", asked, key=key)
    assert status == 200
    cost = body["usage"]["cost_in_usd_ticks"]
    assert cost == body["usage"]["prompt_tokens"] * 200
    assert show(server, team)["balance_ticks"] == 10_000_000 - cost
    in_order(server)


def test_own_prices_blocks_and_invoices(server: Server) -> None:
    team, key = make_team(server)
    server.command("prices", "set", "--team", team, "--model", "grok-4", "--output", "10", "--discount", "50")
    time.sleep(2.1)
    _, _, body = ask(server, key)
    assert body["usage"]["cost_in_usd_ticks"] == WORDS * 15_000 + WORDS * 50_000
    assert [one["model"] for one in server.command("prices", "list", "--team", team)] == ["grok-4"]
    [month] = server.command("invoices", "list", "--team", team)
    invoice = server.command("invoices", "show", "--team", team, "--month", month["month"])
    assert invoice["total_ticks"] == invoice["due_ticks"] == body["usage"]["cost_in_usd_ticks"]
    assert [(line["description"], line["ticks"]) for line in invoice["lines"]] == [
        ("input tokens", WORDS * 15_000),
        ("output tokens", WORDS * 50_000),
    ]
    for form, begins in (("csv", "team,month"), ("html", "<!doctype html>"), ("json", "{")):
        shown = jubal("invoices", "show", "--team", team, "--month", month["month"], "--format", form, home=server.home)
        assert shown.stdout.startswith(begins)
    assert server.command("teams", "block", team)["blocked"] is True
    time.sleep(2.1)
    assert ask(server, key)[0] == 403
    assert server.command("teams", "unblock", team)["blocked"] is False
    history = server.command("credits", "history", "--team", team, "--usage")
    assert [one["kind"] for one in history] == ["usage"]


def test_check_finds_what_is_wrong(tmp_path: Path) -> None:
    import sqlite3

    home = tmp_path / "home"
    made = jubal("credits", "add", "--team", "default", "--usd", "5", "--id", "order 1", "--json", home=home)
    assert json.loads(made.stdout)["balance_usd"] == "5.00"
    again = jubal("credits", "add", "--team", "default", "--usd", "5", "--id", "order 1", "--json", home=home)
    assert json.loads(again.stdout)["balance_usd"] == "5.00"
    assert jubal("credits", "check", home=home).returncode == 0
    with sqlite3.connect(home / "jubal.db") as db:
        db.execute("UPDATE balances SET prepaid_ticks = prepaid_ticks + 1")
    db.close()
    found = jubal("credits", "check", "--json", home=home)
    assert found.returncode == 1
    assert json.loads(found.stdout)["ok"] is False
    for wrong in ("-5", "0", "five", "0.00000000001"):
        refused = jubal("credits", "add", "--team", "default", f"--usd={wrong}", home=home)
        assert refused.returncode == 1
        assert refused.stderr.startswith("jubal: ")


def test_the_last_of_a_credit_on_the_real_model(real_server: Server) -> None:
    """By its bytes this prompt could cost more than there is; the model's own count of its tokens shows that it does not."""
    real_server.command("teams", "create", "--name", "nearly-empty", "--prepaid")
    real_server.command("credits", "add", "--team", "nearly-empty", "--usd", "0.0012")
    key = real_server.command("keys", "create", "--name", "k", "--team", "nearly-empty")["key"]
    words = "The quick brown fox jumps over the lazy dog. " * 22
    body = {"model": "grok-4", "messages": [{"role": "user", "content": words}], "max_tokens": 5}
    status, _, answer = real_server.request("POST", "/v1/chat/completions", body, key=key)
    assert status == 200, answer
    assert len(words) * 30_000 > 12_000_000 > answer["usage"]["cost_in_usd_ticks"] > 0
    body["messages"] = [{"role": "user", "content": words * 2}]
    status, _, answer = real_server.request("POST", "/v1/chat/completions", body, key=key)
    assert (status, answer["error"]["code"]) == (429, "insufficient_quota")
    assert real_server.command("credits", "check") == {"ok": True, "mismatches": []}
