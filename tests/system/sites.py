"""A site of real processes, from outside: a study goes in, its report comes back, a command changes the model."""

from __future__ import annotations

import io
import subprocess
import sys

import pydicom

from dicom_node import phantom, scu
from dicom_node.demo import watch
from dicom_node.demo.pacs import OwnPacs
from dicom_node.demo.stack import Stack
from secure_infer.card import ModelCard


def report(stack: Stack, pacs: OwnPacs, number: int) -> str:
    """Send the study of a new patient; the text of its reports."""
    study = phantom.Study.numbered(number, key="handover")
    path = stack.folder / f"{number}.dcm"
    image = phantom.dataset(phantom.draw(number, "consolidation", (256, 320)), study=study)
    image.save_as(path, enforce_file_format=True)
    (sent,) = scu.send([path], host="127.0.0.1", port=stack.scp_port, called=stack.ae_title, calling=stack.sender_ae)
    assert sent.ok
    ((_, seen),) = watch.follow(stack.settings.database_url, [study.study_uid], 60.0)
    assert seen.newest.state == "done"
    reports = [pydicom.dcmread(io.BytesIO(content)) for content in pacs.reports(study.study_uid)]
    assert len(reports) == 2
    return "\n".join(str(element.value) for one in reports for element in one.iterall() if element.VR != "SQ")


def command(stack: Stack, *words: str) -> str:
    whole = [sys.executable, "-m", "fl_agent", "candidates", *words, "--config", str(stack.folder / "site.toml")]
    done = subprocess.run(whole, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def names(card: ModelCard, text: str) -> bool:
    """Whether a report names a model by its hash and its privacy."""
    said = f"epsilon {card.privacy.epsilon:g}, delta {card.privacy.delta:g}"
    return card.weights_sha256 in text and said in text
