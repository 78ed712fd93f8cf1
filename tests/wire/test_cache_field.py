"""Every JSON dialect can say that a request must not be answered from the cache."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jubal.app import DIALECTS
from jubal.core.errors import Undecodable

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
    "/v1/complete": {"prompt": "\n\nHuman: hi\n\nAssistant:", "max_tokens_to_sample": 5},
}


@pytest.mark.parametrize("path", sorted(BODIES))
@pytest.mark.parametrize(
    ("field", "cache"), [({}, True), ({"cache": None}, True), ({"cache": True}, True), ({"cache": False}, False)]
)
def test_the_field(path: str, field: dict[str, Any], cache: bool) -> None:
    body = {"model": "grok-4", **BODIES[path], **field}
    assert DIALECTS[path]().parse(json.dumps(body).encode()).generation.cache is cache


@pytest.mark.parametrize("path", sorted(BODIES))
def test_what_is_no_truth_value(path: str) -> None:
    with pytest.raises(Undecodable) as caught:
        DIALECTS[path]().parse(json.dumps({"model": "grok-4", **BODIES[path], "cache": "no"}).encode())
    assert caught.value.param == "cache"
