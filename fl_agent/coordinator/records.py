"""What the coordinator must not forget: plans, who accepted them, the next round's number, and the training's state.

A database of its own, never a site's. A number is durable before its round opens, so a killed coordinator goes on with
a fresh one; sums are durable before the next round builds on them. No row is about one hospital's data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from dicom_node.core.database import Database
from dicom_node.core.errors import ConfigError

from ..learning.plan import Plan
from ..learning.server import Training

metadata = sa.MetaData()
#: Grows with every change of the tables.
SCHEMA: Final = 1
schema = sa.Table("schema", metadata, sa.Column("version", sa.Integer, nullable=False))
#: `opened` counts the rounds of each kind of sum, as JSON: an upper bound of what each site gave.
run = sa.Table(
    "run",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run", sa.String(32), nullable=False, unique=True),
    sa.Column("version", sa.String(64), nullable=False, unique=True),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("training", sa.LargeBinary, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("opened", sa.JSON, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("over", sa.String(64), nullable=False),
)
#: `answer` is empty before any, "accepted", or the code of a refusal; `told` is whether the site knows the end.
member = sa.Table(
    "member",
    metadata,
    sa.Column("run", sa.String(32), sa.ForeignKey("run.run"), primary_key=True),
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("answer", sa.String(64), nullable=False),
    sa.Column("told", sa.Boolean, nullable=False),
)
#: What became of each round, for people.
event = sa.Table(
    "event",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run", sa.String(32), sa.ForeignKey("run.run"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("outcome", sa.String(64), nullable=False),
    sa.Column("survivors", sa.Integer, nullable=False),
)
ACCEPTED: Final = "accepted"
FINISHED: Final = "finished"


@dataclass(frozen=True)
class Run:
    """A run as it stands.

    Attributes
    ----------
    plan : Plan
    training : Training
    number : int
        Of the newest round; 0 before the first.
    opened : tuple of int
        Rounds opened for each kind of sum, in the order of `terms.releases`.
    at : float
        When it began, seconds since the epoch.
    over : str
        Empty while it goes on, `FINISHED`, or the code of why it ended.
    answers : mapping of str to str
        By site: empty, `ACCEPTED` or the code of a refusal.
    untold : frozenset of str
        Sites that do not know the end, whether the coordinator got their answer to the plan or not.
    """

    plan: Plan
    training: Training
    number: int
    opened: tuple[int, ...]
    at: float
    over: str
    answers: Mapping[str, str]
    untold: frozenset[str]

    @property
    def accepted(self) -> frozenset[str]:
        """The sites that follow the plan."""
        return frozenset(name for name, answer in self.answers.items() if answer == ACCEPTED)

    @property
    def refused(self) -> dict[str, str]:
        """The sites that do not follow the plan, each with the code of its reason."""
        return {name: answer for name, answer in self.answers.items() if answer not in {"", ACCEPTED}}


class Records:
    """The coordinator's database.

    Parameters
    ----------
    path : Path
        An SQLite file, made where it is absent.

    Raises
    ------
    ConfigError
        It was written by another version of the program (``schema``).
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = Database(f"sqlite:///{path}")
        with self._database.write() as connection:
            metadata.create_all(connection)
            found = connection.execute(sa.select(schema.c.version)).scalar()
            if found is None:
                connection.execute(schema.insert().values(version=SCHEMA))
            elif found != SCHEMA:
                raise ConfigError(f"{path} was written by another version of this program", code="schema")

    def open(self, plan: Plan, now: float) -> None:
        """Begin a run.

        Raises
        ------
        ConfigError
            A run for this version of the model is there already (``run-exists``).
        """
        row = {
            "run": plan.run, "version": plan.version, "plan": plan.content.decode(), "number": 0, "opened": [],
            "training": Training.start(plan).encode(), "at": now, "over": "",
        }  # fmt: skip
        with self._database.write() as connection:
            condition = run.c.version == plan.version
            if connection.execute(sa.select(run.c.id).where(condition)).first():
                raise ConfigError(f"a run for model {plan.version} exists: choose another version", code="run-exists")
            connection.execute(run.insert(), row)
            connection.execute(
                member.insert(),
                [{"run": plan.run, "name": one.name, "answer": "", "told": False} for one in plan.members],
            )

    def newest(self) -> Run | None:
        """Return the newest run, over or not; None where there is none."""
        return self._one(sa.select(run).order_by(run.c.id.desc()).limit(1))

    def of(self, version: str) -> Run | None:
        """Return the run for a version of the model; None where there is none."""
        return self._one(sa.select(run).where(run.c.version == version))

    def _one(self, query: sa.Select[Any]) -> Run | None:
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
            if row is None:
                return None
            members = connection.execute(sa.select(member).where(member.c.run == row.run)).all()
        untold = frozenset(one.name for one in members if not one.told)
        return Run(
            plan=Plan.read(row.plan.encode()),
            training=Training.read(row.training),
            number=row.number,
            opened=tuple(row.opened),
            at=row.at,
            over=row.over,
            answers={one.name: one.answer for one in members},
            untold=untold,
        )

    def has(self, version: str) -> bool:
        """Tell whether there is a run for this version of the model."""
        return self.of(version) is not None

    def answered(self, plan: Plan, name: str, answer: str) -> None:
        """Note what a site said to the plan."""
        self._member(plan, name, answer=answer[:64])

    def told(self, plan: Plan, name: str) -> None:
        """Note that a site knows that the run is over."""
        self._member(plan, name, told=True)

    def _member(self, plan: Plan, name: str, **values: Any) -> None:
        with self._database.write() as connection:
            condition = (member.c.run == plan.run) & (member.c.name == name)
            connection.execute(member.update().where(condition).values(**values))

    def numbered(self, current: Run, kind: int) -> int:
        """Take the next round's number, durably, for the sum of this kind (its place in `terms.releases`)."""
        opened = [*current.opened, *[0] * (kind + 1 - len(current.opened))]
        opened[kind] += 1
        self._update(current.plan, number=current.number + 1, opened=opened)
        return current.number + 1

    def lost(self, plan: Plan, number: int, code: str, now: float) -> None:
        """Note a round without a sum."""
        with self._database.write() as connection:
            self._event(connection, plan, number, code, 0, now)

    def advanced(self, plan: Plan, number: int, training: Training, survivors: int, now: float) -> None:
        """Store what follows from a round's sum."""
        with self._database.write() as connection:
            self._event(connection, plan, number, "summed", survivors, now)
            connection.execute(run.update().where(run.c.run == plan.run).values(training=training.encode()))

    def ended(self, plan: Plan, how: str) -> None:
        """End a run."""
        self._update(plan, over=how)

    def events(self, plan: Plan) -> list[tuple[int, str, int]]:
        """Return number, outcome and survivors of each round that came to an end, oldest first."""
        query = sa.select(event.c.number, event.c.outcome, event.c.survivors).where(event.c.run == plan.run)
        with self._database.read() as connection:
            return [tuple(row) for row in connection.execute(query.order_by(event.c.id))]

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _update(self, plan: Plan, **values: Any) -> None:
        with self._database.write() as connection:
            connection.execute(run.update().where(run.c.run == plan.run).values(**values))

    @staticmethod
    def _event(connection: sa.Connection, plan: Plan, number: int, outcome: str, survivors: int, now: float) -> None:
        values = {"run": plan.run, "number": number, "at": now, "outcome": outcome, "survivors": survivors}
        connection.execute(event.insert(), values)
