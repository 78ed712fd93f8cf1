"""The embedded engine: llama.cpp in a child process, over its HTTP API on a private socket."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import aiohttp
import msgspec
import yarl

from jubal.core.errors import BadRequest, EngineBroken, EngineTimeout, EngineUnavailable
from jubal.core.events import EngineEvent
from jubal.core.generation import NO_TOOLS, Generation, ImagePart, Prompt
from jubal.core.tokens import Token
from jubal.engines import weights
from jubal.engines.base import EngineStatus, Weights
from jubal.engines.http_client import HttpClient, Target, target_of
from jubal.engines.llama_cpp.child import ServerArgs
from jubal.engines.llama_cpp.choices import merge_choices
from jubal.engines.llama_cpp.launch import ChildEffects, SocketFolder
from jubal.engines.llama_cpp.memory import MIB, ModelMemory, Size
from jubal.engines.llama_cpp.messages import prepared, single
from jubal.engines.llama_cpp.process import Heard, Process
from jubal.engines.llama_cpp.scheduler import Policy
from jubal.engines.llama_cpp.schema import BUILT_IN, GUIDED, Guide, demand, with_known_schemas
from jubal.engines.llama_cpp.tokens import count_of_tokens, tokenize_body, tokens_of_llama
from jubal.engines.openai_compat import ChatDecoder, chat_body, stream_chat
from jubal.engines.openai_text import TextDecoder, text_body
from jubal.engines.prompted import stream_prompted, worded
from jubal.engines.quirks import LLAMA_CPP, extra_fields
from jubal.engines.thinking import stream_thinking

SLOTS: Final = 4
"""Requests at a time. Measured with SmolLM2 on 2 cores: 150 tokens/s in one stream, 200 in four together; each slot of 8,192
tokens costs 180 MB, so that four make 0.87 GB of memory in all, and two 0.5."""
CONTEXT_MAX: Final = 8192
"""The window of a slot where none is configured: memory for it is taken at once, and many models are trained for 16 times that."""
CACHE_MIB: Final = 96
"""Memory for prompts whose slot went to another conversation; llama.cpp's own default of 8 GiB is not for a laptop."""
BATCH_CPU: Final = 128
BATCH_GPU: Final = 512
"""Prompt tokens computed at a time. Nothing else happens meanwhile: no other stream gets a token, no cancel is seen. On a CPU
the small batch costs a tenth of the prompt speed (334 tokens/s against 377) and keeps those pauses at a third of a second."""
BATCH_IMAGES: Final = 512
"""With a projector: some models look at all tokens of an image at once, 256 in Gemma's, so they must be in one batch."""
READABLE: Final = ("data:image/jpeg;", "data:image/jpg;", "data:image/png;")
"""Images that llama.cpp can decode."""
EMBEDDING_SLOTS: Final = 1
"""Inputs at a time: each is computed whole, so more are not faster on a CPU, and one alone always has the same vector."""
EMBEDDING_CONTEXT_MAX: Final = 2048
"""The window of an embedding model where none is configured: an input is one batch, whose memory is taken at once."""
PROGRAM_BYTES: Final = 64 * MIB
"""What a child takes beside weights and cache. Measured with SmolLM2: 60 MiB (docs/decisions/local-models.md)."""
ROOM_TIMEOUT_MIN_S: Final = 1.0
THINKING_WORDS: Final = ("<think>", "enable_thinking")
"""What stands in the chat template of a model that was taught to think."""
LIFE_NEWS_S: Final = 1.0
TOKENIZE_TIMEOUT_S: Final = 30.0
URL: Final = "http://llama"
"""The host means nothing on a UNIX socket."""


class _TemplateAbilities(msgspec.Struct):
    supports_tools: bool = False
    supports_tool_calls: bool = False


class _Sampled(msgspec.Struct):
    temperature: float | None = None
    top_p: float | None = None


class _Defaults(msgspec.Struct):
    """params: what it samples with where a request does not say."""

    n_ctx: int = 0
    params: _Sampled = msgspec.field(default_factory=_Sampled)


class _Props(msgspec.Struct):
    """What is read of llama.cpp's /props."""

    chat_template: str = ""
    chat_template_caps: _TemplateAbilities = msgspec.field(default_factory=_TemplateAbilities)
    default_generation_settings: _Defaults = msgspec.field(default_factory=_Defaults)


class LlamaEngine:
    """A GGUF model on this machine.

    model: a known name, the name of a file in models_home, or a path. mmproj: likewise, the projector with which it sees images;
    None: it reads text only. context: tokens of each slot; None: the model's own, at
    most 8,192. slots: requests at a time; more wait here. threads: None: one for each physical core. gpu_layers: None: as many
    as fit. timeout_s: longest wait for the model to be ready, and longest silence while it answers.
    embedding: the child makes vectors instead of text (`LlamaEmbedder` asks it for them). memory: loads and unloads it
    beside others; None: it is loaded by `start` and stays.
    heard: told of every change of the child's state. extra: further fields for every request to llama.cpp. command: makes
    the argv of the child.
    """

    kind = "llama"

    def __init__(
        self,
        name: str,
        models_home: Path,
        model: str,
        *,
        mmproj: str | None = None,
        context: int | None = None,
        slots: int | None = None,
        threads: int | None = None,
        gpu_layers: int | None = None,
        timeout_s: float = 600,
        embedding: bool = False,
        memory: ModelMemory | None = None,
        policy: Policy | None = None,
        heard: Heard = lambda state, reason: None,
        extra: Mapping[str, object] | None = None,
        command: Callable[[ServerArgs], Sequence[str]] | None = None,
    ) -> None:
        self.name = name
        self.slots = slots or (EMBEDDING_SLOTS if embedding else SLOTS)
        self._models_home = models_home
        self._model = model
        self._mmproj = mmproj
        self._input = ("text",) if mmproj is None else ("text", "image")
        self._embedding = embedding
        self._memory = memory
        self._threads = threads
        self._gpu_layers = -1 if gpu_layers is None else gpu_layers
        self._timeout_s = timeout_s
        self._policy = policy or Policy()
        self._heard = heard
        # return_progress is what makes llama.cpp see a closed connection while it reads a prompt: without it such a request
        # runs to its end. timings_per_token tells the prompt's tokens with the first piece, for an answer that is cut.
        self._extra = {"cache_prompt": True, "return_progress": True, "timings_per_token": True, **(extra or {})}
        self._chat_target = target_on_child("/v1/chat/completions")
        self._text_target = target_on_child("/v1/completions")
        self._command = command or child_argv
        self._places = asyncio.Semaphore(
            self.slots
        )  # a turn that waits here is cancelled at once, one in llama.cpp is not
        self._identity = Identity(model, context or (EMBEDDING_CONTEXT_MAX if embedding else CONTEXT_MAX))
        self._template_tools = self._identity.profile.template_tools or False
        self._template_thinks = False
        self._sampled = _Sampled(self._identity.profile.temperature, self._identity.profile.top_p)
        self._guide = Guide(
            timeout_s=self._policy.trial_s,
            bytes_max=self._policy.trial_bytes_max,
            resident=self._anonymous,
            hung=self._hung,
        )
        self._learned_of = 0
        self._process: Process | None = None
        self._session: aiohttp.ClientSession | None = None
        self._client: HttpClient | None = None
        self._folder: SocketFolder | None = None
        self._effects: ChildEffects | None = None
        self._estimated: tuple[tuple[Path, int, int], Size] | None = None

    @property
    def timeout_s(self) -> float:
        return self._timeout_s

    @property
    def client(self) -> HttpClient:
        """For requests to the child. Raises `EngineUnavailable` before `load` and after `unload`."""
        if self._client is None:
            raise EngineUnavailable(f"The engine `{self.name}` is not started.")
        return self._client

    # Coming and going

    async def start(self) -> None:
        """Under a limit on memory the child may start later, or only when it is asked for."""
        if self._memory is None:
            await self.load()
        else:
            self._memory.join(self, preload=not self._embedding)

    async def ready(self) -> None:
        """At once where the model is only loaded when it is asked for."""
        if self._memory is None:
            await self._ready(None)
            return
        place = await self._memory.decided(self.name)
        if place == "refused":
            raise EngineUnavailable(self._memory.refusal(self.name) or "", code="model_too_large")
        if place == "loaded":
            await self._ready(None)

    async def close(self) -> None:
        if self._memory is not None:
            await self._memory.leave(self)
        await self.unload()

    async def load(self) -> None:
        """Starts the child. Raises `OSError`."""
        if self._process is not None:
            return
        self._folder = SocketFolder()
        self._session = aiohttp.ClientSession(
            # No connection is used twice: llama.cpp gives each one a thread of a small pool for as long as it is open.
            connector=aiohttp.UnixConnector(path=str(self._folder.socket), limit=0, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept-Encoding"),
        )
        self._client = HttpClient(yarl.URL(URL), socket_path=str(self._folder.socket), reuse=False)
        self._effects = ChildEffects(self._folder, self._session, self._argv, self._problem)
        self._process = Process(self._effects, self._policy, self._heard)
        self._process.start()

    async def unload(self) -> None:
        """Ends the child. Returns when it is gone."""
        self._learned_of = 0
        process, self._process = self._process, None
        session, self._session = self._session, None
        client, self._client = self._client, None
        self._identity.stop()
        if process is not None:
            await process.close()
        if client is not None:
            client.close()
        if session is not None:
            await session.close()

    async def estimate(self) -> Size | None:
        """What the child will take, by the file."""
        path = weights.resolve(self._models_home, self._model)
        if path is None:
            return None
        try:
            stat = path.stat()
            stamp = (path, stat.st_size, stat.st_mtime_ns)
            if self._estimated is None or self._estimated[0] != stamp:
                self._estimated = stamp, await self._estimate(path)
        except OSError:
            return None
        return self._estimated[1]

    async def _estimate(self, path: Path) -> Size:
        await self._identity.read(path)
        shape = await asyncio.to_thread(weights.shape_of, path)
        tokens = self.slots * self._identity.context
        # Of a prompt to be answered only the last token's outputs are wanted; for a vector llama.cpp computes those of all.
        program = PROGRAM_BYTES + (shape.outputs_bytes(self._batch()) if self._embedding else 0)
        return Size(shape.file_bytes, tokens * shape.cache_token_bytes, program, self.slots, self._identity.context)

    def measured(self) -> int | None:
        """Resident bytes of the child, pages of the file included; None before it is ready."""
        if self._process is None or self._process.state != "ready" or self._effects is None:
            return None
        return self._effects.resident()

    def _anonymous(self) -> int | None:
        return None if self._effects is None else self._effects.anonymous()

    def _hung(self, why: str, certain: bool) -> bool:
        """Ends a child that does not come back from a schema, unless others get their tokens meanwhile: then it is only slow."""
        process = self._process
        if process is None or not (certain or process.silent_s() >= self._policy.trial_s * 0.9):
            return False
        process.accuse(self._learned_of, why)
        return True

    def status(self) -> EngineStatus:
        if self._process is None:
            return self._status_unloaded()
        match self._process.state:
            case "ready" if self._identity.known:
                return EngineStatus("ready")
            case "ready" | "starting":
                return EngineStatus("starting", self._process.reason or "The model is loading.")
            case "stopping" | "stopped":
                return EngineStatus("stopped")
            case "failed":
                return EngineStatus("failed", self._process.reason)

    def _status_unloaded(self) -> EngineStatus:
        match self._memory and self._memory.place(self.name):
            case "undecided" | "loaded":
                return EngineStatus("starting", "The model waits for room in memory.")
            case "refused":
                assert self._memory is not None
                return EngineStatus("failed", self._memory.refusal(self.name))
            case _:
                return EngineStatus("stopped")

    def weights(self, model: str) -> Weights:
        """Before the first start of an unknown file the fingerprint is one of its name only, and the context a guess."""
        known = self._identity
        schema = BUILT_IN if self._guide.works is False or self._template_thinks else GUIDED
        return Weights(
            known.file_name,
            known.fingerprint,
            known.context,
            self._input,
            tools=True,
            json=True,
            schema=schema,
            token_prompts=True,
            temperature=self._sampled.temperature,
            top_p=self._sampled.top_p,
        )

    def _problem(self) -> str | None:
        for file in (self._model, self._mmproj):
            if file is not None and weights.resolve(self._models_home, file) is None:
                return f"There is no model file for `{file}` in {self._models_home}. Run: jubal models pull {file}"
        return None

    async def _argv(self) -> Sequence[str]:
        path = weights.resolve(self._models_home, self._model)
        if path is None:
            raise FileNotFoundError(f"the file of `{self._model}` is gone")
        projector = None if self._mmproj is None else weights.resolve(self._models_home, self._mmproj)
        if self._mmproj is not None and projector is None:
            raise FileNotFoundError(f"the file of `{self._mmproj}` is gone")
        assert self._folder is not None
        await self._identity.read(path)
        return self._command(
            ServerArgs(
                parent=os.getpid(),
                model=str(path),
                socket=str(self._folder.socket),
                context=self._identity.context,
                slots=self.slots,
                threads=self._threads or threads_allowed(),
                gpu_layers=self._gpu_layers,
                batch=self._batch(),
                cache_mib=0 if self._embedding else CACHE_MIB,
                mmproj=None if projector is None else str(projector),
                embedding=self._embedding,
                pooling=await self._pooling(path),
            )
        )

    def _batch(self) -> int:
        """Tokens computed at a time. llama.cpp embeds no input that is longer than this."""
        if self._embedding:
            return self._identity.context
        if self._mmproj is not None:
            return BATCH_IMAGES
        return BATCH_CPU if self._gpu_layers == 0 or sys.platform != "darwin" else BATCH_GPU

    async def _pooling(self, path: Path) -> str | None:
        """How a model that was not made for embeddings makes one vector of its tokens'; None: as its file says."""
        if not self._embedding or (await asyncio.to_thread(weights.shape_of, path)).pooling:
            return None
        return "mean"

    @asynccontextmanager
    async def child(self) -> AsyncIterator[tuple[aiohttp.ClientSession, Process, int]]:
        """The child, ready, with the number of its life. It is not unloaded meanwhile.

        Raises `EngineUnavailable` where it is not ready within the engine's timeout.
        """
        if self._memory is None:
            yield await self._ready(self._timeout_s)
            return
        asked_s = time.monotonic()
        async with self._memory.use(self.name, self._timeout_s):
            left_s = max(asked_s + self._timeout_s - time.monotonic(), ROOM_TIMEOUT_MIN_S)
            yield await self._ready(left_s)

    async def _ready(self, timeout_s: float | None) -> tuple[aiohttp.ClientSession, Process, int]:
        """Waits until everything is there, and returns it with the number of the child's life."""
        process, session = self._process, self._session
        if process is None or session is None:
            raise EngineUnavailable(f"The engine `{self.name}` is not started.")
        life = await process.ready(timeout_s)
        if life != self._learned_of:
            await self._learn(session)
            self._learned_of = life
            self._guide.begin_life()
        await self._identity.wait()
        return session, process, life

    async def _learn(self, session: aiohttp.ClientSession) -> None:
        """What the child itself says of its model. What it does not say stays as assumed."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, msgspec.DecodeError):
            timeout = aiohttp.ClientTimeout(total=self._policy.probe_timeout_s)
            async with session.get(f"{URL}/props", timeout=timeout) as response:
                props = msgspec.json.decode(await response.read(), type=_Props)
            told = props.chat_template_caps
            if self._identity.profile.template_tools is None:
                self._template_tools = told.supports_tools and told.supports_tool_calls
            self._template_thinks = any(word in props.chat_template for word in THINKING_WORDS)
            self._identity.bound(props.default_generation_settings.n_ctx)
            self._sampled = _sampled(self._identity.profile, props.default_generation_settings.params)

    # Answering

    async def stream(self, turn: Generation) -> AsyncGenerator[EngineEvent, None]:
        self._check_images(turn)
        async with self.child():
            turn = prepared(turn, self._identity.profile, template_tools=self._template_tools)
            async with aclosing(self._with_tools(turn)) as events:
                async for event in events:
                    yield event

    def _check_images(self, turn: Generation) -> None:
        """Raises `BadRequest`. Only what is in the request is looked at: llama.cpp would fetch an address unguarded."""
        images = [part for message in turn.messages for part in message.parts if isinstance(part, ImagePart)]
        if images and self._mmproj is None:
            raise BadRequest(
                f"The model behind `{turn.model}` ({self._identity.file_name}) reads text only; the request holds an image.",
                param="messages",
                code="unsupported_input",
            )
        for image in images:
            if not image.url.startswith(READABLE):
                raise BadRequest(
                    f"The model behind `{turn.model}` takes JPEG and PNG images, as data URLs.",
                    param=image.where or "messages",
                    code="unsupported_image",
                )

    def _with_tools(self, turn: Generation) -> AsyncGenerator[EngineEvent, None]:
        if self._template_tools or not turn.tools.functions:
            return self._choices(turn)
        if not turn.tools.wanted:
            return self._choices(replace(turn, tools=NO_TOOLS))
        return stream_prompted(with_known_schemas(turn), self._choices)

    def _choices(self, turn: Generation) -> AsyncGenerator[EngineEvent, None]:
        """llama.cpp can make several choices itself, but reports the tokens of one only."""
        if turn.answers == 1:
            return self._reasoned(single(turn, 0))
        return merge_choices([self._reasoned(single(turn, index)) for index in range(turn.answers)], turn.choices)

    def _reasoned(self, turn: Generation) -> AsyncGenerator[EngineEvent, None]:
        """A model whose template knows no thinking is asked for notes first."""
        if turn.prompts or turn.reasoning in (None, "none") or self._template_thinks:
            return self._choice(turn)
        return stream_thinking(turn, self._choice)

    async def _choice(self, turn: Generation) -> AsyncGenerator[EngineEvent, None]:
        """One choice, tried once more if the child dies before it said anything."""
        extra = self._extra
        if self._template_thinks and turn.reasoning is not None:
            extra = {**extra, "chat_template_kwargs": {"enable_thinking": turn.reasoning != "none"}}
        extra = {**extra, **extra_fields(turn, LLAMA_CPP)}
        async with self._places:
            for last_try in (False, True):
                session, process, life = await self._ready(self._timeout_s)
                begun = False
                try:
                    body = await self._body(session, turn, extra)
                    async with aclosing(self._request(process, body, turn)) as events:
                        async for event in events:
                            begun = True
                            yield event
                    return
                except EngineTimeout:
                    if process.silent_s() >= self._timeout_s * 0.9:
                        process.accuse(life, f"It answered nothing for {self._timeout_s:g} s.")
                    raise
                except (EngineUnavailable, EngineBroken):
                    if begun or last_try or not await process.over(life, LIFE_NEWS_S):
                        raise

    async def _body(self, session: aiohttp.ClientSession, turn: Generation, extra: Mapping[str, object]) -> bytes:
        """Raises `BadRequest` for a schema that llama.cpp would not obey."""
        if turn.prompts:
            return text_body(turn, extra=extra)
        if turn.output is None:
            return chat_body(turn, extra=extra)
        if self._template_thinks:  # a grammar would forbid the thinking, too
            demand(turn.output, BUILT_IN)
            return chat_body(turn, extra=extra)
        held = await self._guide.fields(session, URL, turn.output)
        return (
            chat_body(turn, extra=extra)
            if held is None
            else chat_body(replace(turn, output=None), extra={**extra, **held})
        )

    async def _request(self, process: Process, body: bytes, turn: Generation) -> AsyncGenerator[EngineEvent, None]:
        """body: what asks for `turn`."""
        decoder = partial(TextDecoder if turn.prompts else ChatDecoder, stops=turn.sampling.stop)
        target = self._text_target if turn.prompts else self._chat_target
        async with aclosing(
            stream_chat(self.client, target, body, 1, timeout_s=self._timeout_s, decoder=decoder)
        ) as events:
            async for event in events:
                process.progressed()
                yield event

    async def tokenize(self, model: str, text: str) -> tuple[Token, ...]:
        """Raises `EngineError`."""
        async with self.child() as (session, _, _):
            return tokens_of_llama(await ask_tokens(session, "/tokenize", tokenize_body(text)))

    async def count(self, turn: Generation) -> int:
        """Raises `EngineError`."""
        async with self.child() as (session, _, _):
            turn = prepared(turn, self._identity.profile, template_tools=self._template_tools)
            if turn.tools.wanted and not self._template_tools:
                turn = worded(turn)
            prompts = turn.prompts
            if not prompts:
                rendered = await ask_tokens(session, "/apply-template", chat_body(turn))
                prompts = (msgspec.json.decode(rendered, type=_Rendered).prompt,)
            return max([await _count(session, prompt) for prompt in prompts])


def target_on_child(path: str) -> Target:
    return target_of(yarl.URL(URL + path), {"content-type": "application/json"})


def _sampled(ours: weights.Profile, its: _Sampled) -> _Sampled:
    """Ours where there is one, else llama.cpp's own, which are 32-bit numbers."""

    def first(own: float | None, told: float | None) -> float | None:
        return own if own is not None else None if told is None else round(told, 6)

    return _Sampled(first(ours.temperature, its.temperature), first(ours.top_p, its.top_p))


async def _count(session: aiohttp.ClientSession, prompt: Prompt) -> int:
    if not isinstance(prompt, str):
        return len(prompt)
    return count_of_tokens(await ask_tokens(session, "/tokenize", tokenize_body(prompt, special=True, pieces=False)))


async def ask_tokens(session: aiohttp.ClientSession, path: str, body: bytes) -> bytes:
    """llama.cpp's answer to one question about text, which takes no place. Raises `EngineError`."""
    timeout = aiohttp.ClientTimeout(total=TOKENIZE_TIMEOUT_S)
    try:
        async with session.post(f"{URL}{path}", data=body, timeout=timeout) as response:
            answer = await response.read()
            if response.status != 200:
                raise EngineBroken(f"The engine could not read the text (HTTP {response.status}).")
            return answer
    except TimeoutError as error:
        raise EngineTimeout("The engine took too long to read the text.") from error
    except aiohttp.ClientError as error:
        raise EngineUnavailable("The engine can't be reached.") from error


class _Rendered(msgspec.Struct):
    """What /apply-template answers."""

    prompt: str


class Identity:
    """What is known of the model behind an engine: at first by its name, then by its file, at last by the child."""

    def __init__(self, model: str, context_max: int) -> None:
        known = weights.known_of(model)
        self._asked = context_max
        self.profile = known.profile if known else weights.Profile()
        self.file_name = known.file if known else Path(model).name
        self.context = min(self._asked, known.context) if known else self._asked
        self.fingerprint = fingerprint_of(known.sha256 if known else hashlib.sha256(model.encode()).hexdigest())
        self._stop = threading.Event()
        self._digest: asyncio.Task[None] | None = None

    @property
    def known(self) -> bool:
        """The fingerprint is that of the file."""
        return self._digest is not None and self._digest.done()

    async def read(self, path: Path) -> None:
        """Reads what the file says of itself, and begins to compute its digest."""
        self.file_name = path.name
        trained = await asyncio.to_thread(weights.trained_context, path)
        self.context = min(self._asked, trained or self._asked)
        if self._digest is None or self._digest.done():
            self._stop.clear()
            self._digest = asyncio.create_task(self._read_digest(path))

    async def _read_digest(self, path: Path) -> None:
        with contextlib.suppress(OSError, weights.Stopped):  # the name's fingerprint stays
            self.fingerprint = fingerprint_of(await asyncio.to_thread(weights.digest_of, path, stop=self._stop.is_set))

    async def wait(self) -> None:
        """Until the fingerprint is that of the file."""
        if self._digest is not None and not self._digest.done():
            await asyncio.wait({self._digest})

    def bound(self, context: int) -> None:
        """The child holds so many tokens in a slot, 0 if it does not tell."""
        if context:
            self.context = min(self.context, context)

    def stop(self) -> None:
        """A large file takes minutes to read; nobody waits for it at the end."""
        self._stop.set()


def fingerprint_of(digest: str) -> str:
    return f"fp_{digest[:10]}"


def child_argv(args: ServerArgs) -> Sequence[str]:
    """The real child. -P: the folder in which the server was started has no say in what is imported."""
    return [sys.executable, "-P", "-m", "jubal.engines.llama_cpp.child", msgspec.json.encode(args).decode()]


def threads_allowed() -> int | None:
    """Cores that this process may use, where that is fewer than the machine has; more threads than that stop each other.

    None: all of them. llama.cpp then chooses, and it knows physical cores and fast ones.
    """
    everything = os.cpu_count() or 1
    allowed = _quota_cores()
    if sys.platform == "linux":
        allowed = min(allowed, len(os.sched_getaffinity(0)))
    return max(1, allowed) if allowed < everything else None


def _quota_cores() -> int:
    """The container's CPU quota in cores, rounded up; very many where there is none."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return -(-int(quota) // int(period))
    except (OSError, ValueError):  # "max", or no such file
        return 1 << 16
