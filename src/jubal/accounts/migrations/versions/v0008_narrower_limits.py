"""Requests per second of an API key, rate limits that a team sets itself, and the service tier of a request."""

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
    op.add_column("usage", sa.Column("service_tier", sa.Text))


def downgrade() -> None:
    op.drop_column("usage", "service_tier")
    for name in OWN:
        op.drop_column("limits", name)
    op.drop_column("api_keys", "rps")
