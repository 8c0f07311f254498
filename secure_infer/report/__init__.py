"""DICOM Structured Reports of the answers: the only place that knows highdicom.

Reading order
-------------
inputs
    What a report is made of: `AnalysedImage`, `Algorithm`, `DeviceObserver`, `Predecessor`.
region
    `region_from_evidence` and `frame`: where in the image the answer comes from.
source
    `normalise`: a valid UTF-8 header out of whatever an archive sends.
codes, wording
    The coded concepts, and the sentences.
document
    What both kinds of report share: patient, study, equipment, dates, UIDs; `encode` writes the file.
measurements
    `structured_report`: Comprehensive 3D SR, TID 1500.
text
    `text_report`: the companion in sentences.

Every report is a function of its arguments: no clock, no random UID, so a repeated job writes the same bytes.
"""

from .document import encode
from .inputs import Algorithm, AnalysedImage, Answer, DeviceObserver, Predecessor
from .measurements import structured_report
from .region import Region, frame, region_from_evidence
from .source import normalise
from .text import text_report

__all__ = [
    "Algorithm",
    "AnalysedImage",
    "Answer",
    "DeviceObserver",
    "Predecessor",
    "Region",
    "encode",
    "frame",
    "normalise",
    "region_from_evidence",
    "structured_report",
    "text_report",
]
