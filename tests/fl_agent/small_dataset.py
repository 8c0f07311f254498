"""A tiny data set in the form of kermany224: three kinds of texture, two images a patient, one marked duplicate."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

KINDS = ("normal", "bacterial", "viral")


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("L"))


def write(folder: Path, train: int, test: int) -> None:
    """Write images of `train` and `test` patients and their manifest."""
    rows = []
    rng = np.random.default_rng(1)
    for split, patients in (("train", train), ("test", test)):
        for patient in range(patients):
            label = patient % 3
            for image in ("a", "b", "duplicate"):
                name = f"{split}/{KINDS[label]}/{patient}-{image}.jpeg"
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                if image != "duplicate":
                    # Fine, medium or coarse grain: any network that sees texture tells them apart.
                    grain = (4, 14, 56)[label]
                    coarse = rng.integers(0, 255, (224 // grain, 224 // grain)).astype(np.uint8)
                    drawn = Image.fromarray(coarse).resize((224, 224), Image.Resampling.BICUBIC)
                drawn.save(folder / name)
                rows.append(
                    {
                        "file": name,
                        "split": split,
                        "label": label,
                        "class_name": KINDS[label],
                        "patient_key": f"{split}-{patient}",
                        "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
                        "drop_as_duplicate": int(image == "duplicate"),
                    }
                )
    with (folder / "manifest.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
