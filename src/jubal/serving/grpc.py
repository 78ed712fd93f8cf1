"""gRPC beside HTTP, in the same event loop: services, metadata, cancellation. No decision about content is made here.

Messages pass as bytes, which wire/xai_grpc reads and writes. Imported only where a gRPC port is served: the libraries take
18 MiB.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final, Protocol, TypeAlias, TypeVar
from urllib.parse import unquote

import grpc  # type: ignore[import-untyped]
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]

from jubal.accounts import keys, teams
from jubal.accounts.keys import Caller
from jubal.accounts.store import Store
from jubal.core.errors import InternalError, JubalError, MethodNotAllowed, Stopping
from jubal.core.events import Event
from jubal.core.fold import fold
from jubal.core.generation import Generation
from jubal.serving.answers import Answers
from jubal.serving.certificates import Certificates, Pair
from jubal.serving.deferred import Deferred
from jubal.serving.door import Door
from jubal.serving.pipeline import Admitted, Pipeline
from jubal.serving.places import Place
from jubal.wire.base import Sealer, WholeDialect
from jubal.wire.xai_grpc import auth, chat, embed, errors, models, sample, tokenize

log = structlog.get_logger("jubal.grpc")

T = TypeVar("T")
Context: TypeAlias = Any
"""A grpc.aio.ServicerContext; the library has no types."""
Events: TypeAlias = AsyncGenerator[Event, None]

MESSAGE_BYTES_MAX: Final = 20 << 20
"""What the SDK sends and takes; gRPC's own default is 4 MiB (xai-api.md 23.1)."""
PING_SPACING_MS: Final = 5_000
"""Clients may ping so often; the SDK does every 30 s, also without calls."""
OPTIONS: Final = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", PING_SPACING_MS),
    ("grpc.http2.max_ping_strikes", 0),  # never GOAWAY for pings: a client behind a bad network is no attacker
)
WAITING_MAX: Final = 1_000
"""Events that a slow client may leave unread before its engine has to wait."""
HEALTH_S: Final = 1.0
"""How soon those who watch the health service are told of a change."""
DONE: Final = 200
"""How a deferred answer that is one is kept; an error is kept under its gRPC code."""
PENDING: Final = 202


def options(*, shared: bool) -> tuple[tuple[str, int], ...]:
    """Of a server. shared: other processes listen at its place; else a port that is taken must be an error."""
    return (*OPTIONS, ("grpc.so_reuseport", int(shared)))


class _Rendered(Protocol):
    """A parsed request of a stream."""

    generation: Generation

    def renderer(self) -> _Frames: ...


class _Frames(Protocol):
    def frames(self, events: Sequence[Event]) -> Iterator[bytes]:
        """The messages for these events."""
        ...


class _Rpc:
    """One call. id: its x-request-id."""

    __slots__ = ("begun", "context", "id")

    def __init__(self, context: Context, request_id: str) -> None:
        self.context = context
        self.id = request_id
        self.begun = False

    def metadata(self, name: str) -> str | None:
        """The first value of this (lower case) name."""
        for key, value in self.context.invocation_metadata() or ():
            if key == name:
                return value.decode("latin-1") if isinstance(value, bytes) else str(value)
        return None

    @property
    def address(self) -> str | None:
        """Of the client, out of gRPC's `ipv4:127.0.0.1:4711` or `ipv6:%5B::1%5D:4711`; None for anything else."""
        kind, _, rest = self.context.peer().partition(":")
        return unquote(rest).rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else None

    async def begin(self, more: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Sends the metadata in front of an answer, once."""
        if not self.begun:
            self.begun = True
            told = _texts(more)
            self.context.set_trailing_metadata((("x-request-id", self.id), *told))
            await self.context.send_initial_metadata((("x-request-id", self.id), *told))

    async def fail(self, error: JubalError) -> None:
        reply = errors.reply(error)
        trailing = (("x-request-id", self.id), *_texts(reply.headers))
        await self.context.abort(STATUS[reply.status], reply.body.decode(), trailing)


def _texts(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode(), value.decode()) for name, value in headers]


STATUS: Final[dict[int, Any]] = {status.value[0]: status for status in grpc.StatusCode}
Unary: TypeAlias = Callable[[_Rpc, bytes], Awaitable[Any]]
Streamed: TypeAlias = Callable[[_Rpc, bytes], Awaitable[None]]


class _Queue:
    """Events on their way to a client: one task puts, one takes all that is there."""

    __slots__ = ("_ended", "_error", "_events", "_room", "_wake")

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._ended = False
        self._error: BaseException | None = None
        self._wake: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    @property
    def full(self) -> bool:
        """The producer should `await room()`."""
        return len(self._events) >= WAITING_MAX

    def put(self, event: Event) -> None:
        self._events.append(event)
        self._notify()

    async def room(self) -> None:
        """Wait until the writer has taken what is there."""
        while self.full:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def end(self, error: BaseException | None) -> None:
        """error: raised by `take` after the events before it."""
        self._ended, self._error = True, error
        self._notify()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def take(self) -> list[Event]:
        """All events that are there, waiting for the first; none at the end."""
        while not self._events:
            if self._ended:
                if self._error is not None:
                    raise self._error
                return []
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        taken, self._events = self._events, []
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        return taken


class GrpcServer:
    """Made without I/O; `start` it, then `drain` and `close`. Belongs to one event loop.

    dialect: the name in the store of deferred requests. health: whether requests can be answered now. door: who comes in.
    certificates: None: plaintext.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        store: Store,
        sealer: Sealer,
        deferred: Deferred,
        answers: Answers,
        dialect: str,
        *,
        health: Callable[[], bool],
        door: Door | None = None,
        certificates: Certificates | None = None,
    ) -> None:
        self._certificates = certificates
        self._pipeline = pipeline
        self._door = door or Door(pipeline)
        self._store = store
        self._deferred = deferred
        self._answers = answers
        self._dialect = dialect
        self._is_healthy = health
        self._whole = chat.XaiChat(sealer)
        self._live = chat.XaiChat(sealer, live=True)
        self._compact = chat.XaiCompact(sealer)
        self._sample = sample.XaiSample()
        self._sample_live = sample.XaiSample(live=True)
        self._work: set[asyncio.Future[Any]] = set()
        self._stopping = False
        self._server: Any = None
        self._drained: asyncio.Future[Any] | None = None
        self._watch: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------------------------------ life

    async def start(self, at: Place) -> None:
        """Raises `OSError` for an address that can't be had."""
        server = grpc.aio.server(options=options(shared=at.shared))
        server.add_generic_rpc_handlers((_Router(self._methods()),))
        servicer = _Health(self._is_healthy)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        for address in at.addresses:
            try:
                if self._certificates is None:
                    server.add_insecure_port(address)
                else:
                    server.add_secure_port(address, _credentials(self._certificates))
            except RuntimeError as error:
                raise OSError(errno.EADDRNOTAVAIL, f"gRPC can't listen on {address}") from error
        await server.start()
        self._server = server
        self._watch = asyncio.ensure_future(servicer.keep())

    def drain(self, grace_s: float) -> None:
        """Takes no new calls; those that are open may go on for so long."""
        if self._server is not None and self._drained is None:
            self._drained = asyncio.ensure_future(self._server.stop(grace_s))

    def stop_now(self) -> None:
        """The drain time is over: every open answer ends with an error that says so."""
        self._stopping = True
        for work in self._work:
            work.cancel()

    async def close(self) -> None:
        """Waits for the end of `drain`, or ends all calls."""
        if self._watch is not None:
            self._watch.cancel()
        self.drain(0)
        if self._drained is not None:
            await self._drained

    # ------------------------------------------------------------------------------------------ methods

    def _methods(self) -> dict[str, Any]:
        unary: dict[str, Unary] = {
            "Auth/get_api_key_info": self._key_info,
            "Chat/GetCompletion": self._complete,
            "Chat/StartDeferredCompletion": self._defer,
            "Chat/GetDeferredCompletion": self._get_deferred,
            "Chat/GetStoredCompletion": self._get_stored,
            "Chat/DeleteStoredCompletion": self._delete_stored,
            "Chat/CompactContext": lambda rpc, body: self._answer(rpc, self._compact, body),
            "Embedder/Embed": self._embed,
            "Models/ListLanguageModels": self._language_models,
            "Models/ListEmbeddingModels": self._embedding_models,
            "Models/ListImageGenerationModels": self._image_models,
            "Models/GetLanguageModel": self._language_model,
            "Models/GetEmbeddingModel": self._embedding_model,
            "Models/GetImageGenerationModel": self._image_model,
            "Sample/SampleText": lambda rpc, body: self._answer(rpc, self._sample, body, repeatable=True),
            "Tokenize/TokenizeText": self._tokenize,
        }
        streamed: dict[str, Streamed] = {
            "Chat/GetCompletionChunk": self._stream_chat,
            "Sample/SampleTextStreaming": self._stream_sample,
        }
        handlers = {name: grpc.unary_unary_rpc_method_handler(self._unary(work)) for name, work in unary.items()}
        for name, stream in streamed.items():
            handlers[name] = grpc.unary_stream_rpc_method_handler(self._guarded(stream))
        return {f"/xai_api.{name}": handler for name, handler in handlers.items()}

    def _unary(self, work: Unary) -> Callable[[bytes, Context], Awaitable[bytes | None]]:
        async def answer(rpc: _Rpc, body: bytes) -> bytes:
            made = await self._while_wanted(work(rpc, body))
            await rpc.begin()
            return made if isinstance(made, bytes) else made.SerializeToString()

        return self._guarded(answer)

    def _guarded(self, work: Callable[[_Rpc, bytes], Awaitable[T]]) -> Callable[[bytes, Context], Awaitable[T | None]]:
        """Every error becomes a status."""

        async def handle(body: bytes, context: Context) -> T | None:
            rpc = _Rpc(context, self._pipeline.new_id())
            try:
                return await work(rpc, body)
            except JubalError as error:
                await rpc.fail(error)
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except Exception:
                log.exception("call failed by a fault of ours", request_id=rpc.id)
                await rpc.fail(
                    InternalError(
                        "Something went wrong in Jubal; the server's log has the details under this request's id."
                    )
                )
            return None

        return handle

    async def _while_wanted(self, work: Awaitable[T]) -> T:
        """Cancelled with the call, by its client or its deadline. Raises `Stopping` at the drain limit."""
        task = asyncio.ensure_future(work)
        with self._open(task):
            try:
                return await task
            except asyncio.CancelledError:
                handler = asyncio.current_task()
                if self._stopping and not (handler and handler.cancelling()):
                    raise _stopping() from None
                raise

    @contextlib.contextmanager
    def _open(self, work: asyncio.Future[Any]) -> Iterator[None]:
        """`stop_now` cancels it meanwhile."""
        self._work.add(work)
        try:
            yield
        finally:
            self._work.discard(work)

    async def _caller(self, rpc: _Rpc) -> Caller:
        return await self._door.identify_by(rpc.metadata("authorization"), rpc.address)

    def _admit(
        self, rpc: _Rpc, caller: Caller, endpoint: str, generation: Generation, *, repeatable: bool = False
    ) -> Admitted:
        """x-grok-conv-id: calls with the same one share a prompt prefix (xai-api.md 22). cache-control: as in HTTP."""
        if self._pipeline.caches and "no-cache" in (rpc.metadata("cache-control") or "").lower():
            generation = replace(generation, cache=False)
        if (conversation := rpc.metadata("x-grok-conv-id")) is not None:
            generation = replace(generation, cache_key=conversation)
        return self._pipeline.admit(caller, endpoint, generation, request_id=rpc.id, repeatable=repeatable)

    # ------------------------------------------------------------------------------------------ generations

    async def _chat_asked(self, caller: Caller, dialect: chat.XaiChat, body: bytes) -> chat.ChatAsked:
        """With the conversation that it goes on from."""
        asked = dialect.parse(body)
        if asked.previous is not None:
            asked.go_on_from(await self._answers.previous(caller, asked.previous))
        return asked

    def _admit_chat(self, rpc: _Rpc, caller: Caller, asked: chat.ChatAsked) -> Admitted:
        admitted = self._admit(rpc, caller, self._whole.endpoint, asked.generation, repeatable=True)
        if asked.keep:
            admitted.keeper = self._answers.keeper(asked, admitted)
        return admitted

    async def _complete(self, rpc: _Rpc, body: bytes) -> bytes:
        caller = await self._caller(rpc)
        asked = await self._chat_asked(caller, self._whole, body)
        admitted = self._admit_chat(rpc, caller, asked)
        whole = asked.whole(await fold(self._pipeline.run(admitted)))
        await rpc.begin(admitted.ticket_headers())
        return whole

    async def _answer(self, rpc: _Rpc, dialect: WholeDialect, body: bytes, *, repeatable: bool = False) -> bytes:
        caller = await self._caller(rpc)
        asked = dialect.parse(body)
        admitted = self._admit(rpc, caller, dialect.endpoint, asked.generation, repeatable=repeatable)
        whole = asked.whole(await fold(self._pipeline.run(admitted)))
        await rpc.begin(admitted.ticket_headers())
        return whole

    async def _stream_chat(self, rpc: _Rpc, body: bytes) -> None:
        caller = await self._while_wanted(self._caller(rpc))
        asked = await self._while_wanted(self._chat_asked(caller, self._live, body))
        admitted = self._admit_chat(rpc, caller, asked)
        await self._stream(rpc, asked, admitted, self._pipeline.run(admitted))

    async def _stream_sample(self, rpc: _Rpc, body: bytes) -> None:
        caller = await self._while_wanted(self._caller(rpc))
        asked = self._sample_live.parse(body)
        admitted = self._admit(rpc, caller, self._sample_live.endpoint, asked.generation, repeatable=True)
        await self._stream(rpc, asked, admitted, self._pipeline.run(admitted))

    async def _stream(self, rpc: _Rpc, asked: _Rendered, admitted: Admitted, events: Events) -> None:
        """What comes while a message is being written leaves as the next one."""
        queue = _Queue()
        renderer = asked.renderer()
        producer = asyncio.ensure_future(self._produce(events, queue))
        with self._open(producer):
            try:
                while batch := await queue.take():
                    for frame in renderer.frames(batch):
                        if not rpc.begun:
                            await rpc.begin(admitted.ticket_headers())
                        await rpc.context.write(frame)
            finally:
                if not producer.done():
                    producer.cancel()
                    await asyncio.wait((producer,))
                self._pipeline.put_off(admitted.ticket, admitted.tokens_taken)  # where it was cancelled before it began

    async def _produce(self, events: Events, queue: _Queue) -> None:
        error: BaseException | None = None
        try:
            async with aclosing(events):
                async for event in events:
                    queue.put(event)
                    if queue.full:
                        await queue.room()
        except asyncio.CancelledError:
            error = _stopping() if self._stopping else None
        except Exception as caught:  # noqa: BLE001  raised again by whoever takes
            error = caught
        queue.end(error)

    # ------------------------------------------------------------------------------------------ deferred and kept

    async def _defer(self, rpc: _Rpc, body: bytes) -> bytes:
        caller = await self._caller(rpc)
        asked = await self._chat_asked(caller, self._whole, body)
        generation = replace(asked.generation, priority=False)  # nobody waits for it
        admitted = self._admit(rpc, caller, self._whole.endpoint, generation)
        await self._deferred.submit(admitted, self._dialect, asked.body())
        await rpc.begin(admitted.ticket_headers())
        return asked.accepted(admitted.request_id)

    async def _get_deferred(self, rpc: _Rpc, body: bytes) -> bytes:
        """PENDING until it has ended, then its answer or its error, once."""
        caller = await self._of_endpoint(rpc, self._whole.endpoint)
        status, answer = await self._deferred.fetch(caller, self._dialect, chat.deferred_id(body))
        if status in (DONE, PENDING):
            return chat.deferred_answer(answer if status == DONE else None)
        await rpc.context.abort(STATUS[status], answer.decode(), (("x-request-id", rpc.id),))
        raise AssertionError("abort raises")

    async def _get_stored(self, rpc: _Rpc, body: bytes) -> bytes:
        caller = await self._of_endpoint(rpc, self._whole.endpoint)
        return self._whole.shown(await self._answers.find(caller, chat.stored_id(body)))

    async def _delete_stored(self, rpc: _Rpc, body: bytes) -> bytes:
        caller = await self._of_endpoint(rpc, self._whole.endpoint)
        identity = chat.stored_id(body)
        await self._answers.delete(caller, identity)
        return chat.deleted(identity)

    async def _of_endpoint(self, rpc: _Rpc, endpoint: str) -> Caller:
        caller = await self._caller(rpc)
        caller.acl.demand_endpoint(endpoint)
        return caller

    # ------------------------------------------------------------------------------------------ small methods

    async def _key_info(self, rpc: _Rpc, body: bytes) -> Any:
        caller = await self._caller(rpc)
        key = await self._store.run_read(keys.get, caller.key_id)
        team = await self._store.run_read(teams.get, caller.team_id)
        return auth.key_info(key, team_blocked=team.blocked)

    async def _tokenize(self, rpc: _Rpc, body: bytes) -> Any:
        caller = await self._caller(rpc)
        model, text = tokenize.asked(body)
        tokens = await self._pipeline.tokenize(caller, model, text)
        return tokenize.answer(self._pipeline.catalogue.find(model).name, tokens)

    async def _embed(self, rpc: _Rpc, body: bytes) -> Any:
        caller = await self._caller(rpc)
        asked = embed.EmbedAsked(body)
        made = await self._pipeline.embed(caller, "embed", asked.request, request_id=rpc.id)
        _, weights = self._pipeline.offer(made.model, ("embedding",))
        await rpc.begin(made.headers)
        return asked.whole(rpc.id, made.model, weights.fingerprint, made.embeddings)

    async def _language_models(self, rpc: _Rpc, body: bytes) -> Any:
        return models.language_listing(await self._offers(rpc, "language"))

    async def _embedding_models(self, rpc: _Rpc, body: bytes) -> Any:
        return models.embedding_listing(await self._offers(rpc, "embedding"))

    async def _image_models(self, rpc: _Rpc, body: bytes) -> Any:
        await self._of_endpoint(rpc, "models")
        return models.image_listing()

    async def _offers(self, rpc: _Rpc, kind: Any) -> list[Any]:
        """The models that the key may use."""
        caller = await self._of_endpoint(rpc, "models")
        return [
            (self._pipeline.charging.priced(caller, model), weights)
            for model, weights in self._pipeline.offers(kind)
            if caller.acl.allows_model(model.name, *model.aliases)
        ]

    async def _language_model(self, rpc: _Rpc, body: bytes) -> Any:
        return models.language(*await self._offer(rpc, body, "language"))

    async def _embedding_model(self, rpc: _Rpc, body: bytes) -> Any:
        return models.embedding(*await self._offer(rpc, body, "embedding"))

    async def _offer(self, rpc: _Rpc, body: bytes, kind: Any) -> Any:
        caller = await self._of_endpoint(rpc, "models")
        model, weights = self._pipeline.offer(models.wanted(body), (kind,))
        caller.acl.demand("models", model.name, *model.aliases)
        return self._pipeline.charging.priced(caller, model), weights

    async def _image_model(self, rpc: _Rpc, body: bytes) -> Any:
        await self._of_endpoint(rpc, "models")
        raise models.no_image_model(models.wanted(body))


def _credentials(certificates: Certificates) -> Any:
    """Those of one port, which shows the newest certificate: the library asks, from a thread of its own, at each handshake."""

    def shown(pair: Pair) -> Any:
        return grpc.ssl_server_certificate_configuration([(pair.key, pair.chain)])

    given = certificates.newest

    def newest() -> Any:
        """None: nothing has changed."""
        nonlocal given
        pair = certificates.newest
        if pair is given:
            return None
        given = pair
        return shown(pair)

    return grpc.dynamic_ssl_server_credentials(shown(given), newest)


SERVICES: Final = tuple(f"xai_api.{name}" for name in ("Auth", "Chat", "Embedder", "Models", "Sample", "Tokenize"))


class _Health(health.aio.HealthServicer):  # type: ignore[misc]  # the library has no types
    """The health service: for the server as a whole and for each service, whether requests can be answered now."""

    def __init__(self, is_healthy: Callable[[], bool]) -> None:
        super().__init__()
        self._is_healthy = is_healthy
        self._told: bool | None = None

    async def Check(self, request: Any, context: Context) -> Any:
        await self._tell()
        return await super().Check(request, context)

    async def keep(self) -> None:
        """Tells those who watch."""
        while True:
            await self._tell()
            await asyncio.sleep(HEALTH_S)

    async def _tell(self) -> None:
        healthy = self._is_healthy()
        if healthy == self._told:
            return
        self._told = healthy
        words = health_pb2.HealthCheckResponse
        for name in ("", *SERVICES):
            await self.set(name, words.SERVING if healthy else words.NOT_SERVING)


class _Router(grpc.GenericRpcHandler):  # type: ignore[misc]  # the library has no types
    """Finds a method's handler; for all others of xAI's API, one that says what is not there."""

    def __init__(self, methods: dict[str, Any]) -> None:
        self._methods = methods

    def service(self, details: Any) -> Any:
        """None for what is of another package: the health and reflection services."""
        found = self._methods.get(details.method)
        if found is None and details.method.startswith(("/xai_api.", "/collections.", "/prod_mc_billing.")):
            return _absent(details.method)
        return found


def _absent(method: str) -> Any:
    """A handler for any kind of method: it answers without reading more than one message."""
    error = MethodNotAllowed(
        f"{method[:100]} is not served here. This server has the services {', '.join(SERVICES)}.", allowed=()
    )

    async def refuse(messages: Any, context: Context) -> None:
        await context.abort(STATUS[errors.code_of(error)], error.message)

    return grpc.stream_stream_rpc_method_handler(refuse)


def _stopping() -> Stopping:
    return Stopping("The server is shutting down and ended this answer at its drain limit.", retry_after_s=1)
