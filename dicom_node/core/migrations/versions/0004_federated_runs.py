"""Training runs with other hospitals: what was agreed, reserved and contributed."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the tables."""
    op.create_table(
        "federated_run",
        sa.Column("run", sa.String(length=32), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("over", sa.Boolean(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("run", name=op.f("pk_federated_run")),
    )
    op.create_table(
        "federated_spending",
        sa.Column("token", sa.String(length=32), nullable=False),
        sa.Column("run", sa.String(length=32), nullable=False),
        sa.Column("release", sa.String(length=32), nullable=False),
        sa.Column("each", sa.Integer(), nullable=False),
        sa.Column("taken", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["federated_run.run"], name=op.f("fk_federated_spending_run")),
        sa.PrimaryKeyConstraint("token", name=op.f("pk_federated_spending")),
    )
    op.create_index(op.f("ix_federated_spending_run"), "federated_spending", ["run"])
