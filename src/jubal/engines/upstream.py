"""What can be learned of an OpenAI-compatible server by asking for its list of models: whether it answers, takes our key,
what it serves and how long its windows are.

`read_models` translates and does no I/O; `UpstreamProbe` asks, and keeps what it learned in `UpstreamFacts`, which the engine
that sends requests there reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import aiohttp
import msgspec

from jubal.engines.base import EngineStatus
from jubal.engines.openai_compat import upstream_headers

PROBE_TIMEOUT_S: Final = 5.0
LIST_BYTES_MAX: Final = 8 << 20
READY: Final = EngineStatus("ready")
LATEST: Final = ":latest"
"""What Ollama adds to a name that has no tag; it answers to the name without it too."""


class _Model(msgspec.Struct, gc=False):
    """One entry. vLLM and SGLang tell `max_model_len`, aggregators `context_length` or `context_window`."""

    id: str
    aliases: list[str] | None = None
    max_model_len: int | None = None
    context_length: int | None = None
    context_window: int | None = None
    owned_by: object = None

    @property
    def context(self) -> int | None:
        told = self.max_model_len or self.context_length or self.context_window
        return told if told is not None and told > 0 else None


class _List(msgspec.Struct, gc=False):
    data: list[_Model]


_decode: Final = msgspec.json.Decoder(_List).decode


@dataclass(slots=True)
class UpstreamFacts:
    """What is known of an upstream. models: the names it serves, each with its window in tokens if it tells that; None: it does
    not list them. owners: whose each name is, if it tells that: `vllm` for all that a vLLM serves."""

    status: EngineStatus = READY
    models: Mapping[str, int | None] | None = None
    contexts: Mapping[str, int] = field(default_factory=dict)
    owners: Mapping[str, str] = field(default_factory=dict)

    def learn(self, models: Mapping[str, int | None], owners: Mapping[str, str]) -> None:
        self.models = models
        self.owners = owners
        self.contexts = {name: context for name, context in models.items() if context is not None}


def read_models(body: bytes) -> dict[str, int | None]:
    """Names and aliases, with the window of each. Raises `ValueError` for what is no list of models."""
    models: dict[str, int | None] = {}
    for model in _decode(body).data:
        for name in (model.id, *(model.aliases or ())):
            models[name] = model.context
            if name.endswith(LATEST):
                models.setdefault(name.removesuffix(LATEST), model.context)
    return models


def read_owners(body: bytes) -> dict[str, str]:
    """Whose each name is, where the list tells. Raises `ValueError` for what is no list of models."""
    return {model.id: model.owned_by for model in _decode(body).data if isinstance(model.owned_by, str)}


class UpstreamProbe:
    """Asks an upstream for its models. base_url: up to and with /v1."""

    def __init__(self, base_url: str, *, api_key: str | None = None, timeout_s: float = PROBE_TIMEOUT_S) -> None:
        self._url = base_url.rstrip("/") + "/models"
        self._headers = upstream_headers(api_key)
        self._timeout_s = timeout_s
        self.facts = UpstreamFacts()

    async def probe(self) -> EngineStatus:
        """How the upstream is now, which `facts.status` then says too. Never raises for what the upstream does."""
        self.facts.status = await self._ask()
        return self.facts.status

    def unlisted(self, names: frozenset[str]) -> list[str]:
        """Those of `names` that the upstream does not list, sorted; none where it lists nothing."""
        return sorted(names.difference(self.facts.models)) if self.facts.models else []

    async def _ask(self) -> EngineStatus:
        timeout = aiohttp.ClientTimeout(total=self._timeout_s)
        try:
            # A connection of its own each time: one that is open already says little about the next.
            async with (
                _session() as session,
                session.get(self._url, headers=self._headers, timeout=timeout, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    return _judged(response.status)
                body = await response.content.read(LIST_BYTES_MAX)
                while more := await response.content.read(LIST_BYTES_MAX - len(body)):
                    body += more
        except TimeoutError:
            return EngineStatus("failed", f"The upstream gave no answer within {self._timeout_s:g} s.")
        except (aiohttp.ClientConnectorError, ConnectionRefusedError):
            return EngineStatus("failed", "The upstream can't be reached.")
        except (aiohttp.ClientError, OSError):
            return EngineStatus("failed", "The connection to the upstream breaks.")
        try:
            self.facts.learn(read_models(body), read_owners(body))
        except (ValueError, msgspec.MsgspecError, RecursionError):
            return EngineStatus("ready", "The upstream's list of models can't be read: check base_url.")
        return READY


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("User-Agent", "Accept-Encoding"),
        read_bufsize=1 << 18,
    )


def _judged(status: int) -> EngineStatus:
    """What a status other than 200 says. Whoever answers at all is there; many servers have no list of models."""
    if status == 401:
        return EngineStatus("failed", "The upstream refused our key (HTTP 401): check api_key or api_key_env.")
    if status == 403:  # a key may be good for answers and not for lists
        return EngineStatus("ready", "The upstream refused our key for its list of models (HTTP 403).")
    if status >= 500 and status != 501:
        return EngineStatus("failed", f"The upstream answers with HTTP {status}.")
    return READY
