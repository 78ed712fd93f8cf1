"""The shipped seccomp programs: what they do on each machine, by running them, and that they can be made again."""

from __future__ import annotations

import errno
import struct
from typing import Any

import pytest

from jubal.tools.code_execution import seccomp

ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x00000000
EPERM, ENOSYS = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
I386 = 0x40000003
PROGRAMS = [(machine, kind) for machine in seccomp.MACHINES for kind in seccomp.KINDS]


def decide(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """Runs the program as the kernel would: loads of 32-bit words, comparisons, masks and returns are all it uses."""
    data = struct.pack("<IIQ6Q", number, arch, 0, *(list(arguments) + [0] * 6)[:6])
    at = accumulator = 0
    while True:
        code, when, unless, value = struct.unpack_from("=HBBI", program, at * 8)
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == 0x54:
            accumulator &= value
        elif code == 0x06:
            return int(value)
        elif code == 0x05:
            at += value
        else:
            holds = {
                0x15: accumulator == value,
                0x25: accumulator > value,
                0x35: accumulator >= value,
                0x45: bool(accumulator & value),
            }[code]
            at += when if holds else unless


def program_of(machine: str, kind: seccomp.Kind) -> bytes:
    path = seccomp.shipped(kind, machine)
    assert path is not None
    return path.read_bytes()


@pytest.fixture(scope="module")
def libseccomp() -> Any:
    return pytest.importorskip("pyseccomp", reason="libseccomp is not installed", exc_type=Exception)


def arch_of(libseccomp: Any, machine: str) -> int:
    return int({"x86_64": libseccomp.Arch.X86_64, "aarch64": libseccomp.Arch.AARCH64}[machine])


@pytest.mark.parametrize(("machine", "kind"), PROGRAMS)
def test_what_is_denied(machine: str, kind: seccomp.Kind, libseccomp: Any) -> None:
    program, arch = program_of(machine, kind), AUDIT_ARCH[machine]
    denied = list(seccomp.DENIED) + (list(seccomp.DENIED_BY_LANDLOCK) if kind == "landlock" else [])
    numbers = {name: libseccomp.resolve_syscall(arch_of(libseccomp, machine), name) for name in denied}
    there = {name: number for name, number in numbers.items() if number >= 0} | seccomp.YOUNG
    assert {name for name, number in there.items() if decide(program, arch, number) != EPERM} == set()
    others = set(range(600)) - set(there.values())
    special = {
        libseccomp.resolve_syscall(arch_of(libseccomp, machine), name): name
        for name in ("clone", "clone3", "ioctl", "prctl")
    }
    answers = {number: decide(program, arch, number) for number in others if number not in special}
    assert set(answers.values()) == {ALLOW}


@pytest.mark.parametrize(("machine", "kind"), PROGRAMS)
def test_what_is_denied_by_its_arguments(machine: str, kind: seccomp.Kind, libseccomp: Any) -> None:
    program, arch = program_of(machine, kind), AUDIT_ARCH[machine]
    clone, clone3, ioctl, prctl = (
        libseccomp.resolve_syscall(arch_of(libseccomp, machine), name) for name in ("clone", "clone3", "ioctl", "prctl")
    )
    thread = 0x10000
    assert decide(program, arch, clone3) == ENOSYS
    assert decide(program, arch, clone, 17) == (EPERM if kind == "landlock" else ALLOW)
    assert decide(program, arch, clone, thread | 0x100) == ALLOW
    for bit in (7, 17, 25, 26, 27, 28, 29, 30):
        assert decide(program, arch, clone, thread | (1 << bit)) == EPERM
    for request in (0x5412, 0x541C, 0x5423, 0x5412 | (1 << 40)):
        assert decide(program, arch, ioctl, 0, request) == EPERM, "also with nonsense in the high half"
    assert decide(program, arch, ioctl, 0, 0x5401) == ALLOW
    assert decide(program, arch, prctl, 1, 0) == EPERM
    assert decide(program, arch, prctl, 1 | (1 << 32), 0) == EPERM
    assert decide(program, arch, prctl, 15, 0) == ALLOW


@pytest.mark.parametrize(("machine", "kind"), PROGRAMS)
def test_foreign_numbering_is_killed(machine: str, kind: seccomp.Kind) -> None:
    program = program_of(machine, kind)
    foreign = AUDIT_ARCH["aarch64" if machine == "x86_64" else "x86_64"]
    assert {decide(program, arch, number) for arch in (I386, foreign) for number in range(400)} <= {KILL, 0x80000000}
    if machine == "x86_64":
        assert decide(program, AUDIT_ARCH[machine], 0x40000000 + 39) in (KILL, 0x80000000)


@pytest.mark.parametrize(("machine", "kind"), PROGRAMS)
def test_made_again_they_decide_the_same(machine: str, kind: seccomp.Kind, libseccomp: Any) -> None:
    """Not byte for byte: another release of libseccomp may order its comparisons in another way."""
    again, shipped, arch = seccomp.build(machine, kind), program_of(machine, kind), AUDIT_ARCH[machine]
    for number in range(600):
        for arguments in ((), (0x10000000, 0x5412), (1, 0x541C), (0x10100, 1), (17,)):
            assert decide(again, arch, number, *arguments) == decide(shipped, arch, number, *arguments), number
