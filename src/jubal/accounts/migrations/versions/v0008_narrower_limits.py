"""Requests per second of an API key, and rate limits that a team sets itself."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

OWN = ("own_rps", "own_rpm", "own_tpm")


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("rps", sa.BigInteger))
    for name in OWN:
        op.add_column("limits", sa.Column(name, sa.BigInteger))


def downgrade() -> None:
    for name in OWN:
        op.drop_column("limits", name)
    op.drop_column("api_keys", "rps")
