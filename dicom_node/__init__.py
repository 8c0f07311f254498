"""The clinical side of a site: receives studies, keeps the site's records, sends results; never imports torch.

Reading order
-------------
core
    What all three packages share: errors, settings, logs, database, audit, jobs, loops, TLS.
store, incoming, part10, records, durable
    Instances and reports on disk, durable before anybody is told so.
scp
    Verification and Storage as SCP; `orthanc` reads an Orthanc's change feed instead.
selection, vocabulary
    Which images are classified, and why the others are not.
assembler, study
    When a study is complete; it then becomes a job for `secure_infer.worker`.
pixels
    From a radiograph to the network's input, the same for training and inference.
training
    Who agreed to training, and what each study shows.
delivery, scu, stow, storage_status
    The outbox and its ways out: C-STORE, Orthanc's REST API, STOW-RS.
serve, web, check, demo, launch
    The services, the admin pages, the check of a site, and all of it on loopback.
phantom, uids, tls, malformed
    Made-up radiographs, derived UIDs, the DICOM TLS profile, and the one rule for malformed data sets.
"""
