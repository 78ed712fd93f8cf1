"""Rate limits that any number of gateways count together, in Redis or Valkey.

The script below is `limits._Meter` in Lua: one call turns all scopes of a request to the server's own time, takes from all or from
none, and tells what is left. A second script settles. Calls of many requests travel together: while one exchange is underway, the
calls for the next gather, so a gateway needs one connection, and what is given back costs no waiting.

Lua counts in doubles. All numbers here are whole and below 2**53, where doubles are exact, for limits up to 150 million tokens per
minute; beyond that they are off by less than a token.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import structlog
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from jubal.accounts.limits import UNLIMITED, MemoryLimiter, ScopeSet, Ticket, refusal, ticket
from jubal.core.errors import StoreUnavailable

log = structlog.get_logger("jubal.limits")

KEY_PREFIX: Final = "jubal:limit:"
TIMEOUT_S: Final = 1.0
"""For one exchange, connecting included: an answer that takes longer is as good as none."""
REST_S: Final = 0.5
"""How long a Redis that failed is left alone: meanwhile requests are refused at once."""
BATCH_MAX: Final = 256
WAITING_MAX: Final = 20_000
"""Calls that may wait: beyond that, takes are refused, and the oldest of what was given back is forgotten."""

_METER: Final = """
local SECOND, MINUTE = 1000000, 60000000
local now
if ARGV[1] == '' then
  local time = redis.call('TIME')
  now = time[1] * SECOND + time[2]
else
  now = tonumber(ARGV[1])
end

local function floor_div(a, b) return (a - math.fmod(a, b)) / b end

local function drained(spent, passed, limit)
  if limit == 0 then return 0 end
  return math.max(0, spent - passed * limit)
end

local function load(raw, first)
  local m = {rps = tonumber(ARGV[first]), rpm = tonumber(ARGV[first + 1]), tpm = tonumber(ARGV[first + 2])}
  local n = {}
  if raw then
    for word in string.gmatch(raw, '%S+') do n[#n + 1] = tonumber(word) end
  end
  local at, epoch = n[1] or 0, n[2] or 0
  m.second, m.minute, m.taken, m.used = n[3] or 0, n[4] or 0, n[5] or 0, n[6] or 0
  m.held, m.before = n[7] or 0, n[8] or 0
  m.at = math.max(now, at)
  local passed = m.at - at
  m.second = drained(m.second, passed, m.rps)
  m.minute = drained(m.minute, passed, m.rpm)
  m.epoch = floor_div(m.at, MINUTE)
  if m.tpm == 0 then m.held, m.before = 0, 0 end
  while epoch < m.epoch do
    epoch = epoch + 1
    m.used = drained(m.used, epoch * MINUTE - at, m.tpm) + m.before * MINUTE
    m.before, m.held, at = m.held, 0, epoch * MINUTE
    if m.used + m.before == 0 then epoch, at = m.epoch, m.at end
  end
  m.used = drained(m.used, m.at - at, m.tpm)
  m.taken = math.min(drained(m.taken, passed, m.tpm), m.used + (m.held + m.before) * MINUTE)
  return m
end

local function lasts(spent, limit) return limit == 0 and 0 or spent / limit end

local function save(key, m)
  local us = math.max(lasts(m.second, m.rps), lasts(m.minute, m.rpm), lasts(m.taken, m.tpm), lasts(m.used, m.tpm))
  local held = m.held + m.before
  if held > 0 then us = math.max(us, 2 * MINUTE + lasts(m.used + held * MINUTE, m.tpm)) end
  redis.call('SET', key, string.format('%.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f', m.at, m.epoch, m.second, m.minute,
    m.taken, m.used, m.held, m.before), 'PX', string.format('%.0f', math.ceil(us / 1000) + 1000))
end
"""
_TAKE: Final = (
    _METER
    + """
local function wait(spent, count, limit, one)
  if limit == 0 then return 0 end
  local over = spent + (count - limit) * one
  if over <= 0 then return 0 end
  if count > limit then return math.huge end
  local rest = math.fmod(over, limit)
  return (over - rest) / limit + (rest > 0 and 1 or 0)
end

local function left(spent, limit, one)
  return limit == 0 and 0 or math.min(2 ^ 53, floor_div(math.max(0, limit * one - spent), one))
end

local tokens = tonumber(ARGV[2])
local found = redis.call('MGET', unpack(KEYS))
local meters, longest, scope, kind = {}, 0, 0, 0
for i = 1, #KEYS do
  local m = load(found[i], 3 * i)
  meters[i] = m
  local waits = {wait(m.second, 1, m.rps, SECOND), wait(m.minute, 1, m.rpm, MINUTE), wait(m.taken, tokens, m.tpm, MINUTE)}
  for k = 1, 3 do
    if waits[k] > longest then longest, scope, kind = waits[k], i, k end
  end
end
local function tell(answer, first, m)
  answer[first] = left(m.second, m.rps, SECOND)
  answer[first + 1] = left(m.minute, m.rpm, MINUTE)
  answer[first + 2] = left(m.taken, m.tpm, MINUTE)
end

if longest > 0 then
  local answer = {0, scope - 1, kind - 1, longest == math.huge and '' or string.format('%.0f', longest)}
  for i, m in ipairs(meters) do tell(answer, 3 * i + 2, m) end
  return answer
end
local answer = {1, floor_div(now, MINUTE)}
for i, m in ipairs(meters) do
  if m.rps > 0 then m.second = m.second + SECOND end
  if m.rpm > 0 then m.minute = m.minute + MINUTE end
  if m.tpm > 0 then
    m.taken = m.taken + tokens * MINUTE
    m.held = m.held + tokens
  end
  save(KEYS[i], m)
  tell(answer, 3 * i, m)
end
return answer
"""
)
_SETTLE: Final = (
    _METER
    + """
local epoch, took, all_used = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local over = math.max(0, all_used - took)
local found = redis.call('MGET', unpack(KEYS))
for i = 1, #KEYS do
  local m = load(found[i], 3 * i + 2)
  local used = all_used
  if epoch == m.epoch then
    m.held = math.max(0, m.held - took)
  elseif epoch == m.epoch - 1 then
    m.before = math.max(0, m.before - took)
  else
    used = over
  end
  m.used = m.used + used * MINUTE
  m.taken = m.taken + over * MINUTE
  save(KEYS[i], m)
end
return 1
"""
)
_SCRIPTS: Final = (_TAKE, _SETTLE)
TAKE: Final = 0
SETTLE: Final = 1

_Connection: TypeAlias = AbstractConnection


@dataclass(slots=True)
class _Call:
    """One call of a script. answer: None where nobody waits for it."""

    script: int
    scopes: ScopeSet
    arguments: tuple[int, ...]
    answer: asyncio.Future[list[Any]] | None = None


class RedisLimiter:
    """A `Limiter` whose counters are in Redis. Made without I/O; belongs to one event loop.

    url: redis://, rediss:// or unix://. spare: what counts while Redis is away; None: requests are refused then.
    now_us: what to take for the time in place of the server's own, for tests. clock: monotonic seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        spare: MemoryLimiter | None = None,
        timeout_s: float = TIMEOUT_S,
        rest_s: float = REST_S,
        now_us: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises `ValueError` for a URL that is none."""
        options = {"socket_connect_timeout": timeout_s, "retry": Retry(NoBackoff(), 0), "retry_on_error": []}
        # Never a second try by the library: nobody knows whether the first one counted.
        self._pool: ConnectionPool = ConnectionPool.from_url(url, **options, health_check_interval=0, protocol=2)
        self._spare = spare
        self._timeout_s = timeout_s
        self._rest_s = rest_s
        self._now_us = now_us
        self._clock = clock
        self._connection: _Connection | None = None
        self._shas: list[str] = []
        self._waiting: list[_Call] = []
        self._worker: asyncio.Task[None] | None = None
        self._away_until = -math.inf
        self._away = False

    def try_take(self, scopes: ScopeSet, tokens: int) -> Ticket | None:
        return None if scopes else UNLIMITED

    async def take(self, scopes: ScopeSet, tokens: int) -> Ticket:
        """Where its caller is cancelled, what it took goes back."""
        if not scopes:
            return UNLIMITED
        tokens = max(0, tokens)
        try:
            answer = await self._ask(scopes, tokens)
        except StoreUnavailable:
            if self._spare is None:
                raise
            made = self._spare.try_take(scopes, tokens)
            made.spare = True
            return made
        return _read(scopes, tokens, answer)

    def add(self, ticket: Ticket, tokens: int) -> None:
        if ticket.spare and self._spare is not None:
            self._spare.add(ticket, tokens)
        elif ticket.open:
            ticket.added += tokens
            self._settle(ticket, 0, tokens)

    def give_back(self, ticket: Ticket, unused_tokens: int) -> None:
        if ticket.spare and self._spare is not None:
            self._spare.give_back(ticket, unused_tokens)
        elif ticket.open:
            ticket.open = False
            self._settle(ticket, ticket.tokens, max(0, ticket.tokens - unused_tokens))

    async def close(self) -> None:
        """Sends what waits, unless Redis is away, and closes the connection."""
        self._away_until = -math.inf
        self._wake()
        if self._worker is not None:
            await self._worker
        await self._disconnect()

    # ------------------------------------------------------------------------------------------ calls that wait

    async def _ask(self, scopes: ScopeSet, tokens: int) -> list[Any]:
        """Raises `StoreUnavailable`."""
        if self._clock() < self._away_until or len(self._waiting) >= WAITING_MAX:
            raise _unavailable()
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._put(_Call(TAKE, scopes, (tokens,), answer))
        try:
            return await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                self._undo(scopes, tokens, answer.result())
            raise

    def _undo(self, scopes: ScopeSet, tokens: int, answer: list[Any]) -> None:
        """Gives back what was taken for a request that is gone."""
        with contextlib.suppress(Exception):  # it was refused: nothing was taken
            self.give_back(_read(scopes, tokens, answer), tokens)

    def _settle(self, ticket: Ticket, took: int, used: int) -> None:
        scopes = tuple(scope for scope in ticket.scopes if scope.tpm is not None)
        if not scopes or not (took or used):
            return
        if len(self._waiting) >= WAITING_MAX:
            self._forget_oldest()
        self._put(_Call(SETTLE, scopes, (ticket.epoch, took, used)))

    def _forget_oldest(self) -> None:
        oldest = next((index for index, call in enumerate(self._waiting) if call.answer is None), None)
        if oldest is not None:
            del self._waiting[oldest]

    def _put(self, call: _Call) -> None:
        self._waiting.append(call)
        if self._worker is None and self._clock() >= self._away_until:
            self._wake()

    def _wake(self) -> None:
        if self._worker is None and self._waiting:
            self._worker = asyncio.ensure_future(self._work())
            self._worker.add_done_callback(self._worked)

    def _worked(self, worker: asyncio.Task[None]) -> None:
        if not worker.cancelled() and (error := worker.exception()) is not None:
            log.error("the limits' worker failed by a fault of ours", error=str(error), exc_info=error)
            self._fail(self._waiting)

    # ------------------------------------------------------------------------------------------ the worker

    async def _work(self) -> None:
        try:
            await self._send_all()
        finally:
            self._worker = None  # here, not in a callback: who is called next must see it

    async def _send_all(self) -> None:
        """Sends what waits, a batch at a time, until nothing does or Redis is away."""
        while self._waiting:
            batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
            batch = [call for call in batch if call.answer is None or not call.answer.done()]
            try:
                async with asyncio.timeout(self._timeout_s):
                    connection = await self._connected()
            except (RedisError, OSError, TimeoutError) as error:
                await self._give_up(batch, error, sent=False)
                return
            try:
                async with asyncio.timeout(self._timeout_s):
                    answers = await self._exchange(connection, batch)
            except (RedisError, OSError, TimeoutError) as error:
                await self._give_up(batch, error, sent=True)
                return
            self._deliver(batch, answers)

    async def _connected(self) -> _Connection:
        if self._connection is None:
            connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            try:
                await connection.connect()
                await self._load(connection)
            except BaseException:
                await _drop(connection)
                raise
            self._connection = connection
        return self._connection

    async def _load(self, connection: _Connection) -> None:
        await connection.send_packed_command(connection.pack_commands(("SCRIPT", "LOAD", text) for text in _SCRIPTS))
        self._shas = [_text(await connection.read_response()) for _ in _SCRIPTS]

    async def _exchange(self, connection: _Connection, batch: Sequence[_Call]) -> list[Any]:
        """The answer to each call, or the error in its place."""
        answers = await self._send(connection, batch)
        lost = [index for index, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if lost:  # somebody emptied the server's scripts; these calls did nothing
            await self._load(connection)
            for index, answer in zip(lost, await self._send(connection, [batch[n] for n in lost]), strict=True):
                answers[index] = answer
        return answers

    async def _send(self, connection: _Connection, batch: Sequence[_Call]) -> list[Any]:
        now = "" if self._now_us is None else self._now_us()
        await connection.send_packed_command(connection.pack_commands(self._command(call, now) for call in batch))
        answers: list[Any] = []
        for _ in batch:
            try:
                answers.append(await connection.read_response())
            except RedisError as error:
                if connection.is_connected and not isinstance(error, OSError) and _is_answer(error):
                    answers.append(error)
                else:
                    raise
        return answers

    def _command(self, call: _Call, now: int | str) -> tuple[str | int, ...]:
        keys = [KEY_PREFIX + scope.key for scope in call.scopes]
        limits = [limit or 0 for scope in call.scopes for limit in (scope.rps, scope.rpm, scope.tpm)]
        return ("EVALSHA", self._shas[call.script], len(keys), *keys, now, *call.arguments, *limits)

    def _deliver(self, batch: Sequence[_Call], answers: Sequence[Any]) -> None:
        failed: Exception | None = None
        for call, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Exception):
                failed = answer
                self._fail([call])
            elif call.answer is None:
                pass
            elif call.answer.done():  # its caller left while it was underway
                self._undo(call.scopes, call.arguments[0], answer)
            else:
                call.answer.set_result(answer)
        self._tell(failed)

    async def _give_up(self, batch: Sequence[_Call], error: Exception, *, sent: bool) -> None:
        """Redis does not answer: nobody waits any longer. What was to be given back stays, unless it may have been already: to
        give it back twice could let in more than the limit, and by itself it counts for two minutes at most."""
        self._away_until = self._clock() + self._rest_s
        self._tell(error)
        calls = [*batch, *self._waiting]
        self._waiting = [call for call in (self._waiting if sent else calls) if call.answer is None]
        self._fail(calls)
        await self._disconnect()

    def _fail(self, calls: Sequence[_Call]) -> None:
        for call in calls:
            if call.answer is not None and not call.answer.done():
                call.answer.set_exception(_unavailable())

    def _tell(self, error: Exception | None) -> None:
        """Logs when Redis goes away and when it is back."""
        if error is not None and not self._away:
            log.warning("rate limits can't be counted: Redis does not answer", error=type(error).__name__)
        elif error is None and self._away:
            log.warning("rate limits are counted again")
        self._away = error is not None

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await _drop(connection)


async def _drop(connection: _Connection) -> None:
    with contextlib.suppress(RedisError, OSError, TimeoutError):
        await connection.disconnect(nowait=True)


def _is_answer(error: RedisError) -> bool:
    """Whether the server said so in answer to one call, and will answer the next."""
    from redis.exceptions import ResponseError

    return isinstance(error, ResponseError)


def _read(scopes: ScopeSet, tokens: int, answer: list[Any]) -> Ticket:
    """What the script answered to a take. Raises `TooFast`."""
    first = 2 if answer[0] else 4
    left = [(answer[n], answer[n + 1], answer[n + 2]) for n in range(first, len(answer), 3)]
    if answer[0]:
        return ticket(scopes, left, tokens, answer[1])
    wait = _text(answer[3])
    raise refusal(scopes, left, answer[1], answer[2], tokens, int(wait) if wait else math.inf)


def _text(answer: str | bytes) -> str:
    return answer.decode() if isinstance(answer, bytes) else answer


def _unavailable() -> StoreUnavailable:
    return StoreUnavailable(
        "Rate limits can't be counted now: the server that counts them does not answer. Try again in a moment.",
        code="limits_unavailable",
        retry_after_s=1.0,
    )
