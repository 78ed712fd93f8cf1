"""What a session may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MIB: Final = 1 << 20
LIBRARIES: Final = (
    "numpy",
    "pandas",
    "scipy.integrate",
    "scipy.linalg",
    "scipy.optimize",
    "scipy.stats",
    "sympy",
    "matplotlib",
)
"""Imported before there is a session. Other parts of scipy are there too, and cost their import."""


@dataclass(frozen=True, slots=True)
class Limits:
    """timeout_s: of one call, wall clock. memory_mb: MiB that a session may take beyond an interpreter that has just started, its
    files included. sessions_max: sessions at a time. output_bytes: kept of stdout and of stderr, each.

    files_max, files_bytes: files that one call gives back. work_mb: each of /work and /tmp. cpu_s: processor time of each process
    of a session, over all calls. processes: threads included. libraries: modules to import in advance. sessions_per_zygote,
    zygote_age_s: when the warm interpreter is replaced, as all of its sessions share hash seed and memory layout.
    """

    timeout_s: float = 60
    memory_mb: int = 512
    sessions_max: int = 16
    output_bytes: int = 64 << 10
    files_max: int = 16
    files_bytes: int = 16 * MIB
    work_mb: int = 64
    shm_mb: int = 16
    inodes: int = 4096
    cpu_s: int = 300
    processes: int = 32
    open_files: int = 128
    code_bytes: int = 256 << 10
    libraries: tuple[str, ...] = LIBRARIES
    sessions_per_zygote: int = 500
    zygote_age_s: float = 3600
