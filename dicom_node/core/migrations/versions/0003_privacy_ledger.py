"""The privacy ledger: what training has cost the site's patients."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

APPEND_ONLY_SQLITE = """
CREATE TRIGGER privacy_ledger_no_{name} BEFORE {verb} ON privacy_ledger
BEGIN SELECT RAISE(ABORT, 'the privacy ledger is append-only'); END
"""
APPEND_ONLY_POSTGRESQL = """
CREATE FUNCTION privacy_ledger_append_only() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'the privacy ledger is append-only'; END $$;
CREATE TRIGGER privacy_ledger_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON privacy_ledger
FOR EACH STATEMENT EXECUTE FUNCTION privacy_ledger_append_only()
"""


def upgrade() -> None:
    """Add the table and what keeps it append-only."""
    op.create_table(
        "privacy_ledger",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("token", sa.String(length=32), nullable=False),
        sa.Column("event", sa.String(length=16), nullable=False),
        sa.Column("patient_set", sa.String(length=64), nullable=False),
        sa.Column("run", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("terms", sa.JSON(), nullable=False),
        sa.Column("previous", sa.String(length=64), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_privacy_ledger")),
        sa.UniqueConstraint("token", "event", name="uq_privacy_ledger_transition"),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(APPEND_ONLY_POSTGRESQL)
    else:
        for verb in ("UPDATE", "DELETE"):
            op.execute(APPEND_ONLY_SQLITE.format(name=verb.lower(), verb=verb))
