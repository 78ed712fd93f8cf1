"""Decisions about a child process: pure functions of what happened and when.

Every time is in seconds of one monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Policy:
    """How patient to be.

    load_s: longest load before the child is given up. probe_every_s: how often a ready child is asked whether it is well, and
    probe_timeout_s how long it may take to say so. silent_s: a child that neither said so nor made progress for that long is
    hung. grace_s: from SIGTERM to SIGKILL.
    backoff_first_s, backoff_max_s: pause before a restart, doubling with each failure in a row. settled_s: a child that was
    ready for that long ends the row. stillborn_max: children in a row that never got ready until the engine counts as
    failed; it is then tried again every backoff_max_s. recheck_s: how often to see whether what makes a start hopeless, such
    as a missing file, was mended. trial_s, trial_bytes_max: how long a child may take over one JSON Schema, and by how much it
    may grow meanwhile; one that takes more is hung.
    """

    load_s: float = 600
    probe_every_s: float = 2
    probe_timeout_s: float = 5
    silent_s: float = 15
    grace_s: float = 3
    backoff_first_s: float = 0.5
    backoff_max_s: float = 30
    settled_s: float = 30
    stillborn_max: int = 3
    recheck_s: float = 5
    trial_s: float = 60
    trial_bytes_max: int = 1 << 30


# ---------------------------------------------------------------------------------------------- while a child lives

_LOADING_POLL_MIN_S: Final = 0.02
_LOADING_POLL_MAX_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Watch:
    """A living child. ready_s: since when it is ready, None while it loads. heard_s: its last sign of life."""

    started_s: float
    ready_s: float | None
    heard_s: float


@dataclass(frozen=True, slots=True)
class Look:
    """Ask the child again after so many seconds."""

    after_s: float


@dataclass(frozen=True, slots=True)
class Kill:
    """Give the child up. why: one sentence."""

    why: str


def judge(watch: Watch, now_s: float, policy: Policy) -> Look | Kill:
    """What to do about a child that was just asked whether it is well; its answer is in `watch`."""
    if watch.ready_s is None:
        waited_s = now_s - watch.started_s
        if waited_s >= policy.load_s:
            return Kill(f"It was not ready after {policy.load_s:g} s.")
        # A small model loads in half a second and a large one in minutes; nobody should wait a tenth longer for either.
        return Look(min(max(waited_s / 20, _LOADING_POLL_MIN_S), _LOADING_POLL_MAX_S))
    if now_s - watch.heard_s >= policy.silent_s:
        return Kill(f"It gave no sign of life for {policy.silent_s:g} s.")
    return Look(policy.probe_every_s)


# ---------------------------------------------------------------------------------------------- between two children


@dataclass(frozen=True, slots=True)
class Life:
    """A child from its start to its end, or a start that could not even be tried (`hopeless`).

    ready_s: since when it was ready; None: it never was. why: how it ended, one sentence.
    """

    ready_s: float | None
    ended_s: float
    why: str
    hopeless: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """What counts of all lives so far. failures: in a row, settled ones end it; stillborn: in a row, never ready."""

    failures: int = 0
    stillborn: int = 0


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait before the next start. state: what the engine is in the meantime; `failed` refuses requests at once."""

    state: Literal["starting", "failed"]
    delay_s: float
    reason: str


def after_life(record: Record, life: Life, policy: Policy) -> tuple[Record, Pause]:
    """How to go on when a child is gone that should not be."""
    if life.hopeless:
        return record, Pause("failed", policy.recheck_s, life.why)
    settled = life.ready_s is not None and life.ended_s - life.ready_s >= policy.settled_s
    record = Record(
        failures=1 if settled else record.failures + 1,
        stillborn=record.stillborn + 1 if life.ready_s is None else 0,
    )
    if record.stillborn >= policy.stillborn_max:
        return record, Pause("failed", policy.backoff_max_s, life.why)
    return record, Pause("starting", backoff_s(record.failures, policy), life.why)


def backoff_s(failures: int, policy: Policy) -> float:
    """The pause after so many failures in a row, at least one."""
    doublings = min(failures - 1, 32)  # beyond that it only overflows
    return min(policy.backoff_first_s * 2.0**doublings, policy.backoff_max_s)


# ---------------------------------------------------------------------------------------------- what a child said


@dataclass(frozen=True, slots=True)
class Tail:
    """The last lines of a child's output. rest: the line that is not whole yet."""

    lines: tuple[str, ...] = ()
    rest: bytes = b""


LINES_MAX: Final = 50
LINE_BYTES_MAX: Final = 1000


def fed(tail: Tail, data: bytes) -> Tail:
    """The tail after more output; what is older or longer than the bounds is dropped."""
    *whole, rest = (tail.rest + data).split(b"\n")
    lines = [line[:LINE_BYTES_MAX].decode("utf-8", "replace").strip() for line in whole[-LINES_MAX:]]
    return replace(tail, lines=(*tail.lines, *filter(None, lines))[-LINES_MAX:], rest=rest[:LINE_BYTES_MAX])


def last_words(tail: Tail) -> str | None:
    """The line that tells best why a child ended: the first that llama.cpp marks as an error, else the last one."""
    lines = [*tail.lines, *filter(None, [tail.rest.decode("utf-8", "replace").strip()])]
    for line in lines:
        head, mark, told = line.partition(" E ")
        if mark and head.replace(".", "").isdigit():  # "0.00.003.729 E srv    load_model: failed to load model …"
            return " ".join(told.split())
    return lines[-1].removeprefix("E ") if lines else None
