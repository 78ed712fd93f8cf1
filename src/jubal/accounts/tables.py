"""The tables of the accounts store. migrations/ makes them; a test compares the two.

Times are whole microseconds since 1970 (`_us`): they sort, subtract and compare alike on SQLite and PostgreSQL.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

metadata: Final = MetaData(
    naming_convention={  # SQLite can change a constraint later only if it has a name
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

meta: Final = Table(
    "meta",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
"""Facts about the store itself, made when it is made.

hash_key: the HMAC key that API keys are hashed with, in hex, the same for all gateways on the store. default_team: the id of
the team that keys belong to unless told otherwise. owner: the user id of whoever runs the command line.
"""

teams: Final = Table(
    "teams",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("created_us", BigInteger, nullable=False),
    Column("blocked", Boolean, nullable=False),
    Column("prepaid", Boolean, nullable=False),
    Column("tier", Text, nullable=False, server_default="standard"),
    Column("spending_limit_ticks", BigInteger),
)
"""spending_limit_ticks: what the team lets itself owe at most; null: what its tier says."""

api_keys: Final = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("team_id", Text, ForeignKey("teams.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False, unique=True),
    Column("redacted", Text, nullable=False),
    Column("acls", Text, nullable=False),
    Column("rpm", BigInteger),
    Column("tpm", BigInteger),
    Column("management", Boolean, nullable=False),
    Column("disabled", Boolean, nullable=False),
    Column("blocked", Boolean, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("modified_us", BigInteger, nullable=False),
    Column("modified_by", Text, nullable=False),
    Column("expires_us", BigInteger),
    Column("last_used_us", BigInteger),
    Column("rps", BigInteger),
)
"""digest: hex HMAC-SHA256 of the secret, which itself is nowhere. acls: a JSON list."""

old_secrets: Final = Table(
    "old_secrets",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("key_id", Text, ForeignKey("api_keys.id", ondelete="CASCADE"), nullable=False),
    Column("until_us", BigInteger, nullable=False),
    Index(None, "key_id"),
)
"""Digests of the secrets that a rotated key had before, while they still work."""

usage: Final = Table(
    "usage",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("created_us", BigInteger, nullable=False),
    Column("team_id", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("engine", Text, nullable=False),
    Column("weights", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("error_code", Text),
    Column("stream", Boolean, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("cost_in_usd_ticks", BigInteger, nullable=False),
    Column("latency_us", BigInteger, nullable=False),
    Column("first_token_us", BigInteger),
    Column("estimated", Boolean, nullable=False),
    Column("input_ticks", BigInteger),
    Column("cached_input_ticks", BigInteger),
    Column("output_ticks", BigInteger),
    Column("reasoning_ticks", BigInteger),
    Column("request_ticks", BigInteger),
    Column("tools", Text),
    Column("reserve_id", Text),
    Column("drawn_ticks", BigInteger),
    Column("service_tier", Text),
    Index(None, "key_id", "created_us"),
    Index(None, "created_us"),
)
"""One row per request that an engine was asked for. team_id and key_id are no foreign keys: usage outlives a deleted key."""

transfers: Final = Table(
    "transfers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("team_id", Text, nullable=False),
    Column("debit", Text, nullable=False),
    Column("credit", Text, nullable=False),
    Column("ticks", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("note", Text),
    CheckConstraint("ticks > 0 AND debit <> credit", name="moves"),
    Index(None, "team_id", "created_us"),
)
"""The ledger (accounts/ledger.py): rows are added and never changed. id: the idempotency key, for usage the request's id."""

balances: Final = Table(
    "balances",
    metadata,
    Column("team_id", Text, primary_key=True),
    Column("grant_ticks", BigInteger, nullable=False, server_default="0"),
    Column("prepaid_ticks", BigInteger, nullable=False, server_default="0"),
    Column("receivable_ticks", BigInteger, nullable=False, server_default="0"),
    Column("revenue_ticks", BigInteger, nullable=False, server_default="0"),
    Column("cash_ticks", BigInteger, nullable=False, server_default="0"),
    Column("promo_ticks", BigInteger, nullable=False, server_default="0"),
    Column("month", Integer, nullable=False, server_default="0"),
    Column("monthly_grant_ticks", BigInteger, nullable=False, server_default="0"),
    Column("spent_ticks", BigInteger, nullable=False, server_default="0"),
)
"""What each account of a team holds: credits less debits of its transfers, so a row's six accounts sum to zero.

month: the UTC month that the row is in, as 202611; 0 before the first. monthly_grant_ticks: what the team gets at the beginning
of each. spent_ticks: usage in `month`.
"""

reserves: Final = Table(
    "reserves",
    metadata,
    Column("id", Text, primary_key=True),
    Column("team_id", Text, nullable=False),
    Column("gateway", Text, nullable=False),
    Column("ticks", BigInteger, nullable=False),
    Column("expires_us", BigInteger, nullable=False),
    Index(None, "team_id"),
    Index(None, "expires_us"),
)
"""Credit that a gateway has set aside to hold the costs of requests from, without a transaction for each (accounts/credits.py)."""

prices: Final = Table(
    "prices",
    metadata,
    Column("team_id", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("terms", Text, nullable=False),
    Column("modified_us", BigInteger, nullable=False),
)
"""What a team pays in place of the list price (accounts/prices.py). model: a public name, or * for all. terms: JSON."""

usage_hours: Final = Table(
    "usage_hours",
    metadata,
    Column("hour_us", BigInteger, primary_key=True),
    Column("team_id", Text, primary_key=True),
    Column("key_id", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    *(
        Column(name, BigInteger, nullable=False)
        for name in (
            "requests",
            "failed",
            "cancelled",
            "prompt_tokens",
            "cached_tokens",
            "completion_tokens",
            "reasoning_tokens",
            "tool_calls",
            "cost_in_usd_ticks",
            "latency_us",
        )
    ),
    Index(None, "team_id", "hour_us"),
)
"""Sums of `usage` by hour, team, key and model. hour_us: when the hour began. Stays when rows of `usage` are deleted."""

audit: Final = Table(
    "audit",
    metadata,
    Column("id", Text, primary_key=True),
    Column("created_us", BigInteger, nullable=False),
    Column("actor_kind", Text, nullable=False),
    Column("actor_id", Text, nullable=False),
    Column("actor_name", Text, nullable=False),
    Column("team_id", Text),
    Column("action", Text, nullable=False),
    Column("resource", Text, nullable=False),
    Column("resource_id", Text, nullable=False),
    Column("before", Text),
    Column("after", Text),
    Column("request_id", Text),
    Column("address", Text),
    Index(None, "team_id", "created_us"),
    Index(None, "created_us"),
)
"""Every management act (accounts/audit.py). team_id: whose resource it is. before, after: JSON objects, without secrets.

The database itself refuses to change or delete a row.
"""

billing_info: Final = Table(
    "billing_info",
    metadata,
    Column("team_id", Text, primary_key=True),
    Column("info", Text, nullable=False),
    Column("modified_us", BigInteger, nullable=False),
)
"""What invoices of a team are addressed to: a JSON object (xai-api.md 21.3, BillingInfo)."""

invoice_lines: Final = Table(
    "invoice_lines",
    metadata,
    Column("team_id", Text, primary_key=True),
    Column("month", BigInteger, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("what", Text, primary_key=True),
    Column("quantity", BigInteger, nullable=False),
    Column("ticks", BigInteger, nullable=False),
)
"""What usage rows that are deleted said for invoices (accounts/itemised.py). month: as 202611."""

limits: Final = Table(
    "limits",
    metadata,
    Column("team_id", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("rps", BigInteger),
    Column("rpm", BigInteger),
    Column("tpm", BigInteger),
    Column("modified_us", BigInteger, nullable=False),
    Column("own_rps", BigInteger),
    Column("own_rpm", BigInteger),
    Column("own_tpm", BigInteger),
)
"""Rate limits of a team (accounts/team_limits.py). model: a public name, or * for all. 0: no limit; null: the default.

own_*: what the team set itself, which only narrows; null: nothing.
"""

deferred: Final = Table(
    "deferred",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("team_id", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),
    Column("status", Integer),
    Column("result", LargeBinary),
    Column("created_us", BigInteger, nullable=False),
    Column("expires_us", BigInteger, nullable=False),
    Column("lease", Text),
    Column("lease_until_us", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("dialect", Text, nullable=False, server_default="chat"),
    Index(None, "state", "lease_until_us"),
    Index(None, "team_id", "state"),
    Index(None, "expires_us"),
)
"""Requests that are answered later (records/deferred.py).

body: the request as it came; empty once it has ended. state: pending, running, done or failed. status, result: the status
and body to answer with, in its dialect's words. lease: who runs it; lease_until_us: nobody else takes it before. dialect: who reads
the body, and wrote the result.
"""

answers: Final = Table(
    "answers",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("team_id", Text, nullable=False),
    Column("dialect", Text, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("expires_us", BigInteger, nullable=False),
    Index(None, "expires_us"),
)
"""Answers that can be fetched again (records/answers.py). dialect: whose record it is. record: compressed."""
