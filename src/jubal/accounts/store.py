"""The accounts store: SQLite or PostgreSQL behind one synchronous SQLAlchemy Core engine.

Statements are plain functions that take a `Connection` first. The command line runs them directly (`Store.transact`), the
server from threads (`Store.run`), and what every request writes goes through `GroupCommit`. Synchronous on purpose: a
transaction of one row takes 0.1 ms in a thread of ours, and 0.27 ms through SQLAlchemy's asyncio layer over aiosqlite.

Errors of SQLAlchemy and of the drivers end here: outside there are only those of `jubal.core.errors`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import secrets
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Concatenate, Final, Generic, ParamSpec, TypeAlias, TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy import exc
from sqlalchemy.engine import URL, Connection, Engine

from jubal.accounts import driver, tables
from jubal.accounts.migrations import HEAD
from jubal.core.errors import InternalError, StoreUnavailable

log = structlog.get_logger("jubal.store")

P = ParamSpec("P")
T = TypeVar("T")
Row = TypeVar("Row")

_Batch: TypeAlias = list[tuple[Row, "asyncio.Future[None]"]]

BUSY_TIMEOUT_S: Final = 5.0
"""How long a transaction waits for other writers, and for a free connection."""
THREADS: Final = 4
BUSY_ROWS: Final = 4
"""A batch of as many rows means load: then the next one gathers for `GATHER_S`, which costs each answer that much and saves
most of the transactions."""
GATHER_S: Final = 0.001
READS_ONLY: Final = "jubal_reads_only"
SNAPSHOT: Final = {"postgresql": {"isolation_level": "REPEATABLE READ"}}
"""By dialect: how a transaction sees one moment. PostgreSQL's own choice is that every statement sees another one; SQLite has only
this."""
TIDY_EVERY: Final = 64
"""Transactions of a session between two checkpoints beside it: about 500 pages of SQLite's log."""
LOG_PAGES_MAX: Final = 8_000
"""Pages of the log (32 MB) at which the transaction that reached it makes the checkpoint itself: where those beside it always came
while others wrote, or where nobody keeps a session."""
SYNCHRONOUS: Final = frozenset({"normal", "full", "extra"})
UNREACHABLE: Final = "store_unreachable"
ROLLED_BACK: Final = frozenset({"40001", "40P01"})
"""PostgreSQL's states of a transaction that had to give way (serialization failure, deadlock), and may come again."""
MIGRATION_LOCK: Final = 0x6A7562616C
"""PostgreSQL's advisory lock while the schema changes ("jubal" in ASCII)."""


# -------------------------------------------------------------------------------------------------------- the store


class Store:
    """An open store. Its methods may be called from any thread.

    hash_key: what API keys are hashed with (`tables.meta`).
    """

    def __init__(self, engine: Engine, hash_key: bytes) -> None:
        """For `open`."""
        self.hash_key = hash_key
        self._engine = engine
        self._reads = engine.execution_options(**{READS_ONLY: True, **SNAPSHOT.get(engine.dialect.name, {})})
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="jubal-store")
        # SQLite has one writer at a time. Threads queue here because SQLite itself would make them poll, up to 0.1 s apart.
        self._turn: AbstractContextManager[object] = _Turn() if engine.dialect.name == "sqlite" else nullcontext()

    @classmethod
    def open(cls, url: str, *, migrate: bool = True) -> Store:
        """Opens `sqlite:///FILE` or `postgresql://…`, and makes it or brings it up to date where that is needed.

        A SQLite file is made with mode 0600 in a folder with mode 0700. Any number of processes may do this at once.
        migrate: False leaves an older store as it is and refuses it. Raises `StoreUnavailable`, which says what to do.
        """
        where, engine = _engine(url)
        with ExitStack() as undo:
            undo.callback(engine.dispose)
            try:
                store = cls(engine, bytes.fromhex(_prepare(engine, migrate)))
            except (exc.SQLAlchemyError, sqlite3.Error, OSError) as error:
                raise StoreUnavailable(
                    f"The accounts store at {where} can't be opened: {_first_line(error)}", code="store_not_opened"
                ) from error
            except _Outdated as error:
                raise StoreUnavailable(f"The accounts store at {where} {error}", code=error.code) from None
            undo.pop_all()
            return store

    def close(self) -> None:
        """Waits for what runs in threads, then closes all connections."""
        self._threads.shutdown(wait=True)
        self._engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def transact(self, fn: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """One transaction: `fn(connection, …)`, then commit; nothing of it stays where `fn` raises.

        On SQLite it takes the write lock at its beginning. `fn` may run twice, if the first transaction was surely undone.
        """
        with _translated(), self._engine.connect() as connection:
            return self._attempt(connection, lambda conn: fn(conn, *args, **kwargs), fn_is_idempotent=False)

    def read(self, fn: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `transact`, for functions that only read: on SQLite it waits for no writer.

        All that `fn` reads is of one moment, so that sums of one table agree with those of another while others write.
        """
        with _translated(), self._reads.connect() as connection:
            return self._attempt(connection, lambda conn: fn(conn, *args, **kwargs), fn_is_idempotent=True)

    async def run(self, fn: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`transact` in a thread."""
        return await self._in_thread(partial(self.transact, fn, *args, **kwargs))

    async def run_read(self, fn: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`read` in a thread."""
        return await self._in_thread(partial(self.read, fn, *args, **kwargs))

    def session(self) -> Session:
        """A connection for one thread that writes all the time."""
        return Session(self)

    def tidy(self) -> None:
        """In a thread, on SQLite: what is in the log goes into the file, which takes a few ms, while others write."""
        if self._engine.dialect.name == "sqlite":
            with contextlib.suppress(RuntimeError):  # the executor's word for "shut down"
                self._threads.submit(self._checkpoint)

    def _checkpoint(self) -> None:
        try:
            with self._engine.connect() as connection:
                driver.execute(connection, "PRAGMA wal_checkpoint(PASSIVE)")
        except exc.SQLAlchemyError as error:
            log.warning("the store's log could not be written back; it is tried again", error=_first_line(error))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            running = loop.run_in_executor(self._threads, work)
        except RuntimeError as error:  # the executor's word for "shut down"
            raise StoreUnavailable("The accounts store is closed.", code="store_closed") from error
        return await running

    def _attempt(self, connection: Connection, fn: Callable[[Connection], T], *, fn_is_idempotent: bool) -> T:
        """One transaction, and once more where its connection turns out to be dead, or another one was in its way.

        A connection that is lost during the commit leaves open whether it happened; then only what is idempotent may go again.
        """
        turn = nullcontext() if connection.get_execution_options().get(READS_ONLY) else self._turn
        for final in (False, True):
            safe = True
            try:
                with turn, connection.begin():
                    result = fn(connection)
                    safe = fn_is_idempotent
                return result
            except exc.DBAPIError as error:
                lost = error.connection_invalidated and safe
                if final or not (lost or getattr(error.orig, "sqlstate", None) in ROLLED_BACK):
                    raise
        raise AssertionError("unreachable")


class Session:
    """One connection that one thread keeps: saves the pool's work at every transaction. Not for sharing between threads."""

    def __init__(self, store: Store) -> None:
        """For `Store.session`."""
        self._store = store
        self._connection: Connection | None = None
        self._untidy = 0

    def transact(self, fn: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `Store.transact`, but `fn` must be idempotent: it runs again where the fate of a commit is unknown."""
        with _translated():
            if self._connection is None:
                self._connection = self._store._engine.connect()
            done = self._store._attempt(self._connection, lambda conn: fn(conn, *args, **kwargs), fn_is_idempotent=True)
        self._untidy += 1
        if self._untidy >= TIDY_EVERY:
            self._untidy = 0
            self._store.tidy()
        return done

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


class _Turn:
    """A lock that gives up after `BUSY_TIMEOUT_S`, as SQLite does for other processes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=BUSY_TIMEOUT_S):
            raise StoreUnavailable("The accounts store does not answer: other writers hold it.", code="store_locked")

    def __exit__(self, *_: object) -> None:
        self._lock.release()


# ----------------------------------------------------------------------------------------------------- group commit


class GroupCommit(Generic[Row]):
    """Rows of many requests, written together: while one transaction runs in a thread, the rows for the next one gather.

    write: must be idempotent, as it sees a row again after a failure that leaves open what was committed. batch_max: rows of
    one transaction. waiting_max: rows that may wait before new ones are refused. patience_s: how long a batch is tried again
    while the store can't be reached, so that a PostgreSQL that restarts costs nothing but time.

    All methods but the constructor belong to one event loop.
    """

    def __init__(
        self,
        store: Store,
        write: Callable[[Connection, list[Row]], None],
        *,
        batch_max: int = 512,
        waiting_max: int = 10_000,
        patience_s: float = 5.0,
    ) -> None:
        self._store = store
        self._write = write
        self._batch_max = batch_max
        self._waiting_max = waiting_max
        self._patience_s = patience_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._inbox: queue.SimpleQueue[_Batch[Row] | None] = queue.SimpleQueue()  # holds one batch at most
        self._waiting: _Batch[Row] = []
        self._writing = False
        self._busy = False
        self._idle: list[asyncio.Future[None]] = []
        self._closed = False

    async def commit(self, row: Row) -> None:
        """Returns when the transaction that holds `row` has committed.

        The row is written even where the caller is cancelled meanwhile. Raises `StoreUnavailable`, or what is wrong with this
        row; then it is not in the store, except where the connection was lost in the middle of a commit.
        """
        if self._closed:
            raise StoreUnavailable("The accounts store is closed.", code="store_closed")
        if len(self._waiting) >= self._waiting_max:
            raise StoreUnavailable(
                "The accounts store does not answer: too many rows wait.", code="store_behind", retry_after_s=1.0
            )
        loop = self._loop or self._start()
        written: asyncio.Future[None] = loop.create_future()
        self._waiting.append((row, written))
        if not self._writing:
            self._writing = True
            # Not at once: the other requests of this turn of the loop come along, and under load those of a millisecond.
            if self._busy:
                loop.call_later(GATHER_S, self._hand_over)
            else:
                loop.call_soon(self._hand_over)
        await written

    async def drain(self) -> None:
        """Returns when no row waits."""
        if self._writing:
            idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(idle)
            await idle

    async def close(self) -> None:
        """Writes what waits, then ends the thread. More rows are refused."""
        self._closed = True
        await self.drain()
        if self._thread is not None:
            self._inbox.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    def _start(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.get_running_loop()
        # A daemon, so that a server that dies without `close` does die. A transaction that it cuts is rolled back.
        self._thread = threading.Thread(target=self._work, args=(self._loop,), name="jubal-commit", daemon=True)
        self._thread.start()
        return self._loop

    def _hand_over(self) -> None:
        """The rows that wait become the thread's next batch."""
        batch, self._waiting = self._waiting[: self._batch_max], self._waiting[self._batch_max :]
        self._busy = len(batch) >= BUSY_ROWS
        self._inbox.put(batch)

    def _settle(self, batch: _Batch[Row], errors: dict[int, Exception]) -> None:
        """A batch is done: the next one goes first, then everyone hears of theirs."""
        if not self._waiting:
            self._writing = False
        elif self._busy and self._loop is not None:
            self._loop.call_later(GATHER_S, self._hand_over)
        else:
            self._hand_over()
        for index, (row, written) in enumerate(batch):
            error = errors.get(index) if errors else None
            if error is None:
                if not written.done():
                    written.set_result(None)
            elif not written.done():
                written.set_exception(error)
            else:
                log.error("a row is lost, and its request is gone", row=repr(row), error=str(error))
        if not self._writing:
            for idle in self._idle:
                if not idle.done():
                    idle.set_result(None)
            self._idle.clear()

    # What follows runs in the thread.

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        session = self._store.session()
        while (batch := self._inbox.get()) is not None:
            errors = self._write_batch(session, [row for row, _ in batch])
            try:
                loop.call_soon_threadsafe(self._settle, batch, errors)
            except RuntimeError:
                log.warning(
                    "the event loop ended before its group commit was closed", rows=len(batch), errors=len(errors)
                )
                break
        session.close()

    def _write_batch(self, session: Session, rows: list[Row]) -> dict[int, Exception]:
        """Writes what can be written. Returns the errors of the rest by index."""
        try:
            self._patiently(session, rows)
        except StoreUnavailable as error:
            return {index: _again(error) for index in range(len(rows))}
        except Exception as error:  # noqa: BLE001  a row may be wrong in any way
            if len(rows) == 1:
                return {0: error}
        else:
            return {}
        errors: dict[int, Exception] = {}
        away: StoreUnavailable | None = None
        for index, row in enumerate(rows):
            try:
                if away is None:
                    self._patiently(session, [row])
            except StoreUnavailable as error:
                away = error
            except Exception as error:  # noqa: BLE001  as above: it belongs to this row's request
                errors[index] = error
            if away is not None:
                errors[index] = _again(away)
        return errors

    def _patiently(self, session: Session, rows: list[Row]) -> None:
        """One transaction, tried for `patience_s` while the store can't be reached."""
        give_up_at = time.monotonic() + self._patience_s
        pause_s = 0.05
        while True:
            try:
                return session.transact(self._write, rows)
            except StoreUnavailable as error:
                if error.code != UNREACHABLE or time.monotonic() + pause_s > give_up_at:
                    raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.5)


def _again(error: StoreUnavailable) -> StoreUnavailable:
    """The same error once more, for another waiter: an exception that several tasks raise gathers all their tracebacks."""
    copy = StoreUnavailable(error.message, code=error.code, retry_after_s=error.retry_after_s)
    copy.__cause__ = error.__cause__
    return copy


# ---------------------------------------------------------------------------------------------------------- opening


class _Outdated(Exception):
    """The store's schema and this release do not fit."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def _engine(url: str) -> tuple[str, Engine]:
    """The store's address as it may be shown, and its engine, not connected. Raises `StoreUnavailable`."""
    try:
        parsed = sa.make_url(url)
    except exc.ArgumentError as error:
        raise _no_url() from error
    where = parsed.set(query={}).render_as_string(hide_password=True)
    match parsed.drivername:
        case "sqlite" if parsed.database and parsed.database != ":memory:" and not parsed.host:
            return where, _sqlite(parsed, where)
        case "postgresql" | "postgresql+psycopg":
            return where, _postgresql(parsed)
    raise _no_url()


def _no_url() -> StoreUnavailable:
    return StoreUnavailable(
        "The accounts store's URL is of no kind known here: expected sqlite:///FILE or postgresql://…", code="store_url"
    )


def _sqlite(url: URL, where: str) -> Engine:
    """synchronous=NORMAL loses nothing when the process is killed; a power failure may take the last commits, but never
    damages the file. `sqlite:///FILE?synchronous=full` waits for the disk at every commit instead."""
    chosen = url.query.get("synchronous", "normal")
    synchronous = chosen.lower() if isinstance(chosen, str) else ""
    if synchronous not in SYNCHRONOUS or set(url.query) - {"synchronous"}:
        raise StoreUnavailable(
            f"The accounts store's URL {where} takes only ?synchronous= with {', '.join(sorted(SYNCHRONOUS))}.",
            code="store_url",
        )
    engine = sa.create_engine(
        url.set(query={}),
        hide_parameters=True,
        pool_timeout=BUSY_TIMEOUT_S,
        connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None},
    )

    @sa.event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute(f"PRAGMA wal_autocheckpoint={LOG_PAGES_MAX}")
        connection.execute("PRAGMA foreign_keys=ON")

    # Python's sqlite3 begins a transaction only before the first write, and then a read that came before it can't be upgraded
    # while another process writes: SQLITE_BUSY at once, whatever the timeout. So we say BEGIN, and say what it is for.
    @sa.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        reads = connection.get_execution_options().get(READS_ONLY)
        driver.execute(connection, "BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _postgresql(url: URL) -> Engine:
    options = {
        "connect_timeout": "5",
        "tcp_user_timeout": "10000",  # ms; without it a server that vanished is noticed after a quarter of an hour
        "application_name": "jubal",
    }
    try:
        return sa.create_engine(
            url.set(drivername="postgresql+psycopg", query={**options, **url.query}),
            hide_parameters=True,
            pool_timeout=BUSY_TIMEOUT_S,
        )
    except ImportError as error:
        raise StoreUnavailable(
            "PostgreSQL needs a driver that is not installed: pip install 'jubal[postgres]'", code="store_driver"
        ) from error


def _prepare(engine: Engine, migrate: bool) -> str:
    """Makes the store or brings it up to date where needed, and returns its hash key."""
    if engine.dialect.name == "sqlite":
        _make_file(Path(engine.url.database or ""), engine)
    with engine.connect().execution_options(**{READS_ONLY: True}) as connection, connection.begin():
        revision = _revision(connection)
        if revision == HEAD and (found := _hash_key(connection)) is not None:
            return found
    _refuse_newer(revision)
    if not migrate:
        raise _Outdated(
            f"is at revision {revision}, this release is at {HEAD}: it must be migrated.", "store_not_migrated"
        )
    with engine.connect() as connection, connection.begin():
        if engine.dialect.name == "postgresql":  # on SQLite, BEGIN IMMEDIATE did the same
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
        if (revision := _revision(connection)) != HEAD:
            _refuse_newer(revision)  # another process may have been faster
            _upgrade(connection)
        _seed(connection, time.time_ns() // 1000)
        made = _hash_key(connection)
    assert made is not None
    return made


def _refuse_newer(revision: str | None) -> None:
    """Revisions are numbers of four digits, so that a newer one is known without Alembic."""
    if revision is not None and revision > HEAD:
        raise _Outdated(
            f"was made by a newer release of Jubal: it is at revision {revision}, this release knows those up to {HEAD}. "
            "Upgrade Jubal, or restore a backup.",
            "store_too_new",
        )


def _make_file(file: Path, engine: Engine) -> None:
    """Makes folder and file, for nobody else to read, and puts the file in WAL mode, where readers don't wait for a writer."""
    if not file.parent.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
    give_up_at = time.monotonic() + BUSY_TIMEOUT_S
    with engine.connect() as connection:
        raw = connection.connection.driver_connection
        assert raw is not None
        while True:
            try:
                (mode,) = raw.execute("PRAGMA journal_mode=WAL").fetchone()
                break
            except sqlite3.OperationalError as error:  # two processes make the file at once: this pragma doesn't wait
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                    raise
                time.sleep(0.005)
    if mode != "wal":
        raise OSError(f"its file system can't hold SQLite's WAL (journal mode `{mode}`): use a local disk")


def _revision(connection: Connection) -> str | None:
    """The revision of the schema; None where there is none yet."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one_or_none()
    return found


def _hash_key(connection: Connection) -> str | None:
    found: str | None = connection.scalar(sa.select(tables.meta.c.value).where(tables.meta.c.name == "hash_key"))
    return found


def _upgrade(connection: Connection) -> None:
    """Brings the schema to HEAD, within the transaction of `connection`: it all happens, or nothing does."""
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    command.upgrade(config, "head")


def _seed(connection: Connection, now_us: int) -> None:
    """What a store holds from its beginning: its facts, and the team named default."""
    if _hash_key(connection) is not None:
        return
    team_id = str(uuid.uuid4())
    connection.execute(
        tables.teams.insert(),
        {
            "id": team_id,
            "name": "default",
            "created_us": now_us,
            "blocked": False,
            "prepaid": False,
            "tier": "standard",
        },
    )
    facts = {"hash_key": secrets.token_hex(32), "default_team": team_id, "owner": str(uuid.uuid4())}
    connection.execute(tables.meta.insert(), [{"name": name, "value": value} for name, value in facts.items()])


# ----------------------------------------------------------------------------------------------------------- errors

OUR_FAULT: Final = (
    exc.IntegrityError,
    exc.DataError,
    exc.ProgrammingError,
    exc.NotSupportedError,
)
"""Kinds of DBAPI errors that tell of a wrong statement; all others tell of a store that doesn't work now."""

_SQLITE_REASONS: Final = {
    sqlite3.SQLITE_FULL: ("store_full", "its disk is full"),
    sqlite3.SQLITE_BUSY: ("store_locked", "another process holds it"),
    sqlite3.SQLITE_PROTOCOL: ("store_locked", "another process holds it"),
    sqlite3.SQLITE_LOCKED: ("store_locked", "another process holds it"),
    sqlite3.SQLITE_READONLY: ("store_read_only", "its file can't be written"),
    sqlite3.SQLITE_PERM: ("store_read_only", "its file can't be written"),
    sqlite3.SQLITE_CANTOPEN: ("store_lost", "its file can't be opened"),
    sqlite3.SQLITE_IOERR: ("store_io", "its disk fails"),
    sqlite3.SQLITE_CORRUPT: ("store_damaged", "its file is damaged"),
    sqlite3.SQLITE_NOTADB: ("store_damaged", "its file is no SQLite database"),
}
_POSTGRESQL_REASONS: Final = {
    "53100": ("store_full", "its disk is full"),
    "53300": (UNREACHABLE, "it has too many connections"),
    "55P03": ("store_locked", "a lock is held"),
    "57014": ("store_locked", "a statement took too long"),
    "57P01": (UNREACHABLE, "it is stopping"),
    "57P02": (UNREACHABLE, "it crashed"),
    "57P03": (UNREACHABLE, "it is starting"),
    "25006": ("store_read_only", "it can't be written"),
}


@contextmanager
def _translated() -> Iterator[None]:
    """Turns errors of SQLAlchemy and of the drivers into ours; everything else passes."""
    try:
        yield
    except (exc.SQLAlchemyError, sqlite3.Error) as error:
        raise translate(error) from _without_values(error)


def _without_values(error: exc.SQLAlchemyError | sqlite3.Error) -> Exception:
    """The same for the log. PostgreSQL's `DETAIL` shows the row that it refuses: prompts, answers, hashes of keys."""
    told = getattr(getattr(error, "orig", None), "diag", None)
    if not isinstance(error, exc.DBAPIError) or told is None:
        return error
    bare = RuntimeError(f"{type(error.orig).__name__}: {told.message_primary}")
    return type(error)(None, None, bare).with_traceback(error.__traceback__)


def translate(error: exc.SQLAlchemyError | sqlite3.Error) -> StoreUnavailable | InternalError:
    """Our error for a foreign one: `StoreUnavailable` where trying again later may help, else `InternalError`.

    Its message names the reason, and no statement, value, file or host.
    """
    reason = _reason(error)
    if reason is None:
        return InternalError("The accounts store refused a statement of Jubal's.", code="store_refused")
    code, words = reason
    return StoreUnavailable(f"The accounts store does not answer: {words}.", code=code, retry_after_s=1.0)


def _reason(error: exc.SQLAlchemyError | sqlite3.Error) -> tuple[str, str] | None:
    """Code and words for what ails the store; None where the statement is at fault."""
    cause = error.orig if isinstance(error, exc.DBAPIError) else error
    if isinstance(cause, sqlite3.Error):
        return _SQLITE_REASONS.get(getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF)
    if isinstance(error, exc.TimeoutError):
        return "store_busy", "all connections are taken"
    if isinstance(error, exc.DisconnectionError):
        return UNREACHABLE, "the connection is lost"
    if not isinstance(error, exc.DBAPIError) or isinstance(error, OUR_FAULT):
        return None
    state = getattr(cause, "sqlstate", None)
    if state is None:  # libpq's own errors, such as a refused connection
        return UNREACHABLE, "the connection is lost"
    return _POSTGRESQL_REASONS.get(state, ("store_failed", f"PostgreSQL reports error {state}"))


def _first_line(error: BaseException) -> str:
    """What went wrong, without SQLAlchemy's frame around it."""
    cause = getattr(error, "orig", None) or error
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]
