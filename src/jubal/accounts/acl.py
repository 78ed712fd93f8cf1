"""What a key may do: `api-key:endpoint:NAME` and `api-key:model:NAME`, with `*` for any (xai-api.md 2.2).

A key with no ACLs can do nothing; an endpoint and a model ACL must both match.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jubal.core.errors import BadRequest, NotAllowed

ENDPOINTS = frozenset(
    {"chat", "completions", "embed", "image", "models", "sample", "tokenize", "documents", "files", "batch"}
)
EVERYTHING = ("api-key:model:*", "api-key:endpoint:*")


@dataclass(frozen=True, slots=True)
class Acl:
    """The parsed ACLs of one key."""

    endpoints: frozenset[str]
    models: frozenset[str]

    @classmethod
    def parse(cls, acls: Iterable[str]) -> Acl:
        """Raises `BadRequest` naming the first string that is not an ACL."""
        endpoints: set[str] = set()
        models: set[str] = set()
        for text in acls:
            namespace, value = split(text)
            (endpoints if namespace == "endpoint" else models).add(value)
        return cls(frozenset(endpoints), frozenset(models))

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


def split(text: str) -> tuple[str, str]:
    """("endpoint" or "model", value). Raises `BadRequest`."""
    match text.split(":", 2):
        case ["api-key", ("endpoint" | "model") as namespace, value] if value:
            return namespace, value
    raise BadRequest(
        f"`{text}` is not an ACL. Expected api-key:model:NAME or api-key:endpoint:NAME, with * for any.", param="acls"
    )
