"""The statements behind deferred answers, with a clock of their own, on SQLite and PostgreSQL."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jubal.accounts import usage
from jubal.accounts.store import Store
from jubal.accounts.tables import deferred as table
from jubal.core.errors import AtCapacity
from jubal.records import deferred
from jubal.records.deferred import LIFE_US, Ended, Job
from tests.accounts.conftest import NOW_US, usage_row

LEASE_US = 60_000_000
DONE = Ended("done", 200, b"answer")


def submit(store: Store, *ids: str, team_id: str = "team", dialect: str = "chat", now_us: int = NOW_US) -> None:
    for request_id in ids:
        store.transact(
            deferred.submit,
            request_id=request_id,
            team_id=team_id,
            key_id="key",
            dialect=dialect,
            body=b'{"\xc3\xa9": 1}',
            now_us=now_us,
        )


def claim(store: Store, lease: str, *, jobs_max: int = 10, now_us: int = NOW_US) -> list[Job]:
    return store.transact(
        deferred.claim, dialects=["chat"], jobs_max=jobs_max, lease=lease, lease_us=LEASE_US, now_us=now_us
    )


def state(store: Store, request_id: str, now_us: int = NOW_US) -> str | None:
    return store.read(deferred.state, request_id, "team", "chat", now_us)


def test_from_request_to_answer_once(store: Store) -> None:
    submit(store, "a")
    assert state(store, "a") == "pending"
    [job] = claim(store, "mine")
    assert job == Job("a", "key", "chat", b'{"\xc3\xa9": 1}', "mine", NOW_US + LEASE_US, 1)
    assert state(store, "a") == "running"
    assert store.transact(deferred.take, "a", "team", "chat", NOW_US) is None
    assert store.transact(deferred.finish, job, DONE)
    assert state(store, "a") == "done"
    assert store.transact(deferred.take, "a", "others", "chat", NOW_US) is None
    assert store.transact(deferred.take, "a", "team", "chat", NOW_US) == DONE
    assert store.transact(deferred.take, "a", "team", "chat", NOW_US) is None
    assert state(store, "a") is None


def test_dialects_do_not_see_each_other(store: Store) -> None:
    submit(store, "a", dialect="other")
    assert not store.read(deferred.due, ["chat"], NOW_US)
    assert claim(store, "mine") == [], "a server that can't read it leaves it alone"
    assert state(store, "a") is None
    [job] = store.transact(
        deferred.claim, dialects=["chat", "other"], jobs_max=1, lease="x", lease_us=LEASE_US, now_us=NOW_US
    )
    assert job.dialect == "other"
    assert store.transact(deferred.finish, job, DONE)
    assert store.transact(deferred.take, "a", "team", "chat", NOW_US) is None
    assert store.transact(deferred.take, "a", "team", "other", NOW_US) == DONE


def test_the_oldest_go_first_and_no_more_than_wanted(store: Store) -> None:
    for age_s, request_id in enumerate("dcba"):
        submit(store, request_id, now_us=NOW_US - age_s)
    assert [job.request_id for job in claim(store, "one", jobs_max=3)] == ["a", "b", "c"]
    assert [job.request_id for job in claim(store, "two", jobs_max=3)] == ["d"]
    assert not store.read(deferred.due, ["chat"], NOW_US)
    assert claim(store, "three") == []


def test_a_lease_that_is_renewed_holds_and_one_that_is_not_ends(store: Store) -> None:
    submit(store, "a")
    [job] = claim(store, "first")
    later = NOW_US + LEASE_US - 1
    assert store.transact(deferred.renew, job, lease_us=LEASE_US, now_us=later) == later + LEASE_US
    assert claim(store, "second", now_us=later + LEASE_US - 1) == []
    [again] = claim(store, "second", now_us=later + LEASE_US)
    assert again.attempts == 2
    assert store.transact(deferred.renew, job, lease_us=LEASE_US, now_us=later) is None


def test_who_lost_a_lease_changes_nothing(store: Store) -> None:
    submit(store, "a")
    [late] = claim(store, "late")
    [job] = claim(store, "second", now_us=NOW_US + LEASE_US)
    row = usage_row("a", cost_in_usd_ticks=1)
    assert not store.transact(deferred.finish, late, Ended("done", 200, b"late", row))
    store.transact(deferred.give_back, late)
    assert state(store, "a") == "running"
    assert store.transact(deferred.finish, job, Ended("done", 200, b"kept", row._replace(cost_in_usd_ticks=2)))
    assert not store.transact(deferred.finish, late, Ended("done", 200, b"late", row))
    taken = store.transact(deferred.take, "a", "team", "chat", NOW_US)
    assert taken is not None
    assert taken.body == b"kept"
    assert [(one.request_id, one.cost_in_usd_ticks) for one in store.read(usage.listing)] == [("a", 2)]


def test_what_is_given_back_is_no_attempt_and_may_rest(store: Store) -> None:
    submit(store, "a")
    for _ in range(5):
        [job] = claim(store, "x")
        assert job.attempts == 1
        store.transact(deferred.give_back, job)
    [job] = claim(store, "x")
    store.transact(deferred.give_back, job, not_before_us=NOW_US + 5)
    assert not store.read(deferred.due, ["chat"], NOW_US + 4)
    assert store.read(deferred.due, ["chat"], NOW_US + 5)


def test_after_24_hours_it_is_gone_whatever_its_state(store: Store) -> None:
    submit(store, "waits", "ended", "runs")
    jobs = {job.request_id: job for job in claim(store, "x", now_us=NOW_US + LIFE_US - 1)}
    store.transact(deferred.finish, jobs["ended"], DONE)
    store.transact(deferred.give_back, jobs["waits"])
    last, end = NOW_US + LIFE_US - 1, NOW_US + LIFE_US
    assert state(store, "ended", last) == "done"
    assert [state(store, request_id, end) for request_id in jobs] == [None, None, None]
    assert store.transact(deferred.take, "ended", "team", "chat", end) is None
    assert not store.read(deferred.due, ["chat"], end)
    assert store.transact(deferred.sweep, last) == 0
    assert store.transact(deferred.sweep, end) == 2, "what runs is left"
    assert store.transact(deferred.finish, jobs["runs"], Ended("done", 200, b"", usage_row("runs")))
    assert len(store.read(usage.listing)) == 1, "its work is charged"
    assert store.transact(deferred.sweep, end) == 1


def test_a_body_is_kept_only_while_it_is_needed(store: Store) -> None:
    submit(store, "a")
    [job] = claim(store, "x")
    store.transact(deferred.finish, job, DONE)

    def body(conn: Connection) -> object:
        return conn.scalar(sa.select(table.c.body))

    assert bytes(store.read(body)) == b""  # type: ignore[call-overload]


def test_a_team_may_keep_so_many_waiting(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred, "WAITING_MAX", 2)
    submit(store, "a", "b")
    with pytest.raises(AtCapacity):
        submit(store, "c")
    submit(store, "d", team_id="others")
    [job, *_] = claim(store, "x", jobs_max=1)
    with pytest.raises(AtCapacity):
        submit(store, "c")
    store.transact(deferred.finish, job, DONE)
    submit(store, "c")


def test_threads_that_claim_at_once_share_the_jobs(store: Store) -> None:
    ids = [f"job {number}" for number in range(60)]
    submit(store, *ids)
    claimed: list[str] = []
    begin = threading.Barrier(4)

    def work(name: int) -> None:
        begin.wait()
        turn = 0
        while jobs := claim(store, f"{name}-{turn}", jobs_max=3):
            claimed.extend(job.request_id for job in jobs)
            turn += 1

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(ids)


def test_of_two_that_fetch_at_once_one_gets_it(store: Store) -> None:
    for number in range(10):
        request_id = f"job {number}"
        submit(store, request_id)
        [job] = claim(store, "x")
        store.transact(deferred.finish, job, DONE)
        got: list[Ended | None] = []
        begin = threading.Barrier(2)

        def fetch(
            request_id: str = request_id, begin: threading.Barrier = begin, got: list[Ended | None] = got
        ) -> None:
            begin.wait()
            got.append(store.transact(deferred.take, request_id, "team", "chat", NOW_US))

        threads = [threading.Thread(target=fetch) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [one for one in got if one] == [DONE]
