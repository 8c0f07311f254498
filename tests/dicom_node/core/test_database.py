"""The schema, its migrations, and what both databases promise."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from dicom_node.core import audit
from dicom_node.core.audit import Event, Outcome, Record
from dicom_node.core.database import Database, audit_event, fact, metadata
from dicom_node.core.errors import IntegrityError, Unavailable

SAMPLE = Record(Event.APPLICATION_ACTIVITY, "started", "E", "test")


def test_the_migrations_build_exactly_the_declared_schema(database: Database) -> None:
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_migrating_twice_changes_nothing(database: Database) -> None:
    database.migrate()
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_a_failed_write_leaves_nothing_behind(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.write() as connection:
        connection.execute(fact.insert().values(name="a", value="1"))
        _ = 1 / 0
    with database.read() as connection:
        assert connection.execute(sa.select(fact)).all() == []


def test_sqlite_commits_with_a_full_sync_and_a_write_ahead_log(tmp_path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'a.sqlite3'}")
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
    database.close()


def test_sqlite_keeps_no_more_pages_in_memory_than_it_is_told(tmp_path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'a.sqlite3'}", cache_kib=64)
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA cache_size").scalar_one() == -64
    database.close()


def test_an_absent_database_is_unavailable_and_not_a_stack_of_library_errors(tmp_path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'no-such-folder' / 'a.sqlite3'}")
    with pytest.raises(Unavailable), database.read():
        pass
    database.close()


def test_the_audit_chain_verifies_and_its_head_is_the_newest_row(database: Database) -> None:
    with database.write() as connection:
        for number in range(5):
            audit.append(
                connection, Record(Event.EXPORT, "sent", "R", "test", detail={"count": number}), 1000.5 + number
            )
    with database.read() as connection:
        seq, digest = audit.verify(connection)
        assert seq == 5
        assert (seq, digest) == audit.head(connection)


def test_the_audit_trail_refuses_update_and_delete(database: Database) -> None:
    with database.write() as connection:
        audit.append(connection, SAMPLE, 1.0)
    for statement in (audit_event.update().values(actor="other"), audit_event.delete()):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), database.write() as connection:
            connection.execute(statement)


@pytest.mark.parametrize("change", ["actor", "detail", "removed", "hash"])
def test_a_row_altered_behind_the_triggers_back_breaks_the_chain(database: Database, change: str) -> None:
    with database.write() as connection:
        for number in range(4):
            audit.append(
                connection, Record(Event.EXPORT, "sent", "R", "test", Outcome.SUCCESS, detail={"n": number}), 1.0
            )
    with database.write() as connection:
        if database.is_sqlite:
            for verb in ("update", "delete"):
                connection.exec_driver_sql(f"DROP TRIGGER audit_event_no_{verb}")
        else:
            connection.exec_driver_sql("DROP TRIGGER audit_event_append_only ON audit_event")
        second = audit_event.c.seq == 2
        if change == "removed":
            connection.execute(audit_event.delete().where(second))
        else:
            value = {"actor": "x", "detail": {"n": 9}, "hash": "0" * 64}[change]
            connection.execute(audit_event.update().where(second).values({change: value}))
    with pytest.raises(IntegrityError, match="altered at row"), database.read() as connection:
        audit.verify(connection)
