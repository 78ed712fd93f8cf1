"""A certificate that is renewed beside a running server: new connections get it, open ones go on, broken files change nothing."""

from __future__ import annotations

import http.client
import os
import pty
import shutil
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.flow.test_security import make_certificate
from tests.flow.test_security_connections import PATIENCE_S
from tests.redis_server import redis_server
from tests.server import ECHO, LEASHED, Server, environment, free_port, running

CONFIG = ECHO + '[server]\ntls_cert = "live.pem"\ntls_key = "live.key"\n'


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    home = tmp_path / "home"
    home.mkdir()
    for name in ("one", "two"):
        make_certificate(home, name)
    install(home, "one")
    with running(home, config=CONFIG, grpc=True) as started:
        yield started


def install(home: Path, cert: str, key: str | None = None) -> None:
    """As tools for certificates do: each file is there whole, one after the other."""
    for source, name in ((f"{cert}.pem", "live.pem"), (f"{key or cert}.key", "live.key")):
        shutil.copy(home / source, home / f"{name}.new")
        (home / f"{name}.new").replace(home / name)


def trusting(home: Path, name: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(home / f"{name}.pem"))


def shown(server: Server, name: str, *, host: str | None = "127.0.0.1", version: ssl.TLSVersion | None = None) -> bool:
    """Whether a new connection is shown this certificate. host: None: the client names no server."""
    context = trusting(server.home, name)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if host is None:
        context.check_hostname = False
    try:
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as plain:
            with context.wrap_socket(plain, server_hostname=host) as connection:
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                return connection.recv(12) == b"HTTP/1.1 200"
    except ssl.SSLCertVerificationError:
        return False


def shown_by_grpc(server: Server, name: str) -> bool:
    roots = grpc.ssl_channel_credentials((server.home / f"{name}.pem").read_bytes())
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(f"127.0.0.1:{server.grpc_port}", roots, options) as channel:
        try:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            return False
        return True


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_renewed_certificate_is_shown_without_a_restart(server: Server) -> None:
    assert shown(server, "one")
    assert shown_by_grpc(server, "one")
    kept = http.client.HTTPSConnection("127.0.0.1", server.port, context=trusting(server.home, "one"))
    kept.request("GET", "/health")
    assert kept.getresponse().read()
    sock = kept.sock
    install(server.home, "two")
    until(lambda: shown(server, "two"))
    assert not shown(server, "one")
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        for host in ("127.0.0.1", None):
            assert shown(server, "two", host=host, version=version)
    assert shown_by_grpc(server, "two")
    assert not shown_by_grpc(server, "one")
    kept.request("GET", "/health")
    assert kept.getresponse().status == 200
    assert kept.sock is sock, "the open connection was dropped"
    kept.close()
    assert server.log.read_text().count("new connections get the new TLS certificate") == 1
    assert "PRIVATE" not in server.log.read_text()


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "another key": (lambda home: install(home, "two", "one"), "does not belong"),
    "a key with a passphrase": (lambda home: install(home, "two", "two.sealed"), "encrypted"),
    "half a file": (
        lambda home: (home / "live.pem").write_bytes((home / "two.pem").read_bytes()[:200]),
        "no certificate",
    ),
    "an empty file": (lambda home: (home / "live.key").write_bytes(b""), "not a PEM file"),
    "no file": (lambda home: (home / "live.pem").unlink(), "can't be read"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_told_once_and_the_last_certificate_goes_on(server: Server, case: str) -> None:
    break_it, said = BROKEN[case]
    break_it(server.home)
    server.process.send_signal(signal.SIGHUP)
    until(lambda: "is not used" in server.log.read_text())
    line = next(line for line in server.log.read_text().splitlines() if "is not used" in line)
    assert said in line
    assert shown(server, "one")
    assert shown_by_grpc(server, "one")
    install(server.home, "two")
    server.process.send_signal(signal.SIGHUP)
    until(lambda: shown(server, "two"))
    assert shown_by_grpc(server, "two")
    assert "PRIVATE" not in server.log.read_text()


def test_a_hangup_without_tls_and_without_a_terminal_is_no_end(tmp_path: Path) -> None:
    with running(tmp_path / "home", config=ECHO) as server:
        server.process.send_signal(signal.SIGHUP)
        assert server.chat()[0] == 200
        server.process.send_signal(signal.SIGHUP)
        assert server.stop() == 0


def test_a_terminal_that_is_closed_ends_its_server_in_order(tmp_path: Path) -> None:
    """Before, the signal just killed it: no answer was let end, no account settled."""
    (tmp_path / "jubal.toml").write_text(ECHO)
    port = free_port()
    pid, terminal = pty.fork()
    if pid == 0:
        arguments = [*LEASHED, "--program", LEASHED[0], "-m", "jubal", "serve", "--port", str(port), "--grpc-port", "0"]
        os.execve(LEASHED[0], arguments, environment(tmp_path / "home", JUBAL_CONFIG=str(tmp_path / "jubal.toml")))
    try:
        seen = b""
        while b"ready in" not in seen:
            seen += os.read(terminal, 4096)
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def test_all_workers_show_a_renewed_certificate(tmp_path: Path) -> None:
    """The parent, which was sent the signal, hands it on."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("one", "two"):
        make_certificate(home, name)
    install(home, "one")
    with redis_server(tmp_path / "redis") as redis:
        config = f'{CONFIG}workers = 2\n[limits]\nurl = "{redis.url}"\n'
        with running(home, config=config, grpc=True) as server:
            until(lambda: "ready in" in server.log.read_text())
            assert all(shown(server, "one") for _ in range(8))
            install(home, "two")
            server.process.send_signal(signal.SIGHUP)
            until(lambda: server.log.read_text().count("new connections get the new TLS certificate") == 2)
            assert all(shown(server, "two") for _ in range(8))
            assert shown_by_grpc(server, "two")
            assert server.stop() == 0
