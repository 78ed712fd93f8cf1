"""Settings: read once from a TOML file and the environment, frozen, passed as arguments.

Others script against these names (docs/reference/configuration.md lists them all, and a test compares).
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import unquote

import msgspec
from msgspec import Meta

Port = Annotated[int, Meta(ge=0, le=65535)]
GRPC_PORT = 50051
Seconds = Annotated[float, Meta(ge=0)]
Usd = Annotated[float, Meta(ge=0, le=1_000_000)]
"""Of one request or call, or of a million tokens."""
Credit = Annotated[float, Meta(ge=0, le=400_000_000)]
"""USD of a team. An account of the ledger holds some more (accounts/ledger.py)."""
Positive = Annotated[int, Meta(ge=1)]
Rate = Annotated[int, Meta(ge=1, lt=2**53)]
"""Requests or tokens in a time; as far as every counter and every client can tell numbers exactly."""


class ConfigError(Exception):
    """The configuration can't be used. The message names the file, the key and what was expected."""


def without_secrets(url: str) -> str:
    """The address for people and logs: without user, password and query, any of which can be a secret."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url if ":" not in url else f"{scheme.split(':')[0]}:…"
    shown, _, query = rest.partition("?")
    if "@" in query:  # of a query, or of a password with a `?` in it
        return f"{scheme}://…"
    return f"{scheme}://{shown.rpartition('@')[2]}"


def password_in(url: str) -> tuple[str, ...]:
    """The password of a URL, as it is written there and as it is meant; nothing where it has none."""
    _, separator, rest = url.partition("://")
    user, at, _ = rest.rpartition("@")
    _, colon, password = user.partition(":")
    return (password, unquote(password)) if separator and at and colon else ()


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A TOML table: unknown keys are an error."""


class Server(_Table, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[server]. grpc_port: 0 for no gRPC; None: GRPC_PORT, where that is free.

    body_limit_mb: largest request body. drain_s: how long open requests may go on after SIGTERM.

    models_memory_mb: MiB that all local models together may take; None: no limit, all of them stay loaded.
    trusted_proxies: addresses or networks whose X-Forwarded-For is believed. wrong_key_delay_s: the longest that the answer to
    a wrong key is held back; 0: never.
    tls_cert, tls_key: PEM files, both or none, for HTTP and gRPC; a relative path counts from the configuration file's folder.
    cors_origins: web pages of which origins may call the API. The other keys bound what a connection may take
    (serving/connection.py).
    """

    host: str = "127.0.0.1"
    port: Port = 8000
    grpc_port: Port | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    workers: Positive = 1
    body_limit_mb: Annotated[float, Meta(gt=0)] = 64
    drain_s: Seconds = 30
    cors_origins: tuple[str, ...] = ()
    access_log: bool = False
    connections_max: Positive = 4096
    keep_alive_s: Positive = 75
    header_timeout_s: Annotated[float, Meta(gt=0)] = 20
    body_timeout_s: Annotated[float, Meta(gt=0)] = 20
    body_bytes_per_s_min: Annotated[int, Meta(ge=0)] = 500
    write_timeout_s: Annotated[float, Meta(gt=0)] = 60
    models_memory_mb: Annotated[float, Meta(gt=0)] | None = None
    trusted_proxies: tuple[str, ...] = ()
    wrong_key_delay_s: Annotated[float, Meta(ge=0, le=60)] = 2


class Store(_Table, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[store]. url: sqlite:///file or postgresql://…; None: a SQLite file in the home folder."""

    url: str | None = None

    def __repr__(self) -> str:
        return f"Store(url={self.url and without_secrets(self.url)!r})"


class Limits(_Table, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[limits]. url: memory:// or redis://… (rediss:// with TLS, unix:// for a socket).

    when_away: what happens to limited requests while Redis does not answer: they are refused, or each gateway counts for itself.
    """

    url: str = "memory://"
    when_away: Literal["refuse", "memory"] = "refuse"

    def __repr__(self) -> str:
        return f"Limits(url={without_secrets(self.url)!r})"


class Usage(_Table, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[usage]. retention_days: how long single requests stay on record; None: for good. Their sums by the hour stay."""

    retention_days: Positive | None = None


class Fetch(_Table, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[fetch]: what the server gets from addresses that requests name. allow_private_hosts: `host` or `host:port`."""

    allow_private_hosts: tuple[str, ...] = ()


class Engine(_Table, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[engines.NAME]. Which keys apply depends on `kind`; a key of another kind is an error.

    llama: model (a known name or a path to a GGUF file), mmproj (likewise, what lets the model see images), context (tokens per
    slot; None: the model's own, at most 8,192), slots (requests at a time), threads (None: as many as there are cores),
    gpu_layers.
    openai: base_url, api_key or api_key_env, timeout_s, retries. xai: api_key_env. echo: answers with the prompt.
    wordllama: embeddings in process; context (longest input in tokens).
    max_concurrency: requests at a time (None: the slots of a llama engine, no limit otherwise). max_queued: requests that
    may wait for their turn before new ones are refused with 498.
    openai and xai: health_interval_s, between two looks at the upstream (0: none); breaker_failures in a row after which it is
    left alone (0: never), at first for breaker_rest_s.
    """

    kind: Literal["llama", "openai", "xai", "echo", "wordllama"]
    model: str | None = None
    mmproj: str | None = None
    context: Positive | None = None
    slots: Positive | None = None
    threads: Positive | None = None
    gpu_layers: Annotated[int, Meta(ge=-1)] | None = None
    base_url: str | None = None
    api_key: str | None = None
    api_key_env: str | None = None
    timeout_s: Annotated[float, Meta(gt=0)] = 600
    retries: Annotated[int, Meta(ge=0, le=10)] = 3
    max_concurrency: Positive | None = None
    max_queued: Annotated[int, Meta(ge=0)] = 256
    health_interval_s: Seconds = 15
    breaker_failures: Annotated[int, Meta(ge=0)] = 5
    breaker_rest_s: Annotated[float, Meta(gt=0)] = 5

    def __repr__(self) -> str:
        """Without the api key: settings get printed and logged."""
        shown = {name: getattr(self, name) for name in self.__struct_fields__ if name != "api_key"}
        if self.base_url is not None:
            shown["base_url"] = without_secrets(self.base_url)
        return f"Engine({', '.join(f'{name}={value!r}' for name, value in shown.items() if value is not None)})"


class LongContext(_Table, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """USD per million tokens of every token of a request whose prompt has `threshold` tokens or more."""

    threshold: Positive
    input: Usd
    cached_input: Usd
    output: Usd


class ModelPrice(_Table, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """USD per million tokens. image: of prompt tokens that are images (None: as input); reasoning: None: as output.

    request: USD for each request, beside its tokens. tools: USD per call of a server-side tool, by its name.
    """

    input: Usd = 0
    cached_input: Usd = 0
    output: Usd = 0
    image: Usd | None = None
    reasoning: Usd | None = None
    request: Usd = 0
    long_context: LongContext | None = None
    tools: dict[str, Usd] | None = None


class Model(_Table, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[models."NAME"]. A name of the default catalogue is changed key by key; any other is added.

    rps, rpm, tpm: what each team may do with the model: requests per second, requests and tokens per minute. None: no limit.
    """

    engine: str | None = None
    upstream: str | None = None
    aliases: tuple[str, ...] | None = None
    context: Positive | None = None
    input: tuple[Literal["text", "image"], ...] | None = None
    reasoning: bool | None = None
    fallback: tuple[str, ...] | None = None
    price: ModelPrice | None = None
    kind: Literal["language", "embedding"] = "language"
    rps: Rate | None = None
    rpm: Rate | None = None
    tpm: Rate | None = None


class WebSearch(_Table, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[tools.web_search]. base_url: of a SearXNG (`searxng`, `auto`), or another address of Brave or Tavily.

    api_key_env: the variable with the key of Brave or Tavily; None: `WEB_SEARCH_KEYS`.
    """

    provider: Literal["auto", "local", "ddgs", "searxng", "brave", "tavily"] = "auto"
    base_url: str | None = None
    api_key_env: str | None = None
    allow_private_hosts: tuple[str, ...] = ()


class XSearch(_Table, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[tools.x_search]. archive: path (a file of posts to import at start). x-api, the official API v2: base_url, api_key_env (the
    variable with the bearer token; None: X_BEARER_TOKEN), full_archive (search all posts, which not every token may, instead of
    the last 7 days), reads_max (posts that one call may read; X charges for each)."""

    provider: Literal["archive", "x-api"] = "archive"
    path: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    full_archive: bool = False
    reads_max: Annotated[int, Meta(ge=10, le=10_000)] = 100


class CodeExecution(_Table, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[tools.code_execution]. timeout_s: of one call. memory_mb: of one session. sessions_max: sessions at a time.

    sandbox: landlock is the weaker fallback for machines without user namespaces. output_kb: of stdout and of stderr, each.
    files_max, files_mb: files that one call gives back.
    """

    enabled: bool = True
    sandbox: Literal["bubblewrap", "landlock"] = "bubblewrap"
    timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 60
    memory_mb: Annotated[int, Meta(ge=64)] = 512
    sessions_max: Positive = 16
    output_kb: Positive = 64
    files_max: Annotated[int, Meta(ge=0)] = 16
    files_mb: Annotated[int, Meta(ge=0, le=64)] = 16


class Tools(_Table, frozen=True, forbid_unknown_fields=True, kw_only=True):
    web_search: WebSearch = WebSearch()
    x_search: XSearch = XSearch()
    code_execution: CodeExecution = CodeExecution()


class Cache(_Table, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[cache]. Answers to repeatable requests, kept in memory: at most so many, and so many MiB, for so long."""

    enabled: bool = False
    entries: Positive = 1000
    mb: Annotated[float, Meta(gt=0)] = 64
    ttl_s: Annotated[float, Meta(gt=0)] = 3600


class Tier(_Table, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[tiers.NAME]. A built-in tier's name replaces it. None: no limit.

    postpaid_cap_usd: what a team may owe. request_usd: a flat price of each request, in place of its tokens.
    answer_tokens_max: the longest answer where the caller sets no bound and its cost has to be held.
    """

    monthly_credit_usd: Credit | None = None
    postpaid_cap_usd: Credit | None = None
    request_usd: Usd | None = None
    rps: Rate | None = None
    rpm: Rate | None = None
    tpm: Rate | None = None
    answer_tokens_max: Positive = 8192


class Settings(_Table, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole configuration. `home` holds the state and comes from the environment, not from the file."""

    home: Path
    file: Path | None = None
    server: Server = Server()
    store: Store = Store()
    limits: Limits = Limits()
    usage: Usage = Usage()
    fetch: Fetch = Fetch()
    engines: dict[str, Engine] = {}
    models: dict[str, Model] = {}
    tools: Tools = Tools()
    cache: Cache = Cache()
    tiers: dict[str, Tier] = {}

    @property
    def store_url(self) -> str:
        return self.store.url or f"sqlite:///{self.home / 'jubal.db'}"

    @property
    def tls_files(self) -> tuple[Path, Path] | None:
        """Certificate and key, or None where the server speaks plain HTTP."""
        if self.server.tls_cert is None or self.server.tls_key is None:
            return None
        folder = self.file.parent if self.file is not None else Path()
        return folder / Path(self.server.tls_cert).expanduser(), folder / Path(self.server.tls_key).expanduser()

    @property
    def private_hosts(self) -> tuple[str, ...]:
        """What may be fetched from although it is not public: by [fetch], and by the older key of [tools.web_search]."""
        return (*self.fetch.allow_private_hosts, *self.tools.web_search.allow_private_hosts)

    def web_search_keys(self, environ: dict[str, str] | os._Environ[str] = os.environ) -> dict[str, str]:
        """The keys of the search services that may be asked, by their names. Raises `ConfigError` where one is missing."""
        wanted = self.tools.web_search
        names = [wanted.provider] if wanted.provider in WEB_SEARCH_KEYS else []
        found: dict[str, str] = {}
        for name in names or (WEB_SEARCH_KEYS if wanted.provider == "auto" else ()):
            variable = (wanted.api_key_env if names else None) or WEB_SEARCH_KEYS[name]
            if key := environ.get(variable, "").strip():
                found[name] = key
            elif names:
                raise ConfigError(
                    f"tools.web_search.api_key_env: expected an API key in ${variable}, which is not set."
                )
        return found

    @property
    def models_home(self) -> Path:
        return self.home / "models"


class _File(_Table, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a configuration file may hold."""

    server: Server = Server()
    store: Store = Store()
    limits: Limits = Limits()
    usage: Usage = Usage()
    fetch: Fetch = Fetch()
    engines: dict[str, Engine] = {}
    models: dict[str, Model] = {}
    tools: Tools = Tools()
    cache: Cache = Cache()
    tiers: dict[str, Tier] = {}


def secrets(settings: Settings, environ: dict[str, str] | os._Environ[str] = os.environ) -> tuple[str, ...]:
    """Every secret that these settings hold or name: API keys, and passwords in addresses."""
    web, posts = settings.tools.web_search, settings.tools.x_search
    engines = settings.engines.values()
    variables = {*KEY_VARIABLES, web.api_key_env, posts.api_key_env, *(engine.api_key_env for engine in engines)}
    found = {environ.get(name, "").strip() for name in variables if name}
    found |= {engine.api_key or "" for engine in engines}
    addresses = [settings.store_url, settings.limits.url, web.base_url, posts.base_url]
    for url in (*addresses, *(engine.base_url for engine in engines)):
        found.update(password_in(url or ""))
    return tuple(found - {""})


_UPSTREAM = ("health_interval_s", "breaker_failures", "breaker_rest_s")
WEB_SEARCH_KEYS: dict[str, str] = {"brave": "BRAVE_API_KEY", "tavily": "TAVILY_API_KEY"}
"""Where the keys of search services are, unless `api_key_env` tells otherwise."""

KEY_VARIABLES = ("XAI_API_KEY", "X_BEARER_TOKEN", *WEB_SEARCH_KEYS.values())
"""Variables that are looked at without being named."""

ENGINE_KEYS: dict[str, frozenset[str]] = {
    "llama": frozenset({"model", "mmproj", "context", "slots", "threads", "gpu_layers", "timeout_s"}),
    "openai": frozenset({"base_url", "api_key", "api_key_env", "timeout_s", "retries", "context", *_UPSTREAM}),
    "xai": frozenset({"base_url", "api_key", "api_key_env", "timeout_s", "retries", *_UPSTREAM}),
    "echo": frozenset(),
    "wordllama": frozenset({"context"}),
}
_EVERY_ENGINE = frozenset({"kind", "max_concurrency", "max_queued"})


def home_of(environ: dict[str, str] | os._Environ[str]) -> Path:
    """$JUBAL_HOME, or the platform's user data folder."""
    if chosen := environ.get("JUBAL_HOME"):
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_data_path  # most processes are told their home; this import is not free

    return user_data_path("jubal")


def load(
    path: str | os.PathLike[str] | None = None, environ: dict[str, str] | os._Environ[str] = os.environ
) -> Settings:
    """Settings from `path`, else from $JUBAL_CONFIG, else the defaults.

    Raises `ConfigError` naming file, key and what was expected.
    """
    home = home_of(environ)
    chosen = path or environ.get("JUBAL_CONFIG")
    if not chosen:
        return Settings(home=home)
    file = Path(chosen).expanduser()
    parsed = _read(file)
    settings = Settings(home=home, file=file, **{name: getattr(parsed, name) for name in parsed.__struct_fields__})
    _check_server(settings.server, f"{file}: server")
    _check_engines(settings, file)
    _check_x_search(settings.tools.x_search, f"{file}: tools.x_search")
    _check_web_search(settings.tools.web_search, file)
    return settings


def _read(file: Path) -> _File:
    try:
        text = file.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{file}: there is no such file. Name another with --config or $JUBAL_CONFIG.") from None
    except OSError as error:
        raise ConfigError(f"{file}: can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: can't be read: it is not UTF-8 at byte {error.start}.") from error
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from error
    try:
        return msgspec.convert(tree, _File)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {_say(str(error), tree)}") from error


def _say(complaint: str, tree: dict[str, Any]) -> str:
    """msgspec's «Expected `int`, got `str` - at `$.server.port`» as «server.port: expected `int`, got `str`»."""
    what, _, where = complaint.partition(" - at `$")
    key = _resolve(where.rstrip("`").removeprefix("."), tree)
    if what.startswith("Object contains unknown field"):
        field = what.split("`")[1]
        return f"{key + '.' if key else ''}{field}: unknown key. {_known(key)}"
    if what.startswith("Invalid enum value") and (names := _names(key)):
        return f"{key}: expected {' or '.join(names)}, got {what.removeprefix('Invalid enum value ')}"
    return f"{key or 'top level'}: {what[0].lower()}{what[1:]}"


def _resolve(where: str, tree: dict[str, Any]) -> str:
    """Puts the real table name in the place of msgspec's `[...]`: the only one, or the reader is told the family."""
    if "[...]" not in where:
        return where
    family = where.split("[...]")[0]
    names = list(tree.get(family, {}))
    return where.replace("[...]", f".{names[0]}" if len(names) == 1 else ".NAME", 1)


def _known(key: str) -> str:
    table = _table(key)
    return f"Known keys: {', '.join(table.__struct_fields__)}." if table else ""


def _names(key: str) -> list[str]:
    """The names that a key takes, where it takes names only."""
    above, _, field = key.partition("[")[0].rpartition(".")
    table = _table(above)
    return _literals(get_type_hints(table).get(field)) if table else []


def _literals(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return [f"`{name}`" for name in get_args(hint)]
    return [name for part in get_args(hint) for name in _literals(part)]


def _table(key: str) -> Any:
    """The struct of the table at a key; None for what is no table."""
    table: Any = {
        "": _File, "server": Server, "store": Store, "limits": Limits, "usage": Usage, "fetch": Fetch, "tools": Tools,
        "cache": Cache,
        "tools.web_search": WebSearch, "tools.x_search": XSearch, "tools.code_execution": CodeExecution,
    }.get(key)  # fmt: skip
    if table is None:
        table = {"engines": Engine, "models": Model, "tiers": Tier}.get(key.split(".")[0])
    if key.endswith(".price"):
        table = ModelPrice
    if key.endswith(".long_context"):
        table = LongContext
    return table


ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")


def _check_server(server: Server, where: str) -> None:
    if (server.tls_cert is None) != (server.tls_key is None):
        missing = "tls_key" if server.tls_key is None else "tls_cert"
        raise ConfigError(f"{where}.{missing}: expected a PEM file: `tls_cert` and `tls_key` come together.")
    for origin in server.cors_origins:
        if not ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"{where}.cors_origins: expected origins as a browser sends them, such as https://app.example, in lower case, "
                f"without path or wildcard; got `{without_secrets(origin)}`."
            )


def _check_engines(settings: Settings, file: Path) -> None:
    """What the types can't say: keys of another kind, missing addresses, names that point nowhere."""
    for name, engine in settings.engines.items():
        where = f"{file}: engines.{name}"
        known = ENGINE_KEYS[engine.kind] | _EVERY_ENGINE
        defaults = Engine(kind=engine.kind)
        for key in engine.__struct_fields__:
            if key not in known and getattr(engine, key) != getattr(defaults, key):
                raise ConfigError(
                    f"{where}.{key}: not a key of kind `{engine.kind}`. Known keys: {', '.join(sorted(known))}."
                )
        if engine.kind == "openai" and not engine.base_url:
            raise ConfigError(
                f"{where}.base_url: expected the address of an OpenAI-compatible server, such as http://127.0.0.1:8001/v1"
            )
        if "@" in (engine.base_url or "") and (engine.api_key or engine.api_key_env or engine.kind == "xai"):
            raise ConfigError(
                f"{where}.base_url: expected no user and password beside an API key: both go into the same header."
            )
        if engine.base_url and not engine.base_url.startswith(("http://", "https://")):
            raise ConfigError(
                f"{where}.base_url: expected an address that begins with http:// or https://, "
                f"got `{without_secrets(engine.base_url)}`"
            )
        if "?" in (engine.base_url or "") or "#" in (engine.base_url or ""):
            raise ConfigError(
                f"{where}.base_url: expected an address without a query (?) or fragment (#): paths are appended to it."
            )
    engines = set(settings.engines) | {"local", "words"}
    for name, model in settings.models.items():
        _check_ability(f'{file}: models."{name}"', model, settings.engines)
        for key, targets in (("engine", (model.engine,)), ("fallback", model.fallback or ())):
            for target in targets:
                if target is not None and target not in engines:
                    raise ConfigError(
                        f'{file}: models."{name}".{key}: expected the name of an engine, got `{target}`. '
                        f"Engines: {', '.join(sorted(engines))}."
                    )
    url = settings.store.url
    if url is not None and not url.startswith(("sqlite:///", "postgresql://")):
        raise ConfigError(f"{file}: store.url: expected sqlite:///FILE or postgresql://…, got `{url.split(':')[0]}:…`")
    if not settings.limits.url.startswith(("memory://", "redis://", "rediss://", "unix://")):
        raise ConfigError(
            f"{file}: limits.url: expected memory:// or redis://…, got `{settings.limits.url.split(':')[0]}:…`"
        )


X_SEARCH_KEYS: dict[str, frozenset[str]] = {
    "archive": frozenset({"path"}),
    "x-api": frozenset({"base_url", "api_key_env", "full_archive", "reads_max"}),
}


def _check_x_search(table: XSearch, where: str) -> None:
    known = X_SEARCH_KEYS[table.provider] | {"provider"}
    for key in table.__struct_fields__:
        if key not in known and getattr(table, key) != getattr(XSearch(), key):
            raise ConfigError(
                f"{where}.{key}: not a key of the provider `{table.provider}`. Known keys: {', '.join(sorted(known))}."
            )
    if table.base_url is not None and not table.base_url.startswith(("http://", "https://")):
        raise ConfigError(
            f"{where}.base_url: expected an address that begins with http:// or https://, got `{without_secrets(table.base_url)}`"
        )


def _check_web_search(wanted: WebSearch, file: Path) -> None:
    """Keys that go with some providers only."""
    where = f"{file}: tools.web_search"
    if wanted.provider == "searxng" and not wanted.base_url:
        raise ConfigError(f"{where}.base_url: expected the address of a SearXNG, such as http://127.0.0.1:8888")
    if wanted.base_url is not None and not wanted.base_url.startswith(("http://", "https://")):
        raise ConfigError(f"{where}.base_url: expected an address that begins with http:// or https://")
    if wanted.base_url is not None and wanted.provider in ("local", "ddgs"):
        raise ConfigError(f"{where}.base_url: the provider `{wanted.provider}` has no address.")
    if wanted.api_key_env is not None and wanted.provider not in WEB_SEARCH_KEYS:
        raise ConfigError(
            f"{where}.api_key_env: goes with the providers {' and '.join(WEB_SEARCH_KEYS)}. "
            f"`auto` takes ${' and $'.join(WEB_SEARCH_KEYS.values())}."
        )


EMBEDDING_KINDS = frozenset({"openai", "xai", "wordllama", "llama"})


def _check_ability(where: str, model: Model, engines: dict[str, Engine]) -> None:
    """An embedding model needs an engine that embeds, and a language model one that talks."""
    for name in (model.engine, *(model.fallback or ())):
        kind = engines[name].kind if name in engines else {"local": "llama", "words": "wordllama"}.get(name or "")
        if kind is None:
            continue
        if model.kind == "embedding" and kind not in EMBEDDING_KINDS:
            raise ConfigError(f"{where}: `{name}`, an engine of kind `{kind}`, makes no embeddings.")
        if model.kind == "language" and kind == "wordllama":
            raise ConfigError(f"{where}: `{name}`, an engine of kind `wordllama`, makes embeddings only.")
