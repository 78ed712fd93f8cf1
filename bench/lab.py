"""What both benches need: processes that surely end, their CPU time and memory, waiting, tables.

Loopback only. Every process is started here, in a group of its own, and stopped when the `Lab` closes, also after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

FOREIGN_CORES_MAX = 0.15  # a figure taken while other programs used more is taken again
RETRIES_MAX = 2
HERE = Path(__file__).resolve().parent
BIN = HERE / "bin"
PYTHON = sys.executable
JUBAL = str(Path(PYTHON).with_name("jubal"))

T = TypeVar("T")


class BenchError(Exception):
    """The bench can't run or an answer can't be trusted; the message says what to do."""


def build() -> None:
    """Compiles upstream.c and load.c where they are newer than their programs."""
    if sys.platform != "linux":
        raise BenchError("The gateway bench needs Linux (epoll, CPU affinity).")
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    BIN.mkdir(exist_ok=True)
    for name in ("upstream", "load"):
        source, program = HERE / f"{name}.c", BIN / name
        if program.exists() and program.stat().st_mtime > source.stat().st_mtime:
            continue
        if not compiler:
            raise BenchError(
                "No C compiler found (cc, gcc or clang, or $CC). The fake upstream and the load client are written in C:"
                " install one, on Debian and Ubuntu with `apt install gcc`."
            )
        subprocess.run([compiler, "-O2", "-o", str(program), str(source)], check=True)


def cpus() -> tuple[set[int], set[int]] | None:
    """CPUs for the gateway and for the harness; None: there is only one, so nothing is pinned."""
    usable = sorted(os.sched_getaffinity(0))
    return ({usable[0]}, {usable[1]}) if len(usable) > 1 else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_s(processes: Iterable[psutil.Process]) -> float:
    """CPU seconds used so far, that of children already gone included."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])
    return total


def rss_mb(processes: Iterable[psutil.Process]) -> float:
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / 1e6


def machine_cpu_s() -> float:
    """CPU seconds of everything on the machine, interrupts and stolen time included."""
    t = psutil.cpu_times()
    return t.user + t.nice + t.system + t.irq + t.softirq + t.steal


class Lab:
    """Owns the processes and the folder of one run."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="jubal-bench-"))
        self.home = self.folder / "home"  # Jubal's
        self.disturbances: list[float] = []  # cores that others used, per sample kept
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Lab:
        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: sys.exit("stopped"))
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._handlers:  # a second Ctrl-C must not leave processes behind
            signal.signal(number, signal.SIG_IGN)
        for process in self._running[::-1]:
            self.stop(process)
        shutil.rmtree(self.folder, ignore_errors=True)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def start(
        self, command: Sequence[str], log: str, on: set[int] | None = None, env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """A process in a group of its own; its output goes to `log` in the lab's folder."""
        with open(self.folder / log, "wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=self.folder,
                env={**os.environ, **(env or {})}, start_new_session=True,
                preexec_fn=(lambda: os.sched_setaffinity(0, on)) if on else None,
            )  # fmt: skip
        self._running.append(process)
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """SIGTERM, and SIGKILL for whatever of its tree is left 10 seconds later."""
        members = tree(process.pid)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        for member in members:
            with contextlib.suppress(psutil.NoSuchProcess):  # psutil knows a reused pid from the process it saw
                member.kill()
        process.wait(5)
        if process in self._running:
            self._running.remove(process)

    def own_cpu_s(self) -> float:
        """CPU seconds of this program, of the processes it runs and of those it has waited for."""
        return sum(os.times()[:4]) + cpu_s(member for process in self._running for member in tree(process.pid))

    def quietest(self, measure: Callable[[], T]) -> T:
        """What `measure` returns, taken again while other programs were busy; the least disturbed of at most three."""
        tries: list[tuple[float, T]] = []
        while len(tries) <= RETRIES_MAX:
            began, machine, own = time.monotonic(), machine_cpu_s(), self.own_cpu_s()
            taken = measure()
            foreign = (machine_cpu_s() - machine) - (self.own_cpu_s() - own)
            tries.append((foreign / (time.monotonic() - began), taken))
            if tries[-1][0] <= FOREIGN_CORES_MAX:
                break
            time.sleep(1)
        least, taken = min(tries, key=lambda attempt: attempt[0])
        self.disturbances.append(least)
        return taken

    def quietness(self) -> str:
        noisy = [cores for cores in self.disturbances if cores > FOREIGN_CORES_MAX]
        if not noisy:
            return f"None of the {len(self.disturbances)} samples was disturbed by other programs (over {FOREIGN_CORES_MAX} cores)."
        return (
            f"NOISY: during {len(noisy)} of {len(self.disturbances)} samples other programs used more than {FOREIGN_CORES_MAX}"
            f" cores, also when taken again (median {statistics.median(noisy):.2f}). Run it on an idle machine."
        )

    def log(self, name: str) -> str:
        return (self.folder / name).read_text(errors="replace")[-2000:]

    def wait(self, process: subprocess.Popen[bytes], url: str, log: str, timeout_s: float = 60) -> None:
        """Until `url` answers 200."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if process.poll() is not None:
                raise BenchError(f"{process.args[0]} ended with {process.returncode}:\n{self.log(log)}")
            with contextlib.suppress(OSError):
                if get(url, timeout_s=5):
                    return
            time.sleep(0.01)
        raise BenchError(f"{url} did not answer within {timeout_s} s:\n{self.log(log)}")

    def start_jubal(self, config: str, on: set[int] | None = None) -> tuple[subprocess.Popen[bytes], int]:
        """`jubal serve` as a user starts it: a configuration file and a home folder. Not waited for."""
        self.home.mkdir(exist_ok=True)
        port = free_port()
        file = self.folder / "jubal.toml"
        file.write_text(f"[server]\ngrpc_port = {free_port()}\n{config}")
        command = [JUBAL, "serve", "--config", str(file), "--port", str(port)]
        return self.start(command, "jubal.log", on, {"JUBAL_HOME": str(self.home)}), port

    def jubal(self, *command: str) -> Any:
        """What a command prints as JSON, on the store of `start_jubal`."""
        env = {**os.environ, "JUBAL_HOME": str(self.home)}
        whole = [JUBAL, *command, "--config", str(self.folder / "jubal.toml"), "--json"]
        done = subprocess.run(whole, env=env, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise BenchError(f"jubal {' '.join(command)} failed: {(done.stderr or done.stdout)[-2000:]}")
        return json.loads(done.stdout)

    def make_key(self, *options: str) -> str:
        """The secret of a new key."""
        return str(self.jubal("keys", "create", "--name", "bench", *options)["key"])


def get(url: str, timeout_s: float = 10) -> bytes:
    with urllib.request.urlopen(url, timeout=timeout_s) as answer:
        return answer.read()


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range over the rounds: `0.21 (0.20-0.24)`."""
    if not values:
        return "-"
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [" | ".join(head), " | ".join(["---"] + ["---:"] * (len(head) - 1))]
    return "\n".join(f"| {line} |" for line in [*lines, *(" | ".join(row) for row in rows)])


def verdict(value: float, limit: float, at_most: bool = True) -> str:
    return "pass" if (value <= limit if at_most else value >= limit) else "MISS"
