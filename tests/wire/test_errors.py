"""Every kind of error through every dialect."""

from __future__ import annotations

import inspect
import json

import pytest

from jubal.app import DIALECTS
from jubal.core import errors
from jubal.wire import openai_errors
from jubal.wire.anthropic_complete import AnthropicComplete
from jubal.wire.anthropic_messages import AnthropicMessages

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.JubalError)]
BLAMES_THE_REQUEST = {400, 401, 404, 405, 413, 415, 422}


def make(kind: type[errors.JubalError]) -> errors.JubalError:
    if kind is errors.NotIdentified:
        return errors.NotIdentified("m", given=True)
    if kind is errors.MethodNotAllowed:
        return errors.MethodNotAllowed("m", allowed=("GET", "HEAD"))
    return kind("m", param="p", retry_after_s=1.2)


@pytest.mark.parametrize("path", DIALECTS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_has_a_status_and_the_seeds_shape(path: str, kind: type[errors.JubalError]) -> None:
    error = make(kind)
    reply = DIALECTS[path]().error(error)
    body = json.loads(reply.body)["error"]
    assert 400 <= reply.status < 600
    assert set(body) - {"param"} == {"message", "type", "code"}
    assert body["message"] == "m"
    if DIALECTS[path] in (AnthropicMessages, AnthropicComplete):
        assert json.loads(reply.body)["type"] == "error"
        assert body["type"].endswith("_error") or body["type"] == "request_too_large"
    else:
        assert (body["type"] == "invalid_request_error") == (reply.status in BLAMES_THE_REQUEST)
    headers = dict(reply.headers)
    assert (b"allow" in headers) == (reply.status == 405)
    if error.retry_after_s:
        assert headers[b"retry-after"] == b"2"
    if reply.status in (429, 498):
        assert int(headers[b"retry-after"]) >= 1
    assert (headers.get(b"x-should-retry") == b"true") == (reply.status == 498)


def test_no_kind_is_left_to_the_default() -> None:
    assert [kind.__name__ for kind in KINDS if kind not in openai_errors.SHAPES and kind is not errors.JubalError] == []


def test_a_new_kind_is_its_parents() -> None:
    class Special(errors.EngineTimeout):
        pass

    assert openai_errors.reply(Special("m")).status == 504
