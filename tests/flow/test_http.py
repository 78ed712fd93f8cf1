"""The server as a whole, over a socket: routes, errors, headers, and bodies that no client library would send."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import pytest

from tests.server import ECHO, Server, running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("http") / "home", config=ECHO + "[server]\nbody_limit_mb = 1\n") as server:
        yield server


def test_a_whole_answer_has_the_seeds_shape(server: Server) -> None:
    status, headers, body = server.chat(messages=[{"role": "user", "content": "one two three"}])
    assert status == 200
    assert body["object"] == "chat.completion"
    assert body["id"] == "chatcmpl-" + headers["x-request-id"]
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "one two three", "refusal": None},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ]
    usage = body["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (3, 3, 6)
    assert usage["cost_in_usd_ticks"] == 3 * 30_000 + 3 * 150_000


def test_a_stream_has_the_seeds_shape(server: Server) -> None:
    status, headers, raw = server.chat(messages=[{"role": "user", "content": "one two"}], stream=True)
    assert status == 200
    assert headers["content-type"] == "text/event-stream"
    frames = raw.decode().split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "one"},
        {"content": " two"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk["id"] for chunk in chunks} == {"chatcmpl-" + headers["x-request-id"]}


def test_every_request_is_in_the_usage_with_the_same_id_and_cost(server: Server) -> None:
    _, headers, body = server.chat()
    row = server.usage()[-1]
    assert row["request_id"] == headers["x-request-id"]
    assert row["status"] == "ok"
    assert row["model"] == "grok-4"
    assert row["cost_in_usd_ticks"] == body["usage"]["cost_in_usd_ticks"]
    assert row["prompt_tokens"] == body["usage"]["prompt_tokens"]
    assert row["completion_tokens"] == body["usage"]["completion_tokens"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "unknown_url"),
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("POST", "/chat/completions", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/chat/completions", 405, "method_not_allowed"),
        ("GET", "/v1/models/grok-99", 404, "model_not_found"),
        ("GET", "/v1/models/../../etc/passwd", 404, "model_not_found"),
    ],
)
def test_unknown_routes_and_methods_answer_json(server: Server, method: str, path: str, status: int, code: str) -> None:
    got, headers, body = server.request(method, path)
    assert (got, body["error"]["code"]) == (status, code)
    assert headers["x-request-id"]
    assert (status == 405) == ("allow" in headers)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/grok-4", "/health"])
def test_head_is_get_without_a_body(server: Server, path: str) -> None:
    status, headers, body = server.request("HEAD", path)
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) > 20


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (None, "missing_api_key"),
        ("", "invalid_authorization"),
        ("Bearer", "invalid_authorization"),
        ("Basic dTpw", "invalid_authorization"),
        ("Bearer xai-wrong", "invalid_api_key"),
        ("Bearer \xff\xfe", "invalid_api_key"),
        ("Bearer " + "x" * 5000, "invalid_api_key"),
    ],
)
def test_a_missing_or_bad_key_is_401_before_anything_is_read(
    server: Server, authorization: str | None, code: str
) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    status, headers, body = server.request("POST", "/v1/chat/completions", b"not even json", key=None, headers=headers)
    assert status == 401
    assert body["error"]["code"] == code
    assert body["error"]["type"] == "invalid_request_error"
    assert (headers.get("www-authenticate") == "Bearer") == (code != "invalid_api_key")
    if authorization and "wrong" in authorization:
        assert body["error"]["message"].startswith("Incorrect API key provided")
        assert "xai-wrong" not in json.dumps(body)


@pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded", "text/plain", ""])
def test_json_is_read_whatever_it_is_called(server: Server, content_type: str) -> None:
    body = json.dumps({"model": "grok-4", "messages": [{"role": "user", "content": "hi"}]}).encode()
    status, _, _ = server.request("POST", "/v1/chat/completions", body, headers={"content-type": content_type})
    assert status == 200


def test_multipart_is_415(server: Server) -> None:
    status, _, body = server.request(
        "POST", "/v1/chat/completions", b"--x--", headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert (status, body["error"]["code"]) == (415, "unsupported_media_type")


def test_a_body_over_the_limit_is_413(server: Server) -> None:
    status, _, body = server.chat(messages=[{"role": "user", "content": "x" * (2 << 20)}])
    assert (status, body["error"]["code"]) == (413, "body_too_large")


def _raw(server: Server, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(data)
        seen = b""
        while piece := client.recv(65536):
            seen += piece
        return seen


def test_a_chunked_body_is_read_and_bounded(server: Server) -> None:
    body = json.dumps({"model": "grok-4", "messages": [{"role": "user", "content": "hi"}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {server.key}\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n".encode()
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:40], body[40:])) + b"0\r\n\r\n"
    assert b"200 OK" in _raw(server, head + pieces)
    big = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    assert b" 413 " in _raw(server, head + big * 20 + b"0\r\n\r\n")


def test_an_old_client_without_keep_alive(server: Server) -> None:
    body = json.dumps(
        {"model": "grok-4", "messages": [{"role": "user", "content": "hi there"}], "stream": True}
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.0\r\nauthorization: Bearer {server.key}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    assert b"data: [DONE]" in _raw(server, head + body)


def test_no_http_at_all_is_400(server: Server) -> None:
    assert b"400 Bad Request" in _raw(server, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")


def test_health_needs_no_key_and_names_the_engines(server: Server) -> None:
    status, _, body = server.request("GET", "/health", key=None)
    assert status == 200
    assert body["status"] == "ok"
    assert body["engines"]["local"]["state"] == "ready"


def test_acls_narrow_endpoints_and_models(server: Server) -> None:
    def key(*acls: str) -> str:
        made = server.command("keys", "create", "--name", "n", *(part for acl in acls for part in ("--acl", acl)))
        secret: str = made["key"]
        return secret

    body = {"model": "grok-4", "messages": [{"role": "user", "content": "hi"}]}

    def chat(secret: str, **fields: object) -> int:
        return server.request("POST", "/v1/chat/completions", {**body, **fields}, key=secret)[0]

    only_one = key("api-key:endpoint:chat", "api-key:model:grok-2-1212")
    assert chat(only_one) == 403
    assert chat(only_one, model="grok-2-1212") == 200
    assert chat(only_one, model="grok-2-latest") == 200, "an alias is the same model"
    assert server.request("GET", "/v1/models", key=only_one)[0] == 403
    lists_one = key("api-key:endpoint:*", "api-key:model:grok-1")
    assert [model["id"] for model in server.request("GET", "/v1/models", key=lists_one)[2]["data"]] == ["grok-1"]
    assert server.request("GET", "/v1/models/grok-4", key=lists_one)[0] == 403
    assert chat(key("api-key:model:*", "api-key:endpoint:models")) == 403


def test_a_disabled_key_stops_and_a_rotated_one_changes(server: Server) -> None:
    made = server.command("keys", "create", "--name", "k")
    body = {"model": "grok-4", "messages": [{"role": "user", "content": "hi"}]}

    def status(secret: str) -> int:
        return server.request("POST", "/v1/chat/completions", body, key=secret)[0]

    def comes(secret: str, wanted: int) -> bool:
        """That it does in two seconds is shown with a clock of the test's own in tests/accounts/test_keys.py."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if status(secret) == wanted:
                return True
            time.sleep(0.05)
        return False

    assert status(made["key"]) == 200
    server.command("keys", "disable", made["id"])
    assert comes(made["key"], 403)
    server.command("keys", "enable", made["id"])
    assert comes(made["key"], 200)
    fresh = server.command("keys", "rotate", made["id"])
    assert comes(made["key"], 401)
    assert status(fresh["key"]) == 200


def test_requests_per_minute(server: Server) -> None:
    made = server.command("keys", "create", "--name", "slow", "--rpm", "3")
    body = {"model": "grok-4", "messages": [{"role": "user", "content": "hi"}]}
    answers = [server.request("POST", "/v1/chat/completions", body, key=made["key"]) for _ in range(4)]
    assert [status for status, _, _ in answers] == [200, 200, 200, 429]
    assert [int(headers["x-ratelimit-remaining-requests"]) for _, headers, _ in answers[:3]] == [2, 1, 0]
    _, headers, error = answers[-1]
    assert error["error"]["type"] == "rate_limit_error"
    assert 1 <= int(headers["retry-after"]) <= 60


def test_a_1_mb_prompt(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running(tmp_path_factory.mktemp("big") / "home", config=ECHO) as server:
        status, _, body = server.chat(messages=[{"role": "user", "content": "word " * 200_000}], max_tokens=3)
        assert status == 200
        assert body["usage"]["prompt_tokens"] == 200_000
