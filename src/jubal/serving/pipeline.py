"""One request's way: identify, allow, limit, hold, admit, run, meter, settle. The only place where accounts and engines meet.

admit(caller, …)   who may do this, within which limits: everything that can be refused before any work
embed(caller, …)   the same for vectors, in one call
run(admitted)      Started, the answer's pieces, Finished; the usage row is committed before Finished is passed on
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar

import structlog

from jubal.accounts.keys import Caller
from jubal.accounts.limits import UNLIMITED, Limiter, ScopeSet, Ticket
from jubal.accounts.prices import tools_text
from jubal.accounts.scopes import Scopes
from jubal.accounts.usage import UsageRow
from jubal.agent import loop
from jubal.agent.toolbox import Toolbox
from jubal.core.embedding import EmbeddingRequest, Embeddings
from jubal.core.embedding import estimate_prompt as estimate_embedding
from jubal.core.errors import (
    AtCapacity,
    BadRequest,
    ContextTooLong,
    EngineError,
    InternalError,
    JubalError,
    NotIdentified,
    UnknownModel,
)
from jubal.core.events import Applied, Event, Finished, ReasoningDelta, ServerToolResult, Started, TextDelta, UsageSoFar
from jubal.core.generation import Generation
from jubal.core.model import Catalogue, Model
from jubal.core.money import NO_CHARGE, Charge, Price
from jubal.core.schema import REQUEST_SCHEMAS_MAX, Support, check, check_support
from jubal.core.tally import Tally, estimate_prompt
from jubal.core.tokens import Token
from jubal.core.usage import NOTHING, Usage
from jubal.core.values import value
from jubal.engines.base import Engine, Weights
from jubal.engines.embedder import Embedder
from jubal.engines.tokenizer import TokenCounter, Tokenizer
from jubal.records.answers import Answer, Entry, Settled, row_of
from jubal.serving.admission import Admission, Place
from jubal.serving.breaker import Attempt, Breaker, never
from jubal.serving.cache import Kept, Recorder, ResponseCache, key_of
from jubal.serving.charging import Charging, Held, costs
from jubal.serving.images import Images
from jubal.wire.base import rate_headers

log = structlog.get_logger("jubal.pipeline")

T = TypeVar("T")
ESTIMATE_SPREAD: Final = 16
"""A prompt has at most so many times the tokens that are estimated: one for each byte, four bytes for a character."""
ANSWER_TOKENS_GUESSED: Final = 256
"""What the token limit is charged at first for an answer whose length the caller did not bound; the difference is given back."""

BEARER: Final = "Bearer "
"""How nearly all Authorization headers begin; the scheme's case does not matter (RFC 9110 11.1)."""
CACHE: Final = "cache"
"""The engine of a usage row whose answer had been given before."""

_RANDOM: Final = random.SystemRandom()
_ids: Final = random.Random(_RANDOM.getrandbits(256))  # noqa: S311  ids name requests, they protect nothing
if hasattr(os, "register_at_fork"):  # two processes that go on from one state would give the same ids
    os.register_at_fork(after_in_child=lambda: _ids.seed(_RANDOM.getrandbits(256)))


VERSION_7: Final = 0x7 << 76 | 0b10 << 62
NOT_MARKS: Final = ~(0xF << 76 | 0b11 << 62)
"""All but the bits of a UUID that say its version and variant."""


def new_request_id() -> str:
    """A version 7 UUID (RFC 9562): 48 bits of Unix milliseconds, then 74 random ones.

    In order of time, so that the store adds rows and index entries at the end of its trees: with ids in no order each row
    dirties pages of its own, which doubles what SQLite takes to write it.
    """
    number = time.time_ns() // 1_000_000 << 80 | _ids.getrandbits(80)
    digits = f"{number & NOT_MARKS | VERSION_7:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


class Identifier(Protocol):
    """Knows keys. `accounts.keys.KeyRing` is the real one."""

    def identify_cached(self, secret: str) -> Caller | None: ...

    async def identify(self, secret: str, *, management: bool = False) -> Caller: ...


class UsageLog(Protocol):
    """Takes usage rows. `accounts.store.GroupCommit` is the real one."""

    async def commit(self, entry: Entry) -> None:
        """Returns when the row is durable, and with it the answer that is kept beside it. Raises `StoreUnavailable`."""
        ...


class Keeper(Protocol):
    """Gathers an answer that is to be kept."""

    def see(self, event: Event) -> None:
        """Each event of the answer, in order."""
        ...

    async def answer(self) -> Answer:
        """After `Finished` was seen."""
        ...


@dataclass(frozen=True, slots=True)
class Served:
    """An engine and the door in front of it, which the breaker shuts."""

    engine: Engine
    admission: Admission
    breaker: Breaker = field(default_factory=never)


@dataclass(frozen=True, slots=True)
class ServedEmbedder:
    """An embedder and the door in front of it, which the breaker shuts."""

    embedder: Embedder
    admission: Admission
    breaker: Breaker = field(default_factory=never)


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors, and what they cost. model: the resolved public name. headers: x-ratelimit-*."""

    model: str
    embeddings: Embeddings
    cost_ticks: int
    headers: list[tuple[bytes, bytes]]


@dataclass(slots=True)
class Admitted:
    """A request that may run. tokens_taken: what the token limit was charged so far. began_s: by the pipeline's clock.

    untaken: limits that it must still keep before it runs, as they are not counted in this process (`Pipeline.take`).

    price: what it costs its caller. held: the credit that is set aside for it while it runs.
    usage_log: where its usage row goes; None for the pipeline's own. Whoever gave it settles what is held (`Pipeline.charging`).
    cache_key: under which its answer is kept; None: it is not. kept: the answer that was found there.
    keeper: what keeps its answer in the store; None: it is not kept.
    """

    request_id: str
    caller: Caller
    endpoint: str
    model: Model
    generation: Generation
    ticket: Ticket
    tokens_taken: int
    began_s: float
    price: Price
    usage_log: UsageLog | None = None
    cache_key: bytes | None = None
    kept: Kept | None = None
    held: Held = field(default_factory=Held)
    untaken: ScopeSet = ()
    keeper: Keeper | None = None

    @property
    def background(self) -> bool:
        """Nobody waits for it: it gives way to requests that somebody waits for."""
        return self.usage_log is not None

    @property
    def priority(self) -> bool:
        """It asks to go before others, and may be charged for that."""
        return self.generation.priority and not self.background

    def ticket_headers(self) -> list[tuple[bytes, bytes]]:
        headers = rate_headers(self.ticket.allowance)
        if self.cache_key is not None:
            headers.append((b"x-jubal-cache", b"miss" if self.kept is None else b"hit"))
        return headers


ModelKind: TypeAlias = Literal["language", "embedding"]
NO_MODELS: Final = Catalogue.of(())
NO_EMBEDDERS: Final[Mapping[str, ServedEmbedder]] = {}


class Pipeline:
    """clock: monotonic seconds. now: Unix seconds. images: None for one that fetches none."""

    def __init__(
        self,
        catalogue: Catalogue,
        engines: Mapping[str, Served],
        keys: Identifier,
        limiter: Limiter,
        usage: UsageLog,
        *,
        embedding_models: Catalogue = NO_MODELS,
        embedders: Mapping[str, ServedEmbedder] = NO_EMBEDDERS,
        cache: ResponseCache | None = None,
        toolbox: Toolbox = loop.NO_TOOLBOX,
        images: Images | None = None,
        charging: Charging | None = None,
        scopes: Scopes | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        new_id: Callable[[], str] = new_request_id,
    ) -> None:
        self.catalogue = catalogue
        self.engines = engines
        self.embedding_models = embedding_models
        self.embedders = embedders
        self.toolbox = toolbox
        self._images = images or Images()
        self._keys = keys
        self._limiter = limiter
        self._usage = usage
        self._cache = cache
        self.charging = charging or Charging()
        self._scopes = scopes or Scopes()
        self._clock = clock
        self._now = now
        self.new_id = new_id
        self._settling: set[asyncio.Task[None]] = set()

    @property
    def caches(self) -> bool:
        """Answers to repeatable requests are kept."""
        return self._cache is not None

    def known(self, authorization: str) -> Caller | None:
        """The caller behind an Authorization header, where that is known without waiting. None decides nothing: ask `identify`."""
        return self._keys.identify_cached(authorization[len(BEARER) :]) if authorization.startswith(BEARER) else None

    async def identify(self, authorization: str | None, *, management: bool = False) -> Caller:
        """The caller behind an Authorization header; management: where only a management key will do.

        Raises `NotIdentified`, `NotAllowed`, `StoreUnavailable`.
        """
        if authorization is None:
            raise NotIdentified(
                "You didn't provide an API key. Send it in the header `Authorization: Bearer xai-…`.",
                given=False,
                code="missing_api_key",
            )
        scheme, _, secret = authorization.partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret:
            raise NotIdentified(
                "The Authorization header is not of the form `Bearer xai-…`.", given=False, code="invalid_authorization"
            )
        if management:
            return await self._keys.identify(secret, management=True)
        return self._keys.identify_cached(secret) or await self._keys.identify(secret)

    def admit(
        self,
        caller: Caller,
        endpoint: str,
        generation: Generation,
        *,
        request_id: str,
        later: UsageLog | None = None,
        repeatable: bool = False,
    ) -> Admitted:
        """Everything that can refuse a request before work begins.

        later: for a request that was admitted before, and put off (`put_off`): its limits are not taken again, and its usage
        row goes there, so that whoever runs it decides which of its attempts counts.
        repeatable: it may be answered from the cache.

        Raises `UnknownModel`, `NotAllowed`, `BadRequest` for what the model can't take, `TooFast`.
        """
        model = self.catalogue.find(generation.model)
        caller.acl.demand(endpoint, model.name, *model.aliases)
        self._check_input(model, generation)
        self.toolbox.check(generation)
        if generation.reasoning is None and model.effort is not None:
            generation = replace(generation, reasoning=model.effort)
        price = self.charging.price(caller, model)
        answer_tokens = (generation.bounds.tokens_max or ANSWER_TOKENS_GUESSED) * generation.answers
        tokens = estimate_prompt(generation) + answer_tokens
        scopes = self._scopes.of(caller, model.name) if later is None else ()
        ticket = self._limiter.try_take(scopes, tokens)
        admitted = Admitted(
            request_id, caller, endpoint, model, generation, ticket or UNLIMITED, tokens, self._clock(), price, later
        )
        if ticket is None:
            admitted.untaken = scopes
        if self._cache is not None and repeatable:
            self._look_up(admitted, self._cache)
        return admitted

    def _look_up(self, admitted: Admitted, cache: ResponseCache) -> None:
        model = admitted.model
        admitted.cache_key = key_of(
            admitted.generation,
            model=model.name,
            fingerprint=self.weights(model).fingerprint,
            team_id=admitted.caller.team_id,
        )
        if admitted.cache_key is not None:
            admitted.kept = cache.get(admitted.cache_key)

    async def take(self, admitted: Admitted) -> None:
        """Takes from the limits what `admit` could not without waiting. `run` does it too.

        Raises `TooFast`, `StoreUnavailable`.
        """
        if admitted.untaken:
            scopes, admitted.untaken = admitted.untaken, ()
            admitted.ticket = await self._limiter.take(scopes, admitted.tokens_taken)

    async def _take(self, caller: Caller, model: Model, tokens: int) -> Ticket:
        """Raises `TooFast`, `StoreUnavailable`."""
        scopes = self._scopes.of(caller, model.name)
        return self._limiter.try_take(scopes, tokens) or await self._limiter.take(scopes, tokens)

    def _top_up(self, admitted: Admitted, account: _Account) -> None:
        """A request with server tools reads its conversation again at every step: what that is beyond the estimate counts at
        once, so that others have to wait for it. It goes on itself."""
        more = account.so_far - admitted.tokens_taken
        if more > 0:
            self._limiter.add(admitted.ticket, more)
            admitted.tokens_taken += more

    def put_off(self, ticket: Ticket, unused_tokens: int) -> None:
        """Closes what the limits hold of an admitted request that did not run as such: it runs later, or never."""
        self._limiter.give_back(ticket, unused_tokens)

    def rests(self, model: Model) -> bool:
        """No engine of the model may be asked now."""
        return all(self.engines[name].breaker.refuses_for_s for name in (model.engine, *model.fallback))

    async def check_credit(self, admitted: Admitted) -> None:
        """Whether the team's credit covers a request that will run later, as it stands now. Raises `OutOfCredit`, …"""
        held, _ = await self._hold(admitted)
        self.charging.settled(held, 0)

    async def _hold(self, admitted: Admitted) -> tuple[Held, Generation]:
        return await self.charging.hold(
            admitted.caller,
            admitted.model,
            admitted.price.for_priority() if admitted.priority else admitted.price,
            admitted.generation,
            self._window,
            admitted.request_id,
            self._counted,
        )

    async def _counted(self, model: Model, generation: Generation) -> int | None:
        """Prompt tokens by the engine that counts most of those that may answer; None where one of them can't tell now.

        Not below the estimate that an answer is charged by which was cut before its engine told.
        """
        most = 0
        for name in (model.engine, *model.fallback):
            engine = self.engines[name].engine
            if not isinstance(engine, TokenCounter) or engine.status().state != "ready":
                return None
            try:
                most = max(most, await engine.count(replace(generation, model=model.upstream)))
            except JubalError:
                return None
        return max(most * max(1, len(generation.prompts)), estimate_prompt(generation))

    def _window(self, model: Model) -> int | None:
        """Tokens that no request for a model can exceed, whichever of its engines answers. None: not known."""
        if not model.fallback:  # nearly always
            only = self.engines[model.engine].engine.weights(model.upstream).context
            return only if model.context is None else model.context if only is None else min(only, model.context)
        held = [self.engines[name].engine.weights(model.upstream).context for name in (model.engine, *model.fallback)]
        known = [window for window in held if window is not None]
        windows = [max(known)] if len(known) == len(held) else []
        return min((*windows, *(() if model.context is None else (model.context,))), default=None)

    def offers(self, kind: ModelKind) -> list[tuple[Model, Weights]]:
        """All models of a kind, each with what answers behind it."""
        if kind == "language":
            return [(model, self.weights(model)) for model in self.catalogue]
        return [
            (model, self.embedders[model.engine].embedder.weights(model.upstream)) for model in self.embedding_models
        ]

    def offer(self, name: str, kinds: tuple[ModelKind, ...]) -> tuple[Model, Weights]:
        """The model of this name or alias. Raises `UnknownModel`."""
        for kind in kinds:
            for model, weights in self.offers(kind):
                if name == model.name or name in model.aliases:
                    return model, weights
        raise UnknownModel(f"The model `{name[:200]}` does not exist.", param="model", code="model_not_found")

    def weights(self, model: Model) -> Weights:
        """What answers behind `model`."""
        return self.engines[model.engine].engine.weights(model.upstream)

    def _check_input(self, model: Model, generation: Generation) -> None:
        """Refuses what the weights behind the model can't do, naming the field."""
        weights = self.weights(model)

        def refuse(what: str, param: str, code: str) -> BadRequest:
            return BadRequest(f"The model `{model.name}` {what} here: `{weights.name}` can't.", param=param, code=code)

        if generation.tools.wanted and not weights.tools:
            raise refuse("calls no functions", "tools", "tools_not_supported")
        if generation.reasoning not in (None, "none") and not model.reasoning:
            raise BadRequest(
                f"The model `{model.name}` does not reason: leave `reasoning_effort` out.",
                param="reasoning_effort",
                code="reasoning_not_supported",
            )
        if generation.output is not None and not weights.json:
            raise refuse("can't be held to JSON", "response_format", "response_format_not_supported")
        if generation.suffix is not None and not weights.fill:
            raise refuse("fills in no text before a suffix", "suffix", "suffix_not_supported")
        if not weights.token_prompts and not all(isinstance(prompt, str) for prompt in generation.prompts):
            raise refuse("takes no token ids", "prompt", "token_prompts_not_supported")
        _check_schemas(weights.schema, generation)
        if "image" in model.input and "image" in weights.input:
            return
        for index, message in enumerate(generation.messages):
            if message.has_image:
                raise refuse("sees no images", f"messages[{index}].content", "images_not_supported")

    async def _check_window(self, model: Model, engine: Engine, turn: Generation) -> None:
        """The advertised window is a promise: what is over it is refused, by the engine's own count, where the engine holds more.

        Where it does not, it refuses by itself. One that can't count beforehand is not asked: it keeps its own window only.
        """
        window, holds = model.context, engine.weights(model.upstream).context
        if window is None or holds is None or window >= holds or not isinstance(engine, TokenCounter):
            return
        if not turn.tools.functions and estimate_prompt(turn) * ESTIMATE_SPREAD <= window:
            return
        tokens = await engine.count(turn)
        if tokens > window:
            raise ContextTooLong(
                f"The prompt has {tokens} tokens; this model's context window holds {window}.",
                param="prompt" if turn.prompts else "messages",
                code="context_length_exceeded",
            )

    async def tokenize(self, caller: Caller, name: str, text: str) -> tuple[Token, ...]:
        """The tokens of `text` for the model of this name or alias. It counts as a request of no tokens, and costs nothing.

        Raises `UnknownModel`, `NotAllowed`, `TooFast`, `EngineError`; `BadRequest` where the engine can't tell.
        """
        model = self.catalogue.find(name)
        caller.acl.demand("tokenize", model.name, *model.aliases)
        engine = self.engines[model.engine].engine
        if not isinstance(engine, Tokenizer):
            raise BadRequest(
                f"The engine behind `{model.name}` can't tell its tokens.", param="model", code="tokenize_not_supported"
            )
        self._limiter.give_back(await self._take(caller, model, 0), 0)
        return await engine.tokenize(model.upstream, text)

    async def count_tokens(self, caller: Caller, endpoint: str, generation: Generation) -> int:
        """The prompt tokens of a request, which is not run: by its engine, or an estimate where that can't tell.

        It counts as a request of no tokens, and costs nothing. Raises what `admit` does, and `EngineError`.
        """
        model = self.catalogue.find(generation.model)
        caller.acl.demand(endpoint, model.name, *model.aliases)
        self._check_input(model, generation)
        self._limiter.give_back(await self._take(caller, model, 0), 0)
        engine = self.engines[model.engine].engine
        if isinstance(engine, TokenCounter):
            return await engine.count(replace(generation, model=model.upstream))
        return estimate_prompt(generation)

    async def run(self, admitted: Admitted) -> AsyncGenerator[Event, None]:
        """The events of the answer. Raises core errors, before or after the first piece.

        However it ends, one usage row is committed; for a good answer before `Finished` is yielded.
        """
        account = _Account(admitted, self._clock)
        recorder = self._recorder(admitted)
        try:
            if admitted.untaken:
                await self.take(admitted)
            if admitted.kept is None and self.charging.must_hold(admitted.caller):
                admitted.held, admitted.generation = await self._hold(admitted)
            events = self._events(admitted, account)
            try:
                async for event in events:
                    account.see(event)
                    if admitted.generation.tools.server and isinstance(event, UsageSoFar):
                        self._top_up(admitted, account)
                    if recorder is not None:
                        recorder.see(event)
                    if isinstance(event, Finished):
                        event = event.settled(account.close("ok"), int(self._now()))
                        answer = None if admitted.keeper is None else await _kept_by(admitted.keeper, event)
                        await self._settle(admitted, account, answer)
                        self._keep(admitted, recorder)
                    elif admitted.keeper is not None:
                        admitted.keeper.see(event)
                    yield event
            finally:
                await events.aclose()
        except JubalError as error:
            account.close("failed", error)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            account.close("cancelled", unseen=self._works_unseen(admitted, account))
            raise
        except Exception as error:
            log.exception("request failed by a fault of ours", request_id=admitted.request_id)
            fault = InternalError(
                "Something went wrong in Jubal; the server's log has the details under this request's id."
            )
            account.close("failed", fault)
            raise fault from error
        finally:
            if not account.settled:
                await self._shielded(self._settle(admitted, account))

    def _works_unseen(self, admitted: Admitted, account: _Account) -> bool:
        """An engine that was asked for a whole answer has read the prompt, though nothing of the answer is here.

        Not where the engine is starting or away: then it has done nothing that anybody should pay for.
        """
        if admitted.generation.live or not account.asked or account.started:
            return False
        served = self.engines[account.engine]
        return served.engine.status().state == "ready" and not served.breaker.failures

    def _recorder(self, admitted: Admitted) -> Recorder | None:
        if admitted.cache_key is None or admitted.kept is not None:
            return None
        return Recorder(self.weights(admitted.model).fingerprint)

    def _keep(self, admitted: Admitted, recorder: Recorder | None) -> None:
        if self._cache is not None and admitted.cache_key is not None and recorder is not None and recorder.kept:
            self._cache.put(admitted.cache_key, recorder.kept)

    def _events(self, admitted: Admitted, account: _Account) -> AsyncGenerator[Event, None]:
        if admitted.kept is not None:
            return self._again(admitted, admitted.kept, account)
        return self._answer(admitted, account)

    def _started(self, admitted: Admitted, weights: Weights, *, priority: bool = False) -> Started:
        generation = admitted.generation
        temperature, top_p = generation.sampling.temperature, generation.sampling.top_p
        applied = Applied(
            weights.temperature if temperature is None else temperature,
            weights.top_p if top_p is None else top_p,
            generation.reasoning,
            priority,
        )
        return Started(admitted.request_id, int(self._now()), admitted.model.name, weights.fingerprint, applied)

    async def _again(self, admitted: Admitted, kept: Kept, account: _Account) -> AsyncGenerator[Event, None]:
        """An answer that was given before: with the counts of then, and free."""
        account.asks(CACHE, kept.fingerprint)
        account.free = account.started = True
        yield self._started(admitted, self.weights(admitted.model))
        for piece in kept.pieces:
            yield piece
        yield Finished(kept.reasons, kept.usage, estimated=kept.estimated, stops=kept.stops)

    async def _answer(self, admitted: Admitted, account: _Account) -> AsyncGenerator[Event, None]:
        """From the first engine of the model that gives a piece: its own, then its fallbacks."""
        model = admitted.model
        if admitted.generation.has_images:
            admitted.generation = await self._images.checked(admitted.generation)
        names = self._engines_for(model, admitted.generation)
        for number, name in enumerate(names):
            served = self.engines[name]
            weights = served.engine.weights(model.upstream)
            turn = admitted.generation
            if turn.model != model.upstream:
                turn = replace(turn, model=model.upstream)
            asked = False
            priority = admitted.priority and served.admission.bounded  # elsewhere there is nobody to go before
            try:
                with served.breaker.attempt() as attempt:
                    async with served.admission.door(background=admitted.background, priority=priority) as place:
                        attempt.check()
                        asked = True
                        await self._check_window(model, served.engine, turn)
                        account.asks(name, weights.fingerprint, priority=priority)
                        events = loop.run(turn, served.engine, self.toolbox, _Seat(place, attempt))
                        try:
                            async for event in events:
                                if not account.started:
                                    attempt.answered()
                                    account.started = True
                                    yield self._started(admitted, weights, priority=priority)
                                yield event
                        finally:
                            await events.aclose()
                return
            except (EngineError, AtCapacity) as error:
                if account.started or number == len(names) - 1 or not _may_pass_on(error, asked):
                    raise
                if asked:  # one that rests was told of when it began to
                    log.warning(
                        "engine failed, asking its fallback",
                        engine=name,
                        error=error.message,
                        request_id=admitted.request_id,
                    )

    def _engines_for(self, model: Model, generation: Generation) -> tuple[str, ...]:
        """The model's own engine, which was found able, and those of its fallbacks that see the images, if there are any."""
        if not (model.fallback and generation.has_images):
            return (model.engine, *model.fallback)
        seeing = (name for name in model.fallback if "image" in self.engines[name].engine.weights(model.upstream).input)
        return (model.engine, *seeing)

    async def embed(self, caller: Caller, endpoint: str, request: EmbeddingRequest, *, request_id: str) -> Embedded:
        """Vectors, whose usage row is committed. Raises core errors."""
        model = self.embedding_models.find(request.model)
        caller.acl.demand(endpoint, model.name, *model.aliases)
        tokens_taken = estimate_embedding(request)
        price = self.charging.price(caller, model)
        work = _Embedding(model, price, self._clock(), await self._take(caller, model, tokens_taken))
        try:
            work.held = await self.charging.hold_embedding(caller, price, request, request_id)
            await self._embed(request, work)
        except JubalError as error:
            work.error = error.code or type(error).__name__
            raise
        except asyncio.CancelledError:
            work.status = "cancelled"
            raise
        finally:
            self._limiter.give_back(work.ticket, tokens_taken - work.usage.total)
            if work.asked:
                row = work.row(caller, endpoint, request_id, int(self._now() * 1_000_000), self._clock())
                await self._shielded(self._charge(work.held, row, self._usage))
            else:
                self.charging.settled(work.held, 0)
        assert work.made is not None
        return Embedded(model.name, work.made, price.cost_ticks(work.usage), rate_headers(work.ticket.allowance))

    async def _embed(self, request: EmbeddingRequest, work: _Embedding) -> None:
        """By the first engine of the model that can: its own, then its fallbacks."""
        model = work.model
        names = (model.engine, *model.fallback)
        for number, name in enumerate(names):
            served = self.embedders[name]
            asked = False
            try:
                with served.breaker.attempt() as attempt:
                    async with served.admission:
                        attempt.check()
                        asked = work.asked = True
                        work.engine, work.weights = name, served.embedder.weights(model.upstream).fingerprint
                        await served.embedder.start()  # at the first request; nothing to do at the others
                        work.made = await served.embedder.embed(replace(request, model=model.upstream))
                work.status = "ok"
                return
            except (EngineError, AtCapacity) as error:
                if number == len(names) - 1 or not _may_pass_on(error, asked):
                    raise
                if asked:
                    log.warning("engine failed, asking its fallback", engine=name, error=error.message)

    async def _settle(self, admitted: Admitted, account: _Account, answer: Answer | None = None) -> None:
        """One usage row with the answer that is kept, and the tokens that the limiter was charged too many or too few.

        A request that no engine was asked for leaves no row.
        """
        account.settled = True
        used = 0 if account.free else account.usage.total
        self._limiter.give_back(admitted.ticket, admitted.tokens_taken - used)
        if not account.asked:
            self.charging.settled(admitted.held, 0)
            return
        if not (admitted.generation.tools.server or account.free):
            self.charging.learn(admitted.model, admitted.held, account.usage)
        row = account.row(int(self._now() * 1_000_000))
        entry = row if answer is None else Settled(row, answer)
        if admitted.usage_log is not None:
            await admitted.usage_log.commit(entry)
        else:
            await self._charge(admitted.held, entry, self._usage)

    async def _charge(self, held: Held, entry: Entry, usage_log: UsageLog) -> None:
        """Commits a row, and frees what it did not cost of what was held."""
        certain = False
        try:
            await usage_log.commit(entry)
            certain = True
        finally:  # cancelled or failed: it may be written all the same
            self.charging.settled(held, row_of(entry).cost_in_usd_ticks, certain=certain)

    async def _shielded(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs `work` to its end even where the caller of this is cancelled meanwhile."""
        task = asyncio.ensure_future(work)
        self._settling.add(task)
        task.add_done_callback(self._settled)
        await asyncio.shield(task)

    def _settled(self, task: asyncio.Task[None]) -> None:
        self._settling.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a usage row could not be written", error=str(error))

    async def drain(self) -> None:
        """Waits for the settlements that nobody waits for."""
        while self._settling:
            await asyncio.wait(self._settling)


def _check_schemas(support: Support | None, generation: Generation) -> None:
    """Raises `BadRequest` naming the first place where a schema of the request is none, or that the engine would not obey.

    support: what it obeys; None: it decides itself.
    """
    output = generation.output
    asked = [(output.schema, output.where)] if output is not None else []
    if generation.tools.wanted:
        asked += [(function.parameters, function.where or "tools") for function in generation.tools.functions]
    count = 0
    for text, where in asked:
        if text is not None:
            schema = json.loads(text)
            count += check(schema, where)
            if count > REQUEST_SCHEMAS_MAX:
                raise BadRequest(
                    f"`{where}`: there are more than {REQUEST_SCHEMAS_MAX:,} schemas in the request.",
                    param=where,
                    code="invalid_schema",
                )
            if support is not None:
                check_support(schema, support, where)


async def _kept_by(keeper: Keeper, end: Finished) -> Answer:
    keeper.see(end)
    return await keeper.answer()


def _may_pass_on(error: JubalError, asked: bool) -> bool:
    """Whether the next engine may be asked: not where our own queue is full, which is there to keep work away."""
    return asked or not isinstance(error, AtCapacity)


@value(frozen=True, slots=True)
class _Seat:
    """A request's place at an engine, and the breaker that may have shut it while the request was away."""

    place: Place
    attempt: Attempt

    def rest(self) -> None:
        self.place.rest()

    async def resume(self) -> None:
        """Raises `EngineUnavailable` before the first piece of an answer."""
        await self.place.resume()
        self.attempt.check()


@dataclass(slots=True)
class _Embedding:
    """One request for vectors: who answers, what was used, how it ended."""

    model: Model
    price: Price
    began_s: float
    ticket: Ticket
    held: Held = field(default_factory=Held)
    made: Embeddings | None = None
    engine: str = ""
    weights: str = ""
    asked: bool = False
    status: str = "failed"
    error: str | None = None

    @property
    def usage(self) -> Usage:
        return NOTHING if self.made is None else Usage(self.made.prompt_tokens, 0)

    def row(self, caller: Caller, endpoint: str, request_id: str, now_us: int, ended_s: float) -> UsageRow:
        return UsageRow(
            request_id=request_id,
            created_us=now_us,
            team_id=caller.team_id,
            key_id=caller.key_id,
            endpoint=endpoint,
            model=self.model.name,
            engine=self.engine,
            weights=self.weights,
            status=self.status,
            error_code=self.error,
            stream=False,
            prompt_tokens=self.usage.prompt,
            cached_tokens=None,
            completion_tokens=0,
            reasoning_tokens=0,
            latency_us=int((ended_s - self.began_s) * 1e6),
            first_token_us=None,
            estimated=self.made is not None and self.made.estimated,
            **costs(self.price.charge(self.usage), None, self.held),
        )


class _Account:
    """What one request has used, when, and how it ended."""

    __slots__ = (
        "_admitted", "_clock", "_ended_s", "_error", "_first_s", "_status", "_tally", "asked", "charge", "engine",
        "free", "priority", "settled", "started", "usage", "uses", "weights",
    )  # fmt: skip

    def __init__(self, admitted: Admitted, clock: Callable[[], float]) -> None:
        self._admitted = admitted
        self._clock = clock
        self._tally = Tally()
        self._first_s: float | None = None
        self._ended_s = admitted.began_s
        self._status = "failed"
        self._error: str | None = None
        self.engine = admitted.model.engine
        self.weights = ""
        self.asked = False
        self.free = False
        self.priority = False
        self.started = False
        self.usage = NOTHING
        self.charge: Charge = NO_CHARGE
        self.uses: dict[str, int] = {}  # calls of server tools that went well
        self.settled = False

    @property
    def so_far(self) -> int:
        """Tokens that are used until now, all kinds together."""
        return self._tally.usage(self._admitted.generation).total

    def asks(self, engine: str, fingerprint: str, *, priority: bool = False) -> None:
        """An engine begins to work."""
        self.asked, self.engine, self.weights, self.priority = True, engine, fingerprint, priority

    def see(self, event: Event) -> None:
        self._tally.see(event)
        kind = type(event)
        if self._first_s is None and (kind is TextDelta or kind is ReasoningDelta):
            self._first_s = self._clock()
        elif isinstance(event, ServerToolResult) and event.ok:
            self.uses[event.kind] = self.uses.get(event.kind, 0) + 1

    def close(self, status: str, error: JubalError | None = None, *, unseen: bool = False) -> int:
        """The request is over: fixes usage and cost, and returns the cost in ticks.

        A cut answer is paid for what was produced; one that failed by no fault of the caller's costs nothing. unseen: an engine
        worked, and what it produced is not known: the prompt is paid for.
        """
        if self._ended_s == self._admitted.began_s:
            self._ended_s = self._clock()
        self._status = status
        self._error = (error.code or type(error).__name__) if error is not None else None
        if status == "ok" or self.started or unseen:
            self.usage = self._tally.usage(self._admitted.generation)
        free = status == "failed" or self.free
        price = self._admitted.price.for_priority() if self.priority else self._admitted.price
        self.charge = NO_CHARGE if free else price.charge(self.usage, self.uses)
        return self.charge.total

    def row(self, now_us: int) -> UsageRow:
        admitted, usage = self._admitted, self.usage
        began = admitted.began_s
        return UsageRow(
            request_id=admitted.request_id,
            created_us=now_us,
            team_id=admitted.caller.team_id,
            key_id=admitted.caller.key_id,
            endpoint=admitted.endpoint,
            model=admitted.model.name,
            engine=self.engine,
            weights=self.weights,
            status=self._status,
            error_code=self._error,
            stream=admitted.generation.live,
            prompt_tokens=usage.prompt,
            cached_tokens=usage.cached,
            completion_tokens=usage.completion,
            reasoning_tokens=usage.reasoning,
            latency_us=int((self._ended_s - began) * 1e6),
            first_token_us=None if self._first_s is None else int((self._first_s - began) * 1e6),
            estimated=not self._tally.exact and usage != NOTHING,
            service_tier="priority" if self.priority else None,
            **costs(self.charge, tools_text(admitted.price, self.uses), admitted.held),
        )
