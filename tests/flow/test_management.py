"""The management API and the keys of really started servers, on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jubal import config
from jubal.accounts import ledger, tables, usage
from jubal.accounts.store import Store
from jubal.wire.management import OPERATIONS
from tests.accounts.conftest import usage_row
from tests.openapi_schemas import Described
from tests.server import ECHO, Server, jubal, running

TAKES_EFFECT_S = 2.0
"""On every gateway."""


class Managed:
    """A server, and a management key of its default team."""

    """A management key, of the default team unless one is named."""

    def __init__(self, server: Server, described: Described, team: str | None = None) -> None:
        self.server = server
        of_team = () if team is None else ("--team", team)
        made = server.command("keys", "create", "--name", "boss", "--management", *of_team)
        self.secret: str = made["key"]
        self.key_id: str = made["id"]
        self.team: str = made["team_id"]
        self.described = described
        self.where: dict[str, Any] = {"home": server.home, "JUBAL_CONFIG": str(server.config)}
        self.store_url = config.load(server.config, {"JUBAL_HOME": str(server.home)}).store_url

    def of_new_team(self, name: str) -> Managed:
        self.server.command("teams", "create", "--name", name)
        return Managed(self.server, self.described, name)

    def __call__(self, method: str, path: str, body: Any = None, *, key: str | None = None) -> tuple[int, Any]:
        status, headers, answer = self.server.request(
            method, path.replace("{team_id}", self.team), body, key=key or self.secret
        )
        assert headers["x-request-id"]
        return status, answer

    def ok(self, method: str, path: str, body: Any = None, *, answers: str) -> Any:
        """A 200 that keeps to its description."""
        status, answer = self(method, path, body)
        assert status == 200, answer
        self.described.check(answers, json.dumps(answer))
        return answer

    def refused(self, method: str, path: str, body: Any = None) -> tuple[int, str, str | None]:
        status, answer = self(method, path, body)
        error = answer["error"]
        assert set(error) <= {"message", "type", "code", "param"}
        return status, error["code"], error.get("param")

    def make(self, **fields: Any) -> dict[str, Any]:
        wanted = {"name": "k", "acls": ["api-key:endpoint:*", "api-key:model:*"], **fields}
        made: dict[str, Any] = self.ok("POST", "/auth/teams/{team_id}/api-keys", wanted, answers="ApiKey")
        return made

    def chat(self, secret: str) -> tuple[int, Any]:
        return self("POST", "/v1/chat/completions", CHAT, key=secret)


CHAT = {"model": "grok-4", "messages": [{"role": "user", "content": "one two three"}], "max_tokens": 8}


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def managed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Managed]:
    config = ECHO
    if request.param == "postgres":
        import psycopg

        server = request.getfixturevalue("postgres")
        with psycopg.connect(server.get_uri(), autocommit=True) as admin:
            admin.execute("CREATE DATABASE managed")
        config += f'[store]\nurl = "{server.get_uri(database="managed")}"\n'
    with running(tmp_path_factory.mktemp("managed") / "home", config=config) as started:
        yield Managed(started, Described(OPERATIONS))


def until_refused(ask: Any) -> tuple[int, Any]:
    """The first answer that is no 200. That it comes in two seconds is shown with a clock of the test's own in
    tests/accounts/test_keys.py; here a busy machine gets all the time it needs."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        status, answer = ask()
        if status != 200:
            return status, answer
        time.sleep(0.05)
    raise AssertionError("still 200 after a minute")


def test_the_life_of_a_key(managed: Managed) -> None:
    made = managed.make(name="ci", qps=40, qpm=60, tpm="100000")
    assert (made["name"], made["qps"], made["qpm"], made["tpm"]) == ("ci", 40, 60, "100000")
    assert made["disabled"] is False
    assert made["redactedApiKey"] == f"xai-...{made['apiKey'][-4:]}"
    path = f"/auth/api-keys/{made['apiKeyId']}"
    assert managed.chat(made["apiKey"])[0] == 200
    assert "apiKey" not in managed.ok("GET", path, answers="ApiKey")

    body = {"apiKey": {"name": "ci-2", "tpm": "5"}, "fieldMask": "name,qpm"}
    changed = managed.ok("PUT", path, body, answers="ApiKey")
    assert (changed["name"], changed["qpm"], changed["tpm"]) == ("ci-2", None, "100000"), "only what the mask names"
    assert changed["qps"] == 40
    assert managed.ok("PUT", path, {"apiKey": {"qps": 50}}, answers="ApiKey")["qps"] == 50

    rotated = managed.ok("POST", f"{path}/rotate", {}, answers="ApiKey")
    assert rotated["apiKeyId"] == made["apiKeyId"]
    assert managed.chat(rotated["apiKey"])[0] == 200
    time.sleep(TAKES_EFFECT_S)
    assert managed.chat(made["apiKey"])[0] == 200, "the old secret works on"
    assert managed.ok("GET", f"{path}/propagation", answers="Propagation") == {"icPropagation": {"jubal": True}}

    managed.ok("PUT", path, {"apiKey": {"disabled": True}, "fieldMask": "disabled"}, answers="ApiKey")
    status, answer = until_refused(lambda: managed.chat(rotated["apiKey"]))
    assert (status, answer["error"]["code"]) == (403, "key_disabled")
    assert managed.ok("DELETE", path, answers="Nothing") == {}
    status, answer = until_refused(lambda: managed.chat(rotated["apiKey"]))
    assert managed.refused("GET", path) == (404, "key_not_found", "api_key_id")


def test_pages_and_filters(managed: Managed) -> None:
    acl = "api-key:model:only-here"
    ids = [managed.make(name=f"p{n}", acls=[acl])["apiKeyId"] for n in range(5)]
    managed.ok(
        "PUT", f"/auth/api-keys/{ids[0]}", {"apiKey": {"disabled": True}, "fieldMask": "disabled"}, answers="ApiKey"
    )
    path = "/auth/teams/{team_id}/api-keys?pageSize=2&activeOnly=true&aclFilters=" + acl
    seen, token = [], ""
    for _ in range(4):
        page = managed.ok("GET", path + token, answers="ApiKeyList")
        seen += [key["apiKeyId"] for key in page["apiKeys"]]
        assert len(page["apiKeys"]) <= 2
        if "paginationToken" not in page:
            break
        token = f"&paginationToken={page['paginationToken']}"
    assert seen == ids[1:]
    everything = managed.ok("GET", "/auth/teams/{team_id}/api-keys?pageSize=1000", answers="ApiKeyList")["apiKeys"]
    assert managed.key_id not in [key["apiKeyId"] for key in everything], "management keys are not among them"


def test_pages_go_on_where_keys_are_deleted_meanwhile(managed: Managed) -> None:
    """Whoever cleans up deletes each page before it asks for the next one."""
    acl = "api-key:model:to-be-deleted"
    ids = [managed.make(name=f"d{n}", acls=[acl])["apiKeyId"] for n in range(5)]
    path = "/auth/teams/{team_id}/api-keys?pageSize=2&aclFilters=" + acl
    seen, token = [], ""
    for _ in range(3):
        page = managed.ok("GET", path + token, answers="ApiKeyList")
        for key in page["apiKeys"]:
            managed.ok("DELETE", f"/auth/api-keys/{key['apiKeyId']}", answers="Nothing")
            seen.append(key["apiKeyId"])
        token = f"&paginationToken={page.get('paginationToken')}"
    assert seen == ids
    assert "paginationToken" not in page


@pytest.mark.parametrize("path", ["/v1/api-key", "/v1/me", "/auth/management-keys/validation"])
def test_a_key_that_was_deleted_just_now_is_no_key(managed: Managed, path: str) -> None:
    """Within the two seconds in which a gateway may still know it."""
    kind = ["--management"] if "management" in path else []
    made = managed.server.command("keys", "create", "--name", "gone", *kind)
    assert managed.server.request("GET", path, key=made["key"])[0] == 200
    managed.server.command("keys", "delete", made["id"], "--yes")
    status, _, body = managed.server.request("GET", path, key=made["key"])
    assert (status, body["error"]["code"]) == (401, "invalid_api_key")


def test_messages_name_fields_as_this_api_does(managed: Managed) -> None:
    status, body = managed("POST", "/auth/teams/{team_id}/api-keys", {"name": "x", "qpm": -1})
    assert (status, body["error"]["param"]) == (400, "qpm")
    assert body["error"]["message"].startswith("qpm must be at least 1")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "param"),
    [
        ("POST", "/v1/billing/teams/{team_id}/billing-info", {"billingInfo": {"name": "x" * 501}}, 400, "invalid_value", "billingInfo.name"),
        ("POST", "/v1/billing/teams/{team_id}/billing-info", {"billingInfo": {"address": {"city": "a\nb"}}}, 400, "invalid_value", "billingInfo.address.city"),
        ("GET", "/auth/teams/{team_id}/api-keys?paginationToken=x", None, 400, "invalid_value", "paginationToken"),
        ("GET", "/auth/teams/{team_id}/api-keys?paginationToken=-1.x", None, 400, "invalid_value", "paginationToken"),
        ("POST", "/auth/teams/{team_id}/api-keys", {"name": ""}, 400, "invalid_name", "name"),
        ("POST", "/auth/teams/{team_id}/api-keys", {}, 422, "missing_field", "name"),
        ("POST", "/auth/teams/{team_id}/api-keys", {"name": 3}, 422, "invalid_type", "name"),
        ("POST", "/auth/teams/{team_id}/api-keys", {"name": "a", "acls": ["chat"]}, 400, "invalid_request", "acls"),
        ("POST", "/auth/teams/{team_id}/api-keys", {"name": "a", "qps": -3}, 400, "invalid_request", "qps"),
        ("POST", "/auth/teams/{team_id}/api-keys", {"name": "a", "qps": 2**53}, 400, "invalid_request", "qps"),
        ("POST", "/auth/teams/{team_id}/api-keys", {"name": "a", "qps": 1.5}, 422, "invalid_type", "qps"),
        ("POST", "/auth/teams/{team_id}/api-keys", {"name": "a", "qpm": -3}, 400, "invalid_request", "qpm"),
        ("POST", "/auth/teams/{team_id}/api-keys", {"name": "a", "tpm": "x"}, 400, "invalid_value", "tpm"),
        ("POST", "/auth/teams/{team_id}/api-keys", {"name": "a", "expireTime": "soon"}, 400, "invalid_value", "expireTime"),
        ("POST", "/auth/teams/{team_id}/api-keys", {"name": "a", "expireTime": "2020-01-01T00:00:00Z"}, 400, "expires_in_the_past", "expireTime"),
        ("POST", "/auth/teams/{team_id}/api-keys", {"name": "a", "expireTime": "9999-12-31T23:59:59-12:00"}, 400, "out_of_range", "expireTime"),
        ("POST", "/v1/billing/teams/{team_id}/usage", {"analyticsRequest": {"timeRange": {"startTime": "2026-10-01", "endTime": "2026-10-02"}, "values": [{"name": "usd"}], "filters": ["api_key_id:\0"]}}, 400, "invalid_value", "analyticsRequest.filters[0]"),
        ("POST", "/auth/teams/{team_id}/api-keys", b"{", 400, "invalid_json", None),
        ("GET", "/auth/teams/{team_id}/api-keys?pageSize=0", None, 400, "invalid_value", "pageSize"),
        ("GET", "/auth/teams/{team_id}/api-keys?activeOnly=maybe", None, 400, "invalid_value", "activeOnly"),
        ("GET", "/auth/teams/other/api-keys", None, 403, "other_team", "team_id"),
        ("POST", "/auth/teams/other/api-keys", {"name": "a"}, 403, "other_team", "team_id"),
        ("GET", "/auth/teams/other/models", None, 403, "other_team", "team_id"),
        ("GET", "/audit/teams/other/events", None, 403, "other_team", "team_id"),
        ("POST", "/v1/billing/teams/other/usage", {"analyticsRequest": {"timeRange": {"startTime": "2026-10-01", "endTime": "2026-10-02"}, "values": [{"name": "usd"}]}}, 403, "other_team", "team_id"),
        ("GET", "/v1/billing/teams/other/prepaid/balance", None, 403, "other_team", "team_id"),
        ("GET", "/auth/teams/other/limits", None, 403, "other_team", "team_id"),
        ("PUT", "/auth/teams/other/limits", {"rpm": "5"}, 403, "other_team", "team_id"),
        ("PUT", "/auth/teams/{team_id}/limits", {}, 400, "missing_field", "rpm"),
        ("PUT", "/auth/teams/{team_id}/limits", {"rps": "-1"}, 400, "invalid_value", "rps"),
        ("PUT", "/auth/teams/{team_id}/limits", {"rpm": -1}, 400, "invalid_request", "rpm"),
        ("PUT", "/auth/teams/{team_id}/limits", {"tpm": 2**53}, 400, "invalid_request", "tpm"),
        ("PUT", "/auth/teams/{team_id}/limits", {"tpm": True}, 422, "invalid_type", "tpm"),
        ("PUT", "/auth/teams/{team_id}/limits", {"model": "nothing", "tpm": 1}, 404, "model_not_found", "model"),
        ("PUT", "/auth/api-keys/nobody", {"apiKey": {"name": "a"}}, 404, "key_not_found", "api_key_id"),
        ("PUT", "/auth/api-keys/nobody", {"apiKey": {}}, 400, "missing_field", "apiKey"),
        ("PUT", "/auth/api-keys/nobody", {"apiKey": {}, "fieldMask": "secret"}, 400, "invalid_value", "fieldMask"),
        ("PUT", "/auth/api-keys/nobody", {"apiKey": {}, "fieldMask": "name"}, 400, "missing_field", "apiKey.name"),
        ("POST", "/auth/api-keys/nobody/rotate", None, 404, "key_not_found", "api_key_id"),
        ("DELETE", "/auth/api-keys/nobody", None, 404, "key_not_found", "api_key_id"),
        ("POST", "/auth/api-keys/nobody", None, 405, "method_not_allowed", None),
        ("GET", "/auth/api-keys", None, 404, "unknown_url", None),
        ("GET", "/audit/teams/{team_id}/events?paginationToken=x", None, 400, "invalid_value", "paginationToken"),
        ("GET", "/v1/billing/teams/{team_id}/invoices?since.month=3", None, 400, "invalid_value", "since.year"),
        ("POST", "/v1/billing/teams/{team_id}/prepaid/top-up", {"amount": {"val": "2500"}}, 404, "no_payment_method", "amount"),
        ("POST", "/v1/billing/teams/{team_id}/payment-method/default", {"paymentMethodId": "x"}, 404, "no_payment_method", "paymentMethodId"),
        ("POST", "/v1/billing/teams/{team_id}/postpaid/spending-limits", {}, 422, "missing_field", "desiredSoftSpendingLimit"),
        ("POST", "/v1/billing/teams/{team_id}/postpaid/spending-limits", {"desiredSoftSpendingLimit": {"val": "1.5"}}, 400, "invalid_value", "desiredSoftSpendingLimit.val"),
        ("POST", "/v1/billing/teams/{team_id}/postpaid/spending-limits", {"desiredSoftSpendingLimit": {"val": -1}}, 400, "out_of_range", "desiredSoftSpendingLimit.val"),
        ("POST", "/v1/billing/teams/{team_id}/postpaid/spending-limits", {"desiredSoftSpendingLimit": {"val": "9" * 18}}, 400, "out_of_range", "desiredSoftSpendingLimit.val"),
        ("POST", "/v1/billing/teams/other/postpaid/spending-limits", {"desiredSoftSpendingLimit": {"val": "1"}}, 403, "other_team", "team_id"),
    ],
)  # fmt: skip
def test_what_is_refused(
    managed: Managed, method: str, path: str, body: Any, status: int, code: str, param: str | None
) -> None:
    assert managed.refused(method, path, body) == (status, code, param)


def test_an_overlap_has_a_bound(managed: Managed) -> None:
    key_id = managed.make()["apiKeyId"]
    late = (datetime.now(UTC) + timedelta(days=8)).isoformat()
    body = {"oldSecretExpireTime": late}
    path = f"/auth/api-keys/{key_id}/rotate"
    assert managed.refused("POST", path, body) == (400, "out_of_range", "oldSecretExpireTime")


def test_an_old_secret_that_ends_now_ends_at_once(managed: Managed) -> None:
    """What is "now" for a client is in the past when its request arrives."""
    made = managed.make()
    body = {"oldSecretExpireTime": (datetime.now(UTC) - timedelta(seconds=2)).isoformat()}
    managed.ok("POST", f"/auth/api-keys/{made['apiKeyId']}/rotate", body, answers="ApiKey")
    assert until_refused(lambda: managed.chat(made["apiKey"]))[0] == 401


def test_each_kind_of_key_has_its_own_door(managed: Managed) -> None:
    status, answer = managed.chat(managed.secret)
    assert (status, answer["error"]["code"]) == (403, "management_key")
    for operation in OPERATIONS:
        if operation.management:
            path = operation.path.replace("{team_id}", managed.team).replace("{api_key_id}", "x")
            status, answer = managed(operation.method, path, {}, key=managed.server.key)
            assert (status, answer["error"]["code"]) == (403, "not_management_key"), operation.path
            status, answer = managed(operation.method, path, {}, key="xai-token-nobody")
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key"), operation.path


CALLS = {
    "ListApiKeys": ("GET", "/auth/teams/{team_id}/api-keys"),
    "CreateApiKey": ("POST", "/auth/teams/{team_id}/api-keys"),
    "UpdateApiKey": ("PUT", "/auth/api-keys/{key}"),
    "RotateApiKey": ("POST", "/auth/api-keys/{key}/rotate"),
    "CheckApiKeyPropagation": ("GET", "/auth/api-keys/{key}/propagation"),
    "ListPossibleModels": ("GET", "/auth/teams/{team_id}/models"),
    "ListPossibleEndpointAcls": ("GET", "/auth/teams/{team_id}/endpoints"),
    "GetTeamLimits": ("GET", "/auth/teams/{team_id}/limits"),
    "SetTeamLimits": ("PUT", "/auth/teams/{team_id}/limits"),
    "ListTeams": ("GET", "/auth/teams"),
    "ListAuditEvents": ("GET", "/audit/teams/{team_id}/events"),
    "GetBillingInfo": ("GET", "/v1/billing/teams/{team_id}/billing-info"),
    "SetBillingInfo": ("POST", "/v1/billing/teams/{team_id}/billing-info"),
    "ListInvoices": ("GET", "/v1/billing/teams/{team_id}/invoices"),
    "ListPaymentMethods": ("GET", "/v1/billing/teams/{team_id}/payment-method"),
    "SetDefaultPaymentMethod": ("POST", "/v1/billing/teams/{team_id}/payment-method/default"),
    "GetAmountToPay": ("GET", "/v1/billing/teams/{team_id}/postpaid/invoice/preview"),
    "GetSpendingLimits": ("GET", "/v1/billing/teams/{team_id}/postpaid/spending-limits"),
    "SetSoftSpendingLimit": ("POST", "/v1/billing/teams/{team_id}/postpaid/spending-limits"),
    "ListPrepaidBalanceChanges": ("GET", "/v1/billing/teams/{team_id}/prepaid/balance"),
    "TopUpOrGetExistingPendingChange": ("POST", "/v1/billing/teams/{team_id}/prepaid/top-up"),
    "AnalyzeBillingItems": ("POST", "/v1/billing/teams/{team_id}/usage"),
    "DeleteApiKey": ("DELETE", "/auth/api-keys/{key}"),
}
BODIES: dict[str, Any] = {
    "CreateApiKey": {"name": "n"},
    "UpdateApiKey": {"apiKey": {"name": "n"}},
    "SetTeamLimits": {"rpm": "1000000"},
    "SetBillingInfo": {"billingInfo": {"name": "n"}},
    "SetDefaultPaymentMethod": {"paymentMethodId": "x"},
    "SetSoftSpendingLimit": {"desiredSoftSpendingLimit": {"val": "1000000"}},
    "TopUpOrGetExistingPendingChange": {"amount": {"val": "1"}},
    "AnalyzeBillingItems": {
        "analyticsRequest": {"timeRange": {"startTime": "2026-10-01", "endTime": "2026-10-02"}, "values": [{"name": "usd"}]}
    },
}  # fmt: skip


def test_every_call_has_an_acl_of_its_own(managed: Managed) -> None:
    """With the ACL of one call a management key can make that call, and no other."""
    from jubal.accounts.acl import CALLS as KNOWN

    assert set(CALLS) == KNOWN
    for allowed in ("ListApiKeys", "SetTeamLimits", "SetBillingInfo", "AnalyzeBillingItems", "ListAuditEvents"):
        acl = f"team-token:endpoint:{allowed}"
        secret = managed.server.command("keys", "create", "--name", allowed, "--management", "--acl", acl)["key"]
        key_id = managed.make()["apiKeyId"]
        for call, (method, path) in CALLS.items():
            status, answer = managed(method, path.replace("{key}", key_id), BODIES.get(call), key=secret)
            if call == allowed:
                assert status == 200, (call, answer)
            else:
                assert (status, answer["error"]["code"]) == (403, "call_not_allowed"), (allowed, call)


def test_the_limits_of_a_team(managed: Managed) -> None:
    """What the operator gave is shown, and what the team sets itself narrows it: for its requests, in the list of models, and
    for `jubal limits`, alike."""
    server = managed.server
    own = managed.of_new_team("limited")
    path = "/auth/teams/{team_id}/limits"

    def of_grok_4() -> tuple[str, str, str]:
        answer = own.ok("GET", "/auth/teams/{team_id}/models", answers="ClusterConfigs")
        (found,) = (one for one in answer["clusterConfigs"][0]["languageModels"] if one["name"] == "grok-4")
        return found["rps"], found["rpm"], found["tpm"]

    nothing = {"rps": "0", "rpm": "0", "tpm": "0"}
    assert own.ok("GET", path, answers="TeamLimitList") == {"limits": [{"model": "*", **nothing, "own": nothing}]}
    assert of_grok_4() == ("0", "0", "0")
    server.command("limits", "set", "--team", "limited", "--rpm", "100", "--tpm", "5000")
    server.command("limits", "set", "--team", "limited", "--model", "grok-4", "--rps", "9", "--rpm", "200")
    assert of_grok_4() == ("9", "100", "5000"), "the lower one of each"

    wider = own.ok("PUT", path, {"model": "grok-4", "rps": 50, "rpm": "3"}, answers="TeamLimit")
    assert wider == {
        "model": "grok-4",
        "rps": "9",
        "rpm": "3",
        "tpm": "0",
        "own": {"rps": "50", "rpm": "3", "tpm": "0"},
    }
    assert of_grok_4() == ("9", "3", "5000")
    listed = own.ok("GET", path, answers="TeamLimitList")["limits"]
    assert [(one["model"], one["rps"], one["rpm"], one["tpm"]) for one in listed] == [
        ("*", "0", "100", "5000"),
        ("grok-4", "9", "3", "0"),
    ]
    shown = {row["scope"]: row for row in server.command("limits", "show", "--team", "limited")}
    assert [shown["model"][kind] for kind in ("rps", "rpm", "tpm")] == [9, 3, None]
    assert [shown["team"][kind] for kind in ("rps", "rpm", "tpm")] == [None, 100, 5000]
    assert shown["model"]["own"] == {"rps": 50, "rpm": 3, "tpm": None}

    key = server.command("keys", "create", "--name", "k", "--team", "limited")["key"]
    assert [own.chat(key)[0] for _ in range(4)] == [200, 200, 200, 429]
    assert own.ok("PUT", path, {"model": "grok-4-latest", "rpm": "0"}, answers="TeamLimit")["rpm"] == "200"
    acts = own.ok("GET", "/audit/teams/{team_id}/events", answers="AuditEvents")["events"]
    found = [(act["action"], act["resource"]["id"], act["before"], act["after"]) for act in acts]
    last = {"rps": 50, "rpm": 3, "tpm": None}, {"rps": 50, "rpm": None, "tpm": None}
    assert found[0] == ("limits.set_own", "grok-4", *last)
    assert ("limits.set_own", "grok-4", None, {"rps": 50, "rpm": 3, "tpm": None}) in found


def test_keys_of_others_can_not_be_managed(managed: Managed) -> None:
    server = managed.server
    team = server.command("teams", "create", "--name", "red")
    theirs = server.command("keys", "create", "--name", "theirs", "--team", "red")
    boss = server.command("keys", "create", "--name", "red boss", "--team", "red", "--management")
    for key_id in (theirs["id"], managed.key_id):  # another team's; a management key, its own even
        for call in ("UpdateApiKey", "RotateApiKey", "CheckApiKeyPropagation", "DeleteApiKey"):
            method, path = CALLS[call]
            found = managed.refused(method, path.replace("{key}", key_id), BODIES.get(call))
            assert found == (404, "key_not_found", "api_key_id"), call
    status, answer = managed("GET", "/auth/teams", key=boss["key"])
    assert (status, [one["teamId"] for one in answer["teams"]]) == (200, [team["id"]])
    status, answer = managed("GET", f"/auth/teams/{team['id']}/api-keys", key=boss["key"])
    assert [key["apiKeyId"] for key in answer["apiKeys"]] == [theirs["id"]]


def test_ones_own_key(managed: Managed) -> None:
    made = managed.make(name="mine")
    status, key = managed("GET", "/v1/api-key", key=made["apiKey"])
    assert status == 200
    managed.described.check("OwnKey", json.dumps(key))
    assert (key["api_key_id"], key["name"], key["acls"]) == (made["apiKeyId"], "mine", made["aclStrings"])
    assert (key["team_blocked"], key["api_key_blocked"], key["api_key_disabled"]) == (False, False, False)
    assert datetime.fromisoformat(key["create_time"]).tzinfo is not None
    status, me = managed("GET", "/v1/me", key=made["apiKey"])
    assert status == 200
    managed.described.check("Me", json.dumps(me))
    assert (me["team_id"], me["zdr_status"], me["oauth"]) == (managed.team, "no_zdr", None)
    assert me["api_key"]["api_key_id"] == made["apiKeyId"]
    for path in ("/v1/api-key", "/v1/me"):
        assert managed.refused("GET", path)[:2] == (403, "management_key")


def test_usage_is_summed(managed: Managed) -> None:
    made = managed.make(name="user")
    today = datetime.now(UTC).date()  # some of the requests may be of tomorrow
    costs = []
    for _ in range(3):
        status, answer = managed.chat(made["apiKey"])
        assert status == 200
        costs.append(answer["usage"]["cost_in_usd_ticks"])
    request = {
        "timeRange": {"startTime": f"{today - timedelta(days=2)} 00:00:00", "endTime": f"{today + timedelta(days=2)} 00:00:00"},
        "timeUnit": "TIME_UNIT_DAY",
        "values": [{"name": "usd", "aggregation": "AGGREGATION_SUM"}, {"name": "requests"}],
        "groupBy": ["api_key_id", "description"],
        "filters": [f"api_key_id:{made['apiKeyId']}"],
    }  # fmt: skip
    path = "/v1/billing/teams/{team_id}/usage"
    answer = managed.ok("POST", path, {"analyticsRequest": request}, answers="UsageAnswer")
    (series,) = answer["timeSeries"]
    assert series["group"] == [made["apiKeyId"], "grok-4"]
    assert [point["values"] for point in series["dataPoints"][:2]] == [[0.0, 0.0], [0.0, 0.0]], "one for each day"
    summed = [sum(values) for values in zip(*(point["values"] for point in series["dataPoints"][2:]), strict=True)]
    assert summed == [pytest.approx(sum(costs) / 1e10), 3]
    assert answer["limitReached"] is False
    for filters, spent in (
        (["description:grok-4", "description:grok-4"], sum(costs)),
        (["description:grok-4", "description:grok-beta"], 0),  # all of them have to hold (xai-api.md 21.3)
        (["NOT description:grok-beta", "NOT description:grok-1"], sum(costs)),
        (["NOT description:grok-beta", "NOT description:grok-4"], 0),
    ):
        asked = {**request, "groupBy": [], "filters": [*request["filters"], *filters]}
        found = managed.ok("POST", path, {"analyticsRequest": asked}, answers="UsageAnswer")["timeSeries"]
        told = sum(point["values"][0] for series in found for point in series["dataPoints"])
        assert told == pytest.approx(spent / 1e10), filters
    request = {**request, "timeUnit": "TIME_UNIT_NONE", "values": [{"name": "usd"}, {"name": "usage"}]}
    asked = {**request, "groupBy": ["api_key_id", "unit_type"]}
    found = managed.ok("POST", path, {"analyticsRequest": asked}, answers="UsageAnswer")["timeSeries"]
    label = f"user ({made['redactedApiKey']})"
    assert [(one["group"][0], one["groupLabels"]) for one in found] == [
        (made["apiKeyId"], [label, "input tokens"]),
        (made["apiKeyId"], [label, "output tokens"]),
    ]
    assert sum(one["dataPoints"][0]["values"][0] for one in found) == pytest.approx(sum(costs) / 1e10)
    names = ("AGGREGATION_MIN", "AGGREGATION_P50", "AGGREGATION_MAX")
    asked = {**request, "groupBy": [], "values": [{"name": "latency_seconds", "aggregation": name} for name in names]}
    asked["filters"] = [*request["filters"], "latency_seconds:>0", "NOT status:failed"]
    (series,) = managed.ok("POST", path, {"analyticsRequest": asked}, answers="UsageAnswer")["timeSeries"]
    (point,) = series["dataPoints"]
    assert 0 < point["values"][0] <= point["values"][1] <= point["values"][2] < 60
    (row,) = managed.server.command("usage", "--by", "model", "--key", made["apiKeyId"])
    assert (row["requests"], row["cost_in_usd_ticks"]) == (3, sum(costs))
    preview = managed.ok("GET", "/v1/billing/teams/{team_id}/postpaid/invoice/preview", answers="InvoicePreview")
    assert {"grok-4 input tokens", "grok-4 output tokens"} <= {
        line["description"] for line in preview["coreInvoice"]["lines"]
    }
    managed.server.command("credits", "add", "--team", managed.team, "--usd", "25")
    balance = managed.ok("GET", "/v1/billing/teams/{team_id}/prepaid/balance", answers="PrepaidBalance")
    assert balance["total"] == {"val": "-2500"}, "the sign is inverted"
    assert [(one["changeOrigin"], one["amount"]) for one in balance["changes"]] == [("PURCHASE", {"val": "-2500"})]
    managed.ok("GET", "/v1/billing/teams/{team_id}/invoices", answers="InvoiceList")
    assert managed.chat(made["apiKey"])[0] == 200
    newest, bought = managed.ok("GET", "/v1/billing/teams/{team_id}/prepaid/balance", answers="PrepaidBalance")[
        "changes"
    ]
    *_, month = managed.server.command("invoices", "list", "--team", managed.team)
    assert newest["changeOrigin"] == "SPEND"
    assert f"{newest['spendBpKeyYear']}-{newest['spendBpKeyMonth']:02}" == month["month"]
    assert bought["createTs"] == bought["createTime"]
    assert "spendBpKeyYear" not in bought
    managed.ok("GET", "/v1/billing/teams/{team_id}/postpaid/spending-limits", answers="SpendingLimits")
    managed.ok("GET", "/v1/billing/teams/{team_id}/payment-method", answers="PaymentMethods")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"timeUnit": "TIME_UNIT_SECOND"}, "timeRange"),  # of a day
        ({"timeUnit": "TIME_UNIT_YEAR"}, "timeUnit"),
        ({"values": []}, "values"),
        ({"values": [{"name": "usd"}] * 11}, "values"),
        ({"values": [{"name": "requests"}], "groupBy": ["unit_type"]}, "values"),
        ({"values": [{"name": "joy"}]}, "values[0].name"),
        ({"values": [{"name": "usd", "aggregation": "AGGREGATION_NONE"}]}, "values[0].aggregation"),
        ({"groupBy": ["weather"]}, "groupBy"),
        ({"filters": ["api_key_id"]}, "filters[0]"),
        ({"filters": ["api_key_id:"]}, "filters[0]"),
        ({"filters": ["api_key_id:>1"]}, "filters[0]"),
        ({"filters": ["usd:>0", "usd:>cheap"]}, "filters[1]"),
        ({"filters": ["usd:>nan"]}, "filters[0]"),
        ({"filters": ["weather:fine"]}, "filters[0]"),
        ({"filters": ["usd:>0"] * 101}, "filters"),
        ({"timeRange": {"startTime": "x", "endTime": "2026-10-02"}}, "timeRange.startTime"),
        ({"timeRange": {"startTime": "2026-10-02", "endTime": "2026-10-01"}}, "timeRange"),
        ({"timeRange": {"startTime": "2026-10-01", "endTime": "2026-10-02", "timezone": "Mars"}}, "timeRange.timezone"),
        (
            {"timeUnit": "TIME_UNIT_HOUR", "timeRange": {"startTime": "1990-01-01", "endTime": "2026-01-01"}},
            "timeRange",
        ),
    ],
)
def test_usage_that_can_not_be_told(managed: Managed, change: dict[str, Any], param: str) -> None:
    request = {**BODIES["AnalyzeBillingItems"]["analyticsRequest"], **change}
    status, _, found = managed.refused("POST", "/v1/billing/teams/{team_id}/usage", {"analyticsRequest": request})
    assert (status, found) == (400, f"analyticsRequest.{param}")


def test_a_team_limits_what_it_may_owe(managed: Managed) -> None:
    """Below what its tier allows: within two seconds nothing more is answered, and money or a higher limit opens it again."""
    server = managed.server
    own = managed.of_new_team("careful")
    key = own.make()["apiKey"]
    path = "/v1/billing/teams/{team_id}/postpaid/spending-limits"

    def told() -> Any:
        limits = own.ok("GET", path, answers="SpendingLimits")["spendingLimits"]
        preview = own.ok("GET", "/v1/billing/teams/{team_id}/postpaid/invoice/preview", answers="InvoicePreview")
        effective = limits.pop("effectiveSl")
        assert preview["effectiveSpendingLimit"] == (None if effective is None else effective["val"])
        return [None if one is None else one["val"] for one in (*limits.values(), effective)]

    def set_to(val: str | None) -> None:
        wanted = None if val is None else {"val": val}
        answer = own.ok("POST", path, {"desiredSoftSpendingLimit": wanted}, answers="SoftLimit")
        assert answer == {"thisBpSoftSpendingLimit": wanted}

    assert own.chat(key)[0] == 200
    assert told() == [None] * 4
    set_to("0")
    assert told() == [None, None, "0", "0"]
    status, answer = until_refused(lambda: own.chat(key))
    assert (status, answer["error"]["code"]) == (429, "insufficient_quota")
    shown = server.command("credits", "show", "--team", "careful")
    assert (shown["spending_limit_usd"], shown["owed_ticks"] > 0, shown["available_ticks"] < 0) == ("0.00", True, True)
    server.command("credits", "limit", "--team", "careful", "0.5")
    assert told() == [None, None, "50", "50"]
    until = time.monotonic() + 60
    while own.chat(key)[0] != 200:
        assert time.monotonic() < until
        time.sleep(0.05)
    server.command("teams", "set-tier", "careful", "enterprise")
    set_to("1000001")
    assert told() == ["1000000", "1000000", "1000001", "1000000"], "a team only narrows what it was given"
    server.command("teams", "set-tier", "careful", "standard", "--prepaid")
    assert told() == ["0", "0", "1000001", "0"]
    set_to(None)
    assert told() == ["0", "0", None, "0"]
    events = own.ok("GET", "/audit/teams/{team_id}/events", answers="AuditEvents")["events"]
    changes = [one["after"]["spending_limit_ticks"] for one in events if one["action"] == "billing.limit_spending"]
    assert changes == [None, 1_000_001 * 10**8, 5 * 10**9, 0]


def test_billing_info_is_kept(managed: Managed) -> None:
    path = "/v1/billing/teams/{team_id}/billing-info"
    info = {"name": "Example Ltd", "email": "a@example.com", "address": {"city": "Paris", "postalCode": "75001"}}
    assert managed.ok("POST", path, {"billingInfo": info}, answers="Nothing") == {}
    found = managed.ok("GET", path, answers="BillingInfoAnswer")["billingInfo"]
    assert (found["name"], found["address"]["city"], found["address"]["postalCode"]) == (
        "Example Ltd",
        "Paris",
        "75001",
    )


def test_the_models_of_a_team_have_the_teams_prices(managed: Managed) -> None:
    def of_grok_4() -> dict[str, Any]:
        [cluster] = managed.ok("GET", "/auth/teams/{team_id}/models", answers="ClusterConfigs")["clusterConfigs"]
        [found] = [one for one in cluster["languageModels"] if one["name"] == "grok-4"]
        return dict(found)

    listed = of_grok_4()
    assert (listed["promptTextTokenPrice"], listed["longContextThreshold"], listed["searchPrice"]) == (
        "30000",
        "0",
        "500",
    )
    flags = ["--input", "1", "--long-context", "200000=4,1,12", "--tool", "web_search=0.01", "--discount", "50"]
    managed.server.command("prices", "set", "--team", managed.team, "--model", "grok-4", *flags)
    try:
        own = of_grok_4()
    finally:
        done = jubal("prices", "rm", "--team", managed.team, "--model", "grok-4", **managed.where)
    assert done.returncode == 0
    assert (own["promptTextTokenPrice"], own["completionTextTokenPrice"], own["searchPrice"]) == (
        "5000",
        "75000",
        "500",
    )
    assert (own["longContextThreshold"], own["completionTokenPriceLongContext"]) == ("200000", "60000")
    assert of_grok_4() == listed


def test_lists_of_models_have_the_prices_of_who_asks(managed: Managed) -> None:
    """So that a client that reckons with them comes to what it is charged."""
    managed.server.command("teams", "create", "--name", "cheap")
    key = managed.server.command("keys", "create", "--name", "c", "--team", "cheap")["key"]
    managed.server.command("prices", "set", "--team", "cheap", "--discount", "50")

    def input_prices() -> set[int]:
        one = managed.server.request("GET", "/v1/models/grok-4", key=key)[2]
        listed = managed.server.request("GET", "/v1/language-models", key=key)[2]["models"]
        return {model["prompt_text_token_price"] for model in (one, *listed) if model["id"] == "grok-4"}

    until = time.monotonic() + 60
    while input_prices() != {15_000}:
        assert time.monotonic() < until
        time.sleep(0.05)
    usage = managed("POST", "/v1/chat/completions", CHAT, key=key)[1]["usage"]
    assert usage["cost_in_usd_ticks"] == usage["prompt_tokens"] * 15_000 + usage["completion_tokens"] * 75_000
    assert managed.server.request("GET", "/v1/models/grok-4")[2]["prompt_text_token_price"] == 30_000


def test_invoices_add_up_and_are_paid_when_they_are(managed: Managed) -> None:
    """Of a month that is over; each line is less than a cent, and all of them are more than one."""
    team = managed.server.command("teams", "create", "--name", "billed")["id"]
    boss = managed.server.command("keys", "create", "--name", "b", "--management", "--team", "billed")["key"]
    parts = dict.fromkeys(("input_ticks", "output_ticks", "reasoning_ticks"), 40_000_000)
    parts |= dict.fromkeys(("prompt_tokens", "completion_tokens", "reasoning_tokens"), 4)
    month_us = ledger.first_us(202601)
    rows = [
        usage_row(f"{team}/{model}", team_id=team, model=model, created_us=month_us, cost_in_usd_ticks=120_000_000)
        for model in ("one", "two")
    ]
    with Store.open(managed.store_url) as store:
        store.transact(usage.record, [row._replace(**parts) for row in rows])

    def invoice() -> dict[str, Any]:
        status, _, body = managed.server.request("GET", f"/v1/billing/teams/{team}/invoices", key=boss)
        assert status == 200, body
        [found] = body["invoices"]
        return dict(found)

    found = invoice()
    assert len(found["lines"]) == 6
    assert sum(int(line["amount"]) for line in found["lines"]) == int(found["subtotal"]) == 2
    assert found["invoiceStatus"] == "PENDING"
    managed.server.command("credits", "pay", "--team", "billed", "--usd", "0.01")
    assert invoice()["invoiceStatus"] == "PENDING"
    managed.server.command("credits", "pay", "--team", "billed", "--usd", "0.014")
    assert invoice()["invoiceStatus"] == "PAID"


def test_what_acls_may_name(managed: Managed) -> None:
    answer = managed.ok("GET", "/auth/teams/{team_id}/endpoints", answers="EndpointAcls")
    assert "api-key:endpoint:chat" in [one["acl"] for one in answer["acls"]]
    answer = managed.ok("GET", "/auth/teams/{team_id}/models", answers="ClusterConfigs")
    models = {one["name"]: one for one in answer["clusterConfigs"][0]["languageModels"]}
    assert models["grok-4"]["promptTextTokenPrice"] == "30000"
    key = managed.ok("GET", "/auth/management-keys/validation", answers="ManagementKey")
    assert (key["apiKeyId"], key["scopeId"], key["acls"]) == (managed.key_id, managed.team, ["team-token:endpoint:*"])


def test_acts_are_written_down(managed: Managed) -> None:
    made = managed.make(name="watched")
    status, headers, _ = managed.server.request(
        "PUT",
        f"/auth/api-keys/{made['apiKeyId']}",
        {"apiKey": {"name": "renamed"}},
        key=managed.secret,
        headers={"x-forwarded-for": "198.51.100.7"},
    )
    assert status == 200
    managed.server.command("keys", "block", made["apiKeyId"])
    answer = managed.ok("GET", "/audit/teams/{team_id}/events?pageSize=2", answers="AuditEvents")
    blocked, renamed = answer["events"]
    assert (blocked["action"], blocked["actor"]["kind"]) == ("keys.block", "operator")
    assert (renamed["action"], renamed["actor"]["id"]) == ("keys.update", managed.key_id)
    assert (renamed["before"], renamed["after"]) == ({"name": "watched"}, {"name": "renamed"})
    assert renamed["requestId"] == headers["x-request-id"]
    assert renamed["address"] == "127.0.0.1", "no proxy is trusted here"
    page = f"/audit/teams/{{team_id}}/events?pageSize=1&paginationToken={answer['paginationToken']}"
    older = managed.ok("GET", page, answers="AuditEvents")["events"]
    assert older[0]["action"] == "keys.create"
    acts = managed.server.command("audit", "--limit", "3")
    assert [act["action"] for act in acts] == ["keys.create", "keys.update", "keys.block"]
    told = json.dumps([answer, older, acts])
    assert made["apiKey"] not in told
    assert managed.secret not in told
    assert made["apiKey"] not in managed.server.log.read_text()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_changes_reach_the_other_gateway_in_two_seconds(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    url = request.getfixturevalue("postgres_url") if kind == "postgres" else f"sqlite:///{tmp_path}/shared.db"
    config = ECHO + f'[store]\nurl = "{url}"\n'
    with running(tmp_path / "one", config=config) as one, running(tmp_path / "two", config=config) as two:
        changes = {
            "disable": (("keys", "disable"), "key_disabled"),
            "block": (("keys", "block"), "key_blocked"),
            "rotate": (("keys", "rotate"), "invalid_api_key"),
            "delete": (("keys", "delete"), "invalid_api_key"),
            "expire": (("keys", "update", "--expires", "2s"), "key_expired"),
        }
        made = {name: one.command("keys", "create", "--name", name) for name in changes}
        for name, (command, code) in changes.items():
            secret = made[name]["key"]

            def ask(secret: str = secret) -> tuple[int, Any]:
                status, _, answer = two.request("POST", "/v1/chat/completions", CHAT, key=secret)
                return status, answer

            assert ask()[0] == 200
            done = jubal(*command, made[name]["id"], "--json", home=one.home, JUBAL_CONFIG=str(one.config))
            assert done.returncode == 0, done.stderr
            _, answer = until_refused(ask)
            assert answer["error"]["code"] == code
        team = one.command("teams", "create", "--name", "red")
        secret = one.command("keys", "create", "--name", "theirs", "--team", "red")["key"]

        def ask_as_red() -> tuple[int, Any]:
            status, _, answer = two.request("POST", "/v1/chat/completions", CHAT, key=secret)
            return status, answer

        assert ask_as_red()[0] == 200
        jubal("teams", "block", team["id"], home=one.home, JUBAL_CONFIG=str(one.config))
        assert until_refused(ask_as_red)[1]["error"]["code"] == "team_blocked"


def test_old_secrets_end_with_their_overlap(tmp_path: Path) -> None:
    with running(tmp_path / "home", config=ECHO) as server:
        made = server.command("keys", "create", "--name", "a")
        rotated = server.command("keys", "rotate", made["id"], "--overlap", "1h")

        def ask(secret: str) -> tuple[int, Any]:
            status, _, answer = server.request("POST", "/v1/chat/completions", CHAT, key=secret)
            return status, answer

        assert ask(made["key"])[0] == ask(rotated["key"])[0] == 200
        assert len(server.command("keys", "show", made["id"])["old_secrets_until"]) == 1
        with Store.open(f"sqlite:///{server.home}/jubal.db") as store:  # an hour goes by
            store.transact(
                lambda conn: conn.execute(tables.old_secrets.update().values(until_us=time.time_ns() // 1000))
            )
        status, answer = until_refused(lambda: ask(made["key"]))
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        assert ask(rotated["key"])[0] == 200


def test_wrong_keys_are_slowed_down_and_good_ones_are_not(tmp_path: Path) -> None:
    """A good key that comes from the same address, for the first time, in the middle of an attack."""
    config = "[server]\nwrong_key_delay_s = 30\n" + ECHO
    with running(tmp_path / "home", config=config) as server:
        fresh = server.command("keys", "create", "--name", "fresh")["key"]

        def guess(number: int) -> tuple[int, Any]:
            status, _, answer = server.request("GET", "/v1/models", key=f"xai-wrong{number}", timeout=100)
            return status, answer["error"]["code"]

        assert {guess(n) for n in range(20)} == {(401, "invalid_api_key")}
        with ThreadPoolExecutor(60) as pool:
            guesses = [pool.submit(guess, n) for n in range(20, 80)]
            until = time.monotonic() + 60
            while sum(one.done() for one in guesses) < 30 and time.monotonic() < until:
                time.sleep(0.05)  # most are refused at once, as so many are held back already
            refused = [one.result() for one in guesses if one.done()]
            assert (429, "too_many_wrong_keys") in refused
            assert sum(not one.done() for one in guesses) >= 1, "some are held back"
            status, _, _ = server.request("POST", "/v1/chat/completions", CHAT, key=fresh)
            assert status == 200
            assert sum(not one.done() for one in guesses) >= 1, "the good key did not wait for them"
            server.kill()
