"""ACLs: what they allow, and what is none."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jubal.accounts.acl import ENDPOINTS, EVERYTHING, Acl, check_new, split
from jubal.core.errors import BadRequest, NotAllowed

NAMES = st.text(string.ascii_letters + string.digits + "-._:/", min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("acls", "endpoint", "model", "allowed"),
    [
        (EVERYTHING, "chat", "grok-4", True),
        ((), "chat", "grok-4", False),
        (("api-key:model:*",), "chat", "grok-4", False),
        (("api-key:endpoint:*",), "chat", "grok-4", False),
        (("api-key:endpoint:chat", "api-key:model:grok-4"), "chat", "grok-4", True),
        (("api-key:endpoint:chat", "api-key:model:grok-4"), "embed", "grok-4", False),
        (("api-key:endpoint:chat", "api-key:model:grok-4"), "chat", "grok-4-fast", False),
        (("api-key:endpoint:chat", "api-key:model:grok-latest"), "chat", "grok-4", True),  # by its alias
        (("api-key:endpoint:chat", "api-key:model:hf:org/model"), "chat", "hf:org/model", True),
    ],
)
def test_both_an_endpoint_and_a_model_must_match(
    acls: tuple[str, ...], endpoint: str, model: str, allowed: bool
) -> None:
    acl = Acl.parse(acls)
    assert (acl.allows_endpoint(endpoint) and acl.allows_model(model, "grok-latest")) is allowed
    if allowed:
        acl.demand(endpoint, model, "grok-latest")
    else:
        with pytest.raises(NotAllowed) as caught:
            acl.demand(endpoint, model, "grok-latest")
        assert caught.value.code in ("endpoint_not_allowed", "model_not_allowed")


def test_the_refusal_names_what_is_missing() -> None:
    with pytest.raises(NotAllowed, match="api-key:endpoint:chat"):
        Acl.parse(["api-key:model:*"]).demand("chat", "grok-4")
    with pytest.raises(NotAllowed, match="api-key:model:grok-4"):
        Acl.parse(["api-key:endpoint:*"]).demand("chat", "grok-4")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "api-key",
        "api-key:",
        "api-key:model",
        "api-key:model:",
        "api-key:team:x",
        "team-token:endpoint:x",
        "*",
        "model:grok-4",
    ],
)
def test_what_is_no_acl_is_named(text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        Acl.parse(["api-key:model:*", text])
    assert caught.value.param == "acls"
    assert f"`{text}`" in caught.value.message


@pytest.mark.parametrize("name", ["completions", "Chat", "chat ", "responses", "c\N{CYRILLIC SMALL LETTER HA}at"])
def test_a_new_key_can_not_name_an_endpoint_that_is_none(name: str) -> None:
    with pytest.raises(BadRequest, match="names no endpoint") as caught:
        check_new(["api-key:model:*", f"api-key:endpoint:{name}"])
    assert caught.value.param == "acls"
    check_new([*EVERYTHING, *(f"api-key:endpoint:{known}" for known in ENDPOINTS)])


def test_a_stored_key_may_name_what_this_release_does_not_know() -> None:
    assert not any(Acl.parse(["api-key:endpoint:completions"]).allows_endpoint(name) for name in ENDPOINTS)


@given(st.lists(st.tuples(st.sampled_from(["endpoint", "model"]), NAMES)))
def test_every_well_formed_acl_is_taken_apart_as_it_was_put_together(pairs: list[tuple[str, str]]) -> None:
    texts = [f"api-key:{namespace}:{value}" for namespace, value in pairs]
    assert [split(text) for text in texts] == pairs
    acl = Acl.parse(texts)
    assert acl.endpoints == {value for namespace, value in pairs if namespace == "endpoint"}
    assert acl.models == {value for namespace, value in pairs if namespace == "model"}


@given(st.text())
def test_any_text_is_an_acl_or_a_bad_request(text: str) -> None:
    try:
        namespace, value = split(text)
    except BadRequest:
        assert not text.startswith(("api-key:model:", "api-key:endpoint:")) or text.endswith(":")
    else:
        assert text == f"api-key:{namespace}:{value}"


@given(st.lists(NAMES), st.sampled_from(sorted(ENDPOINTS)), NAMES)
def test_an_acl_only_narrows(values: list[str], endpoint: str, model: str) -> None:
    """More ACLs never allow less, and without a wildcard nothing is allowed that is not named."""
    texts = [f"api-key:{namespace}:{value}" for value in values for namespace in ("endpoint", "model")]
    acl, wider = Acl.parse(texts), Acl.parse([*texts, *EVERYTHING])
    assert acl.allows_endpoint(endpoint) is (endpoint in values)
    assert acl.allows_model(model) is (model in values)
    assert wider.allows_endpoint(endpoint)
    assert wider.allows_model(model)


@pytest.mark.parametrize("name", ["grok-*", "*-fast", "grok-*-fast", "**"])
def test_a_pattern_is_refused_and_not_taken_for_a_name(name: str) -> None:
    """A key with it could do nothing, and nobody would be told why."""
    with pytest.raises(BadRequest, match="would open no model"):
        check_new(["api-key:endpoint:*", f"api-key:model:{name}"])
