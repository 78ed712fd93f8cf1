"""What a key may do: `api-key:endpoint:NAME` and `api-key:model:NAME`, with `*` for any (xai-api.md 2.2).

A key with no ACLs can do nothing; an endpoint and a model ACL must both match.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType

from jubal.core.errors import BadRequest, NotAllowed

ENDPOINTS = MappingProxyType(
    {
        "batch": "Batches of requests.",
        "chat": "Conversations: chat completions, deferred ones too, Responses and Messages.",
        "documents": "Search in collections of documents.",
        "embed": "Embeddings.",
        "files": "Files.",
        "image": "Making images.",
        "models": "What models there are.",
        "sample": "Raw completions: /v1/completions and /v1/complete.",
        "tokenize": "The tokens of a text.",
    }
)
"""What `api-key:endpoint:NAME` may name, and what it opens (xai-api.md 2.2). A dialect says itself which of them it is."""
EVERYTHING = ("api-key:model:*", "api-key:endpoint:*")
MANAGE_EVERYTHING = ("team-token:endpoint:*",)
CALLS = frozenset(
    {
        *("CreateApiKey", "ListApiKeys", "UpdateApiKey", "RotateApiKey", "DeleteApiKey", "CheckApiKeyPropagation"),
        *("GetTeamLimits", "SetTeamLimits"),
        *("ListTeams", "ListPossibleModels", "ListPossibleEndpointAcls", "ListAuditEvents"),
        *("GetBillingInfo", "SetBillingInfo", "ListInvoices", "ListPaymentMethods", "SetDefaultPaymentMethod"),
        *("GetAmountToPay", "GetSpendingLimits", "SetSoftSpendingLimit", "ListPrepaidBalanceChanges"),
        *("TopUpOrGetExistingPendingChange", "AnalyzeBillingItems"),
    }
)
"""What `team-token:endpoint:NAME` of a management key may name (xai-api.md 2.2, 21)."""


@dataclass(frozen=True, slots=True)
class Acl:
    """The parsed ACLs of one key. calls: of the management API.

    What a store holds is taken as it is: an endpoint that this release doesn't know opens nothing. `check_new` is for what is
    asked for.
    """

    endpoints: frozenset[str]
    models: frozenset[str]
    calls: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, acls: Iterable[str]) -> Acl:
        """Raises `BadRequest` naming the first string that is not an ACL."""
        endpoints: set[str] = set()
        models: set[str] = set()
        for text in acls:
            namespace, value = split(text)
            (endpoints if namespace == "endpoint" else models).add(value)
        return cls(frozenset(endpoints), frozenset(models))

    @classmethod
    def parse_management(cls, acls: Iterable[str]) -> Acl:
        """The ACLs of a management key. Raises `BadRequest` naming the first string that is none."""
        calls = set()
        for text in acls:
            space, _, call = text.rpartition(":")
            if space != "team-token:endpoint" or (call != "*" and call not in CALLS):
                raise BadRequest(
                    f"`{text[:200]}` is not an ACL of a management key. Expected team-token:endpoint:NAME, with * for any; "
                    f"names: {', '.join(sorted(CALLS))}.",
                    param="acls",
                )
            calls.add(call)
        return cls(frozenset(), frozenset(), frozenset(calls))

    def demand_call(self, call: str) -> None:
        """Raises `NotAllowed` naming what is missing."""
        if not ("*" in self.calls or call in self.calls):
            raise NotAllowed(
                f"This management key may not call {call}. It needs the ACL `team-token:endpoint:{call}`.",
                code="call_not_allowed",
            )

    def allows_endpoint(self, endpoint: str) -> bool:
        return "*" in self.endpoints or endpoint in self.endpoints

    def allows_model(self, *names: str) -> bool:
        """`names`: the model's own name and its aliases; an ACL may use any of them."""
        return "*" in self.models or not self.models.isdisjoint(names)

    def demand(self, endpoint: str, model: str, *aliases: str) -> None:
        """Raises `NotAllowed` naming what is missing."""
        self.demand_endpoint(endpoint)
        if not self.allows_model(model, *aliases):
            raise NotAllowed(
                f"This API key may not use the model `{model}`. Its owner can add the ACL `api-key:model:{model}`.",
                param="model",
                code="model_not_allowed",
            )

    def demand_endpoint(self, endpoint: str) -> None:
        """Raises `NotAllowed` naming what is missing."""
        if not self.allows_endpoint(endpoint):
            raise NotAllowed(
                f"This API key may not use the endpoint `{endpoint}`. "
                f"Its owner can add the ACL `api-key:endpoint:{endpoint}`.",
                code="endpoint_not_allowed",
            )


def check_new(acls: Iterable[str]) -> None:
    """Raises `BadRequest` naming the first string that is not an ACL, or is one for an endpoint that nobody has, or a pattern."""
    for text in acls:
        namespace, value = split(text)
        if namespace == "endpoint" and value != "*" and value not in ENDPOINTS:
            raise BadRequest(
                f"`{text[:200]}` names no endpoint. There are {', '.join(ENDPOINTS)}, and * for any.", param="acls"
            )
        if namespace == "model" and "*" in value and value != "*":
            raise BadRequest(
                f"`{text[:200]}` would open no model: * stands for any model, and not for a part of a name.",
                param="acls",
            )


def split(text: str) -> tuple[str, str]:
    """("endpoint" or "model", value). Raises `BadRequest`."""
    match text.split(":", 2):
        case ["api-key", ("endpoint" | "model") as namespace, value] if value:
            return namespace, value
    raise BadRequest(
        f"`{text[:200]}` is not an ACL. Expected api-key:model:NAME or api-key:endpoint:NAME, with * for any.",
        param="acls",
    )
