"""The Image Pixel module of a radiograph, read and checked (PS3.3 C.7.6.3)."""

from __future__ import annotations

from dataclasses import dataclass

from pydicom import Dataset

from ..core.errors import Refused

# A 43 cm x 43 cm detector at 0.1 mm has 18.5 million pixels.
MAX_PIXELS = 50_000_000
# Below this side there is nothing a radiologist could read either; the training pictures start at about 130 pixels.
MIN_SIDE = 64


@dataclass(frozen=True)
class ImagePixel:
    """What the pixels of a grey single-frame image are.

    Attributes
    ----------
    rows, columns : int
        Size, pixels.
    allocated, stored : int
        Bits Allocated (8 or 16) and Bits Stored (1..allocated); High Bit is ``stored - 1``.
    signed : bool
        Whether Pixel Representation is two's complement.
    photometric : str
        ``MONOCHROME1`` or ``MONOCHROME2``.
    """

    rows: int
    columns: int
    allocated: int
    stored: int
    signed: bool
    photometric: str


def integer(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    """Read one whole number; `default` stands for an absent or empty attribute, and without one it is refused."""
    value = dataset.get(keyword)
    if value is None or value == "":
        if default is None:
            raise Refused(f"the image has no {keyword}: the sender must fill it", code="incomplete-header")
        return default
    return int(value)


def read(dataset: Dataset) -> ImagePixel:
    """Read and check the Image Pixel module.

    Raises
    ------
    Refused
        The image is not a grey single frame of 8 or 16 allocated bits, or its size is absurd.
    """
    if "PixelData" not in dataset:
        raise Refused("the object carries no Pixel Data: there is no image to read", code="no-pixel-data")
    if integer(dataset, "NumberOfFrames", 1) != 1:
        raise Refused("the object has several frames; a radiograph has one", code="multi-frame")
    photometric = str(dataset.get("PhotometricInterpretation", "")).strip()
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or integer(dataset, "SamplesPerPixel", 1) != 1:
        raise Refused(
            "the image is in colour, or does not say that it is grey (PhotometricInterpretation must be MONOCHROME1 "
            "or MONOCHROME2)",
            code="not-grey",
        )
    rows, columns = integer(dataset, "Rows"), integer(dataset, "Columns")
    if min(rows, columns) < MIN_SIDE:
        raise Refused(
            f"the image has {rows} x {columns} pixels, fewer than {MIN_SIDE} along a side: too few to read",
            code="too-small",
        )
    if rows * columns > MAX_PIXELS:
        raise Refused(
            f"the image has {rows} x {columns} pixels, more than the {MAX_PIXELS:,} accepted", code="too-large"
        )
    allocated = integer(dataset, "BitsAllocated")
    stored = integer(dataset, "BitsStored", allocated)
    if (
        allocated not in (8, 16)
        or not 1 <= stored <= allocated
        or integer(dataset, "HighBit", stored - 1) != stored - 1
    ):
        raise Refused(
            "BitsAllocated, BitsStored and HighBit are not those of a radiograph (8 or 16 bits allocated, the value in "
            "the low bits)",
            code="unsupported-bits",
        )
    signed = integer(dataset, "PixelRepresentation", 0) == 1
    return ImagePixel(rows, columns, allocated, stored, signed, photometric)
