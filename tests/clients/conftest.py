"""`client`: a client library in its own environment, against a really started server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jubal.cli.doctor import check_code_execution
from jubal.config import CodeExecution
from tests.clients import environments, scripted
from tests.clients.environments import Environment, NotInstalled
from tests.conftest import CACHE
from tests.server import Server, running, to_upstream

CLIENT_TIMEOUT_S = 600
"""Of a test that may have to install its client first."""
Client = Callable[..., Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "environment_of" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(CLIENT_TIMEOUT_S))


@pytest.fixture(scope="session")
def scripted_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A really started server whose grok-4 answers as scripted.py says."""
    home = tmp_path_factory.mktemp("scripted")
    with scripted.in_a_thread(scripted.scripted()) as there:
        with running(home / "jubal", config=to_upstream(there.url)) as server:
            yield server


@pytest.fixture(scope="session")
def sandboxed() -> None:
    """Skips where models can't run code, with the reason that `jubal doctor` gives."""
    found = check_code_execution(CodeExecution())
    if found.status != "ok":
        pytest.skip(f"models can't run code here: {found.detail}")


@pytest.fixture(scope="session")
def made() -> dict[str, Environment | NotInstalled]:
    """What came of each environment, so that one that can't be had is tried once."""
    return {}


@pytest.fixture
def environment_of(
    request: pytest.FixtureRequest, made: dict[str, Environment | NotInstalled]
) -> Callable[[str], Environment]:
    """`environment_of("instructor")` is the environment, made first if need be.

    Skips where a package can't be had, and only then.
    """

    def say(text: str) -> None:
        capture = request.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            print(f"\nclients: {text}", flush=True)

    def environment_of(name: str) -> Environment:
        if name not in made:
            try:
                made[name] = environments.environment(name, CACHE / "clients", say)
            except NotInstalled as error:
                made[name] = error
        found = made[name]
        if isinstance(found, NotInstalled):
            say(f"{name} is not tested: {found}")
            pytest.skip(f"the packages of {name} can't be installed here: {found}")
        return found

    return environment_of


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty folder for what a library wants to keep."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def client_of(environment_of: Callable[[str], Environment], home: Path) -> Callable[[str, Server], Client]:
    """`client_of("instructor", server)` gives a function that runs parts of scripts/instructor.py and returns what they print."""

    def client_of(name: str, server: Server) -> Client:
        environment = environment_of(name)
        script = f"{name}.mjs" if environment.node else f"{name}.py"

        def run(*arguments: str, **variables: str) -> Any:
            return environment.run(
                script, *arguments, home=home, JUBAL_URL=server.url, JUBAL_KEY=server.key, **variables
            )

        return run

    return client_of
