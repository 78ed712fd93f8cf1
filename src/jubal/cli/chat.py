"""`jubal chat`: a terminal chat that streams through the running server, as any client does."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
import typer

from jubal import catalogue, config
from jubal.cli.common import (
    FIRST_KEY,
    CommandError,
    ConfigOption,
    base_url,
    first_key,
    is_loopback,
    printable,
    trusting_own,
    write,
)

if TYPE_CHECKING:
    import ssl

    import aiohttp

CONNECT_TIMEOUT_S: Final = 10.0
SILENCE_S: Final = 600.0
"""Longest wait for the next piece: a long prompt on a slow machine takes minutes to read."""
ERROR_BYTES_MAX: Final = 64 << 10
HELP: Final = """\
/help         this list
/clear        forget what was said
/model NAME   go on with another model
/exit         leave, as Ctrl-D does
Ctrl-C        stop the answer
"""


def chat(
    model: Annotated[str | None, typer.Argument(help="Model name. Default: grok-4.", show_default=False)] = None,
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="Ask this, print the answer and leave.", show_default=False)
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="A system prompt.", show_default=False)] = None,
    url: Annotated[
        str | None,
        typer.Option("--url", help="Base URL with /v1. Default: the server of these settings.", show_default=False),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--key", help="API key. Default: $XAI_API_KEY, else the one made at the first start.", show_default=False
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Longest answer, in tokens.", show_default=False)
    ] = None,
    config_file: ConfigOption = None,
) -> None:
    """Chat with a model through the running server.

    With -m, or with text on standard input, it answers once: only the answer goes to standard output.
    """
    settings = config.load(config_file)
    talk = Talk(model or _default_model(settings), system, max_tokens)
    server = _server(settings, url, key)
    with asyncio.Runner() as runner:
        try:
            if message is None and sys.stdin.isatty():
                _converse(runner, server, talk)
            else:
                _once(runner, server, talk, sys.stdin.read() if message is None else message)
        finally:
            runner.run(server.close())


def _default_model(settings: config.Settings) -> str:
    names = [model.name for model in catalogue.build(settings) if not model.deprecated]
    if not names:
        raise CommandError("This configuration has no model. Name one: jubal chat MODEL")
    return names[0]


# -------------------------------------------------------------------------------------------------------- the server


@dataclass(slots=True)
class Talk:
    """What the next request says. max_tokens: None leaves the length to the server."""

    model: str
    system: str | None
    max_tokens: int | None
    said: list[dict[str, str]] = field(default_factory=list)

    def body(self) -> dict[str, Any]:
        opening = [{"role": "system", "content": self.system}] if self.system else []
        body: dict[str, Any] = {"model": self.model, "messages": [*opening, *self.said], "stream": True}
        if self.max_tokens is not None:
            body["max_tokens"] = self.max_tokens
        return body


@dataclass(slots=True)
class Piece:
    """kind "end": the answer is whole, and `text` is its finish reason."""

    kind: Literal["text", "thought", "end"]
    text: str


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _Error(msgspec.Struct, frozen=True):
    message: str = ""


class _Chunk(msgspec.Struct, frozen=True):
    """A frame of a stream, or an error body."""

    choices: tuple[_Choice, ...] = ()
    error: _Error | str | None = None


@dataclass(slots=True)
class Server:
    """A server to talk to. key_from: where the key was found, for the message that it is refused. ours: the server of these
    settings, which this machine can start. tls: what certificates to trust, where not the usual ones."""

    url: str
    key: str
    key_from: str
    ours: bool
    tls: ssl.SSLContext | None = None
    _session: aiohttp.ClientSession | None = None

    async def answer(self, talk: Talk) -> AsyncGenerator[Piece, None]:
        """The answer as it comes; the last piece is the end. Closing it closes the connection, which stops the work.

        Raises `CommandError`.
        """
        import aiohttp

        from jubal.core.errors import EngineBroken
        from jubal.engines.sse import SSEDecoder

        ended = False
        try:
            url = f"{self.url}/chat/completions"
            async with self._open().post(url, json=talk.body(), allow_redirects=False) as response:
                await self._check(response)
                decoder = SSEDecoder()
                async for data in response.content.iter_any():
                    for frame in decoder.feed(data):
                        for piece in _pieces(frame):
                            ended = ended or piece.kind == "end"
                            yield piece
        except aiohttp.ClientConnectorError as error:
            raise self._absent() from error
        except (aiohttp.ClientError, EngineBroken, msgspec.DecodeError) as error:
            raise CommandError(f"The answer from {self.url} broke off.") from error
        except TimeoutError as error:
            raise CommandError(f"The server at {self.url} is silent.") from error
        if not ended:
            raise CommandError(f"The answer from {self.url} broke off.")

    async def check(self) -> None:
        """Raises `CommandError` where the server is not there or refuses the key."""
        import aiohttp

        try:
            async with self._open().get(f"{self.url}/models", allow_redirects=False) as response:
                if response.status == 401:
                    await self._check(response)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._absent() from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers={"authorization": f"Bearer {self.key}"},
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                connector=aiohttp.TCPConnector(ssl=self.tls or True),
            )
        return self._session

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        if response.status == 200 and response.content_type == "text/event-stream":
            return
        body = await response.content.read(ERROR_BYTES_MAX)
        odd = f"it answered with HTTP {response.status} and no event stream. Is {self.url} a base URL?"
        said = _error_of(body) or odd
        hint = f" The key came from {self.key_from}; --key gives another." if response.status == 401 else ""
        raise CommandError(f"The server refuses: {printable(said)}{hint}")

    def _absent(self) -> CommandError:
        start = " Start one with `jubal serve`." if self.ours else ""
        return CommandError(f"No server answers at {self.url}.{start}")


def _pieces(frame: bytes) -> Iterator[Piece]:
    """Raises `CommandError` for an error frame, `msgspec.DecodeError` for what is no frame of a chat stream."""
    if frame == b"[DONE]":
        return
    chunk = msgspec.json.decode(frame, type=_Chunk)
    if chunk.error is not None:
        raise CommandError(f"The server failed: {printable(_words(chunk.error))}")
    for choice in chunk.choices:
        if choice.delta.reasoning_content:
            yield Piece("thought", choice.delta.reasoning_content)
        if choice.delta.content:
            yield Piece("text", choice.delta.content)
        if choice.finish_reason:
            yield Piece("end", choice.finish_reason)


def _error_of(body: bytes) -> str | None:
    with suppress(msgspec.DecodeError):
        error = msgspec.json.decode(body, type=_Chunk).error
        return None if error is None else _words(error)
    return None


def _words(error: _Error | str) -> str:
    return error if isinstance(error, str) else error.message


def _server(settings: config.Settings, url: str | None, key: str | None) -> Server:
    """Raises `CommandError` where there is no address or no key."""
    ours = url is None
    if url is None:
        if settings.server.port == 0:
            raise CommandError("The server of these settings takes any free port. Name its base URL with --url.")
        url = base_url(settings.server)
    elif not url.startswith(("http://", "https://")):
        raise CommandError(f"--url: expected a base URL such as http://127.0.0.1:8000/v1, got `{url}`")
    url = url.rstrip("/")
    # The first key is a secret of this machine's own server: it goes nowhere else.
    own = first_key(settings) if ours or is_loopback(urlsplit(url).hostname or "") else None
    for found, where in (
        (key, "--key"),
        (os.environ.get("XAI_API_KEY"), "$XAI_API_KEY"),
        (own, str(settings.home / FIRST_KEY)),
    ):
        if found and found.strip():
            return Server(url, found.strip(), where, ours, trusting_own(settings) if ours else None)
    raise CommandError(
        f"There is no API key: neither --key, nor $XAI_API_KEY, nor {settings.home / FIRST_KEY}. "
        "`jubal keys create --name chat` makes one."
    )


# ------------------------------------------------------------------------------------------------------- the terminal


def _once(runner: asyncio.Runner, server: Server, talk: Talk, text: str) -> None:
    if not text.strip():
        raise CommandError("There is nothing to ask. Give a text with -m or on standard input.")
    talk.said.append({"role": "user", "content": text})
    runner.run(_print_answer(server, talk))


async def _print_answer(server: Server, talk: Talk) -> None:
    """The answer's text alone, so that it can go into a file."""
    clean = printable if sys.stdout.isatty() else str
    last = "\n"
    reason = ""
    try:
        async with aclosing(server.answer(talk)) as pieces:
            async for piece in pieces:
                if piece.kind == "text":
                    write(clean(piece.text))
                    last = piece.text
                elif piece.kind == "end":
                    reason = piece.text
    finally:  # an error, or the shell's prompt, begins on a line of its own
        if not last.endswith("\n"):
            write("\n")
    if reason == "length":
        print("jubal: the answer was cut at its token limit.", file=sys.stderr)


def _converse(runner: asyncio.Runner, server: Server, talk: Talk) -> None:
    """Turns until the user leaves. An error ends a turn, not the talk."""
    with suppress(ImportError):
        import readline  # noqa: F401  line editing and history in input()
    runner.run(server.check())
    print(f"{talk.model} at {server.url}. /help lists commands, Ctrl-D leaves.")
    while True:
        try:
            text = input("\n> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\nCtrl-D or /exit leaves.")
            continue
        if text == "/exit":
            return
        if text.startswith("/"):
            print(_command(text, talk))
        elif text:
            _turn(runner, server, talk, text)


def _command(text: str, talk: Talk) -> str:
    """Does what a /command says; returns what to tell."""
    name, _, rest = text.partition(" ")
    match name, rest.strip():
        case "/help", "":
            return HELP.rstrip()
        case "/clear", "":
            talk.said.clear()
            return "Forgotten."
        case "/model", "":
            return talk.model
        case "/model", model:
            talk.model = model
            return f"Going on with {model}."
    return f"There is no command {name}. /help lists them."


def _style() -> tuple[str, str]:
    """What makes the terminal dim its text, and what ends that."""
    return ("\x1b[2m", "\x1b[0m") if sys.stdout.isatty() else ("", "")


def _turn(runner: asyncio.Runner, server: Server, talk: Talk, text: str) -> None:
    """One question and its answer. What was said before Ctrl-C stays in the talk; a question without any answer does not."""
    talk.said.append({"role": "user", "content": text})
    heard: list[str] = []
    _, plain = _style()
    try:
        runner.run(_show_answer(server, talk, heard))
    except KeyboardInterrupt:
        write(f"{plain}\n(stopped)\n")
    except CommandError as error:
        write(f"{plain}{chr(10) if heard else ''}{error}\n")
    if heard:
        talk.said.append({"role": "assistant", "content": "".join(heard)})
    else:
        talk.said.pop()


async def _show_answer(server: Server, talk: Talk, heard: list[str]) -> None:
    """Streams to the terminal, thinking dimmed; what is heard is collected even where it is cut."""
    dim, plain = _style()
    thinking = False
    async with aclosing(server.answer(talk)) as pieces:
        async for piece in pieces:
            if piece.kind == "end":
                note = "\n(cut at the token limit)" if piece.text == "length" else ""
                write(f"{plain if thinking else ''}{note}\n")
                thinking = False
                continue
            if thinking != (piece.kind == "thought"):
                write(f"{plain}\n\n" if thinking else dim)
                thinking = not thinking
            if piece.kind == "text":
                heard.append(piece.text)
            write(printable(piece.text))
