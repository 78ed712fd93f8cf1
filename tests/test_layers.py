"""Imports go down only (ARCHITECTURE.md, "Layers")."""

from __future__ import annotations

import ast
import gc
from pathlib import Path

import jubal

SRC = Path(jubal.__file__).parent

MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "wire": {"core"},
    "engines": {"core"},
    "tools": {"__version__", "core", "web", "config"},
    "web": {"core"},
    "accounts": {"core"},
    "records": {"core", "accounts"},
    "agent": {"core", "engines.base", "tools.base"},
    "serving": {
        "__version__",
        "admin",
        "core",
        "wire",
        "agent",
        "accounts",
        "records",
        "web",
        "engines.base",
        "engines.embedder",
        "engines.tokenizer",
    },
    "admin": {"core", "accounts", "records"},
    "testing": {"core", "engines", "accounts", "wire", "tools"},
    "config": set(),
    "catalogue": {"config", "core"},
    "supervisor": set(),
}
"""Package or top-level module to what of ours it may import. `app` and `cli` see everything."""

SEES_ALL = {"app", "cli", "__main__", "__init__", "plugins"}
STANDARD_ONLY = {"core"}


def parsed(file: Path) -> ast.Module:
    """Without collecting garbage meanwhile: if its end prints a traceback, which parses lines of code too, Python 3.11 loses count of
    how deep it is in this tree and raises `SystemError` (python/cpython issue 106905)."""
    gc.disable()
    try:
        return ast.parse(file.read_text())
    finally:
        gc.enable()


def imports(file: Path) -> set[str]:
    """Full names of the modules that `file` imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names if node.module.startswith("jubal")}
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{file}: relative import"
    return found


def test_imports_go_down_only() -> None:
    wrong = []
    for file in sorted(SRC.rglob("*.py")):
        place = file.relative_to(SRC).with_suffix("").parts
        if place[0] in SEES_ALL:
            continue
        allowed = {f"jubal.{name}" for name in MAY_IMPORT[place[0]] | {place[0]}}
        for name in imports(file):
            if not name.startswith("jubal."):
                continue
            if not any(name == ok or name.startswith(ok + ".") or ok.startswith(name + ".") for ok in allowed):
                wrong.append(f"{'/'.join(place)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_the_core_needs_the_standard_library_only() -> None:
    import sys

    for name in STANDARD_ONLY:
        for file in (SRC / name).rglob("*.py"):
            foreign = {
                found
                for found in imports(file)
                if found.split(".")[0] not in sys.stdlib_module_names and not found.startswith("jubal.")
            }
            assert not foreign, f"{file}: {foreign}"


def test_only_the_composition_root_reads_the_environment() -> None:
    allowed = {"app.py", "config.py"}
    for file in sorted(SRC.rglob("*.py")):
        place = file.relative_to(SRC)
        if place.name in allowed or place.parts[0] in {"cli", "testing"}:
            continue
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
                assert node.attr not in {"environ", "getenv"} or "weights" in place.name, (
                    f"{place} reads the environment"
                )
