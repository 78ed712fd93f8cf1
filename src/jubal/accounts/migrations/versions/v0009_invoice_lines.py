"""Lines of invoices whose usage rows were deleted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "invoice_lines",
        sa.Column("team_id", sa.Text, primary_key=True),
        sa.Column("month", sa.BigInteger, primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("what", sa.Text, primary_key=True),
        sa.Column("quantity", sa.BigInteger, nullable=False),
        sa.Column("ticks", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("invoice_lines")
