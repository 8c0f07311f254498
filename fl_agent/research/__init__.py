"""Films of research sites that have no PACS: folders of pictures or NIfTI files, as training reads `kermany224`.

Reading order: `pictures` (one file to one grey picture), `folder` (files, classes and patients), `about` (what the
model card says of the data), `dataset` (this, or `kermany224`), `rows` (its patients in a federated run).
`fl-agent train --data FOLDER`, and the agent of a site whose `site.toml` names it as `training.films`, read::

    FOLDER/
    ├── dataset.toml       what the data are (see `about.About`)
    ├── patients.csv       file,patient and, where the test images are chosen by hand, split (train or test); and, where
    │                      the site knows them, age (years) and view (AP or PA)
    ├── normal/            *.png, *.jpg, *.jpeg, *.nii, *.nii.gz, also in folders below
    ├── bacterial/
    └── viral/

Consent is the site's own duty here: a folder holds only who agreed.
"""
