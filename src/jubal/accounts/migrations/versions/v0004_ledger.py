"""The ledger, reserves of credit, and prices per team."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

CHARGES = ("input_ticks", "cached_input_ticks", "output_ticks", "reasoning_ticks", "request_ticks")


def upgrade() -> None:
    op.create_table(
        "transfers",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("team_id", sa.Text, nullable=False),
        sa.Column("debit", sa.Text, nullable=False),
        sa.Column("credit", sa.Text, nullable=False),
        sa.Column("ticks", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("note", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_transfers"),
        sa.CheckConstraint("ticks > 0 AND debit <> credit", name=op.f("ck_transfers_moves")),
    )
    op.create_index("ix_transfers_team_id_created_us", "transfers", ["team_id", "created_us"])
    op.create_table(
        "balances",
        sa.Column("team_id", sa.Text, nullable=False),
        *(
            sa.Column(f"{account}_ticks", sa.BigInteger, nullable=False, server_default="0")
            for account in ("grant", "prepaid", "receivable", "revenue", "cash", "promo")
        ),
        sa.Column("month", sa.Integer, nullable=False, server_default="0"),
        sa.Column("monthly_grant_ticks", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("spent_ticks", sa.BigInteger, nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("team_id", name="pk_balances"),
    )
    op.create_table(
        "reserves",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("team_id", sa.Text, nullable=False),
        sa.Column("gateway", sa.Text, nullable=False),
        sa.Column("ticks", sa.BigInteger, nullable=False),
        sa.Column("expires_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_reserves"),
    )
    op.create_index("ix_reserves_team_id", "reserves", ["team_id"])
    op.create_index("ix_reserves_expires_us", "reserves", ["expires_us"])
    op.create_table(
        "prices",
        sa.Column("team_id", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("terms", sa.Text, nullable=False),
        sa.Column("modified_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("team_id", "model", name="pk_prices"),
    )
    for name in CHARGES:
        op.add_column("usage", sa.Column(name, sa.BigInteger))
    op.add_column("usage", sa.Column("tools", sa.Text))
    op.add_column("usage", sa.Column("reserve_id", sa.Text))
    op.add_column("usage", sa.Column("drawn_ticks", sa.BigInteger))
    _post_what_was_used()


def _post_what_was_used() -> None:
    """What was recorded before there was a ledger becomes owed, request by request: statements that know any number of rows."""
    op.execute(
        "INSERT INTO transfers (id, team_id, debit, credit, ticks, kind, created_us) "
        "SELECT request_id, team_id, 'receivable', 'revenue', cost_in_usd_ticks, 'usage', created_us "
        "FROM usage WHERE cost_in_usd_ticks > 0"
    )
    op.execute(
        "INSERT INTO balances (team_id, receivable_ticks, revenue_ticks) "
        "SELECT team_id, -SUM(cost_in_usd_ticks), SUM(cost_in_usd_ticks) FROM usage "
        "WHERE cost_in_usd_ticks > 0 GROUP BY team_id"
    )


def downgrade() -> None:
    for name in ("drawn_ticks", "reserve_id", "tools", *reversed(CHARGES)):
        op.drop_column("usage", name)
    for name in ("prices", "reserves", "balances", "transfers"):
        op.drop_table(name)
