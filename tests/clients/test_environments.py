"""The mechanism that runs client libraries in environments of their own (README.md here)."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.clients import environments
from tests.clients.environments import ENVS, SCRIPTS, ClientFailed, NotInstalled


@pytest.mark.parametrize("name", environments.names())
def test_every_version_is_exact_and_no_registry_is_named(name: str) -> None:
    files = environments.files_of(name)
    assert files[0].suffix == ".txt"
    assert len([script for script in SCRIPTS.iterdir() if script.stem == name]) == 1
    for file in files:
        text = file.read_text()
        assert "://" not in text
        if file.suffix == ".json":
            assert all(re.fullmatch(r"\d+\.\d+\.\d+", one) for one in json.loads(text)["dependencies"].values())
        else:
            lines = [line for line in text.splitlines() if line and not line.startswith("#")]
            assert lines
            assert all(re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[^\s;]+( ?; .+)?", line) for line in lines), lines


def test_nothing_lies_about_that_belongs_to_no_environment() -> None:
    known = {file for name in environments.names() for file in environments.files_of(name)}
    assert set(ENVS.iterdir()) == known


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Environments without packages, or with one that nobody has, made in no time and from no registry."""
    envs, scripts = tmp_path / "envs", tmp_path / "scripts"
    envs.mkdir()
    scripts.mkdir()
    (envs / "bare.txt").write_text("# nothing\n")
    (envs / "amiss.txt").write_text("./no-such-package.whl\n")
    monkeypatch.setattr(environments, "ENVS", envs)
    monkeypatch.setattr(environments, "SCRIPTS", scripts)
    return tmp_path


def test_it_is_made_once_and_again_when_its_list_changes(empty: Path) -> None:
    said: list[str] = []
    first = environments.environment("bare", empty / "cache", said.append)
    assert len(said) == 2
    assert environments.environment("bare", empty / "cache", said.append) == first
    assert len(said) == 2
    (empty / "envs" / "bare.txt").write_text("# nothing at all\n")
    assert environments.environment("bare", empty / "cache", said.append).folder != first.folder


def test_one_that_was_left_half_made_is_made_anew(empty: Path) -> None:
    first = environments.environment("bare", empty / "cache", print)
    (first.folder / environments.MARKER).unlink()
    shutil.rmtree(first.folder / "bin")
    again = environments.environment("bare", empty / "cache", print)
    assert (again.folder / "bin" / "python").exists()


def test_what_cant_be_installed_says_why_and_leaves_nothing(empty: Path) -> None:
    with pytest.raises(NotInstalled, match="no-such-package"):
        environments.environment("amiss", empty / "cache", print)
    assert [entry.name for entry in (empty / "cache").iterdir()] == ["amiss.lock"]


def test_a_script_that_fails_is_a_failure(empty: Path) -> None:
    made = environments.environment("bare", empty / "cache", print)
    script = empty / "scripts" / "bare.py"
    script.write_text("import json, os, sys\nprint('noise')\nprint(json.dumps([sys.argv[1], os.environ['WHAT']]))\n")
    assert made.run("bare.py", "a", home=empty, WHAT="b") == ["a", "b"]
    script.write_text("raise SystemExit('it broke')")
    with pytest.raises(ClientFailed, match="it broke"):
        made.run("bare.py", home=empty)
    script.write_text("print('no json')")
    with pytest.raises(ClientFailed, match="no JSON"):
        made.run("bare.py", home=empty)


def test_a_client_speaks_to_this_machine_only(empty: Path) -> None:
    """Asking for an address is refused before a socket is opened."""
    made = environments.environment("bare", empty / "cache", print)
    (empty / "scripts" / "bare.py").write_text("import socket\nsocket.getaddrinfo('example.invalid', 443)\n")
    with pytest.raises(ClientFailed, match=r"this machine only, not to example\.invalid"):
        made.run("bare.py", home=empty)
