"""What a report is made of: analysed images, the algorithm, the device that observed, and an earlier report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import pydicom

from dicom_node import uids

from . import source
from .region import Region

MANUFACTURER = "VeilRay"


class Answer(Protocol):
    """What the network says of one image; `secure_infer.answer.Answer` is one.

    Attributes
    ----------
    answer : {"present", "absent", "undetermined"}
    pneumonia : float
        Calibrated probability, 0 to 1.
    bacterial, viral : float or None
        Calibrated probability of each kind, 0 to 1; None where the model does not tell them apart.
    """

    @property
    def answer(self) -> Literal["present", "absent", "undetermined"]: ...  # noqa: D102
    @property
    def pneumonia(self) -> float: ...  # noqa: D102
    @property
    def bacterial(self) -> float | None: ...  # noqa: D102
    @property
    def viral(self) -> float | None: ...  # noqa: D102


@dataclass(frozen=True)
class AnalysedImage:
    """One image, its answer and where the answer comes from.

    There is no measurement without a region: a group without an SCOORD turns the whole report black in OHIF, and
    the box of the report shown before may stay on the screen, so that a negative is read as positive.

    Parameters
    ----------
    dataset : pydicom.Dataset
        The source image, preferably as read (undecoded); only a normalised header is kept, see `source.normalise`.
    answer : Answer
        What the network says of it.
    region : Region
        The evidence of a positive answer, else the frame of the analysed area.

    Raises
    ------
    TypeError
        If there is no region.
    ValueError
        If the region leaves the image, or outlines evidence for a pneumonia that is not said to be present.
    Refused
        If the source cannot be reported on, see `source.normalise`.
    """

    dataset: pydicom.Dataset
    answer: Answer
    region: Region

    def __post_init__(self) -> None:
        if not isinstance(self.region, Region):
            raise TypeError("an analysed image has a region")
        object.__setattr__(self, "dataset", source.normalise(self.dataset))
        if not self.region.fits(self.dataset.Rows, self.dataset.Columns):
            raise ValueError("the region leaves the image")
        if self.region.kind == "evidence" and self.answer.answer != "present":
            raise ValueError("only a positive answer has a region of evidence")
        for probability in (self.answer.pneumonia, self.answer.bacterial, self.answer.viral):
            if probability is not None and not 0 <= probability <= 1:
                raise ValueError("a probability lies between 0 and 1")


@dataclass(frozen=True)
class Algorithm:
    """The model and how it was run (PS3.16 TID 4019).

    Parameters
    ----------
    name, version : str
        As in the model card; at most 64 characters.
    weights_sha256 : str
        Hexadecimal hash of the private weights.
    engine : str
        Name of the engine that ran them.
    operating_point : str
        The limits of absent and present, in words.
    epsilon, delta : float
        Differential privacy of the training.
    manufacturer : str
        Who answers for the model.
    intended_use : str
        One sentence for the reader of the report.
    """

    name: str
    version: str
    weights_sha256: str
    engine: str
    operating_point: str
    epsilon: float
    delta: float
    manufacturer: str = MANUFACTURER
    intended_use: str = "For research and evaluation; not for diagnosis without a physician's own reading."


@dataclass(frozen=True)
class DeviceObserver:
    """The device that made the observation (PS3.16 TID 1004).

    Parameters
    ----------
    name : str
        The site's name for it, at most 64 characters.
    manufacturer, model : str
        Maker and product.
    """

    name: str
    manufacturer: str = MANUFACTURER
    model: str = "VeilRay"

    @property
    def uid(self) -> str:
        """Device UID, derived from the name: the same device is recognised in all its reports."""
        return uids.derive("device observer", self.manufacturer, self.model, self.name)


@dataclass(frozen=True)
class Predecessor:
    """An earlier report on the same study that the new one replaces (PS3.3 C.17.2.1, Predecessor Documents)."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
