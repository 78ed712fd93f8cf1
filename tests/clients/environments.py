"""Client libraries in environments of their own, with exact versions, and scripts that run in them (README.md here).

An environment is made once, in `.cache/clients/`, under a name with the hash of what it is made of; then it is only used.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ENVS, SCRIPTS, GUARD = HERE / "envs", HERE / "scripts", HERE / "guard"
INSTALL_TIMEOUT_S = 240.0
RUN_TIMEOUT_S = 300.0
KINDS = (".txt", ".bare.txt", ".package.json")
MARKER = "complete"
SAID_MAX = 1_500
"""Characters of an installer's last words that a reason to skip repeats."""
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input")
NPM = (
    "install",
    "--no-package-lock",
    "--no-audit",
    "--no-fund",
    "--no-update-notifier",
    "--ignore-scripts",
    "--no-progress",
)
PASSED_ON = ("PATH", "LANG", "LC_ALL", "SYSTEMROOT", "TMPDIR")
"""Of the environment's variables: no key, no proxy and no setting of somebody's own account reaches a client."""


class NotInstalled(Exception):
    """A package could not be had. The message is the installer's."""


class ClientFailed(AssertionError):
    """A client's script ended with an error; the message holds what it wrote."""


@dataclass(frozen=True)
class Environment:
    """One that is there. node: its scripts are JavaScript."""

    name: str
    folder: Path
    node: bool

    def run(self, script: str, *arguments: str, home: Path, timeout_s: float = RUN_TIMEOUT_S, **variables: str) -> Any:
        """What `script` printed last, decoded from JSON. Raises `ClientFailed`.

        home: an empty folder for what the library wants to keep. variables: for the script.
        """
        written = self._written(script, [*self._command(script), *arguments], home, timeout_s, variables)
        try:
            return json.loads(written.strip().splitlines()[-1])
        except (ValueError, IndexError) as error:
            raise ClientFailed(f"{script}'s last line is no JSON:\n{written[-4000:]}") from error

    def run_text(
        self, name: str, program: str, *, home: Path, timeout_s: float = RUN_TIMEOUT_S, **variables: str
    ) -> str:
        """What a program wrote that is given as text. name: for messages, and of the file it is put into. Raises `ClientFailed`."""
        file = (self.folder / "node" if self.node else home) / name
        file.write_text(program)
        return self._written(name, self._command_for(file), home, timeout_s, variables)

    def run_shell(self, program: str, *, home: Path, timeout_s: float = RUN_TIMEOUT_S, **variables: str) -> str:
        """What shell commands wrote, those of this environment first on the PATH. Raises `ClientFailed`."""
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
        return self._written("sh", ["sh", "-euc", program], home, timeout_s, {**variables, "PATH": path})

    def _written(self, name: str, command: list[str], home: Path, timeout_s: float, variables: dict[str, str]) -> str:
        done = subprocess.run(
            command,
            env=self._variables(home, variables),
            cwd=home,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            raise ClientFailed(f"{name} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-6000:]}")
        return done.stdout

    def _command(self, script: str) -> list[str]:
        if not self.node:
            return self._command_for(SCRIPTS / script)
        place = self.folder / "node"  # where imports are looked for from; a script may import its neighbours
        for file in SCRIPTS.glob("*.mjs"):
            shutil.copyfile(file, place / file.name)
        return self._command_for(place / script)

    def _command_for(self, file: Path) -> list[str]:
        if self.node:
            return [str(self.folder / "bin" / "node"), "--require", str(GUARD / "loopback.cjs"), str(file)]
        return [str(self.folder / "bin" / "python"), "-P", str(file)]  # -P: it may be named as what it imports

    def _variables(self, home: Path, more: dict[str, str]) -> dict[str, str]:
        kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        return {
            **kept,
            "HOME": str(home),
            "PYTHONPATH": str(GUARD),
            "PYTHONUNBUFFERED": "1",
            "CLIENT_ENV": str(self.folder),
            **more,
        }


def files_of(name: str) -> list[Path]:
    """What an environment is made of, in the order of making: NAME.txt, and where they are there the other two."""
    return [file for kind in KINDS if (file := ENVS / f"{name}{kind}").exists()]


def names() -> list[str]:
    return sorted({file.name.partition(".")[0] for file in ENVS.iterdir()})


def environment(name: str, cache: Path, say: Callable[[str], None]) -> Environment:
    """The environment of this name, made first if need be. Raises `NotInstalled`."""
    files = files_of(name)
    if not files:
        raise FileNotFoundError(f"there is no {ENVS}/{name}.txt")
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"{name}-{_hash(files)}"
    node = any(file.name.endswith(".package.json") for file in files)
    with _alone(cache / f"{name}.lock"):
        if not (folder / MARKER).exists():
            say(f"installing {name} …")
            began = time.monotonic()
            _make(folder, files)
            say(f"installed {name} in {time.monotonic() - began:.0f} s")
    return Environment(name, folder, node)


def _make(folder: Path, files: list[Path]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    try:
        _run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
        for file in files:
            if file.name.endswith(".package.json"):
                _npm(folder, file)
            else:
                bare = ["--no-deps"] if file.name.endswith(".bare.txt") else []
                python = ["--python", str(folder / "bin" / "python")]
                _run([sys.executable, *PIP, *python, "install", "--no-compile", *bare, "-r", str(file)])
    except NotInstalled:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    (folder / MARKER).touch()


def _npm(folder: Path, package: Path) -> None:
    """With the Node that NAME.txt has brought, in `node/`."""
    place = folder / "node"
    place.mkdir()
    shutil.copyfile(package, place / "package.json")
    path = os.pathsep.join([str(folder / "bin"), os.environ.get("PATH", "")])
    _run([str(folder / "bin" / "npm"), *NPM], cwd=place, env={**os.environ, "PATH": path})


def _run(command: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    """Raises `NotInstalled`."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=env,
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise NotInstalled(f"not done after {INSTALL_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        raise NotInstalled((done.stderr or done.stdout).strip()[-SAID_MAX:])


def _hash(files: list[Path]) -> str:
    digest = hashlib.sha256(f"{sys.version_info[:2]} {platform.system()} {platform.machine()}".encode())
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Two runs of the tests at the same time make it once."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
