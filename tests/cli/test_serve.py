"""`jubal serve` as a process of its own, on the echo engine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests import leash
from tests.cli.conftest import Cli
from tests.server import ECHO, LEASHED, environment, free_port

READY_S = 60


class Serving:
    """A started server and what it prints."""

    def __init__(self, home: Path, *args: str, config: str = ECHO, **env: str) -> None:
        home.mkdir(parents=True, exist_ok=True)
        file = home.parent / "jubal.toml"
        file.write_text(config)
        self.out = home.parent / "out"
        self.err = home.parent / "err"
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [*LEASHED, "serve", "--grpc-port", "0", "--config", str(file), *args],
                stdin=leash.held(),
                stdout=out,
                stderr=err,
                env=environment(home, **env),
                start_new_session=True,
            )

    def until(self, text: str) -> str:
        deadline = time.monotonic() + READY_S
        while text not in (shown := self.out.read_text()):
            assert self.process.poll() is None, f"{shown}\n{self.err.read_text()}"
            assert time.monotonic() < deadline, f"{shown}\n{self.err.read_text()}"
            time.sleep(0.02)
        return shown

    def stop(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def serving(home: Path, *args: str, config: str = ECHO, **env: str) -> Iterator[Serving]:
    server = Serving(home, *args, config=config, **env)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait(60)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "it's my home"


def curl_line(shown: str) -> str:
    (line,) = re.findall(r"^curl .*$", shown, re.MULTILINE)
    return line


def test_first_and_second_start(home: Path) -> None:
    file = home / "first-key"
    with serving(home, "--port", "0") as server:
        shown = server.until("ready in")
        (url,) = set(re.findall(r"http://127\.0\.0\.1:\d+/v1(?=$)", shown, re.MULTILINE))
        assert not url.endswith(":0/v1"), "the real port"
        assert re.search(r"^grok-4 +local +echo +256,000$", shown, re.MULTILINE)
        key = file.read_text().strip()
        assert file.stat().st_mode & 0o777 == 0o600
        assert shown.count(f"API key: {key}") == 1
        answer = subprocess.run(["sh", "-c", curl_line(shown)], capture_output=True, text=True, timeout=60)
        assert "capital of France" in json.loads(answer.stdout)["choices"][0]["message"]["content"]
        assert server.stop(signal.SIGINT) == 0
        assert server.out.read_text().endswith("Stopped.\n")
        assert server.err.read_text() == ""
    with serving(home, "--port", "0") as server:
        shown = server.until("ready in")
        assert key not in shown
        assert "first-key" in shown
        answer = subprocess.run(["sh", "-c", curl_line(shown)], capture_output=True, text=True, timeout=60)
        assert "capital of France" in answer.stdout, answer
        assert file.read_text().strip() == key
        assert [one["name"] for one in Cli(home).json("keys", "list")] == ["first"]
        assert server.stop(signal.SIGTERM) == 0


def test_a_first_key_that_works_no_more_is_not_offered(home: Path) -> None:
    with serving(home, "--port", "0") as server:
        server.until("ready in")
        server.stop()
    Cli(home).json("keys", "disable", "first")
    with serving(home, "--port", "0") as server:
        shown = server.until("ready in")
        assert "jubal keys create" in shown
        assert "$XAI_API_KEY" in curl_line(shown)


def test_a_new_store_gets_a_new_first_key(home: Path) -> None:
    home.mkdir()
    (home / "first-key").write_text("xai-of-an-earlier-store\n")
    with serving(home, "--port", "0") as server:
        shown = server.until("ready in")
        assert (home / "first-key").read_text().strip() in shown
        assert (home / "first-key").stat().st_mode & 0o777 == 0o600
        assert (home / "first-key.old").read_text() == "xai-of-an-earlier-store\n"


def test_no_first_key_where_there_is_a_key(home: Path) -> None:
    Cli(home).json("keys", "create", "--name", "mine")
    with serving(home, "--port", "0") as server:
        server.until("ready in")
        assert not (home / "first-key").exists()
        assert len(Cli(home).json("keys", "list")) == 1


def test_ctrl_c_leaves_no_child(home: Path) -> None:
    with serving(home, "--port", "0") as server:
        server.until("ready in")
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert server.stop() == 0
        assert not psutil.wait_procs(children, timeout=60)[1]


def test_a_port_that_is_taken(home: Path, tmp_path: Path) -> None:
    port = str(free_port())
    with serving(home, "--port", port) as server:
        server.until("ready in")
        file = tmp_path / "jubal.toml"
        done = Cli(tmp_path / "other home")("serve", "--config", str(file), "--port", port)
        assert done.exit_code == 1
        assert done.stderr.startswith(f"jubal: port {port} is already in use on 127.0.0.1")
        assert "--port" in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / "other home" / "jubal.db").exists()


def test_an_address_of_another_machine(cli: Cli) -> None:
    done = cli("serve", "--grpc-port", "0", "--host", "192.0.2.1", "--port", "0")
    assert done.exit_code == 1
    assert "192.0.2.1" in done.stderr
    assert done.stderr.count("\n") == 1


def test_open_to_other_machines(home: Path) -> None:
    with serving(home, "--port", "0", "--host", "0.0.0.0") as server:
        shown = server.until("ready in")
        assert "no TLS" in shown
        assert "http://127.0.0.1:" in shown


def test_an_engine_without_its_key_stops_the_start(home: Path, cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "jubal.toml"
    file.write_text('[engines.xai]\nkind = "xai"\n[models."grok-4"]\nengine = "xai"\n')
    done = cli("serve", "--grpc-port", "0", "--config", str(file), "--port", "0")
    assert done.exit_code == 2
    assert "engines.xai.api_key_env" in done.stderr
    assert not (cli.home / "first-key").exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ECHO, ("in memory", 'limits.url = "redis://')),
        (
            '[limits]\nurl = "redis://127.0.0.1:1"\n',
            ("the model `grok-4`", "the engine `local` of kind `llama`", "workers = 1"),
        ),
        (
            f'{ECHO}[engines.vectors]\nkind = "llama"\n[models.v]\nkind = "embedding"\nengine = "vectors"\n'
            '[limits]\nurl = "redis://127.0.0.1:1"\n',
            ("the model `v`", "the engine `vectors` of kind `llama`"),
        ),
        (
            f'{ECHO}[engines.spare]\nkind = "llama"\n[models."grok-4"]\nfallback = ["spare"]\n'
            '[limits]\nurl = "redis://127.0.0.1:1"\n',
            ("the model `grok-4`", "the engine `spare` of kind `llama`"),
        ),
    ],
)
def test_what_one_process_must_have_for_itself_keeps_several_from_starting(
    config: str, words: tuple[str, ...], cli: Cli, tmp_path: Path
) -> None:
    file = tmp_path / "jubal.toml"
    file.write_text(f"[server]\nworkers = 4\n{config}")
    done = cli("serve", "--grpc-port", "0", "--config", str(file), "--port", "0")
    assert done.exit_code == 2
    assert f"{file}: server.workers: " in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_an_engine_that_fails_is_not_called_ready(home: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + os.urandom(1000))
    config = f'[engines.local]\nkind = "llama"\nmodel = "{tmp_path / "broken.gguf"}"\n'
    with serving(home, "--port", "0", config=config) as server:
        shown = server.until("The engine local is not ready: ")
        assert "http://127.0.0.1:" in shown
        assert "ready in" not in shown
        assert "curl" not in shown
        assert server.stop() == 0


def test_a_model_file_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "jubal.toml"
    file.write_text('[engines.local]\nkind = "llama"\nmodel = "/nowhere/tiny.gguf"\n')
    done = cli("serve", "--grpc-port", "0", "--config", str(file), "--port", "0")
    assert done.exit_code == 1
    assert done.stderr.startswith("jubal: there is no model file `/nowhere/tiny.gguf`: let engines.local.model name")
    assert done.stderr.count("\n") == 1


def test_a_projector_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    file = tmp_path / "jubal.toml"
    file.write_text(
        f'[engines.local]\nkind = "llama"\nmodel = "{tmp_path / "tiny.gguf"}"\nmmproj = "/nowhere/eye.gguf"\n'
    )
    done = cli("serve", "--grpc-port", "0", "--config", str(file), "--port", "0")
    assert done.exit_code == 1
    assert done.stderr.startswith("jubal: there is no model file `/nowhere/eye.gguf`: let engines.local.mmproj name")


def test_the_log_has_one_event_a_line_and_no_key(home: Path) -> None:
    box = '[engines.box]\nkind = "openai"\nbase_url = "http://127.0.0.1:1/v1"\nretries = 0\n'
    config = f'{box}{ECHO}[models.grok-4]\nengine = "box"\nfallback = ["local"]\n'
    with serving(home, "--port", "0", "--log-level", "debug", config=config) as server:
        shown = server.until("ready in")
        subprocess.run(["sh", "-c", curl_line(shown)], capture_output=True, timeout=60)
        server.stop()
        events = [json.loads(line) for line in server.err.read_text().splitlines()]
        assert "engine failed, asking its fallback" in [event["event"] for event in events]
        assert all({"event", "level", "timestamp"} <= event.keys() for event in events)
        assert (home / "first-key").read_text().strip() not in server.err.read_text()


def test_a_reader_that_leaves_does_not_stop_it(home: Path) -> None:
    port = free_port()
    home.mkdir()
    (home / "jubal.toml").write_text(ECHO)
    args = [
        sys.executable,
        "-m",
        "jubal",
        "serve",
        "--grpc-port",
        "0",
        "--config",
        str(home / "jubal.toml"),
        "--port",
        str(port),
    ]
    process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(home))
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        deadline = time.monotonic() + READY_S
        while Cli(home)("chat", "-m", "hi", "--url", f"http://127.0.0.1:{port}/v1").stdout != "hi\n":
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr.read() == b""
    finally:
        process.kill()
        process.wait(60)
        process.stderr.close()
