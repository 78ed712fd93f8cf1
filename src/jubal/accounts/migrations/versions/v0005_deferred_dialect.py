"""Deferred requests know their dialect."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("deferred", sa.Column("dialect", sa.Text, nullable=False, server_default="chat"))


def downgrade() -> None:
    op.drop_column("deferred", "dialect")
