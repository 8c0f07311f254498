"""From a radiograph to the network's input, the same for training and inference (PS3.3 C.7.6.3, C.11.1, C.11.2).

The grey pipeline is pointwise, so it is computed once for each possible stored word (at most 65,536) and then looked
up: Modality LUT, VOI LUT, inversion. The displayed value is held centred on zero until after the inversion, so that a
picture and its MONOCHROME1 negative give the same bits.

Reading order: this file, `image_pixel` (what the header says), `decode` (stored words), `codestream` (what a compressed
frame says of itself), `codec_process` and `decompress` (codecs, in a child process that may die).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import DigitalXRayImageStorageForPresentation, DigitalXRayImageStorageForProcessing

from .. import malformed
from ..core.errors import Refused
from . import decode, image_pixel
from .image_pixel import ImagePixel

INPUT_SIZE = 224

Table = NDArray[np.float64]


@dataclass(frozen=True)
class NetworkInput:
    """What the network sees of one image.

    Attributes
    ----------
    image : ndarray of float32, shape (224, 224)
        0..1, bright is dense (the sense of MONOCHROME2), aspect ratio squashed.
    rows, columns : int
        Size of the source image, pixels.
    rendering : str
        Which transformations made it, for the audit log; no patient data.
    """

    image: NDArray[np.float32]
    rows: int
    columns: int
    rendering: str


def from_picture(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Bring a displayed grey picture to the network's input; training pictures take this way.

    Parameters
    ----------
    picture : ndarray of uint8, shape (rows, columns)
        0..255, bright is dense.

    Returns
    -------
    ndarray of float32, shape (224, 224)
        0..1. Bicubic with antialiasing on float values, as `kermany224` was made except for its rounding to 8 bits.
    """
    return _squash(picture.astype(np.float32))


def from_dataset(dataset: Dataset) -> NetworkInput:
    """Render a radiograph as a viewer would and bring it to the network's input.

    The first VOI window is taken, else the first VOI LUT; without either, 8-bit images keep their full range and
    deeper ones are stretched between their least and greatest value. Padding is left out of that and comes out black.

    Parameters
    ----------
    dataset : Dataset
        A grey single-frame image in any transfer syntax that `decode` knows.

    Raises
    ------
    Refused
        The image cannot or must not be rendered; the message says why in one sentence without patient data.
    Unavailable
        The node is short of memory.
    """
    with malformed.refused("the image"):
        return _render(dataset)


def _render(dataset: Dataset) -> NetworkInput:
    _refuse_unprocessed(dataset)
    pixel = image_pixel.read(dataset)
    inverted = _inverted(dataset, pixel)
    words = decode.words(dataset, pixel)

    every = np.arange(1 << pixel.allocated)
    values, lowest, highest, modality = _modality(_stored(every, pixel), dataset, pixel)
    padding = _padding(every, dataset, pixel)
    present = np.zeros(every.size, dtype=bool)
    present[words] = True
    present &= ~padding
    if not present.any():
        raise Refused("every pixel of the image is padding: there is nothing to read", code="blank-image")
    if pixel.stored > 8:
        lowest, highest = values[present].min(), values[present].max()
    centred, voi = _voi(values, float(lowest), float(highest), dataset)
    if np.ptp(centred[present]) == 0:
        raise Refused("the image shows one even grey: there is nothing to read", code="blank-image")
    if inverted:
        centred = -centred
    shown = np.where(padding, 0.0, (centred + 0.5) * 255.0).astype(np.float32)
    steps = [modality, voi, "inverted" if inverted else ""]
    return NetworkInput(_squash(shown[words]), pixel.rows, pixel.columns, ", ".join(step for step in steps if step))


def _squash(shown: NDArray[np.float32]) -> NDArray[np.float32]:
    """Resize a picture of 0..255 to the network's square; bicubic overshoot is clipped as 8 bits would."""
    square = Image.fromarray(shown).resize((INPUT_SIZE, INPUT_SIZE), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(square, dtype=np.float32), 0.0, 255.0) / np.float32(255.0)


def _refuse_unprocessed(dataset: Dataset) -> None:
    """Refuse raw detector values, which no display transformation is defined for (PS3.3 C.8.11.1.1.1)."""
    intent = str(dataset.get("PresentationIntentType", "")).strip().upper()
    if intent == "FOR PROCESSING" or dataset.get("SOPClassUID") == DigitalXRayImageStorageForProcessing:
        raise Refused(
            "the image is FOR PROCESSING (raw detector values): send the FOR PRESENTATION image of the same exposure",
            code="for-processing",
        )


def _inverted(dataset: Dataset, pixel: ImagePixel) -> bool:
    """Say whether low values are bright (PS3.3 C.7.6.3.1.2, C.8.11.3.1.2).

    Presentation LUT Shape repeats what Photometric Interpretation says and never inverts a second time. Where the
    standard forbids the pair, the picture could be a negative: it is refused instead of guessed.
    """
    shape = str(dataset.get("PresentationLUTShape", "") or "").strip()
    mono1 = pixel.photometric == "MONOCHROME1"
    strict = dataset.get("SOPClassUID") == DigitalXRayImageStorageForPresentation
    if (shape == "INVERSE" and not mono1) or (shape == "IDENTITY" and mono1 and strict):
        raise Refused(
            "PhotometricInterpretation and PresentationLUTShape contradict each other: it is unclear whether bone is "
            "white or black",
            code="contradictory-header",
        )
    return mono1


def _stored(every: NDArray[np.int64], pixel: ImagePixel) -> Table:
    """Value of each word: bits above Bits Stored are masked (they held overlays), two's complement where signed."""
    values = every & ((1 << pixel.stored) - 1)
    if pixel.signed:
        values = np.where(values >> (pixel.stored - 1), values - (1 << pixel.stored), values)
    return values.astype(np.float64)


def _padding(every: NDArray[np.int64], dataset: Dataset, pixel: ImagePixel) -> NDArray[np.bool_]:
    """Which words are padding: Pixel Padding Value, up to Pixel Padding Range Limit (PS3.3 C.7.5.1.1.2)."""
    value = dataset.get("PixelPaddingValue")
    if value is None or value == "":
        return np.zeros(every.size, dtype=bool)
    half = 1 << (pixel.allocated - 1) if pixel.signed else 0
    # US or SS in the file, whatever Pixel Representation says: compare as the same words.
    first, last = sorted(
        (int(bound) + half) % every.size - half
        for bound in (value, image_pixel.integer(dataset, "PixelPaddingRangeLimit", int(value)))
    )
    as_signed = np.where(every >= half, every - every.size, every) if pixel.signed else every
    return (as_signed >= first) & (as_signed <= last)


def _modality(stored: Table, dataset: Dataset, pixel: ImagePixel) -> tuple[Table, float, float, str]:
    """Apply the Modality LUT (PS3.3 C.11.1); return values, the least and greatest possible one, and its name."""
    if "ModalityLUTSequence" in dataset:
        table, top = _lookup(stored, dataset.ModalityLUTSequence, "ModalityLUTSequence")
        return table, 0.0, float(top), "Modality LUT"
    slope, intercept = _first(dataset, "RescaleSlope"), _first(dataset, "RescaleIntercept")
    slope, intercept = 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
    if slope == 0 or not math.isfinite(slope + intercept):
        raise Refused("RescaleSlope or RescaleIntercept is not usable: the sender must repair it", code="broken-lut")
    values = stored * slope + intercept
    identity = slope == 1 and intercept == 0
    return values, float(values.min()), float(values.max()), "" if identity else f"rescaled ({slope:g}, {intercept:g})"


def _voi(values: Table, lowest: float, highest: float, dataset: Dataset) -> tuple[Table, str]:
    """Apply the first window or VOI LUT (PS3.3 C.11.2); return -0.5..0.5 and its name."""
    centre, width = _first(dataset, "WindowCenter"), _first(dataset, "WindowWidth")
    if centre is not None and width is not None:
        function = str(dataset.get("VOILUTFunction", "") or "LINEAR").strip()
        count = len(dataset.WindowCenter) if isinstance(dataset.WindowCenter, MultiValue) else 1
        return _window(values, centre, width, function), f"VOI window 1 of {count} ({function} {centre:g}/{width:g})"
    if "VOILUTSequence" in dataset:
        table, top = _lookup(values, dataset.VOILUTSequence, "VOILUTSequence")
        return (2 * table - top) / (2 * top), f"VOI LUT 1 of {len(dataset.VOILUTSequence)}"
    if highest <= lowest:
        raise Refused("the image shows one even grey: there is nothing to read", code="blank-image")
    centred = np.clip((values - (lowest + highest) / 2) / (highest - lowest), -0.5, 0.5)
    return centred, f"no VOI, range {lowest:g} to {highest:g}"


def _window(values: Table, centre: float, width: float, function: str) -> Table:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, with the output range -0.5..0.5."""
    usable = math.isfinite(centre + width) and (width >= 1 if function == "LINEAR" else width > 0)
    if not usable or function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise Refused(
            "the VOI window (WindowCenter, WindowWidth, VOILUTFunction) is not one the standard defines",
            code="broken-lut",
        )
    if function == "SIGMOID":
        # 1 / (1 + exp(-4 x)) - 0.5 as an odd function, which keeps the symmetry that MONOCHROME1 needs.
        return 0.5 * np.tanh(2 * (values - centre) / width)
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width, -0.5, 0.5)
    if width == 1:
        return np.where(values > centre - 0.5, 0.5, -0.5)
    return np.clip((values - (centre - 0.5)) / (width - 1), -0.5, 0.5)


def _lookup(values: Table, sequence: object, name: str) -> tuple[Table, int]:
    """Look `values` up in the first LUT of a sequence; return the entries and their greatest possible value."""
    items = list(sequence)  # type: ignore[call-overload]  # whatever it is, `malformed.refused` stands above
    descriptor = items[0].get("LUTDescriptor") if items else None
    data = items[0].get("LUTData") if items else None
    if descriptor is None or data is None or len(descriptor) != 3:
        raise Refused(f"{name} is there but empty: the sender must fill or drop it", code="broken-lut")
    entries, first, bits = (int(number) for number in descriptor)
    entries = entries % 65536 or 65536  # 0 stands for 65536, which US cannot hold
    if values.min() < 0 and first > 32767:
        first -= 65536
    if isinstance(data, bytes):
        data = np.frombuffer(data, np.uint8 if len(data) == entries else "<u2")
    table = np.asarray(data, dtype=np.float64)
    if not 8 <= bits <= 16 or table.size < entries or table[:entries].max() >= 1 << bits or table.min() < 0:
        raise Refused(f"{name} contradicts its own descriptor: the sender must repair it", code="broken-lut")
    index = np.clip(np.rint(values) - first, 0, entries - 1).astype(np.int64)
    return table[index], (1 << bits) - 1


def _first(dataset: Dataset, keyword: str) -> float | None:
    """First value of a decimal string, None where absent or empty."""
    value = dataset.get(keyword)
    if isinstance(value, MultiValue):
        value = value[0] if len(value) else None
    return None if value is None or value == "" else float(value)
