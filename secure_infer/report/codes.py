"""The coded concepts of the reports (PS3.16 Annex B and D)."""

from __future__ import annotations

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

# PS3.16 TID 1500, 1501, 300
IMAGING_MEASUREMENT_REPORT = codes.DCM.ImagingMeasurementReport
CERTAINTY_OF_FINDING = codes.DCM.CertaintyOfFinding
SOURCE_OF_MEASUREMENT = codes.DCM.SourceOfMeasurement
PERCENT = codes.UCUM.Percent
COMMENT = codes.DCM.Comment
ARTIFICIAL_INTELLIGENCE = codes.DCM.ArtificialIntelligence
PROCESSING_EQUIPMENT = codes.DCM.ProcessingEquipment
DEVICE = codes.DCM.Device
X_RAY = codes.LN.XRUnspecifiedBodyRegion

# PS3.16 CID 240: how a condition is said to be present or not
PRESENCE = {
    "present": codes.SCT.Present,
    "absent": codes.SCT.Absent,
    "undetermined": codes.SCT.Undetermined,
}

# PS3.16 TID 2000, CID 7000 to 7002
DIAGNOSTIC_IMAGING_REPORT = codes.LN.DiagnosticImagingReport
PROCEDURE_REPORTED = codes.DCM.ProcedureReported
FINDINGS = codes.DCM.Findings
FINDING = codes.DCM.Finding
DESCRIPTIONS = codes.DCM.CurrentProcedureDescriptions
DESCRIPTION = codes.DCM.ProcedureDescription
CONCLUSIONS = codes.DCM.Conclusions
CONCLUSION = codes.DCM.Conclusion

# The DICOM dictionary (PS3.16, as pydicom ships it) lists only what context groups name; these come from elsewhere.
PNEUMONIA = Code("233604007", "SCT", "Pneumonia")
BACTERIAL_PNEUMONIA = Code("53084003", "SCT", "Bacterial pneumonia")
VIRAL_PNEUMONIA = Code("75570004", "SCT", "Viral pneumonia")
QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
ENGLISH = Code("en-US", "RFC5646", "English (United States)")

#: Pairs of code and meaning that the dictionary does not hold, each with the reason why it is right all the same.
OUTSIDE_DICTIONARY = {
    PNEUMONIA: "SNOMED CT disorder; in no DICOM context group",
    BACTERIAL_PNEUMONIA: "SNOMED CT disorder; in no DICOM context group",
    VIRAL_PNEUMONIA: "SNOMED CT disorder; in no DICOM context group",
    QUALITATIVE_EVALUATIONS: "PS3.16 TID 1500 row 12 names it, no context group does",
    ENGLISH: "PS3.16 TID 1204 takes RFC 5646 tags, CID 5000",
    Code(
        "260753009", "SCT", "Source"
    ): "PS3.16 TID 320 and 1410 write this meaning; the dictionary has 'Source (attribute)'",
}
