"""Tests that need what no ordinary installation has: left out unless asked for by their marker, `pytest -m live tests/live`."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "live" in config.getoption("markexpr"):
        return
    left_out = [item for item in items if item.path.is_relative_to(HERE)]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
