"""Deferred requests."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "deferred",
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("team_id", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("result", sa.LargeBinary),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("expires_us", sa.BigInteger, nullable=False),
        sa.Column("lease", sa.Text),
        sa.Column("lease_until_us", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("request_id", name="pk_deferred"),
    )
    op.create_index("ix_deferred_state_lease_until_us", "deferred", ["state", "lease_until_us"])
    op.create_index("ix_deferred_team_id_state", "deferred", ["team_id", "state"])
    op.create_index("ix_deferred_expires_us", "deferred", ["expires_us"])


def downgrade() -> None:
    op.drop_table("deferred")
