"""Opening, migrating, transactions, errors: on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import inspect
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
import structlog
from sqlalchemy import exc
from sqlalchemy.engine import Connection

from jubal.accounts import driver, tables, teams
from jubal.accounts import store as store_module
from jubal.accounts.migrations import HEAD
from jubal.accounts.store import Store, translate
from jubal.core.errors import InternalError, JubalError, StoreUnavailable
from tests.accounts.conftest import NOW_US


def in_other_processes(count: int, code: str, *args: str) -> list[str]:
    """Runs `code` in new interpreters at once and returns what they printed."""
    running = [
        subprocess.Popen([sys.executable, "-c", code, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    outputs = [process.communicate(timeout=100) for process in running]
    for process, (_, errors) in zip(running, outputs, strict=True):
        assert process.returncode == 0, errors
    return [printed.strip() for printed, _ in outputs]


def add_team(conn: Connection, name: str) -> teams.Team:
    return teams.create(conn, name=name, now_us=NOW_US)


def team_names(conn: Connection) -> list[str]:
    return sorted(team.name for team in teams.listing(conn))


# ---------------------------------------------------------------------------------------------------------- opening


def test_a_new_store_has_a_default_team_and_a_key_for_hashing(url: str) -> None:
    with Store.open(url) as store:
        assert store.read(teams.default).name == "default"
        assert len(store.hash_key) == 32
        first = store.hash_key
    with Store.open(url) as store:
        assert store.hash_key == first
        assert store.read(team_names) == ["default"]


def test_folder_and_files_are_for_the_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "home" / "jubal.db"
    with Store.open(f"sqlite:///{file}") as store:
        store.transact(add_team, "a")
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()}
    assert modes == {"jubal.db": 0o600, "jubal.db-wal": 0o600, "jubal.db-shm": 0o600}


def test_sqlite_runs_as_it_should(sqlite_url: str) -> None:
    def pragmas(conn: Connection) -> list[Any]:
        names = ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
        return [conn.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in names]

    with Store.open(sqlite_url) as store:
        assert store.read(pragmas) == ["wal", 1, 5000, 1]
    with Store.open(f"{sqlite_url}?synchronous=full") as store:
        assert store.read(pragmas) == ["wal", 2, 5000, 1]


def test_a_store_that_is_up_to_date_opens_without_alembic(url: str) -> None:
    """It takes 0.3 s to import, at every start of every command."""
    code = """if True:
        import sys
        from jubal.accounts.store import Store
        Store.open(sys.argv[1]).close()
        print("alembic" in sys.modules)
    """
    assert in_other_processes(1, code, url) == ["True"]
    assert in_other_processes(1, code, url) == ["False"]


def test_processes_that_start_at_once_make_one_store(url: str) -> None:
    code = """if True:
        import sys
        from jubal.accounts import teams
        from jubal.accounts.store import Store
        with Store.open(sys.argv[1]) as store:
            print(store.hash_key.hex(), [team.id for team in store.read(teams.listing)])
    """
    assert len(set(in_other_processes(2, code, url))) == 1


def test_threads_that_open_a_new_file_at_once_make_one_store(tmp_path: Path) -> None:
    """The switch to WAL is the one step for which SQLite doesn't wait; processes rarely meet in it, threads do."""
    for attempt in range(5):
        keys: list[bytes] = []
        begin = threading.Barrier(4)

        def open_it(attempt: int = attempt, begin: threading.Barrier = begin, keys: list[bytes] = keys) -> None:
            begin.wait()
            with Store.open(f"sqlite:///{tmp_path}/{attempt}.db") as store:
                keys.append(store.hash_key)

        threads = [threading.Thread(target=open_it) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(keys) == 4
        assert len(set(keys)) == 1


def set_revision(conn: Connection, revision: str) -> None:
    conn.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{revision}'")


def test_a_store_of_a_newer_release_is_refused(url: str) -> None:
    with Store.open(url) as store:
        store.transact(set_revision, "9999")
    with pytest.raises(
        StoreUnavailable, match=f"newer release of Jubal: it is at revision 9999.* up to {HEAD}"
    ) as caught:
        Store.open(url)
    assert caught.value.code == "store_too_new"
    with pytest.raises(StoreUnavailable, match="newer release"):
        Store.open(url, migrate=False)


def test_without_migrate_nothing_is_made(url: str) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        Store.open(url, migrate=False)
    assert caught.value.code == "store_not_migrated"
    Store.open(url).close()
    Store.open(url, migrate=False).close()


def test_a_migration_that_fails_leaves_nothing_behind(url: str) -> None:
    """A foreign table is in the way of the last of ours."""
    real = url.replace("postgresql:", "postgresql+psycopg:")
    engine = sa.create_engine(real)
    with engine.begin() as conn:
        conn.exec_driver_sql("CREATE TABLE usage (other TEXT)")
    with pytest.raises(StoreUnavailable, match="already exists"):
        Store.open(url)
    assert sa.inspect(engine).get_table_names() == ["usage"]
    with engine.begin() as conn:
        conn.exec_driver_sql("DROP TABLE usage")
    engine.dispose()
    Store.open(url).close()


@pytest.mark.parametrize(
    "url",
    [
        "mysql://localhost/x",
        "sqlite://",
        "sqlite:///:memory:",
        "nonsense",
        "sqlite:///x.db?synchronous=off",
        "sqlite:///x.db?synchronous=full&synchronous=off",
        "sqlite:///x.db?cache=shared",
    ],
)
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        Store.open(url)
    assert caught.value.code == "store_url"


def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    with pytest.raises(StoreUnavailable, match=r"jubal:\*\*\*@127.0.0.1:1/db can't be opened: .*refused") as caught:
        Store.open("postgresql://jubal:hunter2@127.0.0.1:1/db?sslmode=disable")
    assert "hunter2" not in str(caught.value)
    assert isinstance(caught.value.__cause__, exc.OperationalError)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a database " * 100)
    with pytest.raises(StoreUnavailable, match="not a database"):
        Store.open(f"sqlite:///{file}")
    assert file.read_text() == "not a database " * 100


def test_a_folder_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match=r"file/jubal\.db can't be opened"):
        Store.open(f"sqlite:///{tmp_path}/file/jubal.db")


# ------------------------------------------------------------------------------------------------------- migrations


def test_migrations_make_the_tables_that_the_code_expects(store: Store) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    def differences(conn: Connection) -> list[Any]:
        found: list[Any] = compare_metadata(MigrationContext.configure(conn), tables.metadata)
        return found

    assert store.read(differences) == []


def test_head_is_the_newest_revision() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(inspect.getfile(store_module)).parent / "migrations"))
    script = ScriptDirectory.from_config(config)
    assert script.get_heads() == [HEAD]
    assert all(len(one.revision) == 4 and one.revision.isdigit() for one in script.walk_revisions())


# ----------------------------------------------------------------------------------------------------- transactions


def test_a_transaction_is_whole_or_nothing(store: Store) -> None:
    def half(conn: Connection) -> None:
        add_team(conn, "a")
        raise KeyError("in the middle")

    with pytest.raises(KeyError):
        store.transact(half)
    assert store.read(team_names) == ["default"]
    store.transact(add_team, "a")
    assert store.read(team_names) == ["a", "default"]


async def test_it_runs_in_threads_too(store: Store) -> None:
    added = await asyncio.gather(*(store.run(add_team, f"t{n}") for n in range(20)))
    assert {team.name for team in added} == {f"t{n}" for n in range(20)}
    assert len(await store.run_read(teams.listing)) == 21
    assert len(await store.run_read(teams.listing, limit=5)) == 5


async def test_a_closed_store_says_so(sqlite_url: str) -> None:
    store = Store.open(sqlite_url)
    store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.run(team_names)


def test_processes_that_write_at_once_wait_for_each_other(url: str) -> None:
    """Each reads and then writes in one transaction: what SQLite answers with SQLITE_BUSY unless it begins as a writer."""
    with Store.open(url) as store:
        code = """if True:
            import sys
            from jubal.accounts.store import Store
            def work(conn, n):
                conn.exec_driver_sql("SELECT count(*) FROM teams").scalar_one()
                conn.exec_driver_sql("UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE name = 'n'")
            with Store.open(sys.argv[1]) as store:
                for n in range(100):
                    store.transact(work, n)
        """

        def counter(conn: Connection) -> None:
            conn.execute(tables.meta.insert(), {"name": "n", "value": "0"})

        store.transact(counter)
        in_other_processes(2, code, url)
        assert store.read(store_module._revision) == HEAD
        assert store.read(lambda c: c.scalar(sa.select(tables.meta.c.value).where(tables.meta.c.name == "n"))) == "200"


def test_reading_waits_for_no_writer(store: Store) -> None:
    def while_writing(conn: Connection) -> list[str]:
        add_team(conn, "unseen")
        return store.read(team_names)

    assert store.transact(while_writing) == ["default"]


# ----------------------------------------------------------------------------------------------------------- errors


def test_every_kind_of_driver_error_is_known() -> None:
    """Fails when SQLAlchemy grows a new one: decide whose fault it is, and name it here."""
    known = set(store_module.OUR_FAULT) | {
        exc.DBAPIError,
        exc.DatabaseError,
        exc.InterfaceError,
        exc.InternalError,
        exc.OperationalError,
    }
    found = {kind for kind in vars(exc).values() if isinstance(kind, type) and issubclass(kind, exc.DBAPIError)}
    assert found == known
    for kind in sorted(found, key=lambda kind: kind.__name__):
        ours = translate(kind("SELECT secret", ("secret",), Exception("secret")))
        assert type(ours) is (InternalError if kind in store_module.OUR_FAULT else StoreUnavailable)
        assert "secret" not in ours.message


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (exc.TimeoutError(), StoreUnavailable, "store_busy"),
        (exc.DisconnectionError(), StoreUnavailable, "store_unreachable"),
        (exc.InvalidRequestError(), InternalError, "store_refused"),
        (sqlite3.ProgrammingError(), InternalError, "store_refused"),
    ],
)
def test_errors_that_come_from_no_statement(error: Any, kind: type, code: str) -> None:
    ours = translate(error)
    assert (type(ours), ours.code) == (kind, code)


def test_a_wrong_statement_is_our_fault_and_shows_no_values(store: Store) -> None:
    def twice(conn: Connection) -> None:
        for _ in range(2):
            conn.execute(tables.meta.insert(), {"name": "x", "value": "precious"})

    with pytest.raises(InternalError) as caught:
        store.transact(twice)
    assert isinstance(caught.value.__cause__, exc.IntegrityError)
    assert "precious" not in f"{caught.value} {caught.value.__cause__}"
    with pytest.raises(InternalError):
        store.read(lambda conn: conn.exec_driver_sql("SELECT nonsense"))
    assert store.read(team_names) == ["default"]


def fill(conn: Connection, pages: int) -> None:
    """As if the disk were full after `pages` of 4 KiB."""
    conn.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    conn.execute(tables.meta.insert(), {"name": "big", "value": "x" * 1_000_000})


def test_a_full_disk(sqlite_store: Store) -> None:
    with pytest.raises(StoreUnavailable, match="its disk is full") as caught:
        sqlite_store.transact(fill, 40)
    assert caught.value.code == "store_full"
    assert caught.value.retry_after_s
    sqlite_store.transact(fill, 1_000_000)


def test_another_process_holds_the_lock(sqlite_url: str, sqlite_store: Store) -> None:
    other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert sqlite_store.read(team_names) == ["default"]
    sqlite_store.read(lambda conn: conn.exec_driver_sql("PRAGMA busy_timeout = 20").close())
    with pytest.raises(StoreUnavailable, match="another process holds it") as caught:
        sqlite_store.transact(add_team, "a")
    assert caught.value.code == "store_locked"
    other.execute("ROLLBACK")
    sqlite_store.transact(add_team, "a")
    other.close()


def begun_anew(wal: Path) -> int:
    """How often SQLite's log has begun again from its start: after all of it was written back."""
    return int.from_bytes(wal.read_bytes()[12:16], "big")


def until_tidy(store: Store) -> None:
    """Until its threads have done what they were given. A disk may be slower than a writer that never rests."""
    together = threading.Barrier(store._threads._max_workers + 1)
    for _ in range(store._threads._max_workers):
        store._threads.submit(together.wait)
    together.wait()


def test_the_log_is_written_back_beside_the_writers(tmp_path: Path, sqlite_store: Store) -> None:
    """Before any transaction has to do that itself."""
    session, wal = sqlite_store.session(), tmp_path / "jubal.db-wal"
    before, count = begun_anew(wal), 0
    while begun_anew(wal) == before:
        session.transact(add_team, str(count))
        count += 1
        if count % store_module.TIDY_EVERY == 0:
            until_tidy(sqlite_store)
        assert wal.stat().st_size < store_module.LOG_PAGES_MAX * 4096
    assert count >= store_module.TIDY_EVERY
    session.close()


def test_a_long_reader_keeps_the_log_and_stops_nobody(tmp_path: Path, sqlite_url: str, sqlite_store: Store) -> None:
    session, wal = sqlite_store.session(), tmp_path / "jubal.db-wal"
    before = begun_anew(wal)
    reader = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM teams").fetchone() == (1,)
    for index in range(4 * store_module.TIDY_EVERY):
        session.transact(add_team, str(index))
    assert begun_anew(wal) == before
    assert reader.execute("SELECT count(*) FROM teams").fetchone() == (1,), "its moment"
    reader.close()
    while begun_anew(wal) == before:
        session.transact(add_team, str(wal.stat().st_size))
        until_tidy(sqlite_store)
        assert wal.stat().st_size < store_module.LOG_PAGES_MAX * 4096
    session.close()


def test_a_log_that_can_not_be_written_back_is_told(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(conn: Connection, sql: str) -> int:
        if sql.startswith("BEGIN"):
            return driver.execute(conn, sql)
        raise exc.OperationalError(sql, (), sqlite3.OperationalError("disk I/O error"))

    monkeypatch.setattr(store_module, "driver", SimpleNamespace(execute=broken))
    session = sqlite_store.session()
    with structlog.testing.capture_logs() as logs:
        for index in range(2 * store_module.TIDY_EVERY):
            session.transact(add_team, str(index))
        session.close()
        sqlite_store.close()
    assert [(line["log_level"], line["error"]) for line in logs] == [("warning", "disk I/O error")] * 2


# ---------------------------------------------------------------------------------------------- PostgreSQL goes away


def test_postgresql_restarted_under_use(postgres: Any, postgres_store: Store) -> None:
    postgres_store.transact(add_team, "before")
    postgres.stop()
    with pytest.raises(StoreUnavailable, match="does not answer") as caught:
        postgres_store.transact(add_team, "meanwhile")
    assert caught.value.code == "store_unreachable"
    postgres.start()
    postgres_store.transact(add_team, "after")
    assert postgres_store.read(team_names) == ["after", "before", "default"]


def hang_up(conn: Connection) -> None:
    conn.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")


def test_a_connection_lost_before_the_commit_is_replaced_once(postgres_store: Store) -> None:
    calls = []

    def work(conn: Connection, name: str, times: int) -> None:
        calls.append(1)
        add_team(conn, name)
        if len(calls) <= times:
            hang_up(conn)

    postgres_store.transact(work, "once", 1)
    assert len(calls) == 2
    assert postgres_store.read(team_names) == ["default", "once"]
    calls.clear()
    with pytest.raises(StoreUnavailable):
        postgres_store.transact(work, "twice", 2)
    assert postgres_store.read(team_names) == ["default", "once"]


@pytest.mark.parametrize("state", ["40P01", "40001"])
def test_a_transaction_that_had_to_give_way_comes_again(postgres_store: Store, state: str) -> None:
    calls = []

    def work(conn: Connection) -> None:
        calls.append(1)
        add_team(conn, "a")
        if len(calls) == 1:
            conn.exec_driver_sql(f"DO $$ BEGIN RAISE EXCEPTION 'deadlock' USING ERRCODE = '{state}'; END $$")

    postgres_store.transact(work)
    assert len(calls) == 2
    assert postgres_store.read(team_names) == ["a", "default"]


HANG_UP_AT_COMMIT = """
CREATE TABLE hang_ups (left_to_do INTEGER);
INSERT INTO hang_ups VALUES (1);
CREATE FUNCTION hang_up() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(1); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON teams DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW WHEN (NEW.name = 'fatal') EXECUTE FUNCTION hang_up();
"""


def test_a_commit_of_unknown_fate_is_not_repeated_unless_that_is_safe(postgres_store: Store) -> None:
    calls = []

    def work(conn: Connection) -> None:
        calls.append(1)
        teams.create(conn, name="fatal" if len(calls) == 1 else "second", now_us=NOW_US)

    postgres_store.transact(lambda conn: conn.exec_driver_sql(HANG_UP_AT_COMMIT))
    with pytest.raises(StoreUnavailable) as caught:
        postgres_store.transact(work)
    assert caught.value.code == "store_unreachable"
    assert len(calls) == 1
    calls.clear()
    session = postgres_store.session()
    session.transact(work)
    session.close()
    assert len(calls) == 2
    assert postgres_store.read(team_names) == ["default", "second"]


def test_errors_of_the_store_are_jubals(store: Store) -> None:
    """Nothing of SQLAlchemy gets out, whatever a statement function does."""

    def nested(conn: Connection) -> None:
        conn.begin()

    with pytest.raises(JubalError):
        store.transact(nested)
