"""The pages of docs/howto about accounts: their commands are pasted into a shell as they stand, only the address is a test's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server import ECHO, Server, environment, running

PAGES = Path(__file__).parents[2] / "docs" / "howto"
ADDRESS = "http://127.0.0.1:8000"
NEEDED = ("bash", "curl", "jq")
MISSING = [name for name in NEEDED if shutil.which(name) is None]

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("pasted") / "home", config=ECHO) as server:
        yield server


def pasted(page: str, server: Server, folder: Path) -> str:
    """What all commands of a page print, one after the other in one shell, which ends at the first that fails."""
    text = (PAGES / page).read_text().replace(ADDRESS, server.url.removesuffix("/v1"))
    commands = re.findall(r"^```bash\n(.*?)^```$", text, re.S | re.M)
    assert len(commands) >= 5
    begin = 'set -euo pipefail\njubal() { "$PYTHON" -m jubal "$@"; }\ncurl() { command curl --fail-with-body "$@"; }\n'
    env = environment(server.home, PYTHON=sys.executable, JUBAL_CONFIG=str(server.config))
    done = subprocess.run(
        ["bash", "-c", begin + "".join(commands)],
        env={**env, "PATH": os.environ["PATH"]},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


def test_keys(server: Server, tmp_path: Path) -> None:
    printed = pasted("keys.md", server, tmp_path)
    for said in ('"scope":"SCOPE_TEAM"', '"tpm":"50000"', '"qpm":null', '"rpm":"600"'):
        assert said in printed
    assert re.search(r"^model +grok-4 .* and its own ", printed, re.M)
    assert re.search(r"^team +research +team +1000 ", printed, re.M)
    assert "keys.rotate" in printed
    assert (tmp_path / "usage.csv").read_text().startswith("request_id,")


def test_credit(server: Server, tmp_path: Path) -> None:
    printed = pasted("credit.md", server, tmp_path)
    assert "studio: purchase of 25.00 USD. Available: 25.00 USD.\n" in printed
    assert "studio: refund of 5.00 USD. Available: 20.00 USD.\n" in printed
    assert "studio: payment of 10.00 USD. Available: 10030.00 USD.\n" in printed, "prepaid, paid too much, and the cap"
    assert "input 2.50, output 12.00, 5 % off from 100.00 a month on, 12.5 % off from 1000.00 a month on" in printed
    assert "web_search 0.004 a call, 10 % off" in printed
    assert "The books are in order.\n" in printed
    assert (tmp_path / "invoice.csv").read_text().startswith("team,month,")
    assert (tmp_path / "invoice.html").read_text().startswith("<!doctype html>")


def test_the_tiers_are_those_that_are_built_in() -> None:
    from jubal.accounts.tiers import BUILT_IN

    table = re.findall(r"^\| `([\w-]+)` \|", (PAGES / "credit.md").read_text(), re.M)
    assert sorted(table) == sorted(tier.name for tier in BUILT_IN)
