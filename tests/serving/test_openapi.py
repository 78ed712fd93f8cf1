"""Every route is described, in the OpenAPI document and in docs/reference/http.md, and nothing else is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from jubal import app, config
from jubal.core.errors import EngineUnavailable
from jubal.serving.breaker import Breaker, never
from jubal.serving.openapi import TABLES, describe
from jubal.testing import ScriptedEngine
from jubal.wire.openapi import Operation, document
from tests.openapi_schemas import Described
from tests.serving.test_pipeline import pipeline

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "http.md"
OPERATIONS = [operation for table in TABLES for operation in table]


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str]]:
    """Those of a server with all defaults."""
    settings = config.load(None, {"JUBAL_HOME": str(tmp_path_factory.mktemp("home"))})
    jubal = app.build(settings)
    try:
        return jubal.http.routes()
    finally:
        jubal.store.close()


def test_every_route_is_described(routes: set[tuple[str, str]]) -> None:
    assert routes == {operation.route for operation in OPERATIONS}


def test_only_routes_that_are_there_are_published(routes: set[tuple[str, str]]) -> None:
    assert set(json.loads(describe(routes))["paths"]) == {operation.path for operation in OPERATIONS}
    assert set(json.loads(describe({("GET", "/health")}))["paths"]) == {"/health"}


def test_names_are_given_once() -> None:
    names = [operation.name for operation in OPERATIONS]
    assert len(names) == len(set(names))
    linked = {name for operation in OPERATIONS for name in operation.links}
    assert linked <= set(names)


def test_two_structs_of_one_name_are_refused() -> None:
    def operation(name: str, answer: type) -> Operation:
        return Operation("GET", f"/{name}", name, "", "", {200: answer})

    first, second = _same_name("a"), _same_name("b")
    with pytest.raises(ValueError, match="same name"):
        document((operation("a", first), operation("b", second)), title="t", version="0", description="")


def _same_name(module: str) -> type:
    import msgspec

    return msgspec.defstruct("Twin", [("x", int)], module=module)


def test_health_keeps_to_its_description() -> None:
    described = Described(OPERATIONS)
    rests = Breaker("scripted", failures_max=1, rest_s=60)
    with pytest.raises(EngineUnavailable), rests.attempt():
        raise EngineUnavailable("away")
    for breaker in (never(), rests):
        made, _ = pipeline(ScriptedEngine(()), breaker=breaker)
        described.check("Health", app.health(made)[1])


def test_the_page_on_routes_lists_them_all() -> None:
    listed = re.findall(r"^\| `([A-Z]+) (/[^`]*)` \| (\w+)", PAGE.read_text(), re.MULTILINE)
    assert {(method, path) for method, path, _ in listed} == {(one.method, one.path) for one in OPERATIONS}
    for word, needed in (
        ("key", [one for one in OPERATIONS if one.needs_key and not one.management]),
        ("management", [one for one in OPERATIONS if one.management]),
    ):
        assert {(method, path) for method, path, key in listed if key == word} == {
            (one.method, one.path) for one in needed
        }
