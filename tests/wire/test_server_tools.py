"""What a run of code printed, as the dialects tell it."""

from __future__ import annotations

import json

import pytest

from jubal.wire.server_tools import ran

QUIET = {"stdout": "", "stderr": "", "output_files": {}, "error": "", "ret": ""}


@pytest.mark.parametrize(
    ("output", "logs"),
    [
        ("plain text", "plain text"),
        ("[1, 2]", "[1, 2]"),
        (json.dumps(QUIET), ""),
        (json.dumps({**QUIET, "stdout": "42\n"}), "42\n"),
        (json.dumps({**QUIET, "ret": "42"}), "42"),
        (json.dumps({**QUIET, "stdout": "a", "ret": "42"}), "a\n42"),
        (json.dumps({**QUIET, "stdout": "a\n", "stderr": "warn\n", "error": "Boom"}), "a\nwarn\nBoom"),
        (json.dumps({"stdout": None}), ""),
    ],
)
def test_logs_are_what_a_terminal_would_show(output: str, logs: str) -> None:
    assert ran(output).logs() == logs
