"""One file of a research site to one displayed grey picture: PNG, JPEG, NIfTI-1 and NIfTI-2 (nifti.nimh.nih.gov)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dicom_node.core.errors import ConfigError, IntegrityError

NIFTI: Final = (".nii", ".nii.gz")
ENDINGS: Final = (".png", ".jpg", ".jpeg", *NIFTI)
#: Pixels; the largest detectors have a tenth of that, and a small file may claim any number.
MOST_PIXELS: Final = 178_000_000


def grey(path: Path) -> NDArray[np.uint8]:
    """Read a picture.

    Values of 8 bits are taken as displayed; others are stretched between their least and greatest, as the node does
    with images that bring no window.

    Returns
    -------
    ndarray of uint8, shape (rows, columns)
        0..255, bright is dense.

    Raises
    ------
    ConfigError
        NIfTI is read by nibabel, which is not installed (``not-installed``).
    IntegrityError
        The file is not such a picture (``training-image``).
    """
    try:
        values = _nifti(path) if path.name.lower().endswith(NIFTI) else _picture(path)
    except (OSError, ValueError, EOFError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        reason = type(error).__name__
        raise IntegrityError(f"a training image cannot be read: {reason}", code="training-image") from error
    if values.dtype == np.uint8:
        return values.astype(np.uint8)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise IntegrityError("a training image holds values that are no numbers", code="training-image")
    stretched: NDArray[np.uint8] = np.rint((values - low) * (255.0 / max(high - low, 1e-12))).astype(np.uint8)
    return stretched


def _picture(path: Path) -> NDArray[np.float64] | NDArray[np.uint8]:
    with Image.open(path) as picture:
        if picture.mode.startswith("I") or picture.mode == "F":  # 16 or 32 bits: "L" would cut them off
            return np.asarray(picture, dtype=np.float64)
        return np.asarray(picture.convert("L"))


def _nifti(path: Path) -> NDArray[np.float64] | NDArray[np.uint8]:
    """Read a picture the way a radiologist looks at it, by its affine: the patient's right on the left, the head up."""
    try:
        import nibabel  # noqa: PLC0415 - it comes with the extra `consortium` alone
        from nibabel.filebasedimages import ImageFileError  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError("NIfTI files need nibabel: install veilray[consortium]", code="not-installed") from error
    try:
        image = nibabel.load(path)
        if np.prod(image.shape) > MOST_PIXELS:
            raise ValueError("more pixels than any detector has")
        # Axes now run to the patient's right, front and head.
        canonical = nibabel.as_closest_canonical(image)
        stored = np.asanyarray(canonical.dataobj)
    except ImageFileError as error:
        raise ValueError("not a NIfTI file") from error
    flat = stored.squeeze()
    if flat.ndim != 2 or not np.issubdtype(flat.dtype, np.number) or np.issubdtype(flat.dtype, np.complexfloating):
        raise ValueError("not one grey picture")
    shown: NDArray[np.float64] | NDArray[np.uint8] = flat.T[::-1, ::-1]
    return shown if shown.dtype == np.uint8 else shown.astype(np.float64)
