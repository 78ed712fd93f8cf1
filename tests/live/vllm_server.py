"""A real vLLM on this machine's CPU: its environment, the embedded model as vLLM wants it, and the server.

`python -m tests.live.vllm_server` prepares the first two in .cache/live-vllm; both are kept.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.server import free_port

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "vllm-requirements.txt"
TEMPLATE = HERE / "smollm2-tools.jinja"
NAME = "smollm2"
CONTEXT = 2048
START_TIMEOUT_S = 600.0
FLAGS = (
    *("--max-model-len", str(CONTEXT)),
    *("--dtype", "bfloat16"),
    *("--max-num-seqs", "16"),
    "--enforce-eager",  # no minutes of compiling for a model of this size
    *("--chat-template", str(TEMPLATE)),
    "--enable-auto-tool-choice",
    *("--tool-call-parser", "hermes"),
    "--enable-prompt-tokens-details",  # usage with cached_tokens
)
MEDIA = ("torchvision", "torchaudio", "torchcodec")
"""For pictures and sound. Most indexes' builds are for CUDA, and then `import transformers` fails beside PyTorch for CPU."""
SILENT = {
    # Nothing leaves the machine: no usage reports, no look at a model hub.
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
}

# ---------------------------------------------------------------------------------------------- environment and model


def prepare(home: Path, gguf: Path) -> None:
    """The environment and the model's folder, made where they are not there or their inputs changed."""
    wanted = REQUIREMENTS.read_text()
    stamp = home / "venv" / ".installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"Installing vLLM into {home / 'venv'} (about 2 GB) …", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(home / "venv")], check=True)
        pip = [str(home / "venv/bin/python"), "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", "-r", str(REQUIREMENTS)], check=True)
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", *MEDIA], check=True)
        stamp.write_text(wanted)
    folder = home / NAME
    if not (folder / "config.json").exists():
        print(f"Converting {gguf.name} …", flush=True)
        part = home / f"{NAME}.part"
        shutil.rmtree(part, ignore_errors=True)
        convert = [str(home / "venv/bin/python"), str(HERE / "vllm_convert.py"), str(gguf), str(part)]
        subprocess.run(convert, check=True, env={**os.environ, **SILENT})
        part.rename(folder)


def embedded_model(models: Path) -> Path:
    """The embedded model's GGUF file, fetched where it is not there."""
    from jubal.engines import weights

    if weights.resolve(models, "smollm2-135m") is None:
        weights.pull(models, "smollm2-135m", lambda done, total: None)
    return models / weights.SMOLLM2.file


# ---------------------------------------------------------------------------------------------- the server


@dataclass
class Vllm:
    """A started vLLM. Its processes are a session of their own."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def get(self, path: str, timeout: float = 10) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels, such as `num_requests_running`."""
        found = re.findall(rf"^vllm:{name}(?:{{[^}}]*}})? (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        assert found, f"vLLM has no metric {name}"
        return sum(map(float, found))

    def version(self) -> str:
        version: str = json.loads(self.get("/version")[1])["version"]
        return version

    def post(self, path: str, body: Any, timeout: float = 60) -> tuple[int, Any]:
        """What vLLM itself says, without Jubal between."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def kill(self) -> None:
        """SIGKILL to all its processes at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
        self.kill()


def start(home: Path, log: Path, port: int = 0) -> Vllm:
    """Starts the server and waits until it answers. port: 0 for a free one."""
    port = port or free_port()
    # What `vllm serve` runs; that command itself asks for the version of a package `vllm`, which vllm-cpu is not.
    argv = [str(home / "venv/bin/python"), "-m", "vllm.entrypoints.openai.api_server"]
    argv += [
        "--model",
        str(home / NAME),
        "--served-model-name",
        NAME,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        *FLAGS,
    ]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {**SILENT, "PATH": f"{home / 'venv/bin'}{os.pathsep}{os.environ.get('PATH', '')}"}
    with log.open("ab") as out:
        process = subprocess.Popen(
            argv, env=env, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )
    vllm = Vllm(process, port, log)
    try:
        _until_healthy(vllm)
    except BaseException:
        vllm.kill()
        raise
    return vllm


def _until_healthy(vllm: Vllm) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        assert vllm.process.poll() is None, f"vLLM ended:\n{vllm.log.read_text()[-4000:]}"
        with contextlib.suppress(OSError, http.client.HTTPException):
            if vllm.get("/health", timeout=5)[0] == 200:
                return
        time.sleep(0.25)
    raise AssertionError(f"vLLM is not ready after {START_TIMEOUT_S} s:\n{vllm.log.read_text()[-4000:]}")


@contextlib.contextmanager
def running(home: Path, log: Path) -> Iterator[Vllm]:
    """A vLLM that is gone at the end, whatever happens."""
    vllm = start(home, log)
    try:
        yield vllm
    finally:
        vllm.stop()


if __name__ == "__main__":
    from tests.conftest import CACHE

    (CACHE / "live-vllm").mkdir(parents=True, exist_ok=True)
    prepare(CACHE / "live-vllm", embedded_model(CACHE / "models"))
