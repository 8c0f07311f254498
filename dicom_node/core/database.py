"""The site's records: one schema, SQLite (WAL, synchronous FULL) by default, PostgreSQL by URL.

Reading order: the tables, then `Database`, whose `read` and `write` are the only ways to a connection.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import OperationalError

from .errors import Unavailable

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)
Key = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite numbers rows by itself for INTEGER alone

#: `revision` grows with every new content; the assembler raises `closed_revision` to it once the study is complete.
study = sa.Table(
    "study",
    metadata,
    sa.Column("id", Key, primary_key=True),
    sa.Column("study_instance_uid", sa.String(64), nullable=False, unique=True),
    sa.Column("revision", sa.Integer, nullable=False, default=0),
    sa.Column("closed_revision", sa.Integer, nullable=False, default=0),
    sa.Column("first_received_at", sa.Float, nullable=False),
    sa.Column("last_received_at", sa.Float, nullable=False),
)

#: One row per content received. `current` is false once other bytes came under the same SOP Instance UID.
instance = sa.Table(
    "instance",
    metadata,
    sa.Column("id", Key, primary_key=True),
    sa.Column("study_id", Key, sa.ForeignKey("study.id"), nullable=False, index=True),
    sa.Column("series_instance_uid", sa.String(64), nullable=False),
    sa.Column("sop_instance_uid", sa.String(64), nullable=False, index=True),
    sa.Column("sop_class_uid", sa.String(64), nullable=False),
    sa.Column("transfer_syntax_uid", sa.String(64), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False, index=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("source", sa.String(80), nullable=False),
    sa.Column("received_at", sa.Float, nullable=False),
    sa.Column("current", sa.Boolean, nullable=False, default=True),
    sa.Column("conflict", sa.Boolean, nullable=False, default=False),
    sa.Column("refusal_code", sa.String(64)),
    sa.Column("refusal", sa.String(400)),
    sa.UniqueConstraint("sop_instance_uid", "sha256", name="uq_instance_content"),
)

#: What was never kept: the peer got the DIMSE status and an administrator gets the reason.
rejection = sa.Table(
    "rejection",
    metadata,
    sa.Column("id", Key, primary_key=True),
    sa.Column("at", sa.Float, nullable=False, index=True),
    sa.Column("source", sa.String(80), nullable=False),
    sa.Column("sop_class_uid", sa.String(64), nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("code", sa.String(64), nullable=False),
    sa.Column("message", sa.String(400), nullable=False),
)

#: Work, and with it the history a dashboard shows. `key` makes adding the same work twice harmless.
job = sa.Table(
    "job",
    metadata,
    sa.Column("id", Key, primary_key=True),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("key", sa.String(200), nullable=False, unique=True),
    sa.Column("study_id", Key, sa.ForeignKey("study.id"), index=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("payload", sa.JSON, nullable=False),
    sa.Column("result", sa.JSON),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("run_at", sa.Float, nullable=False),
    sa.Column("finished_at", sa.Float),
    sa.Column("lease_owner", sa.String(80)),
    sa.Column("lease_expires_at", sa.Float),
    sa.Column("code", sa.String(64)),
    sa.Column("message", sa.String(400)),
    sa.Index("ix_job_due", "state", "kind", "run_at"),
)

#: Small durable facts, such as the last change number read from an Orthanc.
fact = sa.Table(
    "fact",
    metadata,
    sa.Column("name", sa.String(120), primary_key=True),
    sa.Column("value", sa.String(400), nullable=False),
)

#: Append-only (triggers refuse UPDATE and DELETE); each row's hash covers the row before it.
audit_event = sa.Table(
    "audit_event",
    metadata,
    sa.Column("seq", Key, primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("event_id", sa.String(16), nullable=False),
    sa.Column("event_type", sa.String(64), nullable=False),
    sa.Column("action", sa.String(1), nullable=False),
    sa.Column("outcome", sa.Integer, nullable=False),
    sa.Column("actor", sa.String(120), nullable=False),
    sa.Column("study_id", Key),
    sa.Column("detail", sa.JSON, nullable=False),
    sa.Column("previous", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)

#: Whom a study is about, as keyed hashes of its identifiers; made anew whenever the study's revision grows.
subject = sa.Table(
    "subject",
    metadata,
    sa.Column("study_id", Key, sa.ForeignKey("study.id"), primary_key=True, autoincrement=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("study_key", sa.String(64), nullable=False, index=True),
    sa.Column("patient_key", sa.String(64), index=True),
    sa.Column("patient_id_key", sa.String(64), index=True),
    sa.Column("accession_key", sa.String(64), index=True),
)

#: Decisions about training; whoever has no row has not agreed. `key` is of the same kind as the column of `subject`.
consent = sa.Table(
    "consent",
    metadata,
    sa.Column("id", Key, primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("key", sa.String(64), nullable=False),
    sa.Column("patient_id_key", sa.String(64), index=True),
    sa.Column("decision", sa.String(16), nullable=False),
    sa.Column("expires_at", sa.Float),
    sa.Column("recorded_at", sa.Float, nullable=False),
    sa.UniqueConstraint("kind", "key", name="uq_consent_subject"),
)

#: What a study shows, as each source says it.
label = sa.Table(
    "label",
    metadata,
    sa.Column("id", Key, primary_key=True),
    sa.Column("study_id", Key, sa.ForeignKey("study.id"), nullable=False),
    sa.Column("source", sa.String(32), nullable=False),
    sa.Column("value", sa.String(16), nullable=False),
    sa.Column("recorded_at", sa.Float, nullable=False),
    sa.UniqueConstraint("study_id", "source", name="uq_label_study_source"),
)

#: Append-only in the same way: each row is a transition of one reservation of privacy budget (`fl_agent/ledger`).
privacy_ledger = sa.Table(
    "privacy_ledger",
    metadata,
    sa.Column("seq", Key, primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("token", sa.String(32), nullable=False),
    sa.Column("event", sa.String(16), nullable=False),
    sa.Column("patient_set", sa.String(64), nullable=False),
    sa.Column("run", sa.String(64), nullable=False),
    sa.Column("model", sa.String(64), nullable=False),
    sa.Column("terms", sa.JSON, nullable=False),
    sa.Column("previous", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.UniqueConstraint("token", "event", name="uq_privacy_ledger_transition"),
)

#: Training runs with other hospitals that this site agreed to (`fl_agent/agent`).
federated_run = sa.Table(
    "federated_run",
    metadata,
    sa.Column("run", sa.String(32), primary_key=True),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("over", sa.Boolean, nullable=False, default=False),
    sa.Column("at", sa.Float, nullable=False),
)

#: What was reserved for a run, by the ledger's token, and how often the site has contributed under it.
federated_spending = sa.Table(
    "federated_spending",
    metadata,
    sa.Column("token", sa.String(32), primary_key=True),
    sa.Column("run", sa.String(32), sa.ForeignKey("federated_run.run"), nullable=False, index=True),
    sa.Column("release", sa.String(32), nullable=False),
    sa.Column("each", sa.Integer, nullable=False),
    sa.Column("taken", sa.Integer, nullable=False, default=0),
)


class Database:
    """A pool of connections to the site's records.

    Parameters
    ----------
    url : str
        SQLAlchemy URL.
    cache_kib : int
        Memory in which SQLite keeps pages, for each connection; however long the records, it takes no more.

    Notes
    -----
    A write takes SQLite's lock when it begins (``BEGIN IMMEDIATE``): a transaction that starts by reading and then
    writes would otherwise fail at once, without waiting, when another process wrote in between.
    """

    def __init__(self, url: str, *, cache_kib: int = 2000) -> None:
        self.is_sqlite = url.startswith("sqlite")
        if self.is_sqlite:
            self.engine = sa.create_engine(url, connect_args={"timeout": 30.0, "check_same_thread": False})
            sa.event.listen(self.engine, "connect", partial(_configure_sqlite, cache_kib))
            sa.event.listen(self.engine, "begin", _begin_sqlite)
        else:
            self.engine = sa.create_engine(url, pool_pre_ping=True)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Open a transaction that only reads."""
        with self._reachable(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Open a transaction that writes: committed durably when the block ends, rolled back when it raises.

        Raises
        ------
        Unavailable
            The database is locked, away or its disk is full.
        """
        writing = self.engine.execution_options(veilray_write=True)
        with self._reachable(), writing.connect() as connection, connection.begin():
            yield connection

    def migrate(self) -> None:
        """Bring the schema to this version's; safe to call from several processes at once."""
        if self.is_sqlite and self.engine.url.database:
            Path(self.engine.url.database).parent.mkdir(parents=True, exist_ok=True)
        config = _migrations()
        with self.write() as connection:
            if not self.is_sqlite:
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(722165)"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def is_current(self) -> bool:
        """Tell whether the schema is this version's, without changing it."""
        with self.read() as connection:
            found = MigrationContext.configure(connection).get_current_heads()
        return set(found) == set(ScriptDirectory.from_config(_migrations()).get_heads())

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except OperationalError as error:
            raise Unavailable(f"the site's database cannot be used: {type(error.orig).__name__}") from error


def _migrations() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _configure_sqlite(cache_kib: int, connection: Any, _: object) -> None:
    connection.isolation_level = None  # SQLAlchemy's begin event says BEGIN; the driver must not add its own
    cursor = connection.cursor()
    cache = f"cache_size={-cache_kib}"  # negative: KiB, not pages
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000", cache):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("veilray_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
