from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

from jubal.cli import fetching
from tests.cli.conftest import Cli
from tests.server import ECHO, environment

GGUF = b"GGUF" + b"\x03\x00\x00\x00" + b"\x00" * 16 + os.urandom(2_000_000)


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """Looks like a model file from far enough."""
    file = tmp_path / "tiny model.gguf"
    file.write_bytes(GGUF)
    return file


def test_what_the_defaults_serve(cli: Cli) -> None:
    models = {model["name"]: model for model in cli.json("models", "list")}
    grok = models["grok-4"]
    assert grok["aliases"] == ["grok-4-0709", "grok-4-latest"]
    assert (grok["engine"], grok["kind"], grok["installed"], grok["file"]) == ("local", "llama", False, None)
    assert grok["advertised_context"] == 256_000
    assert grok["context"] == 8192, "what the engine can really hold"
    assert models["grok-1"]["deprecated"] is True
    shown = cli("models", "list").stdout
    assert "grok-1 (deprecated)" in shown
    assert not cli.home.exists()


def test_what_a_configuration_serves(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "jubal.toml"
    file.write_text(
        '[engines.xai]\nkind = "xai"\n[engines.box]\nkind = "openai"\nbase_url = "http://127.0.0.1:9/v1"\ncontext = 5000\n'
        '[models."grok-4"]\nengine = "xai"\n[models.mine]\nengine = "box"\nupstream = "llama-3"\n'
    )
    models = {model["name"]: model for model in cli.json("models", "list", "--config", str(file))}
    assert list(models) == ["grok-4", "mine"]
    assert (models["mine"]["weights"], models["mine"]["context"], models["mine"]["installed"]) == (
        "llama-3",
        5000,
        None,
    )
    assert models["grok-4"]["weights"] == "grok-4", "listed without its key"


def test_pull_list_rm(cli: Cli, model_file: Path) -> None:
    done = cli("models", "pull", f"file:{model_file}")
    assert done.exit_code == 0, done.output
    path = cli.home / "models" / model_file.name
    assert done.stdout == f"{path}\n"
    assert path.read_bytes() == GGUF
    assert cli.home.stat().st_mode & 0o777 == 0o700
    (listed,) = cli.json("models", "list", "--files")
    assert (listed["path"], listed["size_bytes"], listed["engine"]) == (str(path), len(GGUF), None)
    assert listed["name"] in cli("models", "list", "--files").stdout
    assert cli("models", "rm", listed["name"]).exit_code == 0
    assert not path.exists()


def test_a_file_in_use_is_kept(cli: Cli, model_file: Path, tmp_path: Path) -> None:
    cli("models", "pull", f"file:{model_file}")
    config = tmp_path / "jubal.toml"
    config.write_text(f'[engines.big]\nkind = "llama"\nmodel = "{model_file.stem}"\n[models.m]\nengine = "big"\n')
    refused = cli("models", "rm", model_file.name, "--config", str(config))
    assert refused.exit_code == 1
    assert refused.stderr.startswith("jubal: the engine big uses")
    (model,) = cli.json("models", "list", "--config", str(config))
    assert (model["installed"], model["file"]) == (True, str(cli.home / "models" / model_file.name))
    assert model["context"] is None, "the file does not say"
    assert cli("models", "rm", model_file.name, "--config", str(config), "--force").exit_code == 0
    assert not (cli.home / "models" / model_file.name).exists()


def test_files_of_engines_that_no_model_names_yet_and_of_embedders_are_kept_too(
    cli: Cli, model_file: Path, tmp_path: Path
) -> None:
    cli("models", "pull", f"file:{model_file}")
    engine = f'[engines.vectors]\nkind = "llama"\nmodel = "{model_file.stem}"\n'
    config = tmp_path / "jubal.toml"
    for more in ("", '[models.v]\nkind = "embedding"\nengine = "vectors"\n'):
        config.write_text(engine + more)
        refused = cli("models", "rm", model_file.name, "--config", str(config))
        assert refused.exit_code == 1
        assert refused.stderr.startswith("jubal: the engine vectors uses")
    (model,) = cli.json("models", "list", "--config", str(config))
    assert (model["ability"], model["kind"], model["size_bytes"]) == ("embedding", "llama", len(GGUF))
    assert (model["loaded"], model["installed"]) == (None, True)


def test_a_hub_mirror_is_honoured(cli: Cli, slow_file: SlowFile) -> None:
    slow_file.go_on.set()
    mirror = slow_file.url.removesuffix("/slow.gguf")
    done = cli("models", "pull", "hf:owner/repo/sub/slow.gguf", HF_ENDPOINT=mirror)
    assert done.exit_code == 0, done.output
    assert slow_file.paths == ["/owner/repo/resolve/main/sub/slow.gguf"]
    assert (cli.home / "models" / "slow.gguf").read_bytes() == GGUF


@pytest.mark.parametrize("args", [["rm", "nothing"], ["pull", "nothing"], ["pull", "file:/nowhere/a.gguf"]])
def test_what_is_not_there(cli: Cli, args: list[str]) -> None:
    done = cli("models", *args)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("jubal: ")
    assert "Traceback" not in done.output


# ------------------------------------------------------------------------------------------------- downloads


class SlowFile:
    """One model file over HTTP that stops half-way until it may go on; ranges are honoured."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.half_way = Event()
        self.go_on = Event()
        self.ranges: list[str | None] = []
        self.paths: list[str] = []


@pytest.fixture
def slow_file() -> Iterator[SlowFile]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            asked = self.headers["range"]
            slow.ranges.append(asked)
            slow.paths.append(self.path)
            begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            self.send_response(206 if asked else 200)
            self.send_header("content-length", str(len(GGUF) - begin))
            self.send_header("etag", '"one"')
            self.send_header("accept-ranges", "bytes")
            if asked:
                self.send_header("content-range", f"bytes {begin}-{len(GGUF) - 1}/{len(GGUF)}")
            self.end_headers()
            half = len(GGUF) // 2
            try:
                self.wfile.write(GGUF[begin:half])
                self.wfile.flush()
                slow.half_way.set()
                slow.go_on.wait(60)
                self.wfile.write(GGUF[max(begin, half) :])
            except OSError:
                pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    slow = SlowFile(f"http://127.0.0.1:{server.server_port}/slow.gguf")
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield slow
    slow.go_on.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("command", ["pull", "serve"])
def test_an_interrupted_download_is_resumed(cli: Cli, slow_file: SlowFile, tmp_path: Path, command: str) -> None:
    """By Ctrl-C, in `jubal models pull` and at the first `jubal serve` alike."""
    config = tmp_path / "jubal.toml"
    config.write_text(f'[engines.local]\nkind = "llama"\nmodel = "{slow_file.url}"\n')
    args = {
        "pull": ["models", "pull", slow_file.url],
        "serve": ["serve", "--port", "0", "--grpc-port", "0", "--config", str(config)],
    }[command]
    with subprocess.Popen(
        [sys.executable, "-m", "jubal", *args],
        env=environment(cli.home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert slow_file.half_way.wait(60)
        part = cli.home / "models" / "slow.gguf.part"
        while not part.exists() or part.stat().st_size < len(GGUF) // 4:
            pass
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[0] == f"Fetching {slow_file.url}"
    assert err.splitlines()[-1] == f"jubal: fetching {slow_file.url} was interrupted; run again to resume."
    assert "Traceback" not in err
    slow_file.go_on.set()
    done = cli("models", "pull", slow_file.url)
    assert done.exit_code == 0, done.output
    assert (cli.home / "models" / "slow.gguf").read_bytes() == GGUF
    assert "2 of 2 MB" in done.stderr, "plain lines where there is no terminal"
    assert (slow_file.ranges[-1] or "").startswith("bytes=")


def test_a_line_of_progress_is_written_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C came between a line and its end, and what was said of it began in the middle of that line."""
    written: list[str] = []

    class Recorded(io.StringIO):
        def write(self, text: str) -> int:
            written.append(text)
            return len(text)

    monkeypatch.setattr(sys, "stderr", Recorded())
    with fetching._shown("x") as progress:
        for done in range(0, 20_000_001, 1_000_000):
            progress(done, 20_000_000)
    assert (written[0], written[-1]) == ("Fetching x\n", "  20 of 20 MB\n")
    assert all(text.endswith("\n") for text in written), written


def test_the_echo_engine_needs_no_file(cli: Cli, tmp_path: Path) -> None:
    config = tmp_path / "jubal.toml"
    config.write_text(ECHO)
    model = json.loads(cli("models", "list", "--json", "--config", str(config)).stdout)[0]
    assert (model["kind"], model["installed"], model["context"]) == ("echo", None, 1_000_000)
