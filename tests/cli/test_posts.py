from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.cli.conftest import Cli
from tests.server import environment

DATA = Path(__file__).parent.parent / "tools/data"


def test_import_search_stats_clear(cli: Cli) -> None:
    done = cli("posts", "import", str(DATA / "posts.jsonl"), str(DATA / "x_archive"))
    assert done.exit_code == 0, done.output
    assert "10 posts added, 0 renewed, 0 unchanged." in done.stdout
    assert cli.home.stat().st_mode & 0o777 == 0o700
    (again,) = cli.json("posts", "import", str(DATA / "posts.jsonl"))
    assert (again["added"], again["unchanged"], again["bad"]) == (0, 10, 0)
    (post,) = cli.json("posts", "search", "from:orbit_desk -filter:replies")
    assert (post["id"], post["likes"], post["created_at"]) == ("1742000000000000003", 5400, "2024-01-02T01:48:59Z")
    shown = cli("posts", "search", "moon")
    assert (
        "@Orbit_Desk | 2024-01-02T01:48:59Z | 5,400 likes | https://x.com/Orbit_Desk/status/1742000000000000003"
        in shown.stdout
    )
    assert (
        cli.json("posts", "search", "insects in the garden in spring", "--semantic", "-n", "1")[0]["author"]
        == "mira_gardens"
    )
    assert [post["likes"] for post in cli.json("posts", "search", "from:tea_and_code OR from:orbit_desk", "--top")] == [
        5400,
        990,
        61,
        31,
    ]
    stats = cli.json("posts", "stats")
    assert (stats["posts"], stats["semantic"], stats["pending"], stats["newest"]) == (14, 14, 0, "2024-01-18T17:46:40Z")
    assert "2018-10-10T20:19:24Z" in cli("posts", "stats").stdout
    refused = cli("posts", "clear")
    assert (refused.exit_code, "--yes" in refused.stderr) == (1, True)
    assert cli("posts", "clear", "--yes").stdout == "Removed 14 posts.\n"
    assert cli("posts", "search", "moon").stdout == "No post fits.\n"


def test_bad_lines_are_told(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "mixed.jsonl"
    file.write_text('{"id": 1, "author": "a", "text": "fine"}\n{"id": 2, "text": "nobody\'s"}\n' + "junk\n" * 7)
    done = cli("posts", "import", str(file))
    assert done.exit_code == 0
    assert "1 post added" in done.stdout
    assert "mixed.jsonl line 2: `author`: expected a handle" in done.stderr
    assert "and 3 more" in done.stderr


def test_what_can_not_be_imported(cli: Cli, tmp_path: Path) -> None:
    done = cli("posts", "import", str(tmp_path / "none.jsonl"))
    assert (done.exit_code, "no such file" in done.stderr) == (1, True)
    (tmp_path / "junk.jsonl").write_text("junk\n")
    assert cli("posts", "import", str(tmp_path / "junk.jsonl")).exit_code == 1
    tweets = tmp_path / "tweets.js"
    tweets.write_bytes((DATA / "x_archive/data/tweets.js").read_bytes())
    assert "account.js" in cli("posts", "import", str(tweets)).stderr
    assert cli("posts", "import", str(tweets), "--author", "no handle").exit_code == 1
    assert cli("posts", "import", str(tweets), "--author", "@mira").exit_code == 0


def test_ctrl_c_keeps_what_is_there(tmp_path: Path) -> None:
    file = tmp_path / "many.jsonl"
    with file.open("w") as out:
        for index in range(200_000):
            out.write(json.dumps({"id": str(index), "author": "a", "text": f"post {index}"}) + "\n")
    home = tmp_path / "home"
    command = [sys.executable, "-m", "jubal", "posts", "import", "--no-vectors", str(file)]
    process = subprocess.Popen(command, env=environment(home), stderr=subprocess.PIPE, text=True)
    try:
        while not (home / "posts.db-wal").exists() or (home / "posts.db-wal").stat().st_size < 1 << 20:
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "run again to go on" in said
    stats = subprocess.run(
        [sys.executable, "-m", "jubal", "posts", "stats", "--json"],
        env=environment(home),
        capture_output=True,
        check=True,
    )
    assert 0 < json.loads(stats.stdout)["posts"] < 200_000
