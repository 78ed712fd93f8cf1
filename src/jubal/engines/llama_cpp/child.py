"""What runs in the child process: llama.cpp's HTTP server, until the parent is gone or says stop.

    python -m jubal.engines.llama_cpp.child '{"model": …, "socket": …, …}'

xllamacpp keeps an interpreter from exiting while its server lives, so every way out of here is `os._exit` or a signal.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from typing import Final

import msgspec

EXIT_FAILED: Final = 1
LOG_LAG_S: Final = 0.5
"""llama.cpp writes its log in a thread of its own, which is cut off by the exit: what it says of a model that fails is there."""
_PR_SET_PDEATHSIG: Final = 1
LOG_WARNINGS: Final = 2
"""llama.cpp's verbosity: errors and warnings. The next level writes several lines for every request."""


class ServerArgs(msgspec.Struct, frozen=True, kw_only=True):
    """What the parent tells the child.

    socket: path of the UNIX socket to listen on. context: tokens that every slot holds. threads: None lets llama.cpp choose.
    mmproj: path of the projector that makes images into embeddings of the model; None: it reads text only.
    batch: prompt tokens computed at a time. cache_mib: memory for prompts that lost their slot. gpu_layers: -1 means as many as
    fit. embedding: it makes vectors, not text. pooling: how one is made of those of all tokens; None: as the file says.
    """

    parent: int
    model: str
    socket: str
    context: int
    slots: int
    threads: int | None
    gpu_layers: int
    batch: int
    cache_mib: int
    mmproj: str | None = None
    embedding: bool = False
    pooling: str | None = None


def main() -> None:
    args = msgspec.json.decode(sys.argv[1], type=ServerArgs)
    die_with(args.parent)
    try:
        server = serve(args)
    except Exception as error:  # noqa: BLE001  whatever it is, the parent reads it as the last line of the log
        print(f"E {error}", file=sys.stderr, flush=True)  # noqa: T201
        time.sleep(LOG_LAG_S)
        os._exit(EXIT_FAILED)
    threading.Event().wait()
    del server  # never reached: it only keeps the server alive until here


def die_with(parent: int) -> None:
    """Sees to it that this process ends with its parent, even one that was killed.

    Twice: the kernel's signal acts at once, on Linux, also while a model is loading with the interpreter's lock held; the end
    of standard input, a pipe that the parent holds open, acts everywhere. (To the kernel the parent is the thread that made
    this process: the one of the server's event loop, which lives as long as the server.)
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which drains first
    threading.Thread(target=_exit_at_end_of_input, daemon=True).start()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(EXIT_FAILED)


def _exit_at_end_of_input() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


def serve(args: ServerArgs) -> object:
    """Loads the model and begins to listen; the server runs in threads of its own as long as the result lives."""
    # How long a thread spins while it waits for the others, before it sleeps. The OpenMP default of 300,000 turns lets two
    # threads on two cores stop each other whenever anything else runs, such as the server that this child belongs to. Measured
    # so on a busy machine: median 67 tokens/s instead of 29 (four streams: 193, 57); on an idle one both give 168 (236, 230).
    os.putenv("GOMP_SPINCOUNT", "1000")
    from xllamacpp import CommonParams, Server

    params = CommonParams()
    params.model.path = args.model
    if args.mmproj is not None:
        params.mmproj.path = args.mmproj
        params.mmproj_use_gpu = args.gpu_layers != 0
    params.hostnames = [args.socket]
    params.n_parallel = args.slots
    # Each slot has its own cells: with kv_unified all slots share one pool, so either a full window in one makes the others
    # fail ("Context size has been exceeded"), or the pool is as large as here and attention over it slower (184 s against
    # 130 s for four prompts of 7,000 tokens).
    params.kv_unified = False
    params.n_ctx = args.slots * args.context
    params.n_gpu_layers = args.gpu_layers
    if args.threads is not None:
        params.cpuparams.n_threads = args.threads
        params.cpuparams_batch.n_threads = args.threads
    params.n_batch = args.batch
    params.n_ubatch = args.batch
    params.cache_prompt = True
    params.cache_ram_mib = args.cache_mib
    params.use_jinja = True
    params.ui = False
    params.endpoint_slots = True
    params.sse_ping_interval = -1  # a ping would make a model that hangs look as if it were only slow
    params.verbosity = LOG_WARNINGS
    if args.embedding:
        params.embedding = True
        params.cache_prompt = False  # a vector is made of all tokens of an input, the ones seen before included
    if args.pooling is not None:
        from xllamacpp import llama_pooling_type

        params.pooling_type = llama_pooling_type[f"LLAMA_POOLING_TYPE_{args.pooling.upper()}"]
    return Server(params)


if __name__ == "__main__":
    main()
