"""The seccomp programs of the sandbox, and how they are made.

    python -m jubal.tools.code_execution.seccomp     writes inside/*.bpf again, with pyseccomp and libseccomp

They are shipped, so that a machine that runs Jubal needs no libseccomp; a test makes them again and compares. Allowed by default,
denied by list; a call in a foreign architecture's numbering is killed.
"""

from __future__ import annotations

import errno
import platform
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

if TYPE_CHECKING:
    import pyseccomp  # type: ignore[import-untyped]

Kind: TypeAlias = Literal["namespaces", "landlock"]
KINDS: Final[tuple[Kind, ...]] = ("namespaces", "landlock")
MACHINES: Final = ("x86_64", "aarch64")

_DENIED: Final = """
    ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_getfd
    mount umount2 pivot_root chroot setns unshare move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr
    bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register add_key keyctl request_key
    kexec_load kexec_file_load init_module finit_module delete_module
    open_by_handle_at name_to_handle_at memfd_create memfd_secret quotactl quotactl_fd swapon swapoff reboot syslog acct
    settimeofday clock_settime clock_adjtime adjtimex iopl ioperm modify_ldt personality
    fanotify_init fanotify_mark lookup_dcookie nfsservctl vhangup sethostname setdomainname uselib ustat sysfs _sysctl
    get_mempolicy set_mempolicy mbind move_pages migrate_pages
    socket connect bind listen accept accept4 sendmmsg recvmmsg
    msgget msgsnd msgrcv msgctl semget semop semtimedop semctl shmget shmat shmdt shmctl
    mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr
    vmsplice splice tee mknod mknodat setxattr lsetxattr fsetxattr landlock_create_ruleset seccomp
"""
DENIED: Final = tuple(_DENIED.split())
"""EPERM in both. socketpair, sendto and sendmsg stay: asyncio needs them, and they reach nothing without the others."""

_DENIED_BY_LANDLOCK: Final = """
    fork vfork execve execveat kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_send_signal
    chmod fchmod fchmodat chown fchown lchown fchownat prlimit64 sched_setaffinity sched_setscheduler
    sched_setattr sched_setparam setpriority ioprio_set
"""
DENIED_BY_LANDLOCK: Final = tuple(_DENIED_BY_LANDLOCK.split())
"""EPERM where there are no namespaces: other processes are in sight there, and a second process would be in nobody's."""

YOUNG: Final = {
    "set_mempolicy_home_node": 450,
    "fchmodat2": 452,
    "lsm_set_self_attr": 460,
    "setxattrat": 463,
    "removexattrat": 466,
    "open_tree_attr": 467,
    "file_setattr": 469,
}
"""Calls that the libraries of today's distributions have no names for; such young ones have one number on all machines. EPERM."""

_CLONE_NAMESPACES: Final = (
    0x00000080,
    0x00020000,
    0x02000000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
_CLONE_THREAD: Final = 0x00010000
_TERMINAL_IOCTLS: Final = (0x5412, 0x541C, 0x5423)
"""TIOCSTI, TIOCLINUX, TIOCSETD: they type into a terminal, or change what it is."""
_PR_SET_PDEATHSIG: Final = 1
_RETURN_ERRNO: Final = 0x00050000
_LOW_32_BITS: Final = 0xFFFFFFFF


def file_name(machine: str, kind: Kind) -> str:
    return f"seccomp-{kind}-{machine}.bpf"


def shipped(kind: Kind, machine: str | None = None) -> Path | None:
    """The program for this machine. None: there is none, so no code may run here."""
    path = Path(__file__).parent / "inside" / file_name(machine or platform.machine(), kind)
    return path if path.is_file() else None


def build(machine: str, kind: Kind) -> bytes:
    """Makes the program. Needs pyseccomp and libseccomp; raises `ImportError` or `RuntimeError` without."""
    import pyseccomp

    arch = {"x86_64": pyseccomp.Arch.X86_64, "aarch64": pyseccomp.Arch.AARCH64}[machine]
    made = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    if arch != pyseccomp.system_arch():
        made.add_arch(arch)
        made.remove_arch(pyseccomp.system_arch())
    for name in DENIED + (DENIED_BY_LANDLOCK if kind == "landlock" else ()):
        _deny(made, arch, name)
    _deny_arguments(made, kind)
    with tempfile.TemporaryFile() as file:
        made.export_bpf(file)
        file.seek(0)
        return _deny_young() + file.read()


def _deny_young() -> bytes:
    """Instructions to go before the rest: load the call's number; on one of these, return EPERM."""
    load, jump_if_equal, give = 0x20, 0x15, 0x06
    steps = [struct.pack("=HBBI", load, 0, 0, 0)]
    for number in YOUNG.values():
        steps.append(struct.pack("=HBBI", jump_if_equal, 0, 1, number))
        steps.append(struct.pack("=HBBI", give, 0, 0, _RETURN_ERRNO | errno.EPERM))
    return b"".join(steps)


def _deny(made: pyseccomp.SyscallFilter, arch: int, name: str) -> None:
    import pyseccomp

    try:
        number = pyseccomp.resolve_syscall(arch, name)
    except (OSError, ValueError):
        return  # younger than this libseccomp, or not of this architecture
    if number >= 0:
        made.add_rule_exactly(pyseccomp.ERRNO(errno.EPERM), name)


def _deny_arguments(made: pyseccomp.SyscallFilter, kind: Kind) -> None:
    """Calls that are denied by what they are given. The kernel looks at the low 32 bits of these arguments only, so do we."""
    import pyseccomp

    def masked(argument: int, mask: int, value: int) -> Any:
        return pyseccomp.Arg(argument, pyseccomp.MASKED_EQ, mask, value)

    denied = pyseccomp.ERRNO(errno.EPERM)
    for flag in _CLONE_NAMESPACES:
        made.add_rule_exactly(denied, "clone", masked(0, flag, flag))
    if kind == "landlock":
        made.add_rule_exactly(denied, "clone", masked(0, _CLONE_THREAD, 0))
    made.add_rule_exactly(
        pyseccomp.ERRNO(errno.ENOSYS), "clone3"
    )  # the C library then uses clone, whose flags are seen
    for request in _TERMINAL_IOCTLS:
        made.add_rule_exactly(denied, "ioctl", masked(1, _LOW_32_BITS, request))
    made.add_rule_exactly(denied, "prctl", masked(0, _LOW_32_BITS, _PR_SET_PDEATHSIG))


def main() -> None:
    for machine in MACHINES:
        for kind in KINDS:
            path = Path(__file__).parent / "inside" / file_name(machine, kind)
            path.write_bytes(build(machine, kind))


if __name__ == "__main__":
    main()
