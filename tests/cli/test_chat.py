from __future__ import annotations

import itertools
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.cli.fake_server import PAUSE, FakeServer, delta, end, fake_server
from tests.server import Server, environment


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with fake_server() as server:
        yield server


# ------------------------------------------------------------------------------------------------- one question


def config_of(server: Server, tmp_path: Path) -> str:
    file = tmp_path / "chat.toml"
    file.write_text(f"[server]\nport = {server.port}\n")
    return str(file)


def test_a_real_server_with_its_first_key(echo_server: Server, tmp_path: Path) -> None:
    done = Cli(echo_server.home)("chat", "-m", "one two  three", "--config", config_of(echo_server, tmp_path))
    assert (done.exit_code, done.stdout, done.stderr) == (0, "one two  three\n", "")


def test_text_on_standard_input(echo_server: Server, tmp_path: Path) -> None:
    done = Cli(echo_server.home)("chat", "--config", config_of(echo_server, tmp_path), input="hi\nthere\n")
    assert (done.exit_code, done.stdout) == (0, "hi\nthere\n")


def test_a_model_that_is_not_there(echo_server: Server) -> None:
    done = Cli(echo_server.home)("chat", "grok-9", "-m", "hi", "--url", echo_server.url)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("jubal: The server refuses: The model `grok-9` does not exist.")
    assert done.stderr.count("\n") == 1


def test_a_key_that_is_refused(echo_server: Server) -> None:
    done = Cli(echo_server.home)("chat", "-m", "hi", "--url", echo_server.url, XAI_API_KEY="xai-of-another-server")
    assert done.exit_code == 1
    assert "The key came from $XAI_API_KEY; --key gives another." in done.stderr
    given = Cli(echo_server.home)(
        "chat", "-m", "hi", "--url", echo_server.url, "--key", echo_server.key, XAI_API_KEY="no"
    )
    assert given.stdout == "hi\n"


def test_an_answer_cut_at_the_limit(echo_server: Server) -> None:
    done = Cli(echo_server.home)("chat", "-m", "a b c", "--max-tokens", "2", "--url", echo_server.url)
    assert (done.exit_code, done.stdout) == (0, "a b\n")
    assert "token limit" in done.stderr


def test_no_server(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "chat.toml"
    file.write_text("[server]\nport = 1\n")
    done = cli("chat", "-m", "hi", "--key", "xai-a", "--config", str(file))
    assert done.exit_code == 1
    assert done.stderr == "jubal: No server answers at http://127.0.0.1:1/v1. Start one with `jubal serve`.\n"


def test_no_key(cli: Cli) -> None:
    done = cli("chat", "-m", "hi")
    assert done.exit_code == 1
    assert "There is no API key" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_first_key_goes_to_no_other_machine(echo_server: Server) -> None:
    done = Cli(echo_server.home)("chat", "-m", "hi", "--url", "http://192.0.2.1/v1")
    assert done.exit_code == 1
    assert "There is no API key" in done.stderr


def test_nothing_to_ask(cli: Cli) -> None:
    done = cli("chat", "--key", "xai-a", input=" \n")
    assert done.exit_code == 1
    assert "nothing to ask" in done.stderr


def test_what_is_sent(cli: Cli, fake: FakeServer) -> None:
    fake.pieces = [delta(content="ok"), end()]
    asked = ["chat", "grok-2", "-m", "hi", "--system", "Be brief.", "--url", fake.url + "/", "--key", "xai-a"]
    assert cli(*asked).stdout == "ok\n"
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert fake.asked == [{"model": "grok-2", "messages": messages, "stream": True}]
    assert fake.keys == ["Bearer xai-a"]
    cli(*asked, "--max-tokens", "7")
    assert fake.asked[1]["max_tokens"] == 7


def test_thinking_is_no_part_of_the_answer(cli: Cli, fake: FakeServer) -> None:
    fake.pieces = [delta(reasoning_content="hm"), delta(content="Par"), PAUSE, delta(content="is"), end()]
    assert cli("chat", "-m", "hi", "--url", fake.url, "--key", "a").stdout == "Paris\n"


def test_bytes_cut_anywhere(cli: Cli, fake: FakeServer) -> None:
    fake.pieces = [bytes([byte]) for byte in delta(content="né 🦙") + b": ping\n\n" + end()]
    assert cli("chat", "-m", "hi", "--url", fake.url, "--key", "a").stdout == "né 🦙\n"


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        (
            [delta(content="a"), b'data: {"error": {"message": "The engine died."}}\n\n'],
            "The server failed: The engine died.",
        ),
        ([delta(content="a")], "broke off"),
        ([], "broke off"),
        ([b"data: {nonsense\n\n"], "broke off"),
    ],
)
def test_a_stream_that_fails(cli: Cli, fake: FakeServer, pieces: list[bytes], said: str) -> None:
    fake.pieces = pieces
    done = cli("chat", "-m", "hi", "--url", fake.url, "--key", "a")
    assert done.exit_code == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout in ("", "a\n"), "what is said of it begins on a line of its own"


@pytest.mark.parametrize("body", [b"<html>", b'{"error": "no such page"}', b'{"error": {"message": "no such page"}}'])
def test_an_address_that_is_no_base_url(cli: Cli, fake: FakeServer, body: bytes) -> None:
    fake.status, fake.content_type, fake.pieces = 404, "text/html", [body]
    done = cli("chat", "-m", "hi", "--url", fake.url, "--key", "a")
    assert done.exit_code == 1
    assert ("no such page" if b"page" in body else "HTTP 404") in done.stderr


# ------------------------------------------------------------------------------------------------- the terminal


class Terminal:
    """`jubal chat` on a pseudo terminal."""

    def __init__(self, home: Path, *args: str) -> None:
        self._side, other = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jubal", "chat", *args],
            stdin=other,
            stdout=other,
            stderr=other,
            env=environment(home, TERM="dumb"),
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(other)
        self._seen = ""

    def type(self, text: str) -> None:
        os.write(self._side, text.encode())

    def shows(self, text: str, within_s: float) -> bool:
        """Whether `text` comes. It is left for `until` to take."""
        end = time.monotonic() + within_s
        while text not in self._seen and select.select([self._side], [], [], max(0, end - time.monotonic()))[0]:
            self._seen += os.read(self._side, 65536).decode()
        return text in self._seen

    def until(self, text: str, timeout_s: float = 60) -> str:
        """What was shown up to and with `text`."""
        deadline = time.monotonic() + timeout_s
        while text not in self._seen:
            ready, _, _ = select.select([self._side], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come: {self._seen!r}"
            try:
                self._seen += os.read(self._side, 65536).decode()
            except OSError:
                raise AssertionError(f"the chat ended without {text!r}: {self._seen!r}") from None
        shown, _, self._seen = self._seen.partition(text)
        return (shown + text).replace("\r\n", "\n")

    def close(self) -> None:
        self.process.kill()
        self.process.wait(60)
        os.close(self._side)


def _take_terminal() -> None:
    """Makes the pseudo terminal the one that Ctrl-C and Ctrl-D come from."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal(fake: FakeServer, tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path, "grok-4", "--url", fake.url, "--key", "a", "--system", "Be brief.")
    try:
        yield terminal
    finally:
        terminal.close()


def test_a_talk(fake: FakeServer, terminal: Terminal) -> None:
    fake.pieces = [delta(reasoning_content="hm"), delta(content="Hello\x1b[2J you"), end()]
    terminal.until("\n> ")
    terminal.type("hi\n")
    assert "\x1b[2mhm\x1b[0m\n\nHello[2J you\n" in terminal.until("\n> "), "thinking is dimmed, controls are taken out"
    terminal.type("again\n")
    terminal.until("\n> ")
    said = [(message["role"], message["content"]) for message in fake.asked[1]["messages"]]
    assert said == [
        ("system", "Be brief."),
        ("user", "hi"),
        ("assistant", "Hello\x1b[2J you"),
        ("user", "again"),
    ]
    terminal.type("/model grok-2\n")
    terminal.until("\n> ")
    terminal.type("/clear\n")
    terminal.until("\n> ")
    terminal.type("/help\n")
    assert "/model NAME" in terminal.until("\n> ")
    terminal.type("/nope\n")
    assert "There is no command /nope" in terminal.until("\n> ")
    terminal.type("new\n")
    terminal.until("\n> ")
    assert fake.asked[2]["model"] == "grok-2"
    assert [message["content"] for message in fake.asked[2]["messages"]] == ["Be brief.", "new"]
    terminal.type("\x04")
    assert terminal.process.wait(60) == 0


def test_ctrl_c_stops_the_answer_alone(fake: FakeServer, terminal: Terminal) -> None:
    terminal.until("\n> ")
    for _ in range(30):
        terminal.type("\x03")
        if terminal.shows("/exit leaves.", 2):
            break  # else it came too soon: readline shows its prompt a moment before it listens for signals
    terminal.until("/exit leaves.")
    terminal.until("\n> ")
    fake.pieces = itertools.chain([delta(content="word")], itertools.cycle([PAUSE, delta(content=" word")]))
    terminal.type("talk on\n")
    terminal.until("word word")
    terminal.type("\x03")
    terminal.until("(stopped)")
    assert fake.gone.wait(60), "the connection is closed, which stops the work"
    fake.pieces = [delta(content="fine"), end()]
    terminal.type("and now?\n")
    terminal.until("fine")
    roles = [message["role"] for message in fake.asked[1]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    assert fake.asked[1]["messages"][2]["content"].startswith("word word")
    terminal.type("/exit\n")
    assert terminal.process.wait(60) == 0


def test_an_error_ends_the_turn_alone(fake: FakeServer, terminal: Terminal) -> None:
    terminal.until("\n> ")
    fake.status, fake.content_type = 498, "application/json"
    fake.pieces = [json.dumps({"error": {"message": "Capacity exceeded."}}).encode()]
    terminal.type("hi\n")
    terminal.until("The server refuses: Capacity exceeded.\n".replace("\n", "\r\n"))
    fake.status, fake.content_type = 200, "text/event-stream"
    fake.pieces = [delta(content="fine"), end("length")]
    terminal.type("hi again\n")
    terminal.until("(cut at the token limit)")
    assert [message["content"] for message in fake.asked[1]["messages"]] == ["Be brief.", "hi again"]


def test_a_terminal_without_a_server(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "--url", "http://127.0.0.1:1/v1", "--key", "a")
    try:
        terminal.until("No server answers at http://127.0.0.1:1/v1.")
        assert terminal.process.wait(60) == 1
    finally:
        terminal.close()
