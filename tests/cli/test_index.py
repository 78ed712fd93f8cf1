"""`jubal index`, against a site on loopback."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.cli.conftest import Cli
from tests.server import environment
from tests.tools.data.site import TOPICS, pages


class SlowSite(ThreadingHTTPServer):
    """The notebook. wait_s: before each page. asked: paths, in order."""

    def __init__(self) -> None:
        self.files = pages()
        self.wait_s = 0.0
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Pages)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Pages(BaseHTTPRequestHandler):
    server: SlowSite

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        time.sleep(self.server.wait_s)
        body = self.server.files.get(self.path, "").encode()
        self.send_response(200 if body else 404)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def served() -> Iterator[SlowSite]:
    with SlowSite() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_site_from_add_to_rm(cli: Cli, served: SlowSite) -> None:
    [told] = cli.json("index", "add", served.url, "--allow-private", "--delay", "0")
    assert (told["new"], told["complete"], told["resumed"]) == (len(TOPICS) + 3, True, False)  # no robots.txt here
    [row] = cli.json("index", "list")
    assert (row["location"], row["kind"], row["pages"], row["interrupted"]) == (
        served.url,
        "site",
        len(TOPICS) + 3,
        False,
    )
    assert served.url in cli("index", "list").stdout
    [hit] = cli.json("index", "search", "asyncio", "gather", "timeout", "-n", "1")
    assert hit["url"] == served.url + "python-asyncio.html"
    assert "1. Concurrency with asyncio" in cli("index", "search", "asyncio gather timeout").stdout
    del served.files["/udp.html"]
    [told] = cli.json("index", "update")
    assert (told["unchanged"], told["gone"]) == (len(TOPICS) + 2, 1)
    done = cli("index", "update", served.url)
    assert f"{served.url}: {len(TOPICS) + 2} unchanged" in done.stdout
    assert cli.json("index", "rm", served.url)["removed_pages"] == len(TOPICS) + 2
    assert cli.json("index", "list") == []
    assert "No results." in cli("index", "search", "asyncio").stdout


def test_a_folder(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "My Notes"
    folder.mkdir()
    (folder / "a.md").write_text("# Otters\n\nOtters hold hands.")
    assert "1 new" in cli("index", "add", str(folder)).stdout
    assert "1 unchanged" in cli("index", "add", str(folder)).stdout
    assert cli.json("index", "search", "otters")[0]["url"] == "index://my-notes/a.md"
    assert f"Removed {folder}, 1 page." in cli("index", "rm", str(folder)).stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["search", "x"], "the index is empty"),
        (["update"], "the index is empty"),
        (["add", "/nowhere/at/all"], "no such file or folder"),
        (["add", "ftp://a/"], "begins with http"),
        (["add", "."], ""),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    cli: Cli, args: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    done = cli("index", *args)
    assert done.exit_code == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_private_site_is_refused_and_leaves_no_trace(cli: Cli, served: SlowSite) -> None:
    done = cli("index", "add", served.url)
    assert done.exit_code == 1
    assert "--allow-private" in done.stderr
    assert served.asked == []
    assert cli.json("index", "list") == []
    assert "not in the index" in cli("index", "rm", served.url).stderr


def test_a_configured_host_needs_no_flag(cli: Cli, served: SlowSite, tmp_path: Path) -> None:
    config = tmp_path / "jubal.toml"
    config.write_text(f'[tools.web_search]\nallow_private_hosts = ["{served.url[7:-1]}"]\n')
    done = cli("index", "add", served.url, "--depth", "0", "--config", str(config))
    assert "1 new" in done.stdout


def test_ctrl_c_keeps_what_was_read_and_the_next_run_goes_on(cli: Cli, served: SlowSite) -> None:
    served.wait_s = 0.1
    command = [
        sys.executable,
        "-m",
        "jubal",
        "index",
        "add",
        served.url,
        "--allow-private",
        "--delay",
        "0",
        "--at-once",
        "1",
    ]
    with subprocess.Popen(
        command, env={**environment(cli.home)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        until = time.monotonic() + 60
        while len(served.asked) < 6 and time.monotonic() < until:
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        _, complaint = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "goes on from here" in complaint
    assert "Traceback" not in complaint
    [row] = json.loads(cli("index", "list", "--json").stdout)
    assert row["interrupted"]
    assert row["pages"] >= 3
    assert "interrupted" in cli("index", "list").stdout
    served.wait_s = 0.0
    [told] = cli.json("index", "add", served.url, "--allow-private", "--delay", "0")
    assert told["resumed"]
    assert told["new"] == len(TOPICS) + 3 - row["pages"]
