"""The OpenAPI document of a whole server, and Schemathesis on it: what is answered to thousands of bodies keeps to it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server import ECHO, Server, running

CONFIG = (
    "[server]\nwrong_key_delay_s = 0\n"  # Schemathesis tries a wrong key on every route
    + ECHO
    + """
[engines.words]
kind = "wordllama"
[models."grok-embedding-small"]
kind = "embedding"
engine = "words"
"""
)
NEVER_ANSWERED = {
    "/v1/billing/teams/{team_id}/payment-method/default",
    "/v1/billing/teams/{team_id}/prepaid/top-up",
}
"""What this server refuses whatever the body."""
ROOT = Path(__file__).parents[2]
EXAMPLES = 10
"""For each operation, beside the hundreds that are made of the document's bounds whatever this says."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("openapi") / "home", config=CONFIG) as server:
        yield server


@pytest.fixture(scope="module")
def document(server: Server) -> dict[str, Any]:
    status, headers, document = server.request("GET", "/openapi.json", key=None)
    assert status == 200
    assert headers["content-type"] == "application/json"
    return document  # type: ignore[no-any-return]


def test_every_example_of_the_document_is_answered(server: Server, document: dict[str, Any]) -> None:
    seen = 0
    boss = server.command("keys", "create", "--name", "boss", "--management")
    made = server.command("keys", "create", "--name", "managed")
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                if path in NEVER_ANSWERED:
                    assert "example" not in content
                    continue
                where = path.replace("{team_id}", boss["team_id"]).replace("{api_key_id}", made["id"])
                key = boss["key"] if operation["security"] == [{"management": []}] else ""
                status, _, answer = server.request(method.upper(), where, content["example"], key=key)
                assert status == 200, (path, answer)
                seen += 1
    bodies = [1 for operations in document["paths"].values() for one in operations.values() if "requestBody" in one]
    assert seen + len(NEVER_ANSWERED) == len(bodies)


@pytest.mark.timeout(300)  # 20 s of work, on a machine that has nothing else to do
def test_schemathesis_finds_nothing(server: Server, document: dict[str, Any], tmp_path: Path) -> None:
    """All checks but `positive_data_acceptance`: fields bound each other in ways that no schema says, which is a 400."""
    report = tmp_path / "junit.xml"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{server.port}/openapi.json"),
            *("--header", f"Authorization: Bearer {server.key}", "--seed", "1", "--generation-database", "none"),
            *("--max-examples", str(EXAMPLES), "--exclude-checks", "positive_data_acceptance", "--continue-on-failure"),
            *("--report", "junit", "--report-junit-path", str(report), "--no-color", "--request-timeout", "20"),
        ],
        cwd=tmp_path,  # it reads a schemathesis.toml where it runs
        env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.flow.schemathesis_hooks", "PYTHONPATH": _import_path()},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    tested = {case.get("name") for case in ET.parse(report).iter("testcase")}
    described = {f"{method.upper()} {path}" for path, operations in document["paths"].items() for method in operations}
    assert described - tested == {"GET /openapi.json"}, "which it has read already"
    generated = re.search(r"(\d+) generated", done.stdout)
    assert generated, done.stdout
    assert int(generated[1]) > 500, "so many that a check which sees none of them would be noticed"
    assert "fault of ours" not in server.log.read_text()
    by_status = {row["status"] for row in server.usage()}
    assert "ok" in by_status, "some requests got through to the engine"


def _import_path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
