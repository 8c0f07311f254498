"""A site's records as its services write them: a day of studies in every state, without a patient."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dicom_node.core import audit, jobs
from dicom_node.core.audit import Event, Outcome, Record
from dicom_node.core.database import Database, instance, job, rejection, study
from dicom_node.core.errors import Refused, Unavailable
from dicom_node.core.settings import Settings

NOW = 1_772_600_000.0
DX, CR, CT = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.2"
SR, TEXT_SR = "1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.88.33"
AWAY = Unavailable("the destination 'pacs' does not answer: look at its host, port and AE title")
TOO_OLD = Refused("the patient is 54 years old: the model is made for ages 1 to 5", code="age")


def site(state_dir: Path, **sections: Any) -> Settings:
    """The settings of a site that infers in the clear, which needs no other organisation."""
    base = {"site": {"name": "St Example", "state_dir": state_dir}, "inference": {"engine": "plaintext"}}
    return Settings.model_validate(base | sections)


def add_study(connection: sa.Connection, at: float, images: int = 1, *, closed: bool = True, sop: str = DX) -> int:
    """A study whose last image came at `at`."""
    count = connection.execute(sa.select(sa.func.count()).select_from(study)).scalar_one()
    root = f"2.25.77{count:04d}"
    uids = {"study_instance_uid": root, "revision": images, "closed_revision": images if closed else 0}
    added = study.insert().values(**uids, first_received_at=at - images + 1, last_received_at=at)
    (number,) = connection.execute(added.returning(study.c.id)).one()
    for index in range(images):
        row = {
            "study_id": number,
            "series_instance_uid": f"{root}.1",
            "sop_instance_uid": f"{root}.1.{index}",
            "sop_class_uid": sop,
            "transfer_syntax_uid": "1.2.840.10008.1.2.4.70" if index else "1.2.840.10008.1.2.1",
            "sha256": f"{number:032x}{index:032x}",
            "size": 8_340_112 + index,
            "source": "MODALITY1@10.20.0.11",
            "received_at": at - images + 1 + index,
            "current": True,
        }
        connection.execute(instance.insert().values(**row))
    happened(connection, "study-received", number, at, {"images": images})
    return number


def happened(connection: sa.Connection, what: str, number: int, at: float, detail: dict[str, Any]) -> None:
    """A row of the audit trail."""
    record = Record(Event.INSTANCES_TRANSFERRED, what, "C", "dicom-node serve", Outcome.SUCCESS, number, detail)
    audit.append(connection, record, at)


def result(connection: sa.Connection, number: int, at: float, answer: str, share: float) -> dict[str, Any]:
    """The result of a classification, as the inference worker writes it."""
    mine = connection.execute(sa.select(instance.c.id).where(instance.c.study_id == number)).scalars().all()
    words = f"AI pneumonia {answer.upper()} {100 * share:.0f} % (unverified)"
    reports = [
        {"sop_class_uid": kind, "sop_instance_uid": f"2.25.9{at:.0f}{n}", "series_instance_uid": f"2.25.8{at:.0f}{n}"}
        | {"sha256": f"{number:062x}{n:02x}", "title": words if n == 0 else f"{words} text"}
        for n, kind in enumerate((SR, TEXT_SR))
    ]
    return {
        "answer": answer,
        "pneumonia": share,
        "bacterial": 0.7 * share if answer == "present" else None,
        "viral": 0.3 * share if answer == "present" else None,
        "model": "pneumonia-2026.1",
        "engine": "dealt-2pc",
        "weights_sha256": "9f2c" * 16,
        "images": list(mine),
        "reports": reports,
        "seconds": {"pixels": 0.041, "trunk": 0.073, "engine": 0.212, "report": 0.038},
    }


def classify(database: Database, number: int, at: float, ends: str = "done", *, answer: str, share: float) -> None:
    """A classification of the study that began at `at` and ends as `ends` says."""
    with database.write() as connection:
        jobs.add(connection, "classify", f"classify:{number}:{at}", {"instances": []}, at, number)
    if ends == "waiting":
        return
    held = jobs.lease(database, ("classify",), "worker@node1:4211", 60.0, at)
    assert held is not None
    assert held.study_id == number
    with database.write() as connection:
        if ends == "done":
            written = result(connection, number, at, answer, share)
            happened(connection, "study-classified", number, at + 0.4, {"answer": answer, "model": written["model"]})
            for one in written["reports"]:
                payload = {key: one[key] for key in ("sha256", "sop_class_uid", "sop_instance_uid")}
                key = f"deliver:{one['sop_instance_uid']}:pacs"
                jobs.add(connection, "deliver", key, payload | {"destination": "pacs"}, at + 0.4, number)
            jobs.finish(connection, held, written, at + 0.4)
        elif ends == "failed":
            jobs.fail(connection, held, Unavailable("party 1 did not answer within 30 s", code="party-away"), at + 30)
        elif ends == "refused":
            jobs.refuse(connection, held, TOO_OLD, at + 1)


def deliveries(database: Database, at: float) -> Iterator[jobs.Job]:
    """Every delivery that is due at `at`, leased one by one."""
    while (held := jobs.lease(database, ("deliver",), "deliver@node1:4202", 60.0, at)) is not None:
        yield held


def deliver(database: Database, at: float, ends: str = "done") -> None:
    """Bring all due deliveries to an end."""
    for held in deliveries(database, at):
        with database.write() as connection:
            if ends == "done":
                jobs.finish(connection, held, {}, at)
            elif ends == "failed":
                jobs.fail(connection, held, AWAY, at)
            else:
                jobs.retry(connection, held, AWAY, NOW + 320)


def refuse_images(connection: sa.Connection, number: int, code: str, reason: str) -> None:
    """A rule refuses every image of the study."""
    mine = instance.update().where(instance.c.study_id == number)
    connection.execute(mine.values(refusal_code=code, refusal=reason))


def reject(connection: sa.Connection, at: float, status: int, code: str, message: str, sop: str = CT) -> None:
    """An object that was not accepted."""
    source = "OLDCT@10.20.0.40"
    row = {"at": at, "source": source, "sop_class_uid": sop, "status": status, "code": code, "message": message}
    connection.execute(rejection.insert().values(**row))


def a_day(database: Database) -> dict[str, int]:
    """Fill the records with studies in every state; returns state → number of a study that is in it."""
    found: dict[str, int] = {}

    def new(at: float, images: int = 1, **options: Any) -> int:
        with database.write() as connection:
            return add_study(connection, at, images, **options)

    answers = (("absent", 0.04), ("present", 0.93), ("absent", 0.11), ("undetermined", 0.44), ("present", 0.81))
    for index, (answer, share) in enumerate(answers):
        at = NOW - 9000 + 900 * index
        found["delivered"] = new(at, 1 + index % 2)
        classify(database, found["delivered"], at + 10.1, answer=answer, share=share)
        deliver(database, at + 10.9)
    for ends, age in (("failed", 3600.0), ("retried", 1800.0)):
        number = new(NOW - age)
        classify(database, number, NOW - age + 10, answer="absent", share=0.02)
        deliver(database, NOW - age + 11, ends)
        found["delivering" if ends == "retried" else "undelivered"] = number
    refused = new(NOW - 1500, 2)
    with database.write() as connection:
        refuse_images(connection, refused, TOO_OLD.code, str(TOO_OLD))
        reject(connection, NOW - 1400, 0x0122, "sop-class", "CT images are not taken: this node takes CR, DX and SC")
        reject(connection, NOW - 700, 0xC000, "unreadable", "the data set ends inside an element: send it again", DX)
    found["refused"] = refused
    for ends, age in (("failed", 1200.0), ("refused", 1100.0), ("leased", 20.0), ("waiting", 12.0)):
        number = new(NOW - age)
        classify(database, number, NOW - age + 10, ends, answer="absent", share=0.1)
        found["classifying" if ends == "leased" else f"classify-{ends}"] = number
    found["receiving"] = new(NOW - 3, closed=False)
    return found


def failed_jobs(database: Database) -> list[int]:
    """Numbers of all failed jobs."""
    with database.read() as connection:
        return list(connection.execute(sa.select(job.c.id).where(job.c.state == "failed").order_by(job.c.id)).scalars())
