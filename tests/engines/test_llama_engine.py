"""The engine over a child that misbehaves: real processes and sockets, a fake model."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import msgspec
import psutil
import pytest

from jubal.core.errors import BadRequest, EngineBroken, EngineError, EngineTimeout, EngineUnavailable
from jubal.core.events import TextDelta, TurnEnded
from jubal.core.generation import Generation, ImagePart, Message
from jubal.engines.llama_cpp import launch
from jubal.engines.llama_cpp.child import ServerArgs
from jubal.engines.llama_cpp.engine import LlamaEngine
from jubal.engines.llama_cpp.scheduler import Policy
from jubal.engines.tokenizer import Tokenizer
from jubal.testing import check_engine, one_turn

FAKE = Path(__file__).parent / "fake_llama_server.py"
FAST = Policy(probe_every_s=0.05, probe_timeout_s=30, silent_s=60, grace_s=0.3, backoff_first_s=0.05, load_s=60)
"""Quick where something happens, and patient where nothing does, as a busy machine takes its time."""
WARY = replace(FAST, probe_timeout_s=1, silent_s=3)

Make = Callable[..., LlamaEngine]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "fake.gguf").write_bytes(b"GGUF and nothing else")
    return tmp_path


@pytest.fixture
async def make(home: Path) -> AsyncIterator[Make]:
    made = []
    others = psutil.Process().children()  # servers that other tests share

    def make(*flags: str, **options: object) -> LlamaEngine:
        def command(args: ServerArgs) -> Sequence[str]:
            return [sys.executable, str(FAKE), msgspec.json.encode(args).decode(), *flags]

        settings: dict[str, object] = {"policy": FAST, "timeout_s": 60, "command": command, **options}
        made.append(LlamaEngine("local", home, "fake.gguf", **settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for engine in made:
        await engine.close()
    assert [one for one in psutil.Process().children() if one not in others] == [], "a child is left"


async def answer(engine: LlamaEngine, turn: Generation | None = None) -> str:
    said = ""
    async with aclosing(engine.stream(turn or one_turn())) as events:
        async for event in events:
            said += event.text if isinstance(event, TextDelta) else ""
    assert isinstance(event, TurnEnded)
    return said


def child_of(engine: LlamaEngine) -> psutil.Process:
    (child,) = (one for one in psutil.Process().children() if str(FAKE) in one.cmdline())
    return child


async def wait_for(condition: Callable[[], bool], within_s: float = 60) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.01)


async def test_the_promise_of_an_engine(make: Make) -> None:
    async def started() -> LlamaEngine:
        engine = make("--pieces", "3")
        await engine.start()
        return engine

    await check_engine(started)


async def test_start_returns_at_once_and_requests_wait(make: Make) -> None:
    engine = make("--ready-after", "0.5")
    await engine.start()
    assert engine.status().state == "starting"
    assert engine.status().reason
    assert await answer(engine) == "0 1 2 "
    assert engine.status().state == "ready"


async def test_before_start_and_after_close(make: Make) -> None:
    engine = make()
    assert engine.status().state == "stopped"
    for _ in range(2):
        with pytest.raises(EngineUnavailable, match="not started"):
            await answer(engine)
        await engine.start()
        await engine.close()
        await engine.close()
    await engine.start()
    assert await answer(engine), "it can be started again"


async def test_the_socket_is_private_and_goes_away(make: Make) -> None:
    engine = make()
    before = set(Path("/tmp").glob("jubal-llama-*"))
    await engine.start()
    await engine.ready()
    assert engine._folder is not None
    folder = engine._folder.path
    assert folder not in before
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(os.fsencode(engine._folder.socket)) <= launch.SOCKET_PATH_BYTES_MAX
    await engine.close()
    assert not folder.exists()


async def test_a_missing_file_is_told_at_once_and_found_when_it_comes(make: Make, home: Path) -> None:
    (home / "fake.gguf").rename(home / "elsewhere")
    engine = make(policy=replace(FAST, recheck_s=0.1))
    await engine.start()
    with pytest.raises(EngineUnavailable, match=r"There is no model file for `fake\.gguf`"):
        await engine.ready()
    assert engine.status().state == "failed"
    assert "jubal models pull" in (engine.status().reason or "")
    (home / "elsewhere").rename(home / "fake.gguf")
    await wait_for(lambda: engine.status().state == "ready")
    assert await answer(engine)


async def test_a_child_that_ends_at_once_fails_with_its_last_words(make: Make) -> None:
    engine = make("--exit", "this CPU is too old")
    await engine.start()
    with pytest.raises(EngineUnavailable, match="this CPU is too old"):
        await engine.ready()
    assert engine.status().state == "failed"
    with pytest.raises(EngineUnavailable, match="this CPU is too old"):
        await answer(engine)


async def test_a_child_that_never_gets_ready_is_not_waited_for_longer_than_asked(make: Make) -> None:
    engine = make("--never-ready", timeout_s=0.3)
    await engine.start()
    async with asyncio.timeout(60):
        with pytest.raises(EngineUnavailable, match=r"not ready after 0\.3 s"):
            await answer(engine)


async def test_a_child_that_hangs_while_loading_is_replaced(make: Make, tmp_path: Path) -> None:
    policy = replace(FAST, load_s=3, stillborn_max=100)
    engine = make("--never-ready", "--once", str(tmp_path / "once"), policy=policy)
    await engine.start()
    await asyncio.wait_for(engine.ready(), 60)
    assert await answer(engine)


async def test_a_killed_child_breaks_what_it_was_saying_and_answers_again(make: Make) -> None:
    engine = make("--pieces", "100", "--pause", "0.05")
    await engine.start()
    first = None
    with pytest.raises(EngineBroken):
        async with aclosing(engine.stream(one_turn())) as events:
            async for event in events:
                if first is None:
                    first = event
                    child_of(engine).kill()
    assert isinstance(first, TextDelta)
    async with aclosing(engine.stream(one_turn())) as events:
        assert isinstance(await anext(events), TextDelta)
    assert engine.status().state == "ready"


async def test_an_answer_that_had_not_begun_is_asked_for_again(make: Make, tmp_path: Path) -> None:
    engine = make("--die-after", "1", "--once", str(tmp_path / "once"))
    await engine.start()
    assert await answer(engine) == "0 1 2 "


async def test_but_not_for_ever(make: Make) -> None:
    engine = make("--die-after", "1")
    await engine.start()
    with pytest.raises(EngineError):
        await answer(engine)


async def test_a_stopped_child_is_found_hung_and_replaced(make: Make) -> None:
    engine = make(policy=WARY)
    await engine.start()
    await engine.ready()
    hung = child_of(engine)
    hung.suspend()
    await wait_for(lambda: not hung.is_running())
    assert await answer(engine)
    assert child_of(engine).pid != hung.pid


async def test_a_deaf_child_is_replaced(make: Make, tmp_path: Path) -> None:
    engine = make("--deaf-by", str(tmp_path / "deaf"), "--once", str(tmp_path / "once"), policy=WARY)
    await engine.start()
    await engine.ready()
    first = child_of(engine)
    (tmp_path / "deaf").touch()
    await wait_for(lambda: not first.is_running())
    assert await answer(engine)


async def test_a_child_that_answers_health_but_nothing_else_is_replaced(make: Make, tmp_path: Path) -> None:
    engine = make("--hang", "--once", str(tmp_path / "once"))
    await engine.start()
    await engine.ready()
    engine._timeout_s = 0.4
    with pytest.raises(EngineTimeout):
        await answer(engine)
    await wait_for(lambda: engine.status().state != "ready")
    assert "answered nothing" in (engine.status().reason or "")
    engine._timeout_s = 60
    assert await answer(engine)


async def test_close_leaves_nothing_of_a_child_that_ignores_signals(make: Make) -> None:
    engine = make("--ignore-sigterm")
    await engine.start()
    await engine.ready()
    child = child_of(engine)
    began = time.monotonic()
    await engine.close()
    assert time.monotonic() - began > 0.25, "it was asked first"
    assert not psutil.pid_exists(child.pid), "not even a zombie"


async def test_close_ends_open_answers(make: Make) -> None:
    engine = make("--pieces", "100", "--pause", "0.05")
    await engine.start()
    events = engine.stream(one_turn())
    await anext(events)
    await engine.close()
    with pytest.raises(EngineError):
        async for _ in events:
            pass


async def test_no_more_requests_than_slots_are_in_the_child(make: Make) -> None:
    engine = make("--pieces", "20", "--pause", "0.02", slots=2)
    await engine.start()
    running = [engine.stream(one_turn()) for _ in range(2)]
    for events in running:
        await anext(events)
    third = asyncio.create_task(answer(engine))
    await asyncio.sleep(0.1)
    assert not third.done()
    await running[0].aclose()
    assert await asyncio.wait_for(third, 60)
    await running[1].aclose()


async def test_more_choices_than_slots(make: Make) -> None:
    engine = make("--pieces", "2", slots=2)
    await engine.start()
    events = [event async for event in engine.stream(one_turn(choices=7))]
    assert events[-1] == TurnEnded(("stop",) * 7, events[-1].usage)  # type: ignore[union-attr]
    assert events[-1].usage.completion == 14  # type: ignore[union-attr]


async def test_images_are_refused(make: Make) -> None:
    engine = make()
    await engine.start()
    picture = Generation("grok-4", (Message("user", (ImagePart("https://x.ai/a.png"),)),))
    with pytest.raises(BadRequest, match=r"`grok-4` \(fake.gguf\) reads text only"):
        await answer(engine, picture)


async def test_with_a_projector_images_pass_as_they_are_and_addresses_never(make: Make, home: Path) -> None:
    (home / "eye.gguf").write_bytes(b"GGUF")
    told: list[ServerArgs] = []
    engine = make(mmproj="eye.gguf")
    command = engine._command

    def noting(args: ServerArgs) -> Sequence[str]:
        told.append(args)
        return command(args)

    engine._command = noting
    assert engine.weights("any").input == ("text", "image")
    await engine.start()
    picture = Generation("grok-4", (Message("user", (ImagePart("data:image/png;base64,AAAA"),)),))
    assert await answer(engine, picture)
    assert told[0].mmproj == str(home / "eye.gguf")
    assert told[0].batch == 512, "an image's tokens in one batch"
    for url in ("https://x.ai/a.png", "http://127.0.0.1/a.png", "file:///etc/passwd", "data:image/webp;base64,AAAA"):
        with pytest.raises(BadRequest, match="as data URLs"):
            await answer(engine, Generation("grok-4", (Message("user", (ImagePart(url),)),)))


async def test_a_projector_that_is_not_there(make: Make) -> None:
    engine = make(mmproj="eye.gguf")
    await engine.start()
    with pytest.raises(EngineUnavailable, match=r"There is no model file for `eye\.gguf`"):
        await engine.ready()


async def test_weights_tell_the_file_and_what_the_child_holds(make: Make, home: Path) -> None:
    engine = make()
    assert engine.weights("any").name == "fake.gguf"
    assert engine.weights("any").temperature is None, "not known before the child tells"
    await engine.start()
    await engine.ready()
    weights = engine.weights("any")
    assert weights.context == 1024, "less than was asked for: the child knows"
    assert weights.fingerprint == "fp_" + hashlib.sha256((home / "fake.gguf").read_bytes()).hexdigest()[:10]
    assert weights.input == ("text",)
    assert (weights.temperature, weights.top_p) == (0.8, 0.95), "32-bit numbers as they are meant"


async def test_tokens_are_counted(make: Make) -> None:
    engine = make()
    await engine.start()
    assert isinstance(engine, Tokenizer)
    assert [token.text for token in await engine.tokenize("any", "one two three")] == ["one", "two", "three"]


async def test_the_child_ends_when_the_parent_is_killed(home: Path) -> None:
    """A whole server's end in one process: nobody is there to send signals."""
    script = f"""
import asyncio, sys
from pathlib import Path
from jubal.engines.llama_cpp.engine import LlamaEngine
import msgspec

async def main():
    command = lambda args: [sys.executable, {str(FAKE)!r}, msgspec.json.encode(args).decode(), "--ignore-sigterm"]
    engine = LlamaEngine("local", Path({str(home)!r}), "fake.gguf", command=command)
    await engine.start()
    await engine.ready()
    print(engine._folder.path, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    folder = Path((await parent.stdout.readline()).decode().strip())
    (child,) = psutil.Process(parent.pid).children()
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    await wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert folder.exists(), "nobody was there to remove it"
    launch.SocketFolder().remove()
    assert not folder.exists(), "the next server does"


def test_folders_of_living_servers_are_left_alone(tmp_path: Path) -> None:
    first = launch.SocketFolder(tmp_path)
    second = launch.SocketFolder(tmp_path)
    assert first.path.exists()
    assert second.path.exists()
    first.remove()
    first.remove()
    assert list(tmp_path.iterdir()) == [second.path]
    second.remove()
