"""Secrets that overlap, usage by the hour, the audit log, billing addresses."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

SUMS = (
    "requests",
    "failed",
    "cancelled",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "tool_calls",
    "cost_in_usd_ticks",
    "latency_us",
)
APPEND_ONLY_SQLITE = """
CREATE TRIGGER audit_no_{verb} BEFORE {verb} ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END
"""
APPEND_ONLY_POSTGRESQL = (
    """
CREATE FUNCTION jubal_audit_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'the audit log is append-only' USING ERRCODE = 'integrity_constraint_violation'; END $$
""",
    """
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
FOR EACH STATEMENT EXECUTE FUNCTION jubal_audit_append_only()
""",
)
COUNT_WHAT_IS_THERE = """
INSERT INTO usage_hours (hour_us, team_id, key_id, model, requests, failed, cancelled, prompt_tokens, cached_tokens,
    completion_tokens, reasoning_tokens, tool_calls, cost_in_usd_ticks, latency_us)
SELECT created_us - created_us % 3600000000, team_id, key_id, model, COUNT(*),
    SUM(CASE WHEN status = 'failed' THEN 1 ELSE 0 END), SUM(CASE WHEN status = 'cancelled' THEN 1 ELSE 0 END),
    SUM(prompt_tokens), SUM(COALESCE(cached_tokens, 0)), SUM(completion_tokens), SUM(reasoning_tokens), 0,
    SUM(cost_in_usd_ticks), SUM(latency_us)
FROM usage GROUP BY 1, 2, 3, 4
"""


def upgrade() -> None:
    op.create_table(
        "old_secrets",
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("until_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_old_secrets"),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name="fk_old_secrets_key_id_api_keys", ondelete="CASCADE"),
    )
    op.create_index("ix_old_secrets_key_id", "old_secrets", ["key_id"])
    op.create_table(
        "usage_hours",
        sa.Column("hour_us", sa.BigInteger, nullable=False),
        sa.Column("team_id", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in SUMS),
        sa.PrimaryKeyConstraint("hour_us", "team_id", "key_id", "model", name="pk_usage_hours"),
    )
    op.create_index("ix_usage_hours_team_id_hour_us", "usage_hours", ["team_id", "hour_us"])
    op.execute(COUNT_WHAT_IS_THERE)
    _count_tools()
    _audit()
    op.create_table(
        "billing_info",
        sa.Column("team_id", sa.Text, nullable=False),
        sa.Column("info", sa.Text, nullable=False),
        sa.Column("modified_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("team_id", name="pk_billing_info"),
    )
    # Until now nobody looked at the ACLs of management keys; they are of their own kind (xai-api.md 2.2).
    op.execute("""UPDATE api_keys SET acls = '["team-token:endpoint:*"]' WHERE management""")


def _count_tools() -> None:
    """The calls are in JSON, which the two databases read in different ways."""
    bind = op.get_bind()
    calls: dict[tuple[object, ...], int] = {}
    rows = bind.execute(
        sa.text(
            "SELECT created_us - created_us % 3600000000, team_id, key_id, model, tools FROM usage WHERE tools IS NOT NULL"
        )
    )
    for *cell, tools in rows:
        calls[tuple(cell)] = calls.get(tuple(cell), 0) + sum(count for count, _ in json.loads(tools).values())
    names = ("hour_us", "team_id", "key_id", "model")
    where = " AND ".join(f"{name} = :{name}" for name in names)
    for cell_of, count in calls.items():
        values = dict(zip(names, cell_of, strict=True))
        change = f"UPDATE usage_hours SET tool_calls = :count WHERE {where}"  # noqa: S608  our own names only
        bind.execute(sa.text(change), {"count": count, **values})


def _audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("actor_kind", sa.Text, nullable=False),
        sa.Column("actor_id", sa.Text, nullable=False),
        sa.Column("actor_name", sa.Text, nullable=False),
        sa.Column("team_id", sa.Text),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("resource", sa.Text, nullable=False),
        sa.Column("resource_id", sa.Text, nullable=False),
        sa.Column("before", sa.Text),
        sa.Column("after", sa.Text),
        sa.Column("request_id", sa.Text),
        sa.Column("address", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_team_id_created_us", "audit", ["team_id", "created_us"])
    op.create_index("ix_audit_created_us", "audit", ["created_us"])
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(APPEND_ONLY_SQLITE.format(verb=verb))
    else:
        for statement in APPEND_ONLY_POSTGRESQL:
            op.execute(statement)


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER audit_append_only ON audit")
        op.execute("DROP FUNCTION jubal_audit_append_only()")
    op.execute("""UPDATE api_keys SET acls = '["api-key:model:*", "api-key:endpoint:*"]' WHERE management""")
    for table in ("billing_info", "audit", "usage_hours", "old_secrets"):
        op.drop_table(table)
