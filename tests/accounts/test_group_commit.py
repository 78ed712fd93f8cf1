"""Rows of many requests in one transaction: nothing is lost, nothing is doubled, and each hears of its own."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
import uvloop
from sqlalchemy import exc
from sqlalchemy.engine import Connection

from jubal.accounts import usage
from jubal.accounts.store import GroupCommit, Store
from jubal.accounts.usage import UsageRow
from jubal.core.errors import InternalError, StoreUnavailable
from tests.accounts.conftest import usage_row

ROOT = Path(__file__).parents[2]
Write = Callable[[Connection, list[UsageRow]], None]


def written(store: Store) -> list[str]:
    return sorted(row.request_id for row in store.read(usage.listing, limit=100_000))


class Recorder:
    """`usage.record` that remembers its batches and can be held up."""

    def __init__(self, before: Write | None = None) -> None:
        self.batches: list[list[str]] = []
        self.before = before

    def __call__(self, conn: Connection, rows: list[UsageRow]) -> None:
        self.batches.append([row.request_id for row in rows])
        if self.before is not None:
            self.before(conn, rows)
        usage.record(conn, rows)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def commits(store: Store, recorder: Recorder) -> AsyncIterator[GroupCommit[UsageRow]]:
    group = GroupCommit(store, recorder, batch_max=100)
    yield group
    await group.close()


async def test_a_commit_that_returned_is_in_the_store(store: Store, commits: GroupCommit[UsageRow]) -> None:
    await commits.commit(usage_row("a"))
    assert written(store) == ["a"]
    await commits.commit(usage_row("b"))
    assert written(store) == ["a", "b"]


async def test_many_rows_share_few_transactions(
    store: Store, commits: GroupCommit[UsageRow], recorder: Recorder
) -> None:
    await asyncio.gather(*(commits.commit(usage_row(f"{n:03}")) for n in range(350)))
    assert [len(batch) for batch in recorder.batches] == [100, 100, 100, 50]
    assert written(store) == [f"{n:03}" for n in range(350)]


async def test_a_row_that_comes_again_changes_nothing(store: Store, commits: GroupCommit[UsageRow]) -> None:
    await commits.commit(usage_row("a", completion_tokens=1))
    await asyncio.gather(*(commits.commit(usage_row("a", completion_tokens=n)) for n in (2, 3)))
    assert [row.completion_tokens for row in store.read(usage.listing)] == [1]


async def test_a_caller_that_is_cancelled_loses_no_row(store: Store, commits: GroupCommit[UsageRow]) -> None:
    tasks = [asyncio.create_task(commits.commit(usage_row(n))) for n in range(5)]
    await asyncio.sleep(0)
    for task in tasks[1:4]:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ends] == [type(None), *[asyncio.CancelledError] * 3, type(None)]
    await commits.drain()
    assert written(store) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("bad", [{"model": None}, {"latency_us": 2**70}], ids=["missing", "too_large"])
async def test_a_bad_row_is_its_own_callers_trouble(
    store: Store, commits: GroupCommit[UsageRow], recorder: Recorder, bad: dict[str, Any]
) -> None:
    rows = [usage_row(n, **(bad if n in (2, 5) else {})) for n in range(8)]
    ends = await asyncio.gather(*map(commits.commit, rows), return_exceptions=True)
    assert [isinstance(end, InternalError | OverflowError) for end in ends] == [n in (2, 5) for n in range(8)]
    assert written(store) == ["0", "1", "3", "4", "6", "7"]
    assert [len(batch) for batch in recorder.batches] == [8] + [1] * 8
    await commits.commit(usage_row("after"))


async def test_a_bad_row_whose_caller_is_gone_is_logged(commits: GroupCommit[UsageRow]) -> None:
    with structlog.testing.capture_logs() as logs:
        task = asyncio.create_task(commits.commit(usage_row("lost", model=None)))
        await asyncio.sleep(0)
        task.cancel()
        await commits.drain()
    assert [(line["log_level"], "lost" in line["row"]) for line in logs] == [("error", True)]


def a_full_disk(pages: list[int]) -> Write:
    """SQLite as on a disk with `pages[0]` pages of 4 KiB."""

    def limit(conn: Connection, rows: list[UsageRow]) -> None:
        conn.exec_driver_sql(f"PRAGMA max_page_count = {pages[0]}")

    return limit


async def test_a_full_disk_fails_everyone_and_heals(sqlite_store: Store) -> None:
    pages = [1]
    recorder = Recorder(before=a_full_disk(pages))
    group = GroupCommit(sqlite_store, recorder)
    rows = [usage_row(n, model="m" * 10_000) for n in range(50)]
    ends = await asyncio.gather(*map(group.commit, rows), return_exceptions=True)
    assert {(type(end), getattr(end, "code", None)) for end in ends} == {(StoreUnavailable, "store_full")}
    assert len({id(end) for end in ends}) == 50, "each caller has an error of its own"
    assert all(isinstance(end, StoreUnavailable) and isinstance(end.__cause__, exc.OperationalError) for end in ends)
    assert len(recorder.batches) == 1, "a row is not the reason, so they are not tried one by one"
    assert written(sqlite_store) == []
    pages[0] = 1_000_000
    await asyncio.gather(*map(group.commit, rows))
    assert len(written(sqlite_store)) == 50
    await group.close()


async def test_a_store_that_fails_among_single_rows_fails_the_rest(sqlite_store: Store) -> None:
    def fail(conn: Connection, rows: list[UsageRow]) -> None:
        if [row.request_id for row in rows] == ["2"]:
            conn.exec_driver_sql("PRAGMA max_page_count = 1")
            raise StoreUnavailable("gone", code="store_io")

    group = GroupCommit(sqlite_store, Recorder(before=fail))
    rows = [usage_row(n, **({"model": None} if n == 1 else {})) for n in range(5)]
    ends = await asyncio.gather(*map(group.commit, rows), return_exceptions=True)
    kinds = [type(None), InternalError, StoreUnavailable, StoreUnavailable, StoreUnavailable]
    assert [type(end) for end in ends] == kinds
    assert written(sqlite_store) == ["0"]
    await group.close()


async def test_closing_writes_what_waits_and_refuses_more(store: Store) -> None:
    group = GroupCommit(store, usage.record, batch_max=10)
    tasks = [asyncio.create_task(group.commit(usage_row(f"{n:02}"))) for n in range(35)]
    await asyncio.sleep(0)
    await group.close()
    assert written(store) == [f"{n:02}" for n in range(35)]
    await asyncio.gather(*tasks)
    with pytest.raises(StoreUnavailable) as caught:
        await group.commit(usage_row("late"))
    assert caught.value.code == "store_closed"
    await group.close()


async def test_one_that_was_never_used_closes_too(store: Store) -> None:
    group = GroupCommit(store, usage.record)
    await group.drain()
    await group.close()


async def test_waiting_rows_are_bounded(sqlite_store: Store) -> None:
    group = GroupCommit(sqlite_store, usage.record, waiting_max=10)
    ends = await asyncio.gather(*(group.commit(usage_row(n)) for n in range(12)), return_exceptions=True)
    assert [getattr(end, "code", None) for end in ends] == [None] * 10 + ["store_behind"] * 2
    await group.commit(usage_row("later"))
    assert len(written(sqlite_store)) == 11
    await group.close()


def test_it_runs_on_uvloop(store: Store) -> None:
    async def write() -> None:
        group = GroupCommit(store, usage.record)
        await asyncio.gather(*(group.commit(usage_row(f"{n:02}")) for n in range(50)))
        await group.close()

    uvloop.run(write())
    assert len(written(store)) == 50


def test_a_loop_that_ends_without_closing_leaves_the_rows(sqlite_store: Store) -> None:
    """As when the server's main task dies: no thread keeps the process alive, and what was handed over is written."""

    async def begin() -> None:
        group = GroupCommit(sqlite_store, usage.record)
        task = asyncio.create_task(group.commit(usage_row("a")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(begin())
    give_up_at = time.monotonic() + 60
    while written(sqlite_store) != ["a"] and time.monotonic() < give_up_at:
        time.sleep(0.01)
    assert written(sqlite_store) == ["a"]


# ----------------------------------------------------------------------------------------------- connections that die


async def test_a_lost_connection_costs_nothing(postgres_store: Store) -> None:
    def hang_up_once(conn: Connection, rows: list[UsageRow]) -> None:
        if len(recorder.batches) == 1:
            conn.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")

    recorder = Recorder(before=hang_up_once)
    group = GroupCommit(postgres_store, recorder)
    await asyncio.gather(*(group.commit(usage_row(n)) for n in range(5)))
    assert written(postgres_store) == ["0", "1", "2", "3", "4"]
    await group.close()


async def test_postgresql_restarts_while_rows_keep_coming(postgres: Any, postgres_store: Store) -> None:
    """No row is refused and none is doubled: they wait until it is back."""
    group = GroupCommit(postgres_store, usage.record, patience_s=100)
    done = asyncio.Event()
    sent: list[str] = []

    async def keep_writing(writer: int) -> None:
        for n in range(10_000):
            if done.is_set():
                return
            await group.commit(usage_row(f"{writer}-{n}"))
            sent.append(f"{writer}-{n}")
            await asyncio.sleep(0.002)

    async with asyncio.TaskGroup() as tasks:
        for writer in range(4):
            tasks.create_task(keep_writing(writer))
        while len(sent) < 8:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(postgres.stop)
        before = len(sent)
        await asyncio.to_thread(postgres.start)
        while len(sent) < before + 8:
            await asyncio.sleep(0.01)
        done.set()
    await group.close()
    assert written(postgres_store) == sorted(sent)


async def test_patience_ends(postgres: Any, postgres_store: Store) -> None:
    group = GroupCommit(postgres_store, usage.record, patience_s=0.2)
    await group.commit(usage_row("before"))
    await asyncio.to_thread(postgres.stop)
    try:
        ends = await asyncio.gather(*(group.commit(usage_row(n)) for n in range(3)), return_exceptions=True)
        assert [getattr(end, "code", None) for end in ends] == ["store_unreachable"] * 3
    finally:
        await asyncio.to_thread(postgres.start)
    await group.commit(usage_row("after"))
    assert written(postgres_store) == ["after", "before"]
    await group.close()


WRITER = """if True:
    import asyncio, sys
    from jubal.accounts import usage
    from jubal.accounts.store import GroupCommit, Store
    from tests.accounts.conftest import usage_row

    async def main():
        group = GroupCommit(Store.open(sys.argv[1]), usage.record)
        async def write(writer):
            for n in range(1_000_000):
                await group.commit(usage_row(f"{writer}-{n}"))
                print(f"{writer}-{n}", flush=True)
        await asyncio.gather(*map(write, range(16)))

    asyncio.run(main())
"""


def test_kill_9_forgets_no_row_that_was_committed(url: str) -> None:
    """The writer names each row once its commit has returned; then it is shot, and started again to send some twice."""
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert process.stdout is not None
        promised = [process.stdout.readline().strip() for _ in range(500)]
        process.send_signal(signal.SIGKILL)
        promised += process.stdout.read().split("\n")[:-1]  # the last line may be cut
        process.wait()
        process.stdout.close()
        with Store.open(url) as store:
            found = written(store)
        assert set(promised) <= set(found)
        assert len(found) == len(set(found))
