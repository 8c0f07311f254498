"""The 624 test images as DICOM through the whole node: encrypted answers beside the plaintext engine's.

Run: ``python -m tests.bench.classify --json FILE``. Each image is wrapped as DX in one of sixteen ways (MONOCHROME1
and 2, 8 and 12 bit, four transfer syntaxes), sent by C-STORE and classified by the three processes over mTLS.
The figures are final figures on the test split: nothing may be chosen by them.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import uid

from dicom_node import phantom, pixels, scu
from dicom_node.demo import watch
from dicom_node.demo.stack import Stack
from fl_agent.figures import pneumonia_metrics
from secure_infer.answer import Answer
from secure_infer.clear import PlaintextEngine
from secure_infer.models import SHIPPED, ModelStore
from secure_infer.public import public_part
from tests.bench import figures
from tests.conftest import DATA
from tests.dicomfiles import radiograph

#: MONOCHROME1 and 2, 8 and 12 bit, in four transfer syntaxes: every image takes the next of these sixteen.
VARIANTS = tuple(
    itertools.product(
        ("MONOCHROME2", "MONOCHROME1"),
        (8, 12),
        (uid.ExplicitVRLittleEndian, uid.JPEG2000Lossless, uid.ImplicitVRLittleEndian, uid.JPEGLSLossless),
    )
)


@dataclass(frozen=True)
class Case:
    """A test image."""

    path: Path
    label: int  # 0 normal, 1 bacterial, 2 viral
    duplicate: bool


def load(data: Path, limit: int | None) -> list[Case]:
    """Every image of the test split."""
    folder = data / "kermany224"
    with (folder / "manifest.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == "test"]
    cases = [Case(folder / row["file"], int(row["label"]), row["drop_as_duplicate"] == "1") for row in rows]
    return cases[:: max(1, len(cases) // limit)][:limit] if limit else cases


def wrap(case: Case, number: int) -> pydicom.Dataset:
    """Make a DX object of a test image, in the next of the variants."""
    photometric, bits, syntax = VARIANTS[number % len(VARIANTS)]
    study = phantom.Study(f"classify-{number}", age_years=3)
    return radiograph(case.path, photometric=photometric, bits=bits, transfer_syntax=syntax, study=study)


def run(data: Path, limit: int | None) -> tuple[dict[str, float], dict[str, Any]]:
    cases = load(data, limit)
    store = ModelStore(SHIPPED)
    card = store.card(store.active())
    trunk = public_part(card)
    engine = PlaintextEngine(card.suffix, store.weights(card.version))
    plain: dict[str, Answer] = {}
    with tempfile.TemporaryDirectory() as temporary, Stack(Path(temporary), quiet_s=0.2) as stack:
        stack.start()
        file = Path(temporary) / "next.dcm"
        started = time.monotonic()
        for number, case in enumerate(cases):
            dataset = wrap(case, number)
            dataset.save_as(file, enforce_file_format=True)
            peer = {"host": "127.0.0.1", "port": stack.scp_port, "called": stack.ae_title}
            (outcome,) = scu.send([file], **peer, calling=stack.sender_ae)
            if not outcome.ok:
                raise SystemExit(f"{case.path.name} was not taken: {outcome.meaning}")
            logits = engine.infer(trunk.features(pixels.from_dataset(dataset).image)).logits
            plain[str(dataset.StudyInstanceUID)] = Answer.from_logits(logits, card)
        followed = watch.follow(stack.settings.database_url, plain, timeout_s=1800)
        encrypted = [seen.newest.result for _, seen in followed]
        seconds = time.monotonic() - started
    return summarise(cases, list(plain.values()), encrypted, seconds)


def summarise(
    cases: list[Case], plain: list[Answer], encrypted: list[dict[str, Any]], seconds: float
) -> tuple[dict[str, float], dict[str, Any]]:
    """Compare the engines on every image, and with the labels on those that are not duplicates."""
    reference = np.array([[1 - one.pneumonia, one.bacterial, one.viral] for one in plain])
    found = np.array([[1 - one["pneumonia"], one["bacterial"], one["viral"]] for one in encrypted])
    same_class = reference.argmax(1) == found.argmax(1)
    same_answer = np.array([one.answer for one in plain]) == np.array([one["answer"] for one in encrypted])
    kept = np.array([not case.duplicate for case in cases])
    labels = np.array([case.label for case in cases])[kept]

    everyone = np.ones(len(labels))
    measured = {name: metric(everyone) for name, metric in pneumonia_metrics(found[kept], labels).items()}
    peer = {name: metric(everyone) for name, metric in pneumonia_metrics(reference[kept], labels).items()}
    return {
        **measured,
        "images": float(len(cases)),
        "images_without_duplicates": float(kept.sum()),
        "engine_agreement": float((same_answer & same_class).mean()),
        "largest_certainty_difference_points": float(100 * np.abs(found - reference).max()),
        "engine_median_s": float(np.median([one["seconds"]["engine"] for one in encrypted])),
        "studies_per_s": len(cases) / seconds,
    }, {"plaintext": peer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--limit", type=int, help="only the first N images, for a trial")
    arguments = parser.parse_args()
    found, peers = run(arguments.data, arguments.limit)
    figures.write(arguments.json, found, peers)


if __name__ == "__main__":
    main()
