"""Runs the demonstration: start everything, send the studies, wait for the answers, print a table, leave the SRs."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from .. import scu
from ..core.database import Database, instance, job, study
from ..core.errors import Unavailable
from . import pacs as archives
from .site import PACS_AE
from .stack import Stack
from .studies import Sent, prepare

ANSWER_TIMEOUT_S = 120.0
DISCLAIMER = "Research use. Not a medical device. Every answer is unverified until a physician verifies it."


@dataclass
class Outcome:
    """What came back for one study."""

    label: str
    answer: str = "no answer"
    certainty_percent: float | None = None
    seconds: float | None = None
    reason: str = ""
    reports: list[str] = field(default_factory=list)


def show(
    folder: Path,
    *,
    images: list[Path],
    dicoms: list[Path],
    phantoms: int,
    json_file: Path | None,
    hold: bool,
    out: Console,
) -> None:
    """Run the demonstration in `folder`.

    Parameters
    ----------
    folder : Path
        Certificates, settings, logs, sent files and reports are left here; an earlier demonstration's are replaced.
    images, dicoms : list of Path
        Real pictures to wrap as DX, and DICOM files to send as they are.
    phantoms : int
        How many phantoms to draw besides.
    json_file : Path, optional
        Where to write the table as data.
    hold : bool
        Keep everything running until Ctrl-C.

    Raises
    ------
    Unavailable
        A service did not start, or a study had no answer in time.
    """
    started = time.monotonic()
    _clear(folder)
    spinner = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=out, transient=True
    )
    with spinner as progress, Stack(folder, web=hold, enforce_age=not (images or dicoms)) as stack:
        step = progress.add_task("starting the PACS, the dealer, the party, the node and the worker")
        receiver = archives.open_pacs(
            folder / "pacs", stack.own_pacs_port, stack.ae_title, stack.scp_port, stack.sender_ae
        )
        try:
            stack.start(receiver.dicom_port)
            progress.update(step, description="drawing and sending studies")
            sent = prepare(folder / "sent", images=images, dicoms=dicoms, phantoms=phantoms)
            moments = {one.label: _send(one, receiver, stack) for one in sent}
            outcomes = []
            for one in sent:
                progress.update(step, description=f"waiting for the answer to {one.label}")
                outcomes.append(_await(one, moments[one.label], receiver, stack, folder / "reports"))
            progress.stop()
            _print(outcomes, receiver.name, folder, time.monotonic() - started, out)
            if json_file is not None:
                json_file.write_text(json.dumps(_as_data(outcomes, receiver.name, stack), indent=2) + "\n")
            if hold:
                _hold(stack, receiver, out)
        finally:
            receiver.close()
    unanswered = [one.label for one in outcomes if one.answer == "no answer"]
    if unanswered:
        raise Unavailable(f"no answer came for {', '.join(unanswered)}: see the logs in {folder / 'logs'}")


def _clear(folder: Path) -> None:
    """Remove what an earlier demonstration left; anything else in the folder is not ours to delete."""
    for name in ("sent", "reports", "logs", "state", "pacs", "party", "dealer", "certificates"):
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)


def _send(one: Sent, receiver: archives.Pacs, stack: Stack) -> float:
    """Send a study to the PACS and to the node, as a modality would; return when the last byte was acknowledged."""
    for port, called in ((receiver.dicom_port, PACS_AE), (stack.scp_port, stack.ae_title)):
        for outcome in scu.send(one.paths, host="127.0.0.1", port=port, called=called, calling=stack.sender_ae):
            if not outcome.ok:
                raise Unavailable(f"{called} did not take {one.label}: {outcome.status_text} {outcome.meaning}")
    return time.time()


def _await(one: Sent, sent_at: float, receiver: archives.Pacs, stack: Stack, folder: Path) -> Outcome:
    """Wait until the study's job is closed and its reports are delivered."""
    database = Database(stack.settings.database_url)
    outcome = Outcome(one.label)
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while time.monotonic() < deadline:
        rows = _jobs(database, one.study_instance_uid)
        closed = [row for row in rows if row.state in ("done", "refused", "failed")]
        if rows and len(closed) == len(rows):
            classified = next(row for row in rows if row.kind == "classify")
            if classified.state == "done":
                outcome.answer = classified.result["answer"]
                outcome.certainty_percent = round(100 * classified.result["pneumonia"], 1)
                outcome.seconds = round(max(row.finished_at for row in rows) - sent_at, 2)
                outcome.reports = [
                    str(path) for path in archives.export(receiver, one.study_instance_uid, folder, one.label)
                ]
            else:
                outcome.answer = classified.state
                outcome.reason = _reason(database, one.study_instance_uid) or classified.message or ""
            break
        time.sleep(0.05)
    database.close()
    return outcome


def _jobs(database: Database, study_instance_uid: str) -> list[sa.Row[Any]]:
    mine = (
        sa.select(job).join(study, study.c.id == job.c.study_id).where(study.c.study_instance_uid == study_instance_uid)
    )
    with database.read() as connection:
        return list(connection.execute(mine).all())


def _reason(database: Database, study_instance_uid: str) -> str | None:
    mine = (
        sa.select(instance.c.refusal)
        .join(study, study.c.id == instance.c.study_id)
        .where(study.c.study_instance_uid == study_instance_uid, instance.c.refusal.is_not(None))
        .limit(1)
    )
    with database.read() as connection:
        return connection.execute(mine).scalar_one_or_none()


def _conformance(path: str) -> str:
    """Let dciodvfy judge a report, where it is installed."""
    program = shutil.which("dciodvfy")
    if program is None:
        return "not installed"
    run = subprocess.run([program, path], capture_output=True, text=True, errors="replace", check=False)
    errors = sum(line.startswith("Error") for line in (run.stdout + run.stderr).splitlines())
    return f"{errors} errors"


def _print(outcomes: list[Outcome], receiver: str, folder: Path, seconds: float, out: Console) -> None:
    table = Table(
        "study", "answer", "pneumonia", "seconds", "SRs in the PACS", "dciodvfy", title="VeilRay demonstration"
    )
    for one in outcomes:
        certainty = "" if one.certainty_percent is None else f"{one.certainty_percent:.1f} %"
        duration = "" if one.seconds is None else f"{one.seconds:.2f}"
        verdicts = ", ".join(sorted({_conformance(path) for path in one.reports}))
        table.add_row(
            one.label, one.answer, certainty, duration, str(len(one.reports)) if one.reports else "", verdicts
        )
    out.print(table)
    for one in outcomes:
        if one.reason:
            out.print(f"{one.label} was refused: {one.reason}", highlight=False, soft_wrap=True)
    out.print("Seconds count from the last acknowledged byte to the delivered report, the quiet period included.")
    out.print(
        f"PACS: {receiver}. Reports as it holds them: {folder / 'reports'}; logs: {folder / 'logs'}.", soft_wrap=True
    )
    out.print(f"{DISCLAIMER} It took {seconds:.0f} s.", soft_wrap=True)


def _as_data(outcomes: list[Outcome], receiver: str, stack: Stack) -> dict[str, Any]:
    return {
        "pacs": receiver,
        "quiet_s": stack.settings.assembler.quiet_s,
        "engine": stack.settings.inference.engine,
        "disclaimer": DISCLAIMER,
        "studies": [vars(one) for one in outcomes],
    }


def _hold(stack: Stack, receiver: archives.Pacs, out: Console) -> None:
    out.print(f"Admin pages: http://127.0.0.1:{stack.settings.web.port}/", soft_wrap=True)
    out.print(f"Send studies to {stack.ae_title} at 127.0.0.1 port {stack.scp_port}, calling as {stack.sender_ae}.")
    if isinstance(receiver, archives.OrthancPacs):
        out.print(f"Orthanc: {receiver.server.url}")
    out.print("Ctrl-C ends everything.")
    try:
        while stack.alive:
            time.sleep(0.5)
        raise Unavailable("a service of the demonstration ended by itself: see the logs")
    except KeyboardInterrupt:
        out.print("stopping")
