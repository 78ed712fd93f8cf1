"""The system calls that Python has no function for."""

from __future__ import annotations

import ctypes
import functools
import os
import resource
import struct
from typing import Final

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_SECCOMP: Final = 22
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_SECCOMP_MODE_FILTER: Final = 2
_CAP_VERSION_3: Final = 0x20080522
_CAPS_MAX: Final = 64

# The same numbers on every architecture: they are younger than the common table.
_CLOSE_RANGE: Final = 436
_LANDLOCK_CREATE_RULESET: Final = 444
_LANDLOCK_ADD_RULE: Final = 445
_LANDLOCK_RESTRICT_SELF: Final = 446
_LANDLOCK_RULE_PATH_BENEATH: Final = 1
_LANDLOCK_EXECUTE: Final = 1 << 0
_LANDLOCK_READ_FILE: Final = 1 << 2
_LANDLOCK_READ_DIR: Final = 1 << 3
_LANDLOCK_ALL_BY_ABI: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_LANDLOCK_ALL: Final = (1 << 16) - 1  # from version 5 on, ioctl on devices included
_LANDLOCK_REFER: Final = 1 << 13
_LANDLOCK_FILE_RIGHTS: Final = (1 << 0) | (1 << 1) | (1 << 2) | (1 << 14) | (1 << 15)
"""The rights that a rule on a plain file may name."""


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def close_from(first: int) -> None:
    """Closes all files from this number on, whatever the limit on them is now.

    Python's own `closerange` goes through every number where it was built for old systems: in some containers that are a thousand
    million.
    """
    if _libc().syscall(_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(0xFFFFFFFF), 0) < 0:  # before Linux 5.9
        os.closerange(first, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def unshare(flags: int) -> None:
    _check(_libc().unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    _check(
        _libc().mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]),
        f"mount {kind} at {target}",
    )


def prctl(option: int, *arguments: int) -> int:
    padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    return int(_libc().prctl(option, *padded))


def die_with_parent(number: int) -> None:
    """The kernel sends this signal when the thread that made this process ends. A change of credentials undoes it."""
    _check(prctl(_PR_SET_PDEATHSIG, number), "prctl PDEATHSIG")


def drop_bounding_set() -> None:
    for capability in range(_CAPS_MAX):
        if prctl(_PR_CAPBSET_DROP, capability) < 0:
            return  # past the last one that this kernel knows, or not allowed, and then there is nothing to lose


def drop_capabilities() -> None:
    """All of them, for good."""
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    drop_bounding_set()
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAP_VERSION_3, 0), 8)
    data = ctypes.create_string_buffer(24)
    _check(_libc().capset(header, data), "capset")


def no_new_privileges() -> None:
    _check(prctl(_PR_SET_NO_NEW_PRIVS, 1), "prctl NO_NEW_PRIVS")


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def load_filter(program: bytes) -> None:
    """Loads a seccomp program for this process and all that come of it. Needs `no_new_privileges` before."""
    instructions = ctypes.create_string_buffer(program, len(program))
    loaded = _Program(len(program) // 8, ctypes.cast(instructions, ctypes.c_void_p))
    result = _libc().prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(loaded))
    _check(result, "prctl SECCOMP")


def _syscall(number: int, *arguments: object) -> int:
    return int(_libc().syscall(ctypes.c_long(number), *arguments))


def landlock_version() -> int:
    """0 where the kernel has no Landlock."""
    return max(0, _syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1)))


def landlock(readable: tuple[str, ...], writable: tuple[str, ...]) -> None:
    """From here on only these paths, and what is below them, can be opened. Needs `no_new_privileges` before."""
    version = landlock_version()
    if not version:
        raise OSError("this kernel has no Landlock")
    handled = _LANDLOCK_ALL_BY_ABI.get(version, _LANDLOCK_ALL)
    attributes = ctypes.create_string_buffer(struct.pack("=Q", handled), 8)
    rules = _check(_syscall(_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(8), ctypes.c_uint(0)), "landlock")
    try:
        for path in readable:
            _allow(rules, path, _LANDLOCK_EXECUTE | _LANDLOCK_READ_FILE | _LANDLOCK_READ_DIR)
        for path in writable:
            _allow(rules, path, handled & ~_LANDLOCK_REFER)
        _check(_syscall(_LANDLOCK_RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint(0)), "landlock")
    finally:
        os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(path):
            rights &= _LANDLOCK_FILE_RIGHTS
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, opened), 12)
        arguments = (ctypes.c_int(rules), ctypes.c_int(_LANDLOCK_RULE_PATH_BENEATH), rule, ctypes.c_uint(0))
        _check(_syscall(_LANDLOCK_ADD_RULE, *arguments), f"landlock {path}")
    finally:
        os.close(opened)
