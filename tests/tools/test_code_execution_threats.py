"""What hostile code tries (docs/decisions/sandbox.md lists the threats), each tried for real in the sandbox.

Rows run with a cgroup where this machine lets us make one, and once more watched by the supervisor where that matters. What is
tried on a network goes to listeners of the test's own on loopback, whose count of hits must stay 0.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import textwrap
from collections.abc import AsyncIterator
from dataclasses import replace

import psutil
import pytest
import pytest_asyncio

from jubal.tools.code_execution import cgroup, seccomp
from jubal.tools.code_execution.forks import ForkSandbox
from jubal.tools.code_execution.limits import Limits
from jubal.tools.code_execution.sandbox import Ran
from tests.tools.sandboxes import below, gone, interpreter, no_cgroup, sandbox, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMITS = Limits(timeout_s=60, libraries=("numpy",), memory_mb=256, output_bytes=4096)
OF_THE_PRELUDE = ("ctypes", "resource", "signal", "socket", "stat", "struct", "subprocess", "threading")
PRELUDE = """
import ctypes, errno, os, resource, signal, socket, stat, struct, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def tried(do, *args):
    try:
        do(*args)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    except Exception as error:
        return type(error).__name__
    return "went through"
def call(number, *args):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(arg) for arg in args])
    return errno.errorcode[ctypes.get_errno()] if result < 0 else "went through"
def fill(path):
    total = 0
    try:
        with open(path, "wb", buffering=0) as file:
            while True:
                total += file.write(b"a" * (1 << 20))
    except OSError as error:
        return total >> 20, errno.errorcode[error.errno]
"""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def walls() -> AsyncIterator[ForkSandbox]:
    async with sandbox(LIMITS) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def watched() -> AsyncIterator[ForkSandbox]:
    """Without a cgroup: the supervisor bounds the memory."""
    async with sandbox(LIMITS, groups=no_cgroup) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def hurried() -> AsyncIterator[ForkSandbox]:
    """For code that only a limit ends."""
    async with sandbox(replace(LIMITS, timeout_s=2.0, libraries=OF_THE_PRELUDE)) as made:
        yield made


async def attack(made: ForkSandbox, *codes: str) -> Ran:
    """The last of the pieces of code, after the prelude."""
    async with interpreter(made) as opened:
        for code in (PRELUDE, *codes):
            ran = await opened.run(code)
    return ran


REFUSED: list[tuple[str, str, str]] = [
    # files
    ("write to the system", "[tried(open, f, 'w') for f in ('/a', '/usr/a', '/etc/a', '/dev/a', '/opt/a', '/proc/a')], tried(open, '/root/a', 'w') in ('EROFS', 'ENOENT')", "(['EROFS', 'EROFS', 'EROFS', 'EROFS', 'EROFS', 'ENOENT'], True)"),
    ("host files", "[os.path.exists(f) for f in ('/etc/shadow', '/etc/passwd', '/sys', '/var', '/boot', '/srv', '/run', '/opt/sb/../../var')]", str([False] * 8)),
    ("homes", "[f for f in ('/home', '/root') if os.path.exists(f) and not any(p.startswith(f'{f}/') for p in (sys.base_prefix, *sys.path))]", "[]"),
    ("the interpreter's own files", "{tried(open, os.__file__, 'w'), tried(open, sys.executable, 'r+')} <= {'EROFS', 'EACCES'}", "True"),
    ("secrets of /proc", "[tried(open, f'/proc/{f}', 'rb') for f in ('kcore', 'sys/kernel/core_pattern', 'sysrq-trigger', 'kallsyms', 'cmdline', 'mounts2')]", str(["ENOENT"] * 6)),
    ("the root of pid 1", "sorted(os.listdir('/proc/1/root')) == sorted(os.listdir('/'))", "True"),
    ("setuid programs", "[subprocess.run([f, '--help'], capture_output=True).returncode == 0 and os.geteuid() == 0 for f in ('/usr/bin/su', '/usr/bin/mount') if os.path.exists(f)].count(True)", "0"),
    ("privileges", "[line.split()[1] for line in open('/proc/self/status') if line.startswith(('CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'NoNewPrivs', 'Seccomp:'))]", "['0000000000000000', '0000000000000000', '0000000000000000', '0000000000000000', '1', '2']"),
    ("being root", "(os.getuid() != 0, tried(os.setuid, 0), tried(os.setgid, 0), tried(os.setgroups, []), {*os.getgroups()} <= {os.getgid(), 65534})", "(True, 'EINVAL', 'EINVAL', 'EPERM', True)"),
    ("a way out by mounts", "[tried(os.chroot, '/work'), libc.mount(b'/', b'/tmp', None, 4096, None), libc.unshare(0x10000000), libc.setns(0, 0)]", "['EPERM', -1, -1, -1]"),
    ("devices", "[tried(os.mknod, 'd', stat.S_IFBLK | 0o600, os.makedev(8, 0)), tried(os.mknod, 'c', stat.S_IFCHR | 0o600, os.makedev(1, 1)), sorted(set(os.listdir('/dev')) - {'core', 'console'})]", "['EPERM', 'EPERM', ['fd', 'full', 'null', 'ptmx', 'pts', 'random', 'shm', 'stderr', 'stdin', 'stdout', 'tty', 'urandom', 'zero']]"),
    # sizes
    ("fill the disk", "fill('a'), fill('/tmp/a'), fill('/dev/shm/a')", "((64, 'EFBIG'), (64, 'EFBIG'), (16, 'ENOSPC'))"),
    ("fill the disk with many files", "[fill(f'{n}')[0] for n in range(3)][1:], open('/tmp/ok', 'w').write('a')", "([0, 0], 1)"),
    ("inodes", "n = 0\ntry:\n    while n < 100_000: open(f'{n}', 'w').close(); n += 1\nexcept OSError as e: found = (n < 4096, errno.errorcode[e.errno])\nfound", "(True, 'ENOSPC')"),
    ("a sparse file", "tried(lambda: open('big', 'wb').truncate(1 << 40))", "'EFBIG'"),
    ("limits can't be raised", "[tried(resource.setrlimit, getattr(resource, f'RLIMIT_{n}'), (resource.getrlimit(getattr(resource, f'RLIMIT_{n}'))[1] + 1,) * 2) for n in ('AS', 'NPROC', 'NOFILE', 'FSIZE', 'CORE', 'CPU')]", str(["ValueError"] * 6)),
    ("priorities", "[tried(os.nice, -5), tried(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1))]", "['EPERM', 'EPERM']"),
    ("open files", "opened = []\nwhile (r := tried(lambda: opened.append(open('/dev/null')))) == 'went through': pass\n(r, len(opened) < 128)", "('EMFILE', True)"),
    # memory
    ("memory: bytes", "tried(bytearray, 8 << 30)", "'MemoryError'"),
    ("memory: numpy", "import numpy\ntried(lambda: numpy.ones(1 << 30))[-11:]", "'MemoryError'"),
    ("memory: shared", "import mmap\ntried(mmap.mmap, -1, 8 << 30)", "'ENOMEM'"),
    ("memory: memfd", "tried(os.memfd_create, 'a')", "'EPERM'"),
    ("memory: locked", "libc.mlockall(3)", "-1"),
    ("thread bomb", "n = 0\nstop = threading.Event()\ntry:\n    while n < 1000: threading.Thread(target=stop.wait, daemon=True).start(); n += 1\nexcept RuntimeError: pass\nstop.set()\n10 < n < 32", "True"),
    # other processes
    ("sees itself only", "[p for p in os.listdir('/proc') if p.isdigit()], os.getpid(), os.getppid()", "(['1'], 1, 0)"),
    ("kill everybody", "tried(os.kill, -1, 9)", "'ESRCH'"),
    ("ptrace and foreign memory", "[libc.ptrace(16, 1, 0, 0), libc.process_vm_readv(1, 0, 0, 0, 0, 0), libc.process_vm_writev(1, 0, 0, 0, 0, 0)]", "[-1, -1, -1]"),
    ("shared memory of siblings", "[libc.shmget(1, 10, 0o1666), libc.semget(1, 1, 0o1666), libc.msgget(1, 0o1666)]", "[-1, -1, -1]"),
    ("outliving the supervisor", "libc.prctl(1, 0, 0, 0, 0), ctypes.get_errno() == errno.EPERM", "(-1, True)"),
    ("a terminal's input", "import fcntl\n[tried(fcntl.ioctl, 0, n, b'a') for n in (0x5412, 0x541c, 0x5423)]", "['EPERM', 'EPERM', 'EPERM']"),
    ("inherited files", "[os.readlink(f'/proc/self/fd/{n}').split(':')[0] for n in range(4)], [n for n in range(4, 128) if tried(os.fstat, n) == 'went through']", "(['/dev/null', 'pipe', 'pipe', 'socket'], [])"),
    ("children inherit 0, 1, 2", "subprocess.run(['/bin/sh', '-c', 'for n in 0 1 2 3 4 5 6 7 8 9; do [ -e /proc/self/fd/$n ] && printf $n; done'], close_fds=False, capture_output=True, text=True).stdout[:3], tried(os.fstat, 3), os.get_inheritable(3)", "('012', 'went through', False)"),
    # sockets
    ("kinds of sockets", "[tried(socket.socket, *kind) for kind in ((socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET6, socket.SOCK_DGRAM), (socket.AF_UNIX, socket.SOCK_STREAM), (socket.AF_NETLINK, socket.SOCK_RAW, 0), (socket.AF_PACKET, socket.SOCK_RAW, 0))]", str(["EPERM"] * 5)),
    ("names", "tried(socket.getaddrinfo, 'host.test', 80) != 'went through'", "True"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "expected"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
async def test_refused(walls: ForkSandbox, code: str, expected: str) -> None:
    ran = await attack(walls, code)
    assert (ran.end, ran.error, ran.ret) == ("done", "", expected)


async def test_the_environment_holds_no_secret(walls: ForkSandbox) -> None:
    os.environ["JUBAL_TEST_SECRET"] = "xai-secret-of-the-server"
    try:
        async with sandbox(LIMITS) as made:
            ran = await attack(
                made, "open('/proc/1/environ').read() + str(dict(os.environ)) + open('/proc/1/cmdline').read()"
            )
    finally:
        del os.environ["JUBAL_TEST_SECRET"]
    assert ran.end == "done"
    assert "LANG=C.UTF-8" in ran.ret
    assert "secret" not in ran.ret.lower()


async def test_nothing_reaches_a_listener_outside(walls: ForkSandbox) -> None:
    hits = []

    def hit(reader: object, writer: asyncio.StreamWriter) -> None:
        hits.append(writer)
        writer.close()

    class Resolver(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, address: object) -> None:
            hits.append(data)

    server = await asyncio.start_server(hit, "127.0.0.1", 0)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Resolver, ("127.0.0.1", 0))
    tcp, udp = server.sockets[0].getsockname()[1], transport.get_extra_info("sockname")[1]
    code = f"""
    def udp():
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'question', ('127.0.0.1', {udp}))
    import urllib.request
    a, b = socket.socketpair()
    found = [tried(socket.create_connection, ('127.0.0.1', {tcp})), tried(udp), tried(urllib.request.urlopen, 'http://127.0.0.1:{tcp}') != 'went through',
        tried(lambda: a.sendto(b'x', ('127.0.0.1', {udp}))) != 'went through', open('/proc/net/dev').read() if os.path.exists('/proc/net/dev') else '']
    found
    """
    ran = await attack(walls, textwrap.dedent(code))
    _, writer = await asyncio.open_connection("127.0.0.1", tcp)  # the listener does listen
    writer.close()
    await until(lambda: len(hits) == 1)
    transport.close()
    server.close()
    assert ran.ret == "['EPERM', 'EPERM', True, True, '']", ran


async def test_dangerous_system_calls(walls: ForkSandbox) -> None:
    """Each of the list by its number. Their arguments are nonsense, so that only the filter answers EPERM to all."""
    pyseccomp = pytest.importorskip("pyseccomp")
    numbers = {name: pyseccomp.resolve_syscall(pyseccomp.system_arch(), name) for name in seccomp.DENIED}
    there = {name: number for name, number in numbers.items() if number >= 0} | seccomp.YOUNG
    assert len(there) > 90
    code = f"numbers = {there!r}\n{{name: got for name, n in numbers.items() if (got := call(n, -1, -1, -1, -1, -1)) != 'EPERM'}}"
    assert (await attack(walls, code)).ret == "{}"
    clone, clone3 = (pyseccomp.resolve_syscall(pyseccomp.system_arch(), name) for name in ("clone", "clone3"))
    flags = (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
    code = f"{{call({clone}, flag | 17, 0, 0, 0, 0) for flag in {flags!r}}}, call({clone3}, 0, 0)"
    assert (await attack(walls, code)).ret == "({'EPERM'}, 'ENOSYS')"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x32 is a way into x86-64 kernels only")
async def test_a_foreign_numbering_is_killed(walls: ForkSandbox) -> None:
    ran = await attack(walls, "call(0x40000000 + 39)")
    assert (ran.end, ran.exit_code) == ("exited", -31)


ENDS: list[tuple[str, str, str, int | None]] = [
    ("segmentation fault", "ctypes.string_at(0)", "exited", -11),
    ("abort", "os.abort()", "exited", None),
    ("_exit", "os._exit(5)", "exited", 5),
    ("endless output", "while True: print('a' * 100)", "output", None),
    (
        "endless output of a child",
        "subprocess.run(['/bin/sh', '-c', 'while :; do echo aaaaaaaa; done'])",
        "output",
        None,
    ),
]


@pytest.mark.parametrize(("code", "end", "exit_code"), [row[1:] for row in ENDS], ids=[row[0] for row in ENDS])
async def test_ended_by_itself(walls: ForkSandbox, code: str, end: str, exit_code: int | None) -> None:
    pid = walls.zygote.pid if walls.zygote else 0
    ran = await attack(walls, code)
    assert ran.end == end
    assert exit_code in (None, ran.exit_code)
    assert (await attack(walls, "1")).ret == "1", "the zygote lives"
    assert walls.zygote is not None
    assert walls.zygote.pid == pid


ENDLESS: list[tuple[str, str]] = [
    ("loop", "while True: pass"),
    ("ignores signals and sleeps", "for n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\ntime.sleep(600)"),
    ("stops itself", "os.kill(os.getpid(), signal.SIGSTOP); time.sleep(600)"),
    ("stops a child and waits for it", "child = subprocess.Popen(['/bin/sleep', '600']); child.send_signal(19); child.wait()"),
    ("closes its output", "os.close(1); os.close(2); time.sleep(600)"),
    ("closes its channel", "os.close(3); time.sleep(600)"),
    ("catastrophic regular expression", "import re; re.match('(a+)+$', 'a' * 64 + 'b')"),
    ("huge integer", "9 ** 9 ** 9"),
    ("fork bomb", "while True:\n    try: os.fork()\n    except OSError: pass"),
]  # fmt: skip


@pytest.mark.parametrize("code", [row[1] for row in ENDLESS], ids=[row[0] for row in ENDLESS])
async def test_ended_by_the_timeout(hurried: ForkSandbox, code: str) -> None:
    async with interpreter(hurried) as opened:
        await opened.run(PRELUDE)
        async with asyncio.timeout(60):  # by itself it ends after 600 s, or never
            ran = await opened.run(code)
        assert ran.end in ("timeout", "exited"), ran  # a closed channel ends it at once
        assert not opened.alive
    assert (await attack(hurried, "1")).ret == "1"


async def test_what_cannot_run_away_gives_an_error(walls: ForkSandbox) -> None:
    ran = await attack(walls, "def deep(n): return deep(n + 1)\ndeep(0)")
    assert "RecursionError" in ran.error
    ran = await attack(walls, "import sys; sys.setrecursionlimit(10 ** 9)\ndef deep(n): return deep(n + 1)\ndeep(0)")
    assert ran.end in ("exited", "memory") or "Error" in ran.error


async def test_the_processor_time_is_bounded() -> None:
    async with sandbox(replace(LIMITS, cpu_s=1, timeout_s=100, libraries=())) as made:
        ran = await attack(made, "while True: pass")
    assert (ran.end, ran.exit_code) == ("cpu", -9)


BOMB = """
held = []
for _ in range(10):
    if os.fork() == 0:
        try:
            while True: held.append(bytearray(os.urandom(1 << 10) * 1024)); time.sleep(0.001)
        except MemoryError: time.sleep(600)
time.sleep(600)
"""
SHARED_BOMB = """
import mmap
for _ in range(20):
    if os.fork() == 0:
        area = mmap.mmap(-1, 100 << 20)
        for n in range(0, 100 << 20, 4096): area[n] = 1
        time.sleep(600)
time.sleep(600)
"""
TMPFS_BOMB = """
fill('/tmp/a'), fill('a'), fill('/dev/shm/a')
held = []
for _ in range(4):
    if os.fork() == 0:
        held = bytearray(os.urandom(1 << 20) * 100)
        time.sleep(600)
time.sleep(600)
"""


@pytest.mark.parametrize("code", [BOMB, SHARED_BOMB, TMPFS_BOMB], ids=["private", "shared", "files and memory"])
async def test_memory_over_many_processes_watched(watched: ForkSandbox, code: str) -> None:
    assert "memory by watched" in watched.status()
    assert (await attack(watched, code)).end == "memory"
    assert (await attack(watched, "1")).ret == "1"


@pytest.mark.parametrize("code", [BOMB, SHARED_BOMB], ids=["private", "shared"])
async def test_memory_over_many_processes_by_cgroup(code: str) -> None:
    if cgroup.find() is None:
        pytest.skip("no cgroup can be made here")
    limits = replace(LIMITS, timeout_s=4, libraries=())
    async with sandbox(limits) as made:
        assert "memory by a cgroup each" in made.status()
        ran = await attack(made, code)
        assert ran.end in ("memory", "timeout")  # the kernel may kill the processes one by one before the first of them
        assert (await attack(made, "1")).ret == "1", "the zygote was not killed for it"


async def test_memory_between_calls_is_watched(watched: ForkSandbox) -> None:
    async with interpreter(watched) as opened:
        await opened.run(PRELUDE)
        ran = await opened.run(
            "import threading\nthreading.Timer(0.2, exec, [SRC := '''" + BOMB + "''', globals()]).start()"
        )
        assert ran.end == "done"
        await until(lambda: not opened.alive)


async def test_a_fork_bomb_beside_another_session(walls: ForkSandbox, hurried: ForkSandbox) -> None:
    """Both come of the same zygote; the sibling answers while the bomb goes off, and nothing is left of it."""
    async with interpreter(hurried) as bomb, interpreter(hurried) as sibling:
        await bomb.run(PRELUDE)
        going = asyncio.create_task(bomb.run("while True:\n    try: os.fork()\n    except OSError: pass"))
        answered = 0
        while not going.done():
            answered += (await sibling.run("6 * 7")).ret == "42"
        assert going.result().end == "timeout"
        assert answered
        assert (await sibling.run("import os; os.waitstatus_to_exitcode(os.system('true'))")).ret == "0"
    assert hurried.zygote is not None
    pid = hurried.zygote.pid
    await until(lambda: len(below(pid)) <= 6)  # bwrap, its first process, the zygote, and the two of the parked session


async def test_a_daemon_does_not_outlive_its_session(walls: ForkSandbox) -> None:
    code = """
import ctypes
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(15, b"lingers", 0, 0, 0)
        signal.signal(15, signal.SIG_IGN); time.sleep(12345)
    os._exit(0)
1"""

    def lingering() -> set[int]:
        assert walls.zygote is not None
        return {pid for pid in below(walls.zygote.pid) if name_of(pid) == "lingers"}

    async with interpreter(walls) as opened:
        await opened.run(PRELUDE)
        assert (await opened.run(code)).ret == "1"
        await until(lambda: bool(lingering()))
        daemon = lingering()
    await until(lambda: gone(daemon))


def name_of(pid: int) -> str | None:
    try:
        return str(psutil.Process(pid).name())
    except psutil.NoSuchProcess:
        return None


async def test_planted_files_are_not_followed(walls: ForkSandbox) -> None:
    code = """
os.symlink('/proc/1/environ', 'a.txt'); os.symlink('/etc/ld.so.cache', 'b.txt'); os.symlink('/usr', 'folder')
linked = tried(os.mkfifo, 'pipe'), tried(os.link, '/etc/ld.so.cache', 'c.txt'), tried(os.link, '/proc/1/environ', 'd.txt')
open('real', 'w').write('mine'); open('closed', 'w').write('x'); os.chmod('closed', 0)
os.mkdir('locked'); open('locked/in', 'w').write('x'); os.chmod('locked', 0)
open('new\\nline\\x1b[31m', 'w').write('y'); open(b'\\xff\\xfe', 'w').write('z')
linked
"""
    ran = await attack(walls, code)
    assert ran.ret == "('EPERM', 'EXDEV', 'EXDEV')"
    names = dict(ran.files)
    assert names.pop("real") == b"mine"
    assert sorted(names.values()) == [b"y", b"z"]
    assert all(name.isprintable() for name in names)


async def test_a_closed_working_folder_costs_the_files_only(walls: ForkSandbox) -> None:
    async with interpreter(walls) as opened:
        ran = await opened.run("import os\nopen('a', 'w').write('a')\nprint('seen')\nos.chmod(os.getcwd(), 0)\n5")
        assert (ran.end, ran.stdout, ran.ret, ran.files) == ("done", "seen\n", "5", ())
        assert "can't be collected" in ran.note
        assert (await opened.run("6")).ret == "6"


async def test_a_forged_answer_is_only_the_forgers_own(walls: ForkSandbox) -> None:
    """The channel is open to the code, as it keeps its state there. All it can say is what it might have printed."""
    async with interpreter(walls) as opened:
        forged = json.dumps({"ret": "forged", "error": "", "end": "timeout", "files": [["/etc/shadow", 4]], "exit": 1})
        await opened.run(PRELUDE)
        ran = await opened.run(f"m = {forged!r}.encode()\nos.write(3, struct.pack('!I', len(m)) + m)\ntime.sleep(0.5)")
        assert (ran.end, ran.ret, ran.files, ran.exit_code) == ("done", "forged", (), None)
    for bad in (
        "b'\\xff' * 100",
        "struct.pack('!I', 3) + b'[1]'",
        "struct.pack('!I', 2) + b'{}'",
        "b'\\0\\xff\\xff\\xff' + b'a' * 20000000",
    ):
        ran = await attack(walls, f"f = {bad}\nwhile f: f = f[os.write(3, f):]\ntime.sleep(600)")
        assert ran.end in ("exited", "lost"), bad
    assert (await attack(walls, "1")).ret == "1"


async def test_nothing_of_one_session_is_in_another(walls: ForkSandbox) -> None:
    marker = "marker-" + os.urandom(8).hex()
    await attack(
        walls, f"kept = '{marker}'; open('/tmp/left', 'w').write(kept); open('/dev/shm/left', 'w').write(kept)"
    )
    scan = """
def scan(parts):
    wanted = ''.join(parts).encode()
    count = 0
    memory = open('/proc/self/mem', 'rb', buffering=0)
    for line in open('/proc/self/maps'):
        area, rights = line.split()[:2]
        if 'r' not in rights or '[v' in line: continue
        start, end = (int(n, 16) for n in area.split('-'))
        try: memory.seek(start); count += memory.read(end - start).count(wanted)
        except (OSError, OverflowError, MemoryError): pass
    return count
"""
    left, right = marker[:10], marker[10:]
    async with interpreter(walls) as opened:
        await opened.run(PRELUDE)
        await opened.run(scan)
        ran = await opened.run(
            # an interpreter that lies below /tmp is bound there: only what a session made must be gone
            f"scan([{left!r}, {right!r}]) <= 3, 'left' in os.listdir('/tmp'), os.listdir('/dev/shm'), os.listdir('.')"
        )
        assert ran.ret == "(True, False, [], [])", ran
        control = await opened.run(
            f"control = ['{marker}' + str(n) for n in range(50)]\nscan([{left!r}, {right!r}]) > 40"
        )
        assert control.ret == "True", "the scan finds what is there"


async def test_random_numbers_differ(walls: ForkSandbox) -> None:
    code = "import random, numpy\nrandom.random(), float(numpy.random.random()), os.urandom(4).hex()"
    drawn = [re.split(", ", (await attack(walls, code)).ret) for _ in range(3)]
    assert all(len(set(column)) == 3 for column in zip(*drawn, strict=True))


LANDLOCK: list[tuple[str, str, str]] = [
    ("host files", "[tried(open, f) for f in ('/etc/shadow', '/etc/passwd', '/proc/self/environ', '/sys/kernel/notes')]", str(["EACCES"] * 4)),
    ("writing elsewhere", "[tried(open, f, 'w') for f in ('/tmp/a', '/usr/a', '/dev/shm/a', '/a')]", str(["EACCES"] * 4)),
    ("its own folder", "open('a', 'w').write('b'), os.listdir('.')", "(1, ['a'])"),
    ("other processes", "[tried(os.fork), tried(subprocess.run, ['/bin/true']), tried(os.kill, os.getppid(), 9), tried(os.execv, '/bin/true', ['true'])]", str(["EPERM"] * 4)),
    ("sockets", "tried(socket.socket), tried(socket.socket, socket.AF_UNIX)", "('EPERM', 'EPERM')"),
    ("rights of files", "tried(os.chmod, '.', 0), tried(os.chown, '.', 0, 0)", "('EPERM', 'EPERM')"),
    ("memory", "tried(bytearray, 8 << 30)", "'MemoryError'"),
    ("environment", "sorted(set(os.environ) & {'HOME', 'JUBAL_HOME', 'PATH'}), os.getuid() != 0", "(['HOME', 'PATH'], True)"),
    ("threads", "t = threading.Thread(target=print); t.start(); t.join()", ""),
]  # fmt: skip


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def fallback() -> AsyncIterator[ForkSandbox]:
    async with sandbox(LIMITS, "landlock") as made:
        yield made


@pytest.mark.parametrize(("code", "expected"), [row[1:] for row in LANDLOCK], ids=[row[0] for row in LANDLOCK])
async def test_landlock(fallback: ForkSandbox, code: str, expected: str) -> None:
    ran = await attack(fallback, code)
    assert (ran.end, ran.error, ran.ret) == ("done", "", expected)


@pytest.mark.parametrize(
    ("code", "end"),
    [
        ("while True: print('a' * 100)", "output"),
        ("for n in range(40): fill(f'{n}') if n < 3 else time.sleep(0.2)", "disk"),
        ("os._exit(3)", "exited"),
    ],
)
async def test_landlock_ends(fallback: ForkSandbox, code: str, end: str) -> None:
    assert (await attack(fallback, code)).end == end
    assert (await attack(fallback, "os.listdir('.')")).ret == "[]"


async def test_landlock_ends_what_takes_too_long() -> None:
    async with sandbox(replace(LIMITS, timeout_s=2.0, libraries=OF_THE_PRELUDE), "landlock") as made:
        assert (await attack(made, "while True: pass")).end == "timeout"
        assert (await attack(made, "os.listdir('.')")).ret == "[]"
