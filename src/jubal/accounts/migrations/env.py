"""Alembic executes this file for every run: it upgrades over the connection, and in the transaction, that it is handed."""

from __future__ import annotations

from alembic import context

from jubal.accounts.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite's ALTER TABLE can do little: Alembic copies the table instead
)
context.run_migrations()
