"""What the demonstration sends: drawn phantoms, real pictures wrapped as DX, and DICOM files as they are."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydicom.errors import InvalidDicomError

from ..core.errors import Refused
from ..phantom import KINDS, Study, dataset, draw


@dataclass(frozen=True)
class Sent:
    """One study of the demonstration."""

    label: str
    study_instance_uid: str
    paths: list[Path]


def prepare(folder: Path, *, images: list[Path], dicoms: list[Path], phantoms: int) -> list[Sent]:
    """Draw, wrap or look up every study and write what is to be sent into `folder`.

    Raises
    ------
    Refused
        A picture or DICOM file cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sent = []
    for number, kind in zip(range(1, phantoms + 1), itertools.cycle(KINDS)):
        picture = draw(number, kind)
        sent.append(_wrap(folder, f"phantom-{number}-{kind}", picture, Study.numbered(number, key="demo")))
    for number, path in enumerate(images, start=1):
        study = Study.numbered(phantoms + number, key=f"demo-image-{path}")  # no two studies of one made-up patient
        sent.append(_wrap(folder, f"image-{number}", _grey(path), study))
    for number, path in enumerate(dicoms, start=1):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["StudyInstanceUID"])
            sent.append(Sent(f"dicom-{number}", str(header.StudyInstanceUID), [path]))
        except (InvalidDicomError, AttributeError, OSError) as error:
            raise Refused(f"{path} is not a DICOM file with a Study Instance UID", code="not-dicom") from error
    return sent


def _wrap(folder: Path, label: str, picture: NDArray[np.uint8], study: Study) -> Sent:
    path = folder / f"{label}.dcm"
    dataset(picture, study=study).save_as(path, enforce_file_format=True)
    return Sent(label, study.study_uid, [path])


def _grey(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("L"), dtype=np.uint8)
    except (UnidentifiedImageError, OSError) as error:
        raise Refused(f"{path} is not a picture that Pillow can read", code="not-a-picture") from error
