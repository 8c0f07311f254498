"""Classifies single files with the site's engine, beside the node: for trials and for looking at one case."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pydicom
import torch
from PIL import Image, UnidentifiedImageError
from pydicom.errors import InvalidDicomError

from dicom_node import pixels, selection
from dicom_node.core.errors import Refused
from dicom_node.core.settings import Settings

from .answer import Answer
from .engines import open_engine
from .public import public_part
from .site_models import site_card


class Classifier:
    """The site's model and engine, for one file after another; a context manager.

    Parameters
    ----------
    settings : Settings
        The site's: its engine, model, selection rules and peers.
    """

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(settings.inference.threads)
        self._settings = settings
        self._card = site_card(settings)
        self._public = public_part(self._card)
        self._engine = open_engine(settings, self._card)

    def classify(self, path: Path) -> Answer:
        """Classify one file.

        Parameters
        ----------
        path : Path
            A DICOM file, judged by the site's selection rules, or a picture, which carries no tag that a rule reads.

        Raises
        ------
        Refused
            The rules say no, or the file is neither.
        """
        try:
            dataset = pydicom.dcmread(path)
        except InvalidDicomError:
            image = _picture(path)
        else:
            selection.judge(dataset, self._settings.selection, self._card.population)
            image = pixels.from_dataset(dataset).image
        return Answer.from_logits(self._engine.infer(self._public.features(image)).logits, self._card)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.close()


def _picture(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    try:
        with Image.open(path) as picture:
            return pixels.from_picture(np.asarray(picture.convert("L"), dtype=np.uint8))
    except (UnidentifiedImageError, OSError) as error:
        raise Refused(f"{path.name} is neither a DICOM file nor a picture", code="not-an-image") from error
