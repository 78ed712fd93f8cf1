"""The service Auth (xai-api.md 2.3)."""

from __future__ import annotations

from typing import Protocol

from jubal.wire.xai_grpc.pb import Proto, auth


class KeyFacts(Protocol):
    """What may be known of a key. accounts' `Key` is one. Times: microseconds since 1970."""

    @property
    def id(self) -> str: ...
    @property
    def team_id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def redacted(self) -> str: ...
    @property
    def acls(self) -> tuple[str, ...]: ...
    @property
    def disabled(self) -> bool: ...
    @property
    def blocked(self) -> bool: ...
    @property
    def user_id(self) -> str: ...
    @property
    def created_us(self) -> int: ...
    @property
    def modified_us(self) -> int: ...
    @property
    def modified_by(self) -> str: ...


def key_info(key: KeyFacts, *, team_blocked: bool) -> Proto:
    """An ApiKey."""
    info = auth.ApiKey(
        redacted_api_key=key.redacted,
        user_id=key.user_id,
        name=key.name,
        modified_by=key.modified_by,
        team_id=key.team_id,
        acls=key.acls,
        api_key_id=key.id,
        team_blocked=team_blocked,
        api_key_blocked=key.blocked,
        disabled=key.disabled,
    )
    info.create_time.FromMicroseconds(key.created_us)
    info.modify_time.FromMicroseconds(key.modified_us)
    return info
