"""The schema's history, run by Alembic from `Store.open`.

Revisions are numbered 0001, 0002, … in one line. Each must leave processes of the release before it running.
"""

from __future__ import annotations

from typing import Final

HEAD: Final = "0010"
"""The newest revision in versions/. Here too, so that a store that is up to date opens without loading Alembic (0.3 s)."""
