"""The composition root: settings in, running server out. The only file that sees every part."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import structlog
import uvicorn

from jubal import __version__, catalogue, config
from jubal.accounts import usage
from jubal.accounts.keys import KeyRing
from jubal.accounts.limits import MemoryLimiter
from jubal.accounts.store import GroupCommit, Store
from jubal.core.model import Catalogue
from jubal.engines.base import Engine
from jubal.engines.embedder import Embedder
from jubal.records.sealing import FernetSealer
from jubal.serving.admission import Admission
from jubal.serving.answers import Answers
from jubal.serving.deferred import Deferred
from jubal.serving.http import HttpApp
from jubal.serving.images import Fetcher, Images
from jubal.serving.pipeline import Pipeline, Served, ServedEmbedder
from jubal.web.fetch import SafeFetcher
from jubal.web.guard import AllowList
from jubal.wire.anthropic_complete import AnthropicComplete
from jubal.wire.anthropic_messages import AnthropicMessages
from jubal.wire.base import Dialect
from jubal.wire.openai_chat import OpenAIChat
from jubal.wire.openai_completions import OpenAICompletions
from jubal.wire.openai_embeddings import OpenAIEmbeddings
from jubal.wire.openai_responses import OpenAIResponses, ResponsesCompact

log = structlog.get_logger("jubal.app")

XAI_URL: Final = "https://api.x.ai/v1"
LOCAL_DEFAULT: Final = config.Engine(kind="llama", model="smollm2-135m")
WORDS_DEFAULT: Final = config.Engine(kind="wordllama")
DIALECTS: Final[dict[str, Callable[[], Dialect]]] = {
    "/v1/chat/completions": OpenAIChat,
    "/v1/completions": OpenAICompletions,
    "/v1/messages": AnthropicMessages,
    "/v1/complete": AnthropicComplete,
}
DRAIN_GRACE_S: Final = 5.0
"""After the drain limit: for the answers that were ended to say so, and to be settled."""
KEEP_ALIVE_S: Final = 75


def engine_settings(settings: config.Settings, models: Catalogue) -> dict[str, config.Engine]:
    """Every engine that a model or a fallback needs, the embedded one included where it is used unconfigured."""
    needed = {model.engine for model in models} | {name for model in models for name in model.fallback}
    known = {catalogue.LOCAL: LOCAL_DEFAULT, catalogue.WORDS: WORDS_DEFAULT, **settings.engines}
    return {name: known[name] for name in sorted(needed)}


def make_engine(name: str, engine: config.Engine, settings: config.Settings) -> Engine:
    """One engine, not started. The libraries of a kind are imported only where it is used."""
    match engine.kind:
        case "llama":
            from jubal.engines.llama_cpp.engine import LlamaEngine

            return LlamaEngine(
                name,
                settings.models_home,
                engine.model or LOCAL_DEFAULT.model or "",
                mmproj=engine.mmproj,
                context=engine.context,
                slots=engine.slots,
                threads=engine.threads,
                gpu_layers=engine.gpu_layers,
                timeout_s=engine.timeout_s,
            )
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
            )
        case "echo":
            from jubal.engines.echo import EchoEngine

            return EchoEngine(name)
        case "wordllama":
            raise config.ConfigError(f"engines.{name}: an engine of kind `wordllama` makes embeddings only.")


def make_embedder(name: str, engine: config.Engine) -> Embedder:
    """One embedder, not started. Raises `ConfigError` for a kind that makes no embeddings."""
    match engine.kind:
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
            )
    raise config.ConfigError(f"engines.{name}: an engine of kind `{engine.kind}` makes no embeddings.")


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


def _concurrency(engine: config.Engine, made: Engine | Embedder) -> int | None:
    slots: int | None = getattr(made, "slots", None)
    return engine.max_concurrency or slots


@dataclass
class Jubal:
    """Everything that runs. Made by `build`; `start` before use, `close` after."""

    settings: config.Settings
    store: Store
    usage_log: GroupCommit[usage.UsageRow]
    served: dict[str, Served]
    embedders: dict[str, ServedEmbedder]
    pipeline: Pipeline
    images: Images
    deferred: Deferred
    http: HttpApp

    async def start(self) -> None:
        """Engines begin to load; returns soon. Embedders wait for their first request: many servers never get one."""
        for served in self.served.values():
            await served.engine.start()
        self.deferred.start()

    async def ready(self, names: Iterable[str] | None = None) -> None:
        """Waits for the engines. Raises `EngineUnavailable`."""
        for name in names or self.served:
            await self.served[name].engine.ready()

    async def close(self) -> None:
        """Settles what is open, then ends engines and store. No child process is left."""
        await self.deferred.stop()
        await self.pipeline.drain()
        await self.usage_log.close()
        closing = [served.engine.close() for served in self.served.values()]
        closing += [one.embedder.close() for one in self.embedders.values()]
        closing.append(self.images.close())
        await asyncio.gather(*closing, return_exceptions=True)
        self.store.close()


def build(settings: config.Settings, *, store: Store | None = None) -> Jubal:
    """Puts the parts together. Raises `ConfigError`, `StoreUnavailable`."""
    if not settings.limits.url.startswith("memory://"):
        raise config.ConfigError(f"{settings.file}: limits.url: this release counts in memory only, expected memory://")
    models = catalogue.build(settings)
    served = {}
    for name, wanted in engine_settings(settings, models).items():
        engine = make_engine(name, wanted, settings)
        served[name] = Served(engine, Admission(name, _concurrency(wanted, engine), wanted.max_queued))
    embedding_models = catalogue.embedding_models(settings)
    embedders = {}
    for name, wanted in engine_settings(settings, embedding_models).items():
        embedder = make_embedder(name, wanted)
        embedders[name] = ServedEmbedder(embedder, Admission(name, _concurrency(wanted, embedder), wanted.max_queued))
    store = store or Store.open(settings.store_url)
    usage_log = GroupCommit(store, usage.record)
    images = Images(image_fetcher(settings))
    pipeline = Pipeline(
        models,
        served,
        KeyRing(store),
        MemoryLimiter(),
        usage_log,
        embedding_models=embedding_models,
        embedders=embedders,
        images=images,
    )
    sealer = FernetSealer(store.hash_key)
    dialects = {path: make() for path, make in DIALECTS.items()}
    dialects["/v1/responses/compact"] = ResponsesCompact(sealer)
    deferred = Deferred(store, pipeline, dialects["/v1/chat/completions"])
    http = HttpApp(
        pipeline,
        dialects,
        {"/v1/embeddings": OpenAIEmbeddings()},
        deferred=deferred,
        responses=(OpenAIResponses(sealer), Answers(store, "responses")),
        health=lambda: health(served, embedders),
        body_bytes_max=int(settings.server.body_limit_mb * 1024 * 1024),
    )
    return Jubal(settings, store, usage_log, served, embedders, pipeline, images, deferred, http)


def health(served: dict[str, Served], embedders: dict[str, ServedEmbedder]) -> tuple[int, bytes]:
    """200 once every engine is ready, 503 with the reasons before and after. Embedders that nobody asked yet are not there."""
    doors: list[tuple[Engine | Embedder, Admission]] = [(one.engine, one.admission) for one in served.values()]
    doors += [(one.embedder, one.admission) for one in embedders.values() if one.embedder.status().state != "stopped"]
    engines: dict[str, Any] = {}
    for engine, admission in doors:
        status = engine.status()
        engines.setdefault(
            engine.name,
            {
                "kind": engine.kind,
                "state": status.state,
                "running": admission.running,
                "queued": admission.queued,
                **({"reason": status.reason} if status.reason else {}),
            },
        )
    states = {one["state"] for one in engines.values()}
    state = "ok" if states <= {"ready"} else "starting" if "failed" not in states else "degraded"
    body = {"status": state, "version": __version__, "engines": engines}
    return 200 if state == "ok" else 503, msgspec.json.encode(body)


# ---------------------------------------------------------------------------------------------- the running server


class _Server(uvicorn.Server):
    """uvicorn without its signal handling: ours settles accounts first and exits with 0."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `OSError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except BaseException:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


async def serve(jubal: Jubal, listener: socket.socket, *, on_ready: Callable[[], None]) -> None:
    """Serves until SIGTERM or SIGINT, then drains, settles and returns. A second signal ends the drain at once.

    on_ready is called when every engine is ready and requests are taken.
    """
    settings = jubal.settings.server
    server = _Server(
        uvicorn.Config(
            jubal.http,
            loop="none",
            http="httptools",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            backlog=2048,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(settings.drain_s + DRAIN_GRACE_S),
            h11_max_incomplete_event_size=64 << 10,
        )
    )
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()

    def stop() -> None:
        if stopping.is_set():
            jubal.http.stop_now()
            return
        stopping.set()
        server.should_exit = True
        loop.call_later(settings.drain_s, jubal.http.stop_now)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    await jubal.start()
    watcher = asyncio.create_task(_announce(jubal, on_ready))
    try:
        await server.serve(sockets=[listener])
    finally:
        watcher.cancel()
        await jubal.close()


def _settle_memory() -> None:
    """What is there once the server is ready stays: the collector need not look at it again and again.

    Requests make few reference cycles, so it may come less often too. Measured: 11 us less per request.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


async def _announce(jubal: Jubal, on_ready: Callable[[], None]) -> None:
    try:
        await jubal.ready()
    except Exception as error:  # noqa: BLE001  the server stays up: /health tells, and the engine is tried again
        log.error("an engine did not become ready", error=str(error))
    on_ready()
    _settle_memory()
