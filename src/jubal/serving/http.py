"""HTTP: routes, sockets, disconnects. No decision about content is made here.

Bare ASGI: the whole router is two tables, and a framework's request objects would cost more than all of our own work
(docs/decisions/http-server.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Mapping,
    MutableMapping,
    Sequence,
)
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, TypeVar
from urllib.parse import parse_qsl

import structlog

from jubal.accounts.keys import Caller
from jubal.core.errors import (
    BadRequest,
    BodyTooLarge,
    InternalError,
    JubalError,
    MethodNotAllowed,
    NotFound,
    Stopping,
    UnsupportedMedia,
)
from jubal.core.events import Event, Failed
from jubal.core.fold import Folder
from jubal.core.generation import Generation
from jubal.core.model import Model, Weights
from jubal.serving.access import AccessLog
from jubal.serving.answers import Answers
from jubal.serving.cors import Cors
from jubal.serving.deferred import Deferred
from jubal.serving.door import Door
from jubal.serving.outbox import Outbox
from jubal.serving.peer import Peer
from jubal.serving.pipeline import Admitted, ModelKind, Pipeline
from jubal.wire import openai_errors, openai_models, rich_models, sse
from jubal.wire.anthropic_messages import AnthropicMessages
from jubal.wire.base import Asked, Dialect, ErrorReply, KeptDialect, WholeAsked, WholeDialect, rate_headers
from jubal.wire.openai_embeddings import OpenAIEmbeddings
from jubal.wire.openai_tokenize import OpenAITokenize

log = structlog.get_logger("jubal.http")

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Headers: TypeAlias = list[tuple[bytes, bytes]]
Events: TypeAlias = AsyncGenerator[Event, None]

JSON: Final = b"application/json"
STREAM_HEADERS: Final = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
"""Caches and buffering proxies must let each token through when it comes."""
ANTHROPIC: Final = ("/v1/messages", "/v1/complete")
"""Beginnings of paths whose SDKs read the id of a request from a header of another name."""
NO_SNIFFING: Final = (b"x-content-type-options", b"nosniff")
NO_STORE: Final = (b"cache-control", b"no-store")
"""Answers are somebody's own: no cache on the way or in a browser keeps them."""
RESPONSES: Final = "/v1/responses"
INPUT_ITEMS: Final = "/input_items"
DEFERRED: Final = "/v1/chat/deferred-completion/"
DEFERRED_DIALECT: Final = "chat"
"""The name in the store of the only dialect here with deferred answers."""
REQUEST_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
DISCARD_S: Final = 5.0
"""How long the rest of a body that is too large is read, so that its sender gets to the answer."""


class ClientGone(Exception):
    """The client closed the connection; there is nobody to answer."""


class Exchange:
    """One request and its answer.

    id: the x-request-id of the answer, a bare UUID. status: of the answer, once it has begun. key_id: whose request it is, once
    that is known. admitted: what its limits let in, once they have. extra: further headers for the answer. peer: who asks.
    """

    __slots__ = (
        "_headers",
        "_receive",
        "_send",
        "admitted",
        "extra",
        "id",
        "key_id",
        "path",
        "peer",
        "scope",
        "started",
        "status",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self.scope = scope
        self.path: str = scope["path"]
        self.id = request_id
        self.started = False
        self.status: int | None = None
        self.key_id: str | None = None
        self.admitted: Admitted | None = None
        self.extra: tuple[tuple[bytes, bytes], ...] = ()
        self.peer = Peer.of(scope)
        self._headers: dict[bytes, bytes] | None = None
        self._receive = receive
        self._send = send

    def header(self, name: bytes) -> str | None:
        """The first header of this (lower case) name."""
        if self._headers is None:
            self._headers = dict(reversed(self.scope["headers"]))
        value = self._headers.get(name)
        return None if value is None else value.decode("latin-1")

    async def body(self, bytes_max: int) -> bytes:
        """The whole body. Raises `BodyTooLarge`, `ClientGone`."""
        length = self.header(b"content-length")
        if length is not None and length.isdecimal() and int(length) > bytes_max:
            await self._discard(bytes_max)
            raise _too_large(bytes_max)
        message = await self._receive()
        if not message.get("more_body") and message["type"] == "http.request":
            whole: bytes = message.get("body", b"")
            if len(whole) > bytes_max:
                raise _too_large(bytes_max)
            return whole
        body = bytearray()
        while True:
            if message["type"] == "http.disconnect":
                raise ClientGone
            body += message.get("body", b"")
            if len(body) > bytes_max:
                await self._discard(bytes_max)
                raise _too_large(bytes_max)
            if not message.get("more_body"):
                return bytes(body)
            message = await self._receive()

    async def _discard(self, bytes_max: int) -> None:
        """Reads on for a while: a client that is still sending when the connection is closed never sees the answer."""
        seen = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_S):
                while seen < bytes_max:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    seen += len(message.get("body", b""))
                    if not message.get("more_body"):
                        return

    async def start(
        self, status: int, content_type: bytes, headers: Headers | tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        self.started = True
        self.status = status
        identity = self.id.encode()
        base = [(b"content-type", content_type), (b"x-request-id", identity), NO_SNIFFING]
        if self.path.startswith(ANTHROPIC):
            base.append((b"request-id", identity))
        await self._send({"type": "http.response.start", "status": status, "headers": [*base, *headers, *self.extra]})

    async def write(self, data: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def reply(
        self,
        status: int,
        body: bytes,
        headers: Headers | tuple[tuple[bytes, bytes], ...] = (),
        content_type: bytes = JSON,
    ) -> None:
        """A whole answer. To HEAD without its body."""
        await self.start(status, content_type, [*headers, NO_STORE, (b"content-length", b"%d" % len(body))])
        await self.write(b"" if self.scope["method"] == "HEAD" else body, more=False)

    async def reply_error(self, reply: ErrorReply) -> None:
        await self.reply(reply.status, reply.body, reply.headers)


def _too_large(bytes_max: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is over this server's limit of {bytes_max:,} bytes.", code="body_too_large")


T = TypeVar("T")


class _Shelf(NamedTuple):
    """A list of models: of which kinds, and how the list and one of it are written."""

    kinds: tuple[ModelKind, ...]
    listing: Callable[[list[tuple[Model, Weights]]], bytes]
    single: Callable[[Model, Weights], bytes]


SHELVES: Final = {
    "/v1/models": _Shelf(("language", "embedding"), openai_models.listing, openai_models.single),
    "/v1/language-models": _Shelf(("language",), rich_models.language_listing, rich_models.language_single),
    "/v1/embedding-models": _Shelf(("embedding",), rich_models.embedding_listing, rich_models.embedding_single),
}
Handler: TypeAlias = Callable[[Exchange], Awaitable[None]]


class _Refusing(Protocol):
    """What has words for errors: any dialect."""

    def error(self, error: JubalError) -> ErrorReply: ...


class Mount(Protocol):
    """Routes that are kept elsewhere."""

    def find(self, path: str) -> Mapping[str, Handler] | None:
        """The methods of a path, or None where it is not one of these."""
        ...

    def routes(self) -> set[tuple[str, str]]:
        """As `HttpApp.routes`."""
        ...


class HttpApp:
    """The ASGI application.

    whole_dialects: those whose answers are never streamed. door: who may come in; None for one that holds nobody back. mounts:
    further routes. health: what GET /health answers: a status and a JSON body. body_bytes_max: largest request body. cors: None:
    no web page may call. access: None: requests are not logged.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        dialects: dict[str, Dialect],
        embeddings: dict[str, OpenAIEmbeddings] | None = None,
        *,
        whole_dialects: Mapping[str, WholeDialect] | None = None,
        deferred: Deferred,
        responses: tuple[KeptDialect, Answers] | None = None,
        door: Door | None = None,
        mounts: Sequence[Mount] = (),
        health: Callable[[], tuple[int, bytes]],
        body_bytes_max: int,
        cors: Cors | None = None,
        access: AccessLog | None = None,
    ) -> None:
        self._cors = cors
        self._access = access
        self._pipeline = pipeline
        self._door = door or Door(pipeline)
        self._mounts = tuple(mounts)
        self._deferred = deferred
        self._body_bytes_max = body_bytes_max
        self._health = health
        self._work: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._openapi: bytes | None = None
        self._routes: dict[str, dict[str, Handler]] = {
            "/health": {"GET": self._get_health},
            "/openapi.json": {"GET": self._get_openapi},
            "/v1/tokenize-text": {"POST": self._tokenize},
            "/v1/messages/count_tokens": {"POST": self._count_tokens},
        }
        for path, embedding in (embeddings or {}).items():
            self._routes[path] = {"POST": self._embeddings_by(embedding)}
        for path, dialect in dialects.items():
            self._routes[path] = {"POST": self._generation_by(dialect)}
        for path, whole in (whole_dialects or {}).items():
            self._routes[path] = {"POST": self._whole_generation_by(whole)}
        self._prefixes: dict[str, dict[str, Handler]] = {
            DEFERRED: {"GET": self._get_deferred},
        }
        self._within: dict[tuple[str, str], dict[str, Handler]] = {}
        if responses is not None:
            self._keep(*responses)
        for path, shelf in SHELVES.items():
            self._routes[path] = {"GET": self._models(shelf)}
            self._prefixes[path + "/"] = {"GET": self._model(path + "/", shelf)}

    def _keep(self, dialect: KeptDialect, answers: Answers) -> None:
        """The routes of a dialect whose answers are kept."""
        self._routes[RESPONSES] = {"POST": self._kept_generation_by(dialect, answers)}
        kept = _KeptRoutes(dialect, answers, self._identify)
        self._prefixes[RESPONSES + "/"] = {"GET": kept.get, "DELETE": kept.delete}
        self._within[RESPONSES + "/", INPUT_ITEMS] = {"GET": kept.get}

    def routes(self) -> set[tuple[str, str]]:
        """Every method and path, `{}` where a path goes on with what the caller asks for."""
        paths = {**self._routes, **{prefix + "{}": methods for prefix, methods in self._prefixes.items()}}
        paths |= {f"{prefix}{{}}{suffix}": methods for (prefix, suffix), methods in self._within.items()}
        own = {(method, path) for path, methods in paths.items() for method in methods}
        return own.union(*(mount.routes() for mount in self._mounts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await _refuse_websocket(scope, receive, send)
        exchange = Exchange(scope, receive, send, self._pipeline.new_id())
        if self._access is None:
            return await self._answer(exchange)
        began_s = time.monotonic()
        try:
            await self._answer(exchange)
        finally:
            self._access.write(
                request_id=exchange.id,
                client_request_id=exchange.header(b"x-client-request-id") or exchange.header(b"x-request-id"),
                key_id=exchange.key_id,
                method=scope["method"],
                path=exchange.path,
                status=exchange.status,
                began_s=began_s,
            )

    async def _answer(self, exchange: Exchange) -> None:
        """Whatever happens, the client gets an answer unless it has left."""
        try:
            if self._cors is not None and await self._cross_origin(exchange, self._cors):
                return
            await self._route(exchange)(exchange)
        except JubalError as error:
            await self._fail(exchange, openai_errors.reply(error))
        except ClientGone:
            pass
        except Exception:
            log.exception("request failed by a fault of ours", request_id=exchange.id, path=exchange.path)
            await self._reply_error(exchange, openai_errors.reply(_fault()))

    async def _cross_origin(self, exchange: Exchange, cors: Cors) -> bool:
        """Whether this was a browser's question before a request, which is answered now."""
        origin = exchange.header(b"origin")
        exchange.extra = cors.headers(origin)
        if exchange.scope["method"] != "OPTIONS" or exchange.header(b"access-control-request-method") is None:
            return False
        allowed = cors.preflight(origin, exchange.header(b"access-control-request-headers"))
        if allowed is None:
            return False
        await exchange.reply(200, b"", allowed, b"text/plain")
        return True

    async def _fail(self, exchange: Exchange, reply: ErrorReply) -> None:
        """Called where the error is handled: what is not the caller's fault is found in the log under the request's id.

        A request that its limits let in, and that was refused later, counts all the same, and is told so.
        """
        if reply.status == 500:
            log.exception("request failed by a fault of ours", request_id=exchange.id, path=exchange.path)
        elif reply.status > 500:
            log.info("request failed", request_id=exchange.id, path=exchange.path, status=reply.status, exc_info=True)
        if exchange.admitted is not None:
            reply = replace(reply, headers=(*reply.headers, *rate_headers(exchange.admitted.ticket.allowance)))
        await self._reply_error(exchange, reply)

    async def _reply_error(self, exchange: Exchange, reply: ErrorReply) -> None:
        if not exchange.started:
            await exchange.reply_error(reply)

    def _below(self, path: str) -> Mapping[str, Handler] | None:
        """The methods of a path that goes on with what the caller asks for."""
        for (prefix, suffix), found in self._within.items():
            if path.startswith(prefix) and path.endswith(suffix):
                return found
        for prefix, found in self._prefixes.items():
            if path.startswith(prefix):
                return found
        return next((methods for mount in self._mounts if (methods := mount.find(path)) is not None), None)

    def _route(self, exchange: Exchange) -> Handler:
        """Raises `NotFound`, `MethodNotAllowed`."""
        path = exchange.path
        if "\0" in path:  # no route or id holds one, and PostgreSQL takes none in a text
            raise NotFound("There is no route with a NUL character in it.", code="unknown_url")
        if b"%00" in exchange.scope["query_string"]:
            raise BadRequest("The query of the URL has a NUL character in it.", param="query", code="invalid_value")
        methods: Mapping[str, Handler] | None = self._routes.get(path)
        if methods is None:
            path = path.rstrip("/") or "/"
            methods = self._routes.get(path) or self._below(path)
        method = exchange.scope["method"]
        if methods is None:
            hint = f" Did you mean /v1{path}?" if f"/v1{path}" in self._routes else ""
            raise NotFound(f"There is no route {method} {path[:200]}.{hint}", code="unknown_url")
        handler = methods.get("GET" if method == "HEAD" else method)
        if handler is None:
            allowed = tuple(methods) + (("HEAD",) if "GET" in methods else ())
            raise MethodNotAllowed(f"{path[:200]} does not take {method}, only {', '.join(allowed)}.", allowed=allowed)
        return handler

    # ------------------------------------------------------------------------------------------ small routes

    async def _get_health(self, exchange: Exchange) -> None:
        status, body = self._health()
        await exchange.reply(status, body)

    async def _get_openapi(self, exchange: Exchange) -> None:
        """Made when it is first asked for: most servers never are."""
        if self._openapi is None:
            from jubal.serving.openapi import describe

            self._openapi = describe(self.routes())
        await exchange.reply(200, self._openapi)

    def _models(self, shelf: _Shelf) -> Handler:
        """The models that the key may use."""

        async def handle(exchange: Exchange) -> None:
            caller = await self._identify(exchange)
            caller.acl.demand_endpoint("models")
            offers = [
                (self._pipeline.charging.priced(caller, model), weights)
                for kind in shelf.kinds
                for model, weights in self._pipeline.offers(kind)
                if caller.acl.allows_model(model.name, *model.aliases)
            ]
            await exchange.reply(200, shelf.listing(offers))

        return handle

    def _model(self, prefix: str, shelf: _Shelf) -> Handler:
        async def handle(exchange: Exchange) -> None:
            caller = await self._identify(exchange)
            caller.acl.demand_endpoint("models")
            model, weights = self._pipeline.offer(exchange.path.removeprefix(prefix).rstrip("/"), shelf.kinds)
            caller.acl.demand("models", model.name, *model.aliases)
            await exchange.reply(200, shelf.single(self._pipeline.charging.priced(caller, model), weights))

        return handle

    async def _tokenize(self, exchange: Exchange) -> None:
        caller, body = await self._json_of_caller(exchange)
        asked = OpenAITokenize().parse(body)
        await exchange.reply(200, asked.whole(await self._pipeline.tokenize(caller, asked.model, asked.text)))

    async def _count_tokens(self, exchange: Exchange) -> None:
        dialect = AnthropicMessages()
        try:
            caller, body = await self._json_of_caller(exchange)
            asked = dialect.parse(body)
            tokens = await self._pipeline.count_tokens(caller, dialect.endpoint, asked.generation)
            await exchange.reply(200, asked.counted(tokens))
        except JubalError as error:
            await self._fail(exchange, dialect.error(error))

    async def _get_deferred(self, exchange: Exchange) -> None:
        """202 until it has ended, then its answer or its error, once. So not for HEAD, which would lose it."""
        if exchange.scope["method"] == "HEAD":
            raise MethodNotAllowed("A deferred completion can only be fetched with GET.", allowed=("GET",))
        caller = await self._identify(exchange)
        caller.acl.demand_endpoint("chat")
        request_id = exchange.path.removeprefix(DEFERRED).rstrip("/").lower()
        if not REQUEST_ID.fullmatch(request_id):
            raise BadRequest("`request_id` must be a UUID.", param="request_id", code="invalid_value")
        status, body = await self._deferred.fetch(caller, DEFERRED_DIALECT, request_id)
        await exchange.reply(status, body)

    async def _identify(self, exchange: Exchange) -> Caller:
        return await self._door.identify(exchange)

    # ------------------------------------------------------------------------------------------ generations

    def _generation_by(self, dialect: Dialect) -> Handler:
        async def answer(exchange: Exchange, caller: Caller, body: bytes) -> None:
            asked = dialect.parse(body)
            deferral = asked.deferral
            admitted = self._admit(exchange, caller, dialect.endpoint, asked.generation, repeatable=deferral is None)
            if deferral is not None:
                await self._deferred.submit(admitted, DEFERRED_DIALECT, body)
                await exchange.reply(200, deferral(admitted.request_id), admitted.ticket_headers())
            else:
                await self._render(exchange, asked, admitted)

        return self._answering(dialect, answer)

    def _whole_generation_by(self, dialect: WholeDialect) -> Handler:
        async def answer(exchange: Exchange, caller: Caller, body: bytes) -> None:
            asked = dialect.parse(body)
            await self._whole(exchange, asked, self._admit(exchange, caller, dialect.endpoint, asked.generation))

        return self._answering(dialect, answer)

    def _kept_generation_by(self, dialect: KeptDialect, answers: Answers) -> Handler:
        async def answer(exchange: Exchange, caller: Caller, body: bytes) -> None:
            asked = dialect.parse(body)
            if asked.previous is not None:
                asked.go_on_from(await answers.previous(caller, asked.previous))
            admitted = self._admit(exchange, caller, dialect.endpoint, asked.generation)
            if asked.keep:
                admitted.keeper = answers.keeper(asked, admitted)
            await self._render(exchange, asked, admitted)

        return self._answering(dialect, answer)

    def _embeddings_by(self, dialect: OpenAIEmbeddings) -> Handler:
        async def answer(exchange: Exchange, caller: Caller, body: bytes) -> None:
            asked = dialect.parse(body)
            made = await self._while_wanted(
                exchange, self._pipeline.embed(caller, dialect.endpoint, asked.request, request_id=exchange.id)
            )
            await exchange.reply(200, asked.whole(made.model, made.embeddings, made.cost_ticks), made.headers)

        return self._answering(dialect, answer)

    def _answering(self, dialect: _Refusing, answer: Callable[[Exchange, Caller, bytes], Awaitable[None]]) -> Handler:
        """The handler of a dialect's requests, which says in its words what went wrong before the first byte."""

        async def handle(exchange: Exchange) -> None:
            try:
                await answer(exchange, *await self._json_of_caller(exchange))
            except JubalError as error:
                await self._fail(exchange, dialect.error(error))

        return handle

    async def _json_of_caller(self, exchange: Exchange) -> tuple[Caller, bytes]:
        if self._stopping:
            raise Stopping("The server is shutting down.", retry_after_s=1)
        caller = await self._door.identify(exchange)
        if (exchange.header(b"content-type") or "").startswith("multipart/"):
            raise UnsupportedMedia("Send the request as application/json.")
        if (exchange.header(b"content-encoding") or "identity").lower() != "identity":
            raise UnsupportedMedia("Send the body as it is, without a Content-Encoding.")
        return caller, await exchange.body(self._body_bytes_max)

    async def _while_wanted(self, exchange: Exchange, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work`, which is cancelled when the client leaves. Raises `ClientGone` then, `Stopping` at the drain limit."""
        handler = asyncio.current_task()
        assert handler is not None
        with self._watching(exchange, handler) as watch:
            try:
                return await work
            except asyncio.CancelledError:
                if not (watch.left or self._stopping):
                    raise
                handler.uncancel()
                raise (ClientGone() if watch.left else _stopping()) from None

    def _admit(
        self, exchange: Exchange, caller: Caller, endpoint: str, generation: Generation, *, repeatable: bool = True
    ) -> Admitted:
        """The only way into the pipeline from here. repeatable: as in `Pipeline.admit`."""
        generation = _in_its_conversation(generation, exchange)
        if self._pipeline.caches and "no-cache" in (exchange.header(b"cache-control") or "").lower():
            generation = replace(generation, cache=False)
        exchange.admitted = self._pipeline.admit(
            caller, endpoint, generation, request_id=exchange.id, repeatable=repeatable
        )
        return exchange.admitted

    def _render(self, exchange: Exchange, asked: Asked, admitted: Admitted) -> Awaitable[None]:
        return (self._stream if asked.generation.live else self._whole)(exchange, asked, admitted)

    async def _whole(self, exchange: Exchange, asked: WholeAsked, admitted: Admitted) -> None:
        """A fold over the same events that a stream renders."""
        folder = Folder()
        await self._while_wanted(exchange, self._fold(self._pipeline.run(admitted), folder))
        if folder.completion is None:
            raise InternalError("The answer has no end.")
        await exchange.reply(200, asked.whole(folder.completion), admitted.ticket_headers())

    async def _fold(self, events: Events, folder: Folder) -> None:
        try:
            async for event in events:
                folder.feed(event)
        finally:
            await events.aclose()

    async def _stream(self, exchange: Exchange, asked: Asked, admitted: Admitted) -> None:
        """Headers go out with the first frame, so whatever fails before it is an ordinary error answer."""
        outbox = Outbox()
        producer = asyncio.ensure_future(self._produce(asked, admitted, outbox))
        producer.add_done_callback(lambda _: outbox.end())  # also where it was cancelled before it began
        with self._watching(exchange, producer):
            try:
                while frames := await outbox.take():
                    if not exchange.started:
                        await exchange.start(200, sse.CONTENT_TYPE, [*STREAM_HEADERS, *admitted.ticket_headers()])
                    await exchange.write(frames)
                if exchange.started:
                    await exchange.write(b"", more=False)
            finally:
                if not producer.done():
                    producer.cancel()
                    await asyncio.wait((producer,))
                self._pipeline.put_off(admitted.ticket, admitted.tokens_taken)  # where it was cancelled before it began

    async def _produce(self, asked: Asked, admitted: Admitted, outbox: Outbox) -> None:
        renderer = asked.renderer()
        begun = False
        error: BaseException | None = None
        try:
            async with aclosing(self._pipeline.run(admitted)) as events:
                async for event in events:
                    if frame := renderer.feed(event):
                        begun = True
                        outbox.put(frame)
                        if outbox.full:
                            await outbox.room()
        except (JubalError, asyncio.CancelledError) as caught:
            error = caught
            if isinstance(caught, asyncio.CancelledError) and self._stopping:
                error = _stopping()
        except Exception:
            log.exception("request failed by a fault of ours", request_id=admitted.request_id)
            error = _fault()
        try:
            if begun and isinstance(error, JubalError):  # the headers are gone: the stream itself must say so
                outbox.put(renderer.feed(Failed(error)))
                error = None
        except Exception:
            log.exception("a stream ends without saying why by a fault of ours", request_id=admitted.request_id)
        finally:
            outbox.end(None if isinstance(error, asyncio.CancelledError) else error)

    def _watching(self, exchange: Exchange, work: asyncio.Task[Any]) -> _Watch:
        return _Watch(exchange.peer, work, self._work)

    def stop_now(self) -> None:
        """The drain time is over: every open answer ends with an error that says so."""
        self._stopping = True
        for task in self._work:
            task.cancel()


def _in_its_conversation(generation: Generation, exchange: Exchange) -> Generation:
    """`x-grok-conv-id` does what `prompt_cache_key` does, which wins (xai-api.md 22)."""
    conversation = exchange.header(b"x-grok-conv-id")
    if not conversation or generation.cache_key is not None:
        return generation
    return replace(generation, cache_key=conversation)


def _query(exchange: Exchange) -> dict[str, str]:
    return dict(parse_qsl(exchange.scope["query_string"].decode("latin-1")))


class _KeptRoutes:
    """GET and DELETE of one kept answer, and GET of what was asked (xai-api.md 8.9)."""

    def __init__(
        self, dialect: KeptDialect, answers: Answers, identify: Callable[[Exchange], Awaitable[Caller]]
    ) -> None:
        self._dialect = dialect
        self._answers = answers
        self._identify = identify

    async def get(self, exchange: Exchange) -> None:
        caller = await self._caller(exchange)
        identity, _, rest = exchange.path.removeprefix(RESPONSES + "/").rstrip("/").partition("/")
        if rest not in ("", "input_items"):
            raise NotFound(f"There is no route GET {exchange.path[:200]}.", code="unknown_url")
        if not rest and _query(exchange).get("stream", "false").lower() != "false":
            raise BadRequest(
                "`stream`: a stored response is given whole; leave it out.",
                param="stream",
                code="unsupported_parameter",
            )
        record = await self._answers.find(caller, identity)
        await exchange.reply(200, self._items(record, exchange) if rest else self._dialect.shown(record))

    async def delete(self, exchange: Exchange) -> None:
        caller = await self._caller(exchange)
        identity = exchange.path.removeprefix(RESPONSES + "/").rstrip("/")
        await self._answers.delete(caller, identity)
        await exchange.reply(200, self._dialect.deleted(identity))

    def _items(self, record: bytes, exchange: Exchange) -> bytes:
        query = _query(exchange)
        limit = query.get("limit", "20")
        if not limit.isdecimal() or len(limit) > 9:
            raise BadRequest("`limit` must be a number between 1 and 100.", param="limit", code="invalid_value")
        return self._dialect.input_items(
            record, limit=int(limit), order=query.get("order", "asc"), after=query.get("after")
        )

    async def _caller(self, exchange: Exchange) -> Caller:
        caller = await self._identify(exchange)
        caller.acl.demand_endpoint(self._dialect.endpoint)
        return caller


class _Watch:
    """Within it, `work` is cancelled when the client goes away, or when the server can wait no longer. left: the client did.

    open_work: what a server that can wait no longer cancels.
    """

    __slots__ = ("_open_work", "_peer", "_work", "left")

    def __init__(self, peer: Peer, work: asyncio.Task[Any], open_work: set[asyncio.Task[Any]]) -> None:
        self.left = False
        self._peer = peer
        self._work = work
        self._open_work = open_work

    def __enter__(self) -> _Watch:
        self._open_work.add(self._work)
        self._peer.watch(self._leave)
        return self

    def __exit__(self, *_: object) -> None:
        self._peer.unwatch(self._leave)
        self._open_work.discard(self._work)

    def _leave(self) -> None:
        self.left = True
        self._work.cancel()


def _stopping() -> Stopping:
    return Stopping("The server is shutting down and ended this answer at its drain limit.", retry_after_s=1)


def _fault() -> InternalError:
    return InternalError("Something went wrong in Jubal; the server's log has the details under this request's id.")


async def _refuse_websocket(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1003})
