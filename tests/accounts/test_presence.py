"""Who is dead for sure, and what a gateway does for others that are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jubal.accounts.credits import Standing
from jubal.accounts.holds import Credit
from jubal.accounts.presence import BOOT_ID, Presence
from jubal.accounts.store import Store
from jubal.core.errors import StoreUnavailable
from tests.accounts.conftest import Clock
from tests.accounts.test_holds import Gateway, add, in_order, standing

pytestmark = pytest.mark.skipif(not BOOT_ID.exists(), reason="the kernel has no name for its boot, so nobody is sure")

SERVES = """
import sys
from pathlib import Path
from jubal.accounts.presence import Presence
Presence(Path(sys.argv[1])).begin(sys.argv[2])
print(flush=True)
sys.stdin.read()
"""


class Process:
    """A gateway's process that does nothing but be there."""

    def __init__(self, folder: Path, gateway: str) -> None:
        command = [sys.executable, "-c", SERVES, str(folder), gateway]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Process]:
    made = Process(tmp_path, "other")
    yield made
    made.kill()


def dead(presence: Presence) -> list[str]:
    """Those that are buried now."""
    found: list[str] = []
    assert presence.bury(found.append) == len(found)
    return found


def test_the_living_are_left_alone_and_the_dead_are_buried_once(tmp_path: Path, other: Process) -> None:
    me = Presence(tmp_path)
    me.begin("me")
    assert dead(me) == []
    os.kill(other.process.pid, signal.SIGSTOP)
    assert dead(me) == [], "who is stopped lives"
    other.kill()
    assert dead(me) == ["other"]
    assert dead(me) == []
    assert [file.name for file in tmp_path.iterdir()] == ["me"]
    me.end(clean=True)
    assert not list(tmp_path.iterdir())


def test_who_could_not_be_settled_is_found_again(tmp_path: Path, other: Process) -> None:
    def fail(gateway: str) -> None:
        raise StoreUnavailable("away")

    other.kill()
    presence = Presence(tmp_path)
    with pytest.raises(StoreUnavailable):
        presence.bury(fail)
    assert dead(presence) == ["other"]


def test_who_ended_and_left_something_is_buried_by_the_next(tmp_path: Path) -> None:
    first = Presence(tmp_path)
    first.begin("first")
    first.end(clean=False)
    assert dead(Presence(tmp_path)) == ["first"]


def test_what_another_kernel_wrote_says_nothing(tmp_path: Path, other: Process) -> None:
    """Its owner may live on another machine, whose locks are not seen here."""
    other.kill()
    elsewhere = tmp_path.parent / "boot"
    elsewhere.write_text("another\n")
    assert dead(Presence(tmp_path, boot_id=elsewhere)) == []
    assert dead(Presence(tmp_path, boot_id=tmp_path / "none")) == []
    assert dead(Presence(tmp_path)) == ["other"]


def test_a_file_that_its_owner_did_not_lock_says_nothing(tmp_path: Path, other: Process) -> None:
    """A copy is another file; and one that is being made is not locked yet. A day later they are removed."""
    made = Presence(tmp_path)
    made.begin("made")
    made.end(clean=False)
    being_made = (tmp_path / "made").rename(tmp_path / "made.new")
    copied = tmp_path / "copied"
    copied.write_bytes((tmp_path / "other").read_bytes())
    presence = Presence(tmp_path)
    assert dead(presence) == []
    assert being_made.exists()
    assert copied.exists()
    long_ago = time.time() - 2 * 24 * 3600
    for file in tmp_path.iterdir():
        os.utime(file, (long_ago, long_ago))
    assert dead(presence) == []
    assert [file.name for file in tmp_path.iterdir()] == ["other"], "who lives may be as old as that"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert dead(Presence(tmp_path / "none")) == []


async def test_the_reserve_of_a_gateway_that_was_killed_comes_back_at_once(
    url: str, clock: Clock, tmp_path: Path
) -> None:
    """And that of one that lives does not, though it has the same home."""

    def reserved() -> int:
        found: Standing = standing(store, clock)
        return found.reserved

    with Store.open(url) as store:
        add(store, 1000)
        killed, living, next_one = (Gateway(store, clock) for _ in range(3))
        for one in (killed, living):
            await one.hold(100)
        there = Presence(tmp_path)
        there.begin(living.credit._gateway)
        process = Process(tmp_path, killed.credit._gateway)
        next_one.credit = Credit(store, clock=clock, now_us=living.credit._now_us, presence=Presence(tmp_path))
        before = reserved()
        await next_one.credit.upkeep()
        assert reserved() == before
        process.kill()
        clock.pass_s(31)
        await next_one.credit.upkeep()
        assert 100 <= reserved() < before
        assert (await next_one.hold(800)).ticks == 800
        for one in (killed, living, next_one):
            await one.log.close()
        await living.credit.close()
        await next_one.credit.close()
        there.end(clean=True)
        in_order(store)
