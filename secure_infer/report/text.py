"""The report as sentences: Enhanced SR under the title Diagnostic Imaging Report (PS3.16 TID 2000)."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import pydicom
from highdicom import sr
from pydicom.sr.coding import Code

from . import codes, wording
from .document import document, observer, procedures
from .inputs import Algorithm, AnalysedImage, DeviceObserver, Predecessor

_CONTAINS = sr.RelationshipTypeValues.CONTAINS
_MODIFIER = sr.RelationshipTypeValues.HAS_CONCEPT_MOD


def text_report(
    images: Sequence[AnalysedImage],
    algorithm: Algorithm,
    device: DeviceObserver,
    *,
    created: datetime.datetime,
    seed: str,
    series_number: int = 9901,
    predecessor: Predecessor | None = None,
) -> pydicom.Dataset:
    """Write the answers as sentences, for viewers that show no measurements.

    Parameters and errors are those of `measurements.structured_report`; the UIDs differ from that report's for the
    same seed.

    Returns
    -------
    pydicom.Dataset
        Enhanced SR (1.2.840.10008.5.1.4.1.1.88.22), complete, unverified, preliminary.
    """
    answer = wording.overall(images)
    method = (
        f"Algorithm {algorithm.name} {algorithm.version} of {algorithm.manufacturer}; "
        f"{'; '.join(wording.parameters(algorithm))}."
    )
    root = sr.ContainerContentItem(codes.DIAGNOSTIC_IMAGING_REPORT, template_id="2000")
    root.ContentSequence = sr.ContentSequence(
        [
            *sr.LanguageOfContentItemAndDescendants(sr.CodedConcept.from_code(codes.ENGLISH)),
            *observer(device),
            *(
                sr.CodeContentItem(codes.PROCEDURE_REPORTED, procedure, relationship_type=_MODIFIER)
                for procedure in procedures(images[0].dataset)
            ),
            _section(codes.FINDINGS, codes.FINDING, wording.findings(images)),
            _section(
                codes.CONCLUSIONS,
                codes.CONCLUSION,
                [wording.conclusion(answer), wording.UNVERIFIED, algorithm.intended_use],
            ),
            _section(codes.DESCRIPTIONS, codes.DESCRIPTION, [method]),
        ]
    )
    return document(
        sr.EnhancedSR,
        root,
        images,
        algorithm,
        device,
        created=created,
        seed=seed,
        series_number=series_number,
        description=f"{wording.title(answer)}, text",
        predecessor=predecessor,
    )


def _section(name: Code, element: Code, sentences: Sequence[str]) -> sr.ContainerContentItem:
    container = sr.ContainerContentItem(name, relationship_type=_CONTAINS)
    container.ContentSequence = sr.ContentSequence(
        [sr.TextContentItem(element, sentence, relationship_type=_CONTAINS) for sentence in sentences]
    )
    return container
