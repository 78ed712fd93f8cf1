"""One warm interpreter that forks a supervisor for each session and does nothing else. It never runs a model's code."""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
import time
from typing import Any, Final

from jubal.tools.code_execution.inside import supervisor
from jubal.tools.code_execution.inside.plan import Plan

CONTROL_FD: Final = 3
MESSAGE_BYTES_MAX: Final = 4096
FDS_PER_SESSION: Final = 4
"""The server's channel, stdout, stderr and, where there is one, the session's cgroup."""


def main(text: str) -> None:
    plan = Plan.loads(text)
    if os.getuid() == 0:
        sys.exit("refused: the sandbox must not run as root")
    if sys.version != plan.version:
        sys.exit(f"another Python was started: {sys.version}")
    control = socket.socket(fileno=CONTROL_FD)
    started = time.monotonic()
    prepare(plan)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors are reaped by the kernel
    control.send(json.dumps({"ready": True, "seconds": time.monotonic() - started}).encode())
    serve(plan, control)


def serve(plan: Plan, control: socket.socket) -> None:
    """Until the server closes its end, or dies."""
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(control, MESSAGE_BYTES_MAX, FDS_PER_SESSION)
        except InterruptedError:
            continue
        if not data:
            return
        try:
            pid = os.fork()
        except OSError:
            pid = -1  # the session's channel closes, which says it
        if pid == 0:
            control.close()
            supervisor.main(plan, fds)
        for fd in fds:
            os.close(fd)


def prepare(plan: Plan) -> None:
    """Imports the libraries, and what they would otherwise import at their first use."""
    sys.path.extend(plan.site)
    for name in ("jubal", "jubal.tools", "jubal.tools.code_execution"):
        del sys.modules[name]
    for name in ("ast", "linecache", "multiprocessing", "random", "subprocess", "traceback", *plan.libraries):
        importlib.import_module(name)
    if "matplotlib" in plan.libraries:
        _prepare_plots()
    if "numpy" in plan.libraries:
        importlib.import_module("numpy.random")  # or seeding it costs each session 10 ms
    _quitters()
    gc.collect()
    gc.freeze()


def _prepare_plots() -> None:
    """The font list is built here once. A figure that the code saved itself is marked, and not saved again."""
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    figure: Any = importlib.import_module("matplotlib.figure").Figure
    save = figure.savefig

    def savefig(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = save(self, *args, **kwargs)
        self._jubal_saved = True
        return result

    drawn = pyplot.figure()
    drawn.add_subplot().plot([1, 2], [1, 2], label="a")
    drawn.canvas.draw()
    pyplot.close("all")
    figure.savefig = savefig
    pyplot.show = lambda *args, **kwargs: None  # what is open at the end of a call is saved then


def _quitters() -> None:
    """`exit` and the like, which `-S` leaves out together with the site's files."""
    site: Any = importlib.import_module("site")
    site.setquit()
    site.sethelper()
