"""Each endpoint name that an ACL may hold opens exactly the routes that it says, on a really started server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest

from jubal.accounts.acl import ENDPOINTS
from tests.server import ECHO, Server, running

TALK: Final = {"model": "grok-4", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
NOBODY: Final = "00000000-0000-4000-8000-000000000000"
ROUTES: Final[dict[tuple[str, str], tuple[str | None, Any]]] = {
    # its ACL, None where any key will do; and a body
    ("POST", "/v1/chat/completions"): ("chat", TALK),
    ("GET", "/v1/chat/deferred-completion/{}"): ("chat", None),
    ("POST", "/v1/responses"): ("chat", {"model": "grok-4", "input": "hi", "max_output_tokens": 3}),
    ("POST", "/v1/responses/compact"): ("chat", {"model": "grok-4", "input": "hi"}),
    ("GET", "/v1/responses/{}"): ("chat", None),
    ("GET", "/v1/responses/{}/input_items"): ("chat", None),
    ("DELETE", "/v1/responses/{}"): ("chat", None),
    ("POST", "/v1/messages"): ("chat", TALK),
    ("POST", "/v1/messages/count_tokens"): ("chat", {name: TALK[name] for name in ("model", "messages")}),
    ("POST", "/v1/completions"): ("sample", {"model": "grok-4", "prompt": "hi", "max_tokens": 3}),
    ("POST", "/v1/complete"): ("sample", {"model": "grok-4", "prompt": "hi", "max_tokens_to_sample": 3}),
    ("POST", "/v1/embeddings"): ("embed", {"model": "grok-embedding-small", "input": "hi"}),
    ("POST", "/v1/tokenize-text"): ("tokenize", {"model": "grok-4", "text": "hi"}),
    ("GET", "/v1/models"): ("models", None),
    ("GET", "/v1/models/{}"): ("models", None),
    ("GET", "/v1/language-models"): ("models", None),
    ("GET", "/v1/language-models/{}"): ("models", None),
    ("GET", "/v1/embedding-models"): ("models", None),
    ("GET", "/v1/embedding-models/{}"): ("models", None),
    ("GET", "/v1/api-key"): (None, None),
    ("GET", "/v1/me"): (None, None),
}
OPEN: Final = {"/health", "/openapi.json"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("acls") / "home", config=ECHO) as started:
        yield started


def test_every_route_is_here(server: Server) -> None:
    _, _, described = server.request("GET", "/openapi.json", key=None)
    found = set()
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            if path not in OPEN and not path.startswith(("/auth/", "/audit/", "/v1/billing/")):
                assert operation
                named = "/".join("{}" if part.startswith("{") else part for part in path.split("/"))
                found.add((method.upper(), named))
    assert found == set(ROUTES)
    assert {name for name, _ in ROUTES.values() if name} <= set(ENDPOINTS)


@pytest.mark.parametrize("name", sorted(ENDPOINTS))
def test_a_key_opens_what_its_acl_names(server: Server, name: str) -> None:
    acls = ("--acl", f"api-key:endpoint:{name}", "--acl", "api-key:model:*")
    key = server.command("keys", "create", "--name", f"only {name}", *acls)["key"]
    for (method, path), (needed, body) in ROUTES.items():
        filled = path.replace("{}", "grok-4" if needed == "models" else NOBODY)
        status, _, answer = server.request(method, filled, body, key=key)
        if needed in (None, name):
            assert status in (200, 404), (path, answer)
        else:
            assert (status, answer["error"]["code"]) == (403, "endpoint_not_allowed"), (path, answer)
            assert f"`api-key:endpoint:{needed}`" in answer["error"]["message"]


def test_what_the_management_api_lists(server: Server) -> None:
    boss = server.command("keys", "create", "--name", "boss", "--management")
    status, _, answer = server.request("GET", f"/auth/teams/{boss['team_id']}/endpoints", key=boss["key"])
    assert status == 200
    assert [acl["value"] for acl in answer["acls"]] == ["*", *ENDPOINTS]
    path = f"/auth/teams/{boss['team_id']}/api-keys"
    wanted = {"name": "k", "acls": ["api-key:endpoint:completions"]}
    status, _, answer = server.request("POST", path, wanted, key=boss["key"])
    assert (status, answer["error"]["param"]) == (400, "acls")
    assert "sample" in answer["error"]["message"]
