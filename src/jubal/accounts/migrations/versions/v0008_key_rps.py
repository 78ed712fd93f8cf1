"""Requests per second of an API key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("rps", sa.BigInteger))


def downgrade() -> None:
    op.drop_column("api_keys", "rps")
