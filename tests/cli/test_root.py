"""Exit codes and one-line errors, the same for every command."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.server import environment, jubal


def test_version(cli: Cli) -> None:
    assert re.fullmatch(r"jubal \d+\.\d+\.\d+\S*\n", cli("--version").stdout)


def test_help_lists_the_commands(cli: Cli) -> None:
    done = cli("--help")
    assert done.exit_code == 0
    for command in ("serve", "chat", "keys", "teams", "usage", "models", "doctor"):
        assert re.search(rf"^  {command} +\S", done.stdout, re.MULTILINE), command


@pytest.mark.parametrize(
    "args",
    [
        ["nope"],
        ["keys", "nope"],
        ["keys", "create"],
        ["keys", "create", "--name", "a", "--rpm", "0"],
        ["serve", "--port", "70000"],
        ["serve", "--port", "many"],
        ["usage", "--limit", "0"],
        ["usage", "--limit", "99999999999999999999"],
        ["audit", "--limit", "99999999999999999999"],
        ["credits", "history", "--team", "default", "--limit", "99999999999999999999"],
    ],
)
def test_wrong_flags(cli: Cli, args: list[str]) -> None:
    assert cli(*args).exit_code == 2


@pytest.mark.parametrize("command", ["keys list", "teams list", "usage", "serve", "chat -m hi", "models list"])
def test_a_wrong_configuration(cli: Cli, tmp_path: Path, command: str) -> None:
    """The message names the file, the key and what was expected."""
    file = tmp_path / "jubal.toml"
    file.write_text('[server]\nport = "many"\n')
    done = cli(*command.split(), "--config", str(file))
    assert done.exit_code == 2
    assert done.stderr == f"jubal: {file}: server.port: expected `int`, got `str`\n"
    assert not cli.home.exists()


def test_the_configuration_of_the_environment(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "jubal.toml"
    file.write_text("[sever]\n")
    done = cli("keys", "list", JUBAL_CONFIG=str(file))
    assert done.exit_code == 2
    assert "sever: unknown key" in done.stderr


def test_no_such_configuration(cli: Cli) -> None:
    done = cli("keys", "list", "--config", "nowhere.toml")
    assert done.exit_code == 2
    assert "nowhere.toml: there is no such file" in done.stderr


def test_a_store_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "jubal.toml"
    file.write_text('[store]\nurl = "postgresql://someone:secret@127.0.0.1:1/none"\n')
    done = cli("keys", "list", "--config", str(file))
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_home_that_cannot_be_made(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = cli("keys", "list", JUBAL_HOME=str(tmp_path / "file" / "home"))
    assert done.exit_code == 1
    assert done.stderr.startswith("jubal: ")
    assert done.stderr.count("\n") == 1


def test_a_home_that_is_a_file(cli: Cli, tmp_path: Path) -> None:
    """It said «File exists», and not what to do; doctor found that the store «will be made» in it."""
    (tmp_path / "file").write_text("")
    done = cli("keys", "list", JUBAL_HOME=str(tmp_path / "file"))
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "Set $JUBAL_HOME" in done.stderr


def test_a_fault_of_our_own_is_one_line(tmp_path: Path) -> None:
    code = """
import jubal.cli.root as root
def app(prog_name): raise KeyError("xai-secret")
root.app = app
from jubal.cli import main
main()
"""

    def run(**extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment(tmp_path) | extra, timeout=100
        )

    done = run()
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "fault of Jubal's own (KeyError)" in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" in run(JUBAL_TRACEBACK="1").stderr


@pytest.mark.parametrize("usd", ["1e5000", "-1e5000", "1e400", "900000000", "1.00000000000000000000000000001"])
def test_amounts_that_no_ledger_holds(cli: Cli, usd: str) -> None:
    """Some ended in a traceback, one was taken for 1 USD."""
    cli("teams", "create", "--name", "t")
    done = cli("credits", "add", "--team", "t", "--usd", usd)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("jubal: ")


def test_a_damaged_store_says_what_to_do(cli: Cli) -> None:
    assert cli("keys", "list").exit_code == 0
    (cli.home / "jubal.db").write_bytes(b"no database at all " * 100)
    done = cli("keys", "list")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "jubal doctor" in done.stderr


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as out:
        done = subprocess.run(
            [sys.executable, "-m", "jubal", "keys", "list"],
            stdout=out,
            stderr=subprocess.PIPE,
            env=environment(tmp_path),
            timeout=100,
        )
    assert (done.returncode, done.stderr) == (141, b"")


def test_ctrl_c_is_quiet(tmp_path: Path) -> None:
    fifo = tmp_path / "slow.toml"
    os.mkfifo(fifo)  # the command waits for its configuration
    with subprocess.Popen(
        [sys.executable, "-m", "jubal", "keys", "list", "--config", str(fifo)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(tmp_path),
    ) as process:
        with fifo.open("w"):  # opens when the command does
            time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"", b"")


def test_a_listing_does_not_load_the_server(tmp_path: Path) -> None:
    heavy = "('uvicorn', 'aiohttp', 'xllamacpp', 'alembic', 'rich.progress', 'jubal.app')"
    code = (
        "import sys\nfrom jubal.cli.root import app\nsys.argv[1:] = ['keys', 'list']\n"
        f"try: app()\nexcept SystemExit: print([name for name in {heavy} if name in sys.modules])"
    )
    jubal("keys", "create", "--name", "a", home=tmp_path)
    run = [sys.executable, "-c", code]
    assert subprocess.check_output(run, text=True, env=environment(tmp_path)).endswith("\n[]\n")


def test_a_fault_of_ours_shows_no_locals(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom jubal.cli.root import app\n@app.command('boom')\ndef boom() -> None:\n"
        "    secret = 'xai-' + 'secret'\n    raise RuntimeError('a bug')\nsys.argv[1:] = ['boom']\napp()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(tmp_path))
    assert done.returncode == 1
    assert done.stderr.endswith("RuntimeError: a bug\n")
    assert "xai-secret" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_name_that_the_output_can_not_say(tmp_path: Path, encoding: str) -> None:
    """As on a server whose locale is C, or where output goes through an old pipe."""
    jubal("teams", "create", "--name", "研究部", home=tmp_path)
    done = jubal("teams", "list", home=tmp_path, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\u7814\u7a76\u90e8" in done.stdout
    assert "default" in done.stdout
