"""Runs the demonstration: start everything, send the studies, wait for the answers, print a table, leave the SRs."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from .. import scu
from ..core.errors import Unavailable
from . import pacs as archives
from . import watch
from .site import PACS_AE
from .stack import Stack
from .studies import Sent, prepare
from .watch import Seen

ANSWER_TIMEOUT_S = 120.0
DISCLAIMER = "Research use. Not a medical device. Every answer is unverified until a physician verifies it."


@dataclass
class Outcome:
    """What came back for one study."""

    label: str
    answer: str
    certainty_percent: float | None = None
    seconds: float | None = None
    reason: str = ""
    reports: list[str] = field(default_factory=list)
    companions: list[str] = field(default_factory=list)


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
            by_uid = {one.study_instance_uid: one for one in sent}
            moments = {uid: _send(one, receiver, stack) for uid, one in by_uid.items()}
            progress.update(step, description="waiting for the answers")
            follow = watch.follow(stack.settings.database_url, by_uid, ANSWER_TIMEOUT_S)
            outcomes = [_outcome(by_uid[uid], seen, moments[uid], receiver, folder / "reports") for uid, seen in follow]
            progress.stop()
            _print(outcomes, receiver.name, folder, time.monotonic() - started, out)
            if json_file is not None:
                json_file.write_text(json.dumps(_as_data(outcomes, receiver.name, stack), indent=2) + "\n")
            if hold:
                _hold(stack, receiver, out)
        finally:
            receiver.close()
    failed = [one.label for one in outcomes if one.answer == "failed" or (one.seconds and not one.reports)]
    if failed:
        raise Unavailable(f"no report came for {', '.join(failed)}: see the logs in {folder / 'logs'}")


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


def _outcome(one: Sent, seen: Seen, sent_at: float, receiver: archives.Pacs, folder: Path) -> Outcome:
    """Put what became of a study into a row, and its reports as the PACS holds them into `folder`."""
    outcome = Outcome(one.label, answer=seen.newest.state)
    if seen.newest.state != "done":
        outcome.reason = seen.refusals[0] if seen.refusals else seen.newest.message or ""
        return outcome
    outcome.answer = seen.newest.result["answer"]
    outcome.certainty_percent = round(100 * seen.newest.result["pneumonia"], 1)
    outcome.seconds = round(seen.finished_at - sent_at, 2)
    titles = {report["sop_instance_uid"]: report["title"] for report in seen.newest.result["reports"]}
    for path in archives.export(receiver, one.study_instance_uid, folder, one.label):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        kept = outcome.companions if titles.get(header.SOPInstanceUID, "").endswith("text") else outcome.reports
        kept.append(str(path))
    return outcome


def _conformance(path: str) -> str:
    """Let dciodvfy judge a report, where it is installed."""
    program = shutil.which("dciodvfy")
    if program is None:
        return "not installed"
    run = subprocess.run([program, path], capture_output=True, text=True, errors="replace", check=False)
    errors = sum(line.startswith("Error") for line in (run.stdout + run.stderr).splitlines())
    return f"{errors} errors"


def _print(outcomes: list[Outcome], receiver: str, folder: Path, seconds: float, out: Console) -> None:
    # On a terminal of 80 columns it is the file's name that gives way, and nothing that answers.
    said = (Column(name, no_wrap=True) for name in ("answer", "pneumonia", "seconds", "SR", "text", "dciodvfy"))
    table = Table(Column("study", overflow="fold"), *said, pad_edge=False)
    for one in outcomes:
        certainty = "" if one.certainty_percent is None else f"{one.certainty_percent:.1f} %"
        duration = "" if one.seconds is None else f"{one.seconds:.2f}"
        verdicts = ", ".join(sorted({_conformance(path) for path in (*one.reports, *one.companions)}))
        counts = (str(len(one.reports)), str(len(one.companions))) if one.reports else ("", "")
        table.add_row(one.label, one.answer, certainty, duration, *counts, verdicts)
    out.print(table)
    for one in outcomes:
        if one.reason:
            out.print(escape(f"{one.label} was refused: {one.reason}"), highlight=False, soft_wrap=True)
    out.print("Seconds: from the last acknowledged byte to the last delivered report, quiet period included.")
    out.print("SR, text: reports that the PACS holds in the study; dciodvfy checks them against the standard.")
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
