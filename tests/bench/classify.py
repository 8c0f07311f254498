"""The 624 test images as DICOM through the whole node: encrypted answers beside the plaintext engine's.

Run: ``python -m tests.bench.classify --json FILE``. Each image is wrapped as DX in one of eight ways (MONOCHROME1 and 2,
8 and 12 bit, several transfer syntaxes), sent by C-STORE, classified by the three processes over mTLS and delivered.
The figures are final figures on the test split: nothing may be chosen by them.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from dicom_node import pixels, scu
from dicom_node.demo.stack import Stack
from fl_agent.figures import auc
from secure_infer.answer import Answer
from secure_infer.engine import PlaintextEngine
from secure_infer.models import SHIPPED, ModelStore
from secure_infer.network import Trunk
from tests.bench import figures
from tests.bench.records import Finished, await_classified
from tests.dicomfiles import VARIANTS, wrap


def load(data: Path, limit: int | None) -> list[tuple[Path, int]]:
    """The test images that are not duplicates, with their label (0 normal, 1 bacterial, 2 viral)."""
    folder = data / "kermany224"
    with (folder / "manifest.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == "test"]
    return [(folder / row["file"], int(row["label"])) for row in rows][:limit]


def run(data: Path, limit: int | None) -> tuple[dict[str, float], dict[str, Any]]:
    images = load(data, limit)
    store = ModelStore(SHIPPED)
    card = store.card(store.active())
    trunk = Trunk(card.trunk.taps, card.trunk.sha256)
    plain = PlaintextEngine(card, store.weights(card.version))
    labels, plain_answers, studies = [], [], []
    with tempfile.TemporaryDirectory() as temporary, Stack(Path(temporary), quiet_s=0.2) as stack:
        stack.start()
        started = time.monotonic()
        for number, (path, label) in enumerate(images):
            dataset = wrap(path, VARIANTS[number % len(VARIANTS)], number)
            file = Path(temporary) / "next.dcm"
            dataset.save_as(file, enforce_file_format=True)
            (outcome,) = scu.send(
                [file], host="127.0.0.1", port=stack.scp_port, called=stack.ae_title, calling=stack.sender_ae
            )
            if not outcome.ok:
                raise SystemExit(f"{path.name} was not taken: {outcome.meaning}")
            logits = plain.infer(trunk.features(pixels.from_dataset(dataset).image)).logits
            plain_answers.append(Answer.from_logits(logits, card))
            labels.append(label)
            studies.append(str(dataset.StudyInstanceUID))
        finished = await_classified(stack.settings, studies, timeout_s=1800)
        seconds = time.monotonic() - started
    return summarise(np.array(labels), plain_answers, [finished[uid] for uid in studies], seconds)


def summarise(
    labels: np.ndarray, plain: list[Answer], encrypted: list[Finished], seconds: float
) -> tuple[dict[str, float], dict[str, Any]]:
    sick = labels > 0
    score = np.array([one.result["pneumonia"] for one in encrypted])
    bacterial = np.array([one.result["bacterial"] for one in encrypted])
    kind = bacterial / score
    reference = np.array([one.pneumonia for one in plain])
    same = np.array([one.answer for one in plain]) == np.array([one.result["answer"] for one in encrypted])
    by_class = np.array([[1 - one.pneumonia, one.bacterial, one.viral] for one in plain]).argmax(1)
    encrypted_class = np.stack([1 - score, bacterial, score - bacterial], 1).argmax(1)
    return {
        "images": float(len(labels)),
        "auc_pneumonia": auc(sick, score),
        "auc_bacterial_viral": auc(labels[sick] == 1, kind[sick]),
        "accuracy_three_classes": float((encrypted_class == labels).mean()),
        "engine_agreement": float((same & (by_class == encrypted_class)).mean()),
        "largest_certainty_difference_points": float(100 * np.abs(score - reference).max()),
        "engine_median_s": float(np.median([one.result["seconds"]["engine"] for one in encrypted])),
        "studies_per_s": len(labels) / seconds,
    }, {"plaintext": {"auc_pneumonia": auc(sick, reference)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=figures.DATA)
    parser.add_argument("--limit", type=int, help="only the first N images, for a trial")
    arguments = parser.parse_args()
    found, peers = run(arguments.data, arguments.limit)
    figures.write(arguments.json, found, peers)


if __name__ == "__main__":
    main()
