from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from jubal import config
from jubal.cli import doctor
from tests.cli.conftest import Cli
from tests.fake_upstream import Behaviour, lists, refuses, upstream
from tests.server import Server, free_port

CHECKS = ["python", "platform", "config", "home", "disk", "model", "store", "port", "sandbox", "code"]


@pytest.fixture
def echo_config(tmp_path: Path) -> str:
    """Needs no model file, so that only what a test breaks is broken."""
    return write(tmp_path, f'[server]\nport = {free_port()}\n[engines.local]\nkind = "echo"\n')


def write(tmp_path: Path, text: str) -> str:
    file = tmp_path / "doctor.toml"
    file.write_text(text)
    return str(file)


def checks(cli: Cli, *args: str) -> tuple[int, dict[str, Any]]:
    done = cli("doctor", "--json", *args)
    told = json.loads(done.stdout)
    assert told["ok"] is (done.exit_code == 0)
    for check in told["checks"]:
        assert check["status"] in ("ok", "warn", "fail")
        assert (check["status"] == "ok") == ("mend" not in check), check
    return done.exit_code, {check["check"]: check for check in told["checks"]}


def test_all_is_well(cli: Cli, echo_config: str) -> None:
    code, found = checks(cli, "--config", echo_config)
    assert code == 0
    assert list(found) == CHECKS
    assert not cli.home.exists(), "it looks and makes nothing"


def test_for_people(cli: Cli, echo_config: str) -> None:
    lines = cli("doctor", "--config", echo_config).stdout.splitlines()
    assert [line.split()[1] for line in lines if not line.startswith(" ")] == CHECKS


def test_a_store_in_use(cli: Cli, echo_config: str) -> None:
    cli.json("keys", "create", "--name", "a")
    assert checks(cli, "--config", echo_config)[1]["store"]["status"] == "ok"
    assert [team["name"] for team in cli.json("teams", "list")] == ["default"], "what it wrote is taken back"


def test_a_tier_that_was_taken_out_of_the_configuration(cli: Cli, echo_config: str, tmp_path: Path) -> None:
    with_tier = tmp_path / "gold.toml"
    with_tier.write_text("[tiers.gold]\nrpm = 5\n")
    cli("teams", "create", "--name", "g", "--tier", "gold", "--config", str(with_tier))
    found = checks(cli, "--config", echo_config)[1]["store"]
    assert (found["status"], "`gold` (1)" in found["detail"]) == ("warn", True)


def test_in_a_home_that_is_a_file_no_store_is_made(cli: Cli) -> None:
    """The home failed, and the store was fine «will be made»."""
    cli.home.parent.mkdir(exist_ok=True)
    cli.home.write_text("")
    found = checks(cli)[1]
    assert (found["home"]["status"], found["store"]["status"]) == ("fail", "fail")


def test_a_damaged_store(cli: Cli, echo_config: str) -> None:
    cli.home.mkdir(mode=0o700)
    (cli.home / "jubal.db").write_bytes(b"no database" * 1000)
    code, found = checks(cli, "--config", echo_config)
    assert code == 1
    assert found["store"]["status"] == "fail"


def test_a_wrong_file(cli: Cli, tmp_path: Path) -> None:
    code, found = checks(cli, "--config", write(tmp_path, "[server]\nprt = 1\n"))
    assert code == 1
    assert "server.prt: unknown key" in found["config"]["detail"]


def test_an_open_home(cli: Cli, echo_config: str) -> None:
    cli.home.mkdir()
    cli.home.chmod(0o755)
    assert checks(cli, "--config", echo_config)[1]["home"]["mend"] == f"chmod go= '{cli.home}'"
    cli.home.chmod(0o700)
    (cli.home / "first-key").write_text("xai-a")
    (cli.home / "first-key").chmod(0o644)
    assert "first-key" in checks(cli, "--config", echo_config)[1]["home"]["mend"]


def test_a_home_that_is_a_file(cli: Cli, echo_config: str) -> None:
    cli.home.write_text("")
    code, found = checks(cli, "--config", echo_config)
    assert code == 1
    assert found["home"]["status"] == "fail"


def test_a_port_of_another_program(cli: Cli, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        text = f'[server]\nport = {taken.getsockname()[1]}\n[engines.local]\nkind = "echo"\n'
        taken.settimeout(0)
        code, found = checks(cli, "--config", write(tmp_path, text))
    assert code == 1
    assert "another program" in found["port"]["detail"]


def test_a_port_of_a_jubal(echo_server: Server, cli: Cli, tmp_path: Path) -> None:
    text = f'[server]\nport = {echo_server.port}\n[engines.local]\nkind = "echo"\n'
    code, found = checks(cli, "--config", write(tmp_path, text))
    assert code == 0
    assert found["port"]["status"] == "ok"
    assert "Jubal" in found["port"]["detail"]


def test_a_model_that_is_not_fetched_yet(cli: Cli, tmp_path: Path) -> None:
    code, found = checks(cli, "--config", write(tmp_path, f"[server]\nport = {free_port()}\n"))
    assert code == 0, "the first start fetches it"
    assert found["model"]["status"] == "warn"
    assert "jubal models pull smollm2-135m" in found["model"]["mend"]
    assert found["llama.cpp"]["status"] in ("ok", "warn")


def test_what_forbids_namespaces_is_named(tmp_path: Path) -> None:
    switch = tmp_path / "switch"
    switch.write_text("0\n")
    found = doctor.check_sandbox(((str(switch), "0", "turn it on"),), namespaces_work=lambda: False)
    assert (found.status, found.mend) == ("warn", "turn it on")
    switch.write_text("1\n")
    found = doctor.check_sandbox(((str(switch), "0", "turn it on"),), namespaces_work=lambda: False)
    assert "container" in found.mend


def test_disk(tmp_path: Path) -> None:
    assert doctor.check_disk(tmp_path / "not" / "there", free=lambda _: 50_000_000).status == "fail"
    assert doctor.check_disk(tmp_path, free=lambda _: 500_000_000).status == "warn"
    assert doctor.check_disk(tmp_path, free=lambda _: 5_000_000_000).status == "ok"


def test_a_port_that_may_be_any() -> None:
    assert doctor.check_port(config.Server(port=0)).status == "ok"


def test_code_execution_is_run_for_real_or_said_to_be_off() -> None:
    found = doctor.check_code_execution(config.CodeExecution())
    assert found.status in ("ok", "warn")
    assert (found.status == "warn") == bool(found.mend)
    if found.status == "ok":
        assert found.detail.startswith("bubblewrap: ready, 0 of 16 interpreters in use")
    assert "switched off" in doctor.check_code_execution(config.CodeExecution(enabled=False)).detail


UPSTREAM = '[server]\nport = {port}\n[engines.box]\nkind = "openai"\nbase_url = "{url}"\n[models."grok-4"]\nengine = "box"\nupstream = "up"\n'


@pytest.mark.parametrize(
    ("models", "status", "says"),
    [
        (lists("up", "other"), "ok", "answers"),
        (lists("other"), "warn", "does not list up"),
        (lists("up:latest"), "ok", "answers"),
        (refuses(401), "warn", "refused our key"),
        (refuses(503), "warn", "HTTP 503"),
        (None, "ok", "answers"),
    ],
)
def test_an_upstream(cli: Cli, tmp_path: Path, models: Behaviour | None, status: str, says: str) -> None:
    async def look() -> dict[str, Any]:
        async with upstream(refuses(500), models=models) as there:
            file = write(tmp_path, UPSTREAM.format(port=free_port(), url=there.url))
            return (await asyncio.to_thread(checks, cli, "--config", file))[1]["upstream"]

    found = asyncio.run(look())
    assert (found["status"], says in found["detail"]) == (status, True), found
    assert (status == "ok") or found["mend"]


def test_an_upstream_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    file = write(tmp_path, UPSTREAM.format(port=free_port(), url=f"http://127.0.0.1:{free_port()}/v1"))
    code, found = checks(cli, "--config", file)
    assert (code, found["upstream"]["status"]) == (0, "warn"), "it may come later"
    assert "can't be reached" in found["upstream"]["detail"]
