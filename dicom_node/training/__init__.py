"""What a site may contribute to training: who agreed, what each study shows, and images without their patient.

Reading order
-------------
site_key
    The secret behind every pseudonym, so that the records hold no patient's identifier.
subjects
    Whom each study is about.
lists
    Strict reading of lists (CSV); faults by line number, never by value.
consent
    Who agreed and who did not; silence means no.
diagnosis, labels, verified_report, collect
    What a study shows, from lists and from reports that a physician verified.
eligible
    One study per patient who agreed and whose study is labelled.
confidentiality, burned_in, deidentify
    An image without its patient (PS3.15 Annex E).
cli
    The commands ``dicom-node consent`` and ``dicom-node labels``.
"""
