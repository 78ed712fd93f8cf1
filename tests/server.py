"""A really started server: `python -m jubal serve` in a process of its own, on a free port, with a home of its own."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests import leash
from tests.forking import Forked, Forker

FORKS = sys.platform == "linux"
START_TIMEOUT_S = 100.0
LEASHED = (sys.executable, "-P", leash.__file__)
"""Before the arguments of `jubal`, with `leash.held()` as standard input: it then ends with the tests."""


def jubal(*args: str, home: Path, timeout: float = 100, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end. What is set for Python itself it reads only at a start of its own."""
    if FORKS and not any(name.startswith("PYTHON") for name in env):
        return _forked_command(args, environment(home, **env), timeout)
    return subprocess.run(
        [sys.executable, "-m", "jubal", *args],
        env=environment(home, **env),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def _forked_command(args: Sequence[str], env: dict[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err, open(os.devnull) as nothing:
        process = _forker().start(["-m", "jubal", *args], env=env, stdin=nothing.fileno(), stdout=out, stderr=err)
        try:
            process.wait(timeout)
        except BaseException:
            process.kill()
            raise
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess(process.args, process.wait(), out.read(), err.read())


_forkers: list[Forker] = []
_forkers_lock = threading.Lock()


def _forker() -> Forker:
    """The one of this process, started by whoever asks first."""
    with _forkers_lock:
        if not _forkers:
            _forkers.append(Forker(environment(Path(os.devnull))))
        return _forkers[0]


def end_forker() -> None:
    with _forkers_lock:
        while _forkers:
            _forkers.pop().close()


def environment(home: Path, **env: str) -> dict[str, str]:
    """Without settings of somebody's own; and compiled sources are kept, which each start would otherwise compile again."""
    unset = ("JUBAL_", "XAI_", "OPENAI_", "PYTHONDONTWRITEBYTECODE")
    base = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
    return {**base, "JUBAL_HOME": str(home), "PYTHONUNBUFFERED": "1", **env}


@dataclass
class Server:
    home: Path
    process: subprocess.Popen[str] | Forked
    port: int
    key: str
    log: Path
    config: Path | None = None
    grpc_port: int = 0
    tls: bool = False
    output: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = "",
        headers: dict[str, str] | None = None,
        timeout: float = 100,
    ) -> tuple[int, dict[str, str], Any]:
        """(status, headers with lower-case names, body decoded from JSON where it is JSON). key: "" for the server's own."""
        connection = self._connection(timeout)
        sent = {"content-type": "application/json", **(headers or {})}
        if key is not None:
            sent["authorization"] = f"Bearer {key or self.key}"
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, raw, sent)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        names = {name.lower(): value for name, value in response.getheaders()}
        if names.get("content-type", "").startswith("application/json") and data:
            return response.status, names, json.loads(data)
        return response.status, names, data

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        if not self.tls:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=timeout, context=anyone)

    def chat(self, body: dict[str, Any] | None = None, **fields: Any) -> tuple[int, dict[str, str], Any]:
        whole = {
            "model": "grok-4",
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 16,
            **(body or {}),
            **fields,
        }
        return self.request("POST", "/v1/chat/completions", whole)

    def usage(self) -> list[dict[str, Any]]:
        done = jubal("usage", "--json", "--limit", "100000", home=self.home, **self._config_env())
        assert done.returncode == 0, done.stderr
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return rows

    def command(self, *args: str) -> Any:
        """A jubal command's JSON answer."""
        done = jubal(*args, "--json", home=self.home, **self._config_env())
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def _config_env(self) -> dict[str, str]:
        return {"JUBAL_CONFIG": str(self.config)} if self.config else {}

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)

    def stop(self, timeout: float = 60) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)


def start(
    home: Path,
    *,
    config: str | None = None,
    args: Sequence[str] = (),
    wait: bool = True,
    port: int = 0,
    grpc: bool = False,
    fresh: bool = False,
    **env: str,
) -> Server:
    """Starts a server; `wait`: until every engine is ready. config: text of a configuration file. grpc: on a free port.

    fresh: by a program's start of its own, for tests that look at its command line, its libraries or its start itself.
    """
    home.mkdir(parents=True, exist_ok=True)
    log = home / "serve.log"
    file = None
    if config is not None:
        file = home / "jubal.toml"
        file.write_text(config)
        args = ["--config", str(file), *args]
    grpc_port = free_port() if grpc else 0
    chosen = port or free_port()
    arguments = ["serve", "--port", str(chosen), "--grpc-port", str(grpc_port), *args]
    with log.open("a") as out:
        process = _start(arguments, environment(home, **env), out, fresh=fresh or not FORKS)
    server = Server(home, process, chosen, "", log, file, grpc_port, tls=config is not None and "tls_cert" in config)
    try:
        _until_answering(server, wait)
        server.key = (home / "first-key").read_text().strip() if (home / "first-key").exists() else ""
    except BaseException:
        server.kill()
        raise
    return server


def _start(arguments: list[str], env: dict[str, str], out: IO[str], *, fresh: bool) -> subprocess.Popen[str] | Forked:
    """On a leash, in a session of its own. What `leash.py` is to change before imports makes it fresh too."""
    if fresh or env.keys() & leash.CHANGES:
        return subprocess.Popen(
            [*LEASHED, *arguments],
            env=env,
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=leash.held(),
            text=True,
            start_new_session=True,
        )
    program = [leash.__file__, *arguments]
    return _forker().start(program, env=env, stdin=leash.held(), stdout=out, stderr=out, new_session=True)


def _until_answering(server: Server, ready: bool) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    last: object = None
    while time.monotonic() < until:
        assert server.process.poll() is None, f"the server ended:\n{server.log.read_text()[-3000:]}"
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, _, last = server.request("GET", "/health", key=None, timeout=10)
            if status == 200 or not ready:
                return
        time.sleep(0.02)
    raise AssertionError(f"not ready after {START_TIMEOUT_S} s: {last}\n{server.log.read_text()[-3000:]}")


PORTS = range(20_000, 32_000)
"""Below those that Linux and macOS give to whoever asks for any port: such a one can be somebody else's before its server starts."""
PORTS_EACH = 100
_ports: list[int] = []
_ports_lock = threading.Lock()
_ports_claim: list[IO[bytes]] = []
"""Keeps this process's ports its own, until it ends."""


def free_port() -> int:
    """A port where nobody listens, and which no other process of tests on this machine is given."""
    with _ports_lock:
        if not _ports_claim:
            _ports[:] = _claim_ports()
        for _ in _ports:
            _ports.append(port := _ports.pop(0))  # the one that was used longest ago
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise AssertionError("no port is free")


def _claim_ports() -> range:
    folder = Path(tempfile.gettempdir()) / f"jubal-test-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for first in PORTS[::PORTS_EACH]:
        claim = (folder / str(first)).open("wb")
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            claim.close()
            continue
        _ports_claim.append(claim)
        return range(first, first + PORTS_EACH)
    raise AssertionError("too many processes of tests")


@contextlib.contextmanager
def running(
    home: Path,
    *,
    config: str | None = None,
    args: Sequence[str] = (),
    grpc: bool = False,
    fresh: bool = False,
    **env: str,
) -> Iterator[Server]:
    """A server that is gone at the end, whatever happens."""
    server = start(home, config=config, args=args, grpc=grpc, fresh=fresh, **env)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGTERM)
            try:
                server.process.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.process.pid, signal.SIGKILL)


def to_upstream(url: str, **keys: object) -> str:
    """A configuration with grok-4 on an OpenAI-compatible server."""
    more = "".join(f"{name} = {json.dumps(value)}\n" for name, value in keys.items())
    return f'[engines.box]\nkind = "openai"\nbase_url = "{url}"\n{more}\n[models."grok-4"]\nengine = "box"\nupstream = "up"\n'


ECHO = '[engines.local]\nkind = "echo"\n'
