"""The report as data: Comprehensive 3D SR with a TID 1500 tree, one TID 1501 group per image (PS3.16)."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import numpy as np
import pydicom
from highdicom import sr

from dicom_node import uids

from . import codes, wording
from .document import document, observer, procedures
from .inputs import Algorithm, AnalysedImage, Answer, DeviceObserver, Predecessor

_CONTAINS = sr.RelationshipTypeValues.CONTAINS
_HAS_PROPERTIES = sr.RelationshipTypeValues.HAS_PROPERTIES
_KINDS = {"bacterial": codes.BACTERIAL_PNEUMONIA, "viral": codes.VIRAL_PNEUMONIA}


def structured_report(
    images: Sequence[AnalysedImage],
    algorithm: Algorithm,
    device: DeviceObserver,
    *,
    created: datetime.datetime,
    seed: str,
    series_number: int = 9900,
    predecessor: Predecessor | None = None,
) -> pydicom.Dataset:
    """Write the answers as measurements, one group per image, and the answer of the study as qualitative evaluation.

    Parameters
    ----------
    images : sequence of AnalysedImage
        At least one, all of one study.
    algorithm, device
        What answered, and where.
    created : datetime
        When, in the site's own time; see `document.document`.
    seed : str
        The same seed gives the same UIDs; it names study, inputs and model.
    series_number : int
        Number of the new series.
    predecessor : Predecessor, optional
        The report on the same study that this one replaces.

    Returns
    -------
    pydicom.Dataset
        Comprehensive 3D SR, complete, unverified, preliminary. The same arguments give the same bytes.

    Raises
    ------
    ValueError
        If there is no image, or if they belong to different studies.
    """
    answer = wording.overall(images)
    groups = [_group(image, algorithm, seed, number) for number, image in enumerate(images, start=1)]
    tree = sr.MeasurementReport(
        title=codes.IMAGING_MEASUREMENT_REPORT,
        language_of_content_item_and_descendants=sr.LanguageOfContentItemAndDescendants(
            sr.CodedConcept.from_code(codes.ENGLISH)
        ),
        observation_context=sr.ObservationContext(observer_device_context=observer(device)),
        procedure_reported=procedures(images[0].dataset),
        imaging_measurements=groups,
    )
    tree[0].ContentSequence.append(_evaluations(answer))
    return document(
        sr.Comprehensive3DSR,
        tree[0],
        images,
        algorithm,
        device,
        created=created,
        seed=seed,
        series_number=series_number,
        description=wording.title(answer),
        predecessor=predecessor,
    )


def _group(
    image: AnalysedImage, algorithm: Algorithm, seed: str, number: int
) -> sr.MeasurementsAndQualitativeEvaluations:
    """One image's certainty, inferred from its region, and presence.

    There is no Finding item: viewers that show values without names would print "Pneumonia" for a healthy child.
    """
    source = image.dataset
    outline = sr.CoordinatesForMeasurement(
        graphic_type=sr.GraphicTypeValues.POLYLINE,
        graphic_data=np.array(image.region.polyline),
        source_image=sr.SourceImageForRegion(source.SOPClassUID, source.SOPInstanceUID),
        purpose=codes.SOURCE_OF_MEASUREMENT,
    )
    certainty = sr.Measurement(
        name=codes.CERTAINTY_OF_FINDING,
        value=_percent(image.answer.pneumonia),
        unit=codes.PERCENT,
        referenced_coordinates=[outline],
    )
    return sr.MeasurementsAndQualitativeEvaluations(
        # The UID tells this group from those of other reports; viewers hang the measurement on it.
        tracking_identifier=sr.TrackingIdentifier(uids.derive("tracking", seed, str(number)), f"Image {number}"),
        algorithm_id=sr.AlgorithmIdentification(
            name=algorithm.name,
            version=algorithm.version,
            manufacturer=algorithm.manufacturer,
            family=codes.ARTIFICIAL_INTELLIGENCE,
            parameters=wording.parameters(algorithm),
        ),
        measurements=[certainty],
        qualitative_evaluations=[sr.QualitativeEvaluation(codes.PNEUMONIA, codes.PRESENCE[image.answer.answer])],
    )


def _evaluations(answer: Answer) -> sr.ContainerContentItem:
    """Build the study's answer (TID 1500 row 12), the probability of each kind of pneumonia, and one sentence."""
    container = sr.ContainerContentItem(codes.QUALITATIVE_EVALUATIONS, relationship_type=_CONTAINS)
    items = [sr.CodeContentItem(codes.PNEUMONIA, codes.PRESENCE[answer.answer], relationship_type=_CONTAINS)]
    for kind, probability in wording.kinds_of(answer):
        # The model has an operating point for pneumonia only, so whether it is of this kind stays undetermined.
        item = sr.CodeContentItem(_KINDS[kind], codes.PRESENCE["undetermined"], relationship_type=_CONTAINS)
        certainty = sr.NumContentItem(
            codes.CERTAINTY_OF_FINDING, _percent(probability), codes.PERCENT, relationship_type=_HAS_PROPERTIES
        )
        item.ContentSequence = sr.ContentSequence([certainty])
        items.append(item)
    container.ContentSequence = sr.ContentSequence(
        [*items, sr.TextContentItem(codes.COMMENT, wording.comment(answer), relationship_type=_CONTAINS)]
    )
    return container


def _percent(probability: float) -> float:
    """Percent to a hundredth: finer than any engine's error, and short enough for a Decimal String."""
    return round(100 * probability, 2)
