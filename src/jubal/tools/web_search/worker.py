"""A process that reads pages: requests on standard input, answers on standard output, until the input ends.

A request is a line of JSON (url, content_type, style, seconds, bytes) and that many bytes; an answer is its length in eight
hexadecimal digits, and JSON. Run as a program by extractor.py, in an environment without secrets.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
from typing import IO, Any, Final

MEMORY_BYTES_MAX: Final = 2 << 30
"""Address space. A page that needs more ends in an error."""
STUCK_S: Final = 120
"""Should nobody be left who ends this process: longest time for one page."""


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints does not get between the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes our input
    with contextlib.suppress(OSError, ValueError):  # not on every system
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    serve(sys.stdin.buffer, answers)


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    while line := requests.readline():
        asked = json.loads(line)
        body = requests.read(asked["bytes"])
        if len(body) < asked["bytes"]:
            return
        signal.alarm(STUCK_S)
        answer = json.dumps(answer_to(asked, body)).encode()
        signal.alarm(0)
        answers.write(b"%08x" % len(answer) + answer)
        answers.flush()


def answer_to(asked: dict[str, Any], body: bytes) -> dict[str, Any]:
    from jubal.tools.web_search.parsing import read
    from jubal.tools.web_search.pdf import Unfit

    try:
        return read(body, asked["url"], asked["content_type"], asked["style"], asked["seconds"])
    except Unfit as error:
        return {"kind": "error", "text": str(error)}
    except Exception as error:  # noqa: BLE001  a page may break any of the libraries, and must not end the others' worker
        return {"kind": "error", "text": f"it is broken ({type(error).__name__})"}


if __name__ == "__main__":
    main()
