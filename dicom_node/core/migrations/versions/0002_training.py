"""Training: whom a study is about (keyed hashes), who agreed, and what each study shows."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the tables of consent and labels."""
    key = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "subject",
        sa.Column("study_id", key, autoincrement=False, nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("study_key", sa.String(length=64), nullable=False),
        sa.Column("patient_key", sa.String(length=64), nullable=True),
        sa.Column("patient_id_key", sa.String(length=64), nullable=True),
        sa.Column("accession_key", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_subject_study_id")),
        sa.PrimaryKeyConstraint("study_id", name=op.f("pk_subject")),
    )
    for column in ("study_key", "patient_key", "patient_id_key", "accession_key"):
        op.create_index(op.f(f"ix_subject_{column}"), "subject", [column], unique=False)
    op.create_table(
        "consent",
        sa.Column("id", key, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("patient_id_key", sa.String(length=64), nullable=True),
        sa.Column("decision", sa.String(length=16), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=True),
        sa.Column("recorded_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_consent")),
        sa.UniqueConstraint("kind", "key", name="uq_consent_subject"),
    )
    op.create_index(op.f("ix_consent_patient_id_key"), "consent", ["patient_id_key"], unique=False)
    op.create_table(
        "label",
        sa.Column("id", key, nullable=False),
        sa.Column("study_id", key, nullable=False),
        sa.Column("source", sa.String(length=32), nullable=False),
        sa.Column("value", sa.String(length=16), nullable=False),
        sa.Column("recorded_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_label_study_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_label")),
        sa.UniqueConstraint("study_id", "source", name="uq_label_study_source"),
    )
