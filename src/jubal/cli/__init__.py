"""The command line: arguments in, calls of the parts below, text or JSON out. One file per command group."""

from __future__ import annotations

import io
import os
import sys


def main() -> None:
    """The `jubal` command. A fault of ours is one line too; JUBAL_TRACEBACK=1 shows where, without locals, which may hold a key."""
    _say_what_can_be_said()
    try:
        from jubal.cli.root import app  # inside: Ctrl-C during the imports is quiet too

        app(prog_name="jubal")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if os.environ.get("JUBAL_TRACEBACK"):
            raise
        print(
            f"jubal: this is a fault of Jubal's own ({type(error).__name__}). The same command with JUBAL_TRACEBACK=1 set shows "
            "where; please report it with that.",
            file=sys.stderr,
        )
        sys.exit(1)


def _say_what_can_be_said() -> None:
    """A name that the terminal's or pipe's encoding does not have is shown by its code points: a table must not break off at it."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
