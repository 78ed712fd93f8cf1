"""The command line: arguments in, calls of the parts below, text or JSON out. One file per command group."""

from __future__ import annotations

import sys


def main() -> None:
    """The `jubal` command."""
    try:
        from jubal.cli.root import app  # inside: Ctrl-C during the imports is quiet too

        app(prog_name="jubal")
    except KeyboardInterrupt:
        sys.exit(130)
