"""The composition root: settings in, running server out. The only file that sees every part."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import msgspec
import structlog
import uvicorn

from jubal import __version__, catalogue, config
from jubal.accounts.guesses import WrongKeys
from jubal.accounts.holds import Credit
from jubal.accounts.keys import KeyRing
from jubal.accounts.limits import Limiter, MemoryLimiter
from jubal.accounts.presence import Presence
from jubal.accounts.scopes import Scopes
from jubal.accounts.store import GroupCommit, Store
from jubal.accounts.team_limits import Rates
from jubal.accounts.tiers import Tiers
from jubal.admin.billing import Books
from jubal.agent.toolbox import ToolBounds, Toolbox
from jubal.core.model import Catalogue, Model
from jubal.core.server_tools import ToolKind
from jubal.engines.base import Engine
from jubal.engines.embedder import Embedder
from jubal.records import answers
from jubal.records.sealing import FernetSealer
from jubal.serving import health as health_of
from jubal.serving.access import AccessLog
from jubal.serving.admission import Admission
from jubal.serving.answers import Answers
from jubal.serving.breaker import Breaker, never
from jubal.serving.cache import ResponseCache
from jubal.serving.certificates import CertificateFault, Certificates
from jubal.serving.charging import Charging
from jubal.serving.connection import Connection, Deadlines
from jubal.serving.cors import Cors
from jubal.serving.deferred import Deferred, KeptLine, Line, PlainLine
from jubal.serving.door import Door, TrustedProxies
from jubal.serving.http import DEFERRED_DIALECT, HttpApp
from jubal.serving.images import Fetcher, Images
from jubal.serving.management import Management, Own
from jubal.serving.pipeline import Pipeline, Served, ServedEmbedder
from jubal.serving.retention import Retention
from jubal.serving.watch import Watch, Watched
from jubal.supervisor import has_terminal
from jubal.tools.base import Reporting, Starting, ToolFamily, ToolSetupError
from jubal.web.fetch import SafeFetcher
from jubal.web.guard import AllowList
from jubal.wire.anthropic_complete import AnthropicComplete
from jubal.wire.anthropic_messages import AnthropicMessages
from jubal.wire.base import Dialect
from jubal.wire.openai_chat import OpenAIChat
from jubal.wire.openai_completions import OpenAICompletions
from jubal.wire.openai_embeddings import OpenAIEmbeddings
from jubal.wire.openai_responses import OpenAIResponses, ResponsesCompact

if TYPE_CHECKING:
    from jubal.engines.llama_cpp.engine import LlamaEngine
    from jubal.engines.llama_cpp.memory import ModelMemory
    from jubal.engines.upstream import UpstreamFacts, UpstreamProbe
    from jubal.serving.grpc import GrpcServer
    from jubal.serving.places import Place

log = structlog.get_logger("jubal.app")

XAI_URL: Final = "https://api.x.ai/v1"
DIALECTS: Final[dict[str, Callable[[], Dialect]]] = {
    "/v1/chat/completions": OpenAIChat,
    "/v1/completions": OpenAICompletions,
    "/v1/messages": AnthropicMessages,
    "/v1/complete": AnthropicComplete,
}
UPSTREAM_KINDS: Final = frozenset({"openai", "xai"})
GRPC_DIALECT: Final = "xai_grpc"
"""The name in the store of what the gRPC API keeps."""
GATEWAYS: Final = "gateways"
"""The folder of the home that tells which of its gateways are dead."""
DRAIN_GRACE_S: Final = 5.0
"""After the drain limit: for the answers that were ended to say so, and to be settled."""


def make_engine(
    name: str,
    engine: config.Engine,
    settings: config.Settings,
    memory: ModelMemory | None = None,
    facts: UpstreamFacts | None = None,
) -> Engine:
    """One engine, not started. The libraries of a kind are imported only where it is used.

    memory: what loads and unloads local models; None: they stay loaded. facts: what is learned of an upstream while it is used.
    """
    match engine.kind:
        case "llama":
            return make_llama(name, engine, settings, memory, embedding=False)
        case "openai" | "xai":
            from jubal.engines.openai_compat import OpenAICompatEngine

            return OpenAICompatEngine(
                name,
                engine.base_url or XAI_URL,
                kind=engine.kind,
                api_key=api_key(name, engine),
                timeout_s=engine.timeout_s,
                retries=engine.retries,
                context=engine.context,
                facts=facts,
            )
        case "echo":
            from jubal.engines.echo import EchoEngine

            return EchoEngine(name)
        case "wordllama":
            raise config.ConfigError(f"engines.{name}: an engine of kind `wordllama` makes embeddings only.")


def make_llama(
    name: str, engine: config.Engine, settings: config.Settings, memory: ModelMemory | None, *, embedding: bool
) -> LlamaEngine:
    """llama.cpp, not started, for text or for vectors."""
    from jubal.engines.llama_cpp.engine import LlamaEngine

    return LlamaEngine(
        name,
        settings.models_home,
        engine.model or catalogue.LOCAL_DEFAULT.model or "",
        mmproj=engine.mmproj,
        context=engine.context,
        slots=engine.slots,
        threads=engine.threads,
        gpu_layers=engine.gpu_layers,
        timeout_s=engine.timeout_s,
        embedding=embedding,
        memory=memory,
    )


def make_memory(settings: config.Settings) -> ModelMemory | None:
    """What keeps local models within their limit; None where there is none."""
    if settings.server.models_memory_mb is None:
        return None
    from jubal.engines.llama_cpp.memory import MIB, ModelMemory

    return ModelMemory(int(settings.server.models_memory_mb * MIB))


def make_embedder(
    name: str,
    engine: config.Engine,
    settings: config.Settings,
    memory: ModelMemory | None = None,
    facts: UpstreamFacts | None = None,
) -> Embedder:
    """One embedder, not started. Raises `ConfigError` for a kind that makes no embeddings."""
    match engine.kind:
        case "llama":
            from jubal.engines.llama_cpp.embedder import LlamaEmbedder

            return LlamaEmbedder(make_llama(name, engine, settings, memory, embedding=True))
        case "wordllama":
            from jubal.engines.wordllama_engine import WordLlamaEmbedder

            return WordLlamaEmbedder(name, context=engine.context)
        case "openai" | "xai":
            from jubal.engines.openai_embeddings import OpenAIEmbedder

            return OpenAIEmbedder(
                name,
                engine.base_url or XAI_URL,
                kind=engine.kind,
                api_key=api_key(name, engine),
                timeout_s=engine.timeout_s,
                retries=engine.retries,
                context=engine.context,
                facts=facts,
            )
    raise config.ConfigError(f"engines.{name}: an engine of kind `{engine.kind}` makes no embeddings.")


TOOL_GRACE_S: Final = 45.0
"""On top of a tool's own time: for an interpreter that has to start, or to become free."""


def make_toolbox(settings: config.Settings) -> Toolbox:
    """The server tools of these settings. Nothing is started, and no library of theirs is loaded, before the first use."""
    from jubal.tools.mcp import McpTools
    from jubal.web.guard import AllowList, Guard

    families: dict[ToolKind, ToolFamily[Any]] = {"mcp": McpTools(Guard(AllowList(settings.private_hosts)))}
    if settings.tools.code_execution.enabled:
        families["code_execution"] = make_code_execution(settings.tools.code_execution)
    families["web_search"] = make_web_tools(settings)
    families["x_search"] = make_x_tools(settings)
    return Toolbox(families, ToolBounds(call_s=settings.tools.code_execution.timeout_s + TOOL_GRACE_S))


def make_web_tools(settings: config.Settings) -> ToolFamily[Any]:
    """Raises `ConfigError`."""
    from jubal.tools.web_search.make import make_web_search

    try:
        return make_web_search(settings)
    except ValueError as error:
        raise config.ConfigError(f"{settings.file}: tools.web_search: {error}") from error


def make_x_tools(settings: config.Settings) -> ToolFamily[Any]:
    """Raises `ConfigError`."""
    from jubal.engines.wordllama_engine import TextVectors
    from jubal.tools.x_search.family import make_x_search

    wanted = settings.tools.x_search
    try:
        return make_x_search(wanted, settings.home, TextVectors(), environ=os.environ, beside=settings.file)
    except ToolSetupError as error:
        raise config.ConfigError(f"{settings.file}: tools.x_search: {error}") from error


def make_code_execution(wanted: config.CodeExecution) -> ToolFamily[Any]:
    from jubal.tools.code_execution.family import family
    from jubal.tools.code_execution.limits import Limits

    limits = Limits(
        timeout_s=wanted.timeout_s,
        memory_mb=wanted.memory_mb,
        sessions_max=wanted.sessions_max,
        output_bytes=wanted.output_kb << 10,
        files_max=wanted.files_max,
        files_bytes=wanted.files_mb << 20,
    )
    return family(limits, wanted.sandbox)


def api_key(name: str, engine: config.Engine) -> str | None:
    """The key for an upstream. Raises `ConfigError` where the variable that should hold it is not set."""
    if engine.api_key is not None:
        return engine.api_key
    variable = engine.api_key_env or ("XAI_API_KEY" if engine.kind == "xai" else None)
    if variable is None:
        return None
    value = os.environ.get(variable)
    if not value:
        raise config.ConfigError(f"engines.{name}.api_key_env: expected an API key in ${variable}, which is not set.")
    return value


def image_fetcher(settings: config.Settings) -> Callable[[], Fetcher]:
    """What makes the fetcher of a prompt's images, when the first one comes. Raises `ConfigError` for a bad allow list."""
    keys = {
        "fetch": settings.fetch.allow_private_hosts,
        "tools.web_search": settings.tools.web_search.allow_private_hosts,
    }
    for name, hosts in keys.items():
        try:
            AllowList(hosts)
        except ValueError as error:
            raise config.ConfigError(f"{settings.file}: {name}.allow_private_hosts: {error}") from None
    return lambda: SafeFetcher(settings.private_hosts, user_agent=f"JubalImageFetch/{__version__}")


def make_probe(name: str, engine: config.Engine) -> UpstreamProbe | None:
    """What asks an upstream how it is; None for an engine that is no upstream."""
    if engine.kind not in UPSTREAM_KINDS:
        return None
    from jubal.engines.upstream import UpstreamProbe

    return UpstreamProbe(engine.base_url or XAI_URL, api_key=api_key(name, engine))


def make_breaker(name: str, engine: config.Engine) -> Breaker:
    """Engines in this machine look after themselves: their supervisor knows whether they live."""
    if engine.kind not in UPSTREAM_KINDS:
        return never(name)
    return Breaker(name, failures_max=engine.breaker_failures, rest_s=engine.breaker_rest_s, on_change=_tell_of_breaker)


def _tell_of_breaker(breaker: Breaker) -> None:
    match breaker.state:
        case "open":
            rest_s = round(breaker.refuses_for_s, 1)
            log.warning("engine rests after failures", engine=breaker.name, failures=breaker.failures, rest_s=rest_s)
        case "half_open":
            log.info("engine is tried again", engine=breaker.name)
        case "closed":
            log.warning("engine answers again", engine=breaker.name)


def make_limiter(settings: config.Settings) -> Limiter:
    """What counts for the rate limits. Raises `ConfigError`."""
    if settings.limits.url.startswith("memory://"):
        return MemoryLimiter()
    from jubal.accounts.redis_limits import RedisLimiter

    spare = MemoryLimiter() if settings.limits.when_away == "memory" else None
    try:
        return RedisLimiter(settings.limits.url, spare=spare)
    except ValueError:  # its message may hold the password
        raise config.ConfigError(f"{settings.file}: limits.url: expected redis://HOST:PORT/NUMBER") from None


def make_scopes(settings: config.Settings, tiers: Tiers) -> Scopes:
    models = {name: Rates(model.rps, model.rpm, model.tpm) for name, model in settings.models.items()}
    return Scopes(tiers, {name: rates for name, rates in models.items() if rates != Rates()})


def make_cache(cache: config.Cache) -> ResponseCache | None:
    if not cache.enabled:
        return None
    return ResponseCache(entries_max=cache.entries, bytes_max=int(cache.mb * 1024 * 1024), ttl_s=cache.ttl_s)


class _Upstreams:
    """The breaker and the probe of each engine: one, also where it both talks and embeds."""

    def __init__(self) -> None:
        self._breakers: dict[str, Breaker] = {}
        self._probes: dict[str, tuple[config.Engine, UpstreamProbe]] = {}

    def breaker(self, name: str, engine: config.Engine) -> Breaker:
        if name not in self._breakers:
            self._breakers[name] = make_breaker(name, engine)
        return self._breakers[name]

    def facts(self, name: str, engine: config.Engine) -> UpstreamFacts | None:
        if name not in self._probes and (probe := make_probe(name, engine)) is not None:
            self._probes[name] = (engine, probe)
        return self._probes[name][1].facts if name in self._probes else None

    def watch(self, models: Iterable[Model]) -> Watch:
        asked: dict[str, set[str]] = {name: set() for name in self._probes}
        for model in models:
            for name in (model.engine, *model.fallback):
                asked.setdefault(name, set()).add(model.upstream)
        return Watch(
            Watched(name, probe, self._breakers[name], engine.health_interval_s, frozenset(asked[name]))
            for name, (engine, probe) in self._probes.items()
            if engine.health_interval_s
        )


def _concurrency(engine: config.Engine, made: Engine | Embedder) -> int | None:
    slots: int | None = getattr(made, "slots", None)
    return engine.max_concurrency or slots


@dataclass
class Jubal:
    """Everything that runs. Made by `build`; `start` before use, `close` after. grpc: where that API is served, once it is."""

    settings: config.Settings
    store: Store
    usage_log: GroupCommit[answers.Entry]
    served: dict[str, Served]
    embedders: dict[str, ServedEmbedder]
    pipeline: Pipeline
    images: Images
    credit: Credit
    limiter: Limiter
    deferred: Deferred
    watch: Watch
    door: Door
    http: HttpApp
    tls: Certificates | None = None
    memory: ModelMemory | None = None
    retention: Retention | None = None
    grpc: Place | None = None

    async def start(self) -> None:
        """Engines begin to load; returns soon. Embedders wait for their first request: many servers never get one.

        Raises `ConfigError` for a local model that is larger than what all of them may take.
        """
        await self._check_memory()
        for served in self.served.values():
            await served.engine.start()
        self.watch.start()
        await self._start_tools()
        self.credit.start()
        self.deferred.start()
        if self.retention is not None:
            self.retention.start()

    async def _start_tools(self) -> None:
        """Raises `ConfigError`."""
        for kind, family in self.pipeline.toolbox.families.items():
            if isinstance(family, Starting):
                try:
                    await family.start()
                except ToolSetupError as error:
                    raise config.ConfigError(f"{self.settings.file}: tools.{kind}: {error}") from error

    async def _check_memory(self) -> None:
        if self.memory is None:
            return
        from jubal.engines.llama_cpp.embedder import LlamaEmbedder
        from jubal.engines.llama_cpp.engine import LlamaEngine

        local = [one.engine for one in self.served.values() if isinstance(one.engine, LlamaEngine)]
        local += [one.embedder.engine for one in self.embedders.values() if isinstance(one.embedder, LlamaEmbedder)]
        for refusal in await self.memory.refusals(local):
            raise config.ConfigError(
                f"{self.settings.file}: server.models_memory_mb: {refusal} Allow more, or give the engine a smaller `context` "
                "or fewer `slots`."
            )

    async def ready(self, names: Iterable[str] | None = None) -> None:
        """Waits for the engines. Raises `EngineUnavailable`."""
        for name in names or self.served:
            await self.served[name].engine.ready()

    async def close(self) -> None:
        """Settles what is open, then ends engines and store. No child process is left."""
        if self.retention is not None:
            await self.retention.stop()
        await self.deferred.stop()
        await self.watch.stop()
        await self.pipeline.drain()
        await self.usage_log.close()
        await self.credit.close()
        await self.limiter.close()
        closing = [served.engine.close() for served in self.served.values()]
        closing += [one.embedder.close() for one in self.embedders.values()]
        closing += [self.images.close(), self.pipeline.toolbox.close()]
        await asyncio.gather(*closing, return_exceptions=True)
        self.store.close()


def build(settings: config.Settings, *, store: Store | None = None) -> Jubal:
    """Puts the parts together. Raises `ConfigError`, `StoreUnavailable`."""
    tls = make_certificates(settings)
    models = catalogue.build(settings)
    embedding_models = catalogue.embedding_models(settings)
    _check_one_ability(settings, models, embedding_models)
    memory = make_memory(settings)
    served = {}
    upstreams = _Upstreams()
    for name, wanted in catalogue.engine_settings(settings, models).items():
        engine = make_engine(name, wanted, settings, memory, upstreams.facts(name, wanted))
        admission = Admission(name, _concurrency(wanted, engine), wanted.max_queued)
        served[name] = Served(engine, admission, upstreams.breaker(name, wanted))
    embedders = {}
    for name, wanted in catalogue.engine_settings(settings, embedding_models).items():
        embedder = make_embedder(name, wanted, settings, memory, upstreams.facts(name, wanted))
        admission = Admission(name, _concurrency(wanted, embedder), wanted.max_queued)
        embedders[name] = ServedEmbedder(embedder, admission, upstreams.breaker(name, wanted))
    store = store or Store.open(settings.store_url)
    usage_log = GroupCommit(store, answers.settle)
    images = Images(image_fetcher(settings))
    credit = Credit(store, presence=Presence(settings.home / GATEWAYS))
    tiers = Tiers.configured(settings.tiers)
    for tier, count in store.read(tiers.missing).items():
        log.warning("teams are of a tier that is not configured, and are refused", tier=tier, teams=count)
    limiter = make_limiter(settings)
    scopes = make_scopes(settings, tiers)
    pipeline = Pipeline(
        models,
        served,
        KeyRing(store),
        limiter,
        usage_log,
        embedding_models=embedding_models,
        embedders=embedders,
        images=images,
        toolbox=make_toolbox(settings),
        cache=make_cache(settings.cache),
        charging=Charging(credit, tiers),
        scopes=scopes,
    )
    sealer = FernetSealer(store.hash_key)
    dialects = {path: make() for path, make in DIALECTS.items()}
    lines: dict[str, Callable[[], Line]] = {
        DEFERRED_DIALECT: lambda: PlainLine(OpenAIChat()),
        GRPC_DIALECT: lambda: _grpc_line(store, sealer),
    }
    deferred = Deferred(store, pipeline, lines)
    door = Door(pipeline, WrongKeys(settings.server.wrong_key_delay_s), trusted_proxies(settings))
    http = HttpApp(
        pipeline,
        dialects,
        {"/v1/embeddings": OpenAIEmbeddings()},
        whole_dialects={"/v1/responses/compact": ResponsesCompact(sealer)},
        deferred=deferred,
        responses=(OpenAIResponses(sealer), Answers(store, "responses")),
        door=door,
        mounts=(Own(store, door), Management(store, door, pipeline, Books(tiers), scopes)),
        health=lambda: health(pipeline),
        body_bytes_max=int(settings.server.body_limit_mb * 1024 * 1024),
        cors=Cors(settings.server.cors_origins) if settings.server.cors_origins else None,
        access=AccessLog() if settings.server.access_log else None,
    )
    watch = upstreams.watch((*models, *embedding_models))
    days = settings.usage.retention_days
    retention = None if days is None else Retention(store, days)
    return Jubal(
        settings,
        store,
        usage_log,
        served,
        embedders,
        pipeline,
        images,
        credit,
        limiter,
        deferred,
        watch,
        door,
        http,
        tls,
        memory,
        retention,
    )


def trusted_proxies(settings: config.Settings) -> TrustedProxies:
    """Raises `ConfigError` for what is no address."""
    try:
        return TrustedProxies(settings.server.trusted_proxies)
    except ValueError as error:
        raise config.ConfigError(f"{settings.file}: server.trusted_proxies: {error}.") from None


def make_certificates(settings: config.Settings) -> Certificates | None:
    """The configured certificate; None where there is none. Raises `ConfigError` naming the file at fault."""
    if settings.tls_files is None:
        return None
    try:
        return Certificates(*settings.tls_files)
    except CertificateFault as fault:
        where = ", ".join(f"server.{setting}" for setting in fault.at)
        raise config.ConfigError(f"{settings.file}: {where}: {fault}") from None


def _grpc_line(store: Store, sealer: FernetSealer) -> KeptLine:
    """Deferred requests of the gRPC API. Any server on the store may have to run one, also without a gRPC port."""
    from jubal.wire.xai_grpc.chat import XaiChat

    return KeptLine(XaiChat(sealer), Answers(store, GRPC_DIALECT))


def make_grpc(jubal: Jubal) -> GrpcServer:
    """The gRPC API beside HTTP, not started. Its libraries are imported here: they take memory."""
    from jubal.serving.grpc import GrpcServer

    return GrpcServer(
        jubal.pipeline,
        jubal.store,
        FernetSealer(jubal.store.hash_key),
        jubal.deferred,
        Answers(jubal.store, GRPC_DIALECT),
        GRPC_DIALECT,
        health=lambda: health(jubal.pipeline)[0] == 200,
        door=jubal.door,
        certificates=jubal.tls,
    )


def _check_one_ability(settings: config.Settings, models: Catalogue, embedding_models: Catalogue) -> None:
    """A child of llama.cpp makes text or vectors, never both. Raises `ConfigError`."""

    def users(of: Catalogue) -> dict[str, str]:
        return {name: model.name for model in reversed(of.models) for name in (model.engine, *model.fallback)}

    talk, embed = users(models), users(embedding_models)
    for name, engine in catalogue.engine_settings(settings, models).items():
        if engine.kind == "llama" and name in embed:
            raise config.ConfigError(
                f'{settings.file}: models."{embed[name]}".engine: the engine `{name}` of kind `llama` answers for the language '
                f"model `{talk[name]}` already, and can't make embeddings as well. Configure a second engine; it may have the "
                "same `model`."
            )


def health(pipeline: Pipeline) -> tuple[int, bytes]:
    """What GET /health answers (serving/health.py)."""
    status, body = health_of.report(pipeline.engines, pipeline.embedders, pipeline.catalogue, pipeline.embedding_models)
    families = pipeline.toolbox.families.items()
    tools = {kind: family.status() if isinstance(family, Reporting) else "ready" for kind, family in families}
    return status, msgspec.json.encode({**body, "tools": tools, "version": __version__})


# ---------------------------------------------------------------------------------------------- the running server


def _given(context: ssl.SSLContext, *_: object) -> ssl.SSLContext:
    """uvicorn asks for a function that makes one; ours is made, and its errors told, before anything is started."""
    return context


class _Server(uvicorn.Server):
    """uvicorn without its signal handling: ours settles accounts first and exits with 0."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


Orders: TypeAlias = Callable[[Callable[[], None], Callable[[], None], Callable[[], None]], None]
"""Lets somebody say when a server drains (the first function), when it ends the drain at once (the second), and when it reads its
TLS files again (the third).

It is called in the event loop, in which all may then be called, each any number of times.
"""


def by_signals(drain: Callable[[], None], stop_now: Callable[[], None], read_again: Callable[[], None]) -> None:
    """SIGTERM or SIGINT drains; a second one ends the drain at once. SIGHUP reads the TLS files again, or drains, where it means
    that the terminal is gone, and with it who started the server."""
    loop = asyncio.get_running_loop()
    left = iter((drain,))

    def stop() -> None:
        next(left, stop_now)()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, lambda: stop() if has_terminal() else read_again())


async def serve(
    jubal: Jubal,
    listener: socket.socket,
    *,
    grpc: Place | None = None,
    orders: Orders = by_signals,
    on_ready: Callable[[], None],
) -> None:
    """Serves until it is told to drain; then takes no more, lets answers end, settles and returns.

    grpc: where the gRPC API listens; None: nowhere. orders: who tells it.
    on_ready is called when every engine is ready and requests are taken.
    """
    settings = jubal.settings.server
    tls = jubal.tls
    deadlines = Deadlines(
        header_s=settings.header_timeout_s,
        body_s=settings.body_timeout_s,
        body_bytes_per_s_min=settings.body_bytes_per_s_min,
        write_s=settings.write_timeout_s,
        connections_max=settings.connections_max,
    )
    protocol = partial(Connection, deadlines=deadlines, new_id=jubal.pipeline.new_id)
    server = _Server(
        uvicorn.Config(
            jubal.http,
            loop="none",
            http=cast("type[asyncio.Protocol]", protocol),
            ws="none",
            ssl_context_factory=None if tls is None else partial(_given, tls.context),
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            backlog=2048,
            timeout_keep_alive=settings.keep_alive_s,
            timeout_graceful_shutdown=int(settings.drain_s + DRAIN_GRACE_S),
        )
    )
    _bound_heap()
    _forget_generators()
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()

    rpc = make_grpc(jubal) if grpc is not None else None

    def stop_now() -> None:
        jubal.http.stop_now()
        if rpc is not None:
            rpc.stop_now()

    def drain() -> None:
        if stopping.is_set():
            return
        stopping.set()
        server.should_exit = True
        if rpc is not None:
            rpc.drain(settings.drain_s + DRAIN_GRACE_S)
        loop.call_later(settings.drain_s, stop_now)

    orders(drain, stop_now, (lambda: None) if tls is None else tls.look)
    if tls is not None:
        tls.watch()
    await jubal.start()
    if rpc is not None and grpc is not None:
        try:
            await rpc.start(grpc)
            jubal.grpc = grpc
        except OSError as error:
            if grpc.required:
                raise
            log.warning("gRPC is off", error=str(error))
    watcher = asyncio.create_task(_announce(jubal, on_ready))
    try:
        await server.serve(sockets=[listener])
    finally:
        watcher.cancel()
        if rpc is not None:
            await rpc.close()
        if tls is not None:
            await tls.close()
        await jubal.close()


def _forget_generators() -> None:
    """The loop keeps no list of the async generators that run in it: 7 us of every request, which passes through five.

    What it keeps the list for is to close those that are open when it ends; here each is closed by who began it.
    """
    sys.set_asyncgen_hooks(firstiter=None)


M_MMAP_THRESHOLD: Final = -3
M_ARENA_MAX: Final = -8
LARGE_BYTES: Final = 768 << 10


def _bound_heap() -> None:
    """glibc's heap, told to give large bodies back when they are freed, and to keep few pools for threads.

    By itself it raises the size from which it does so to that of the largest body seen, and never gives such memory back.
    Measured after the bench's load: 142 MB without, 124 MB with, at the same CPU; from 256 KiB on, which the sockets' buffers have,
    a streamed chunk would cost a fifth more.
    """
    _of_glibc("mallopt", M_MMAP_THRESHOLD, LARGE_BYTES)
    _of_glibc("mallopt", M_ARENA_MAX, 2)


def _of_glibc(name: str, *arguments: int) -> None:
    """Nothing where another C library has no such call."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            getattr(ctypes.CDLL(None), name)(*arguments)


def _settle_memory() -> None:
    """What is there once the server is ready stays: the collector need not look at it again and again.

    Requests make few reference cycles, so it may come less often too. Measured: 11 us less per request.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
    _of_glibc("malloc_trim", 0)  # what was only needed to start


async def _announce(jubal: Jubal, on_ready: Callable[[], None]) -> None:
    try:
        await jubal.ready()
    except Exception as error:  # noqa: BLE001  the server stays up: /health tells, and the engine is tried again
        log.error("an engine did not become ready", error=str(error))
    on_ready()
    _settle_memory()
