"""What a team lets itself owe at most."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("teams", sa.Column("spending_limit_ticks", sa.BigInteger))


def downgrade() -> None:
    op.drop_column("teams", "spending_limit_ticks")
