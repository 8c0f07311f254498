"""The model card (Mitchell et al. 2019, arXiv 1810.03993): all that is public about a model, as one signed document.

A hospital runs a model from its card alone: the public trunk, the shapes of the private part, how logits become an
answer, for whom the model was made, what its training cost in privacy and how well it did. The weights stay with
their owner; the card binds them by hash.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.special import logsumexp

from dicom_node.core.settings import Population

from .program import Part, Program
from .regions import shares

Classes = tuple[Literal["normal"], Literal["bacterial"], Literal["viral"]]
CLASSES: Classes = ("normal", "bacterial", "viral")
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
#: Also a folder's name, so it can never climb out of the store.
Version = Annotated[str, Field(pattern=r"^[a-z0-9]+(?:[._-][a-z0-9]+)*$", max_length=64)]
Triple = tuple[float, float, float]
Quarters = tuple[Triple, Triple, Triple, Triple]
Probability = Annotated[float, Field(ge=0, le=1)]
#: Into how many parts a head divides an image's height, and its width: 1 for the whole image, 2 for its quarters.
Regions = Literal[1, 2]
#: Rows and columns of what enters the trunk.
Side = Literal[224, 288]
TrunkName = Literal["efficientnet-lite0", "efficientnet-lite1"]


class TrunkSetup(Part):
    """Which public trunk a head stands on, and how an image passes it."""

    name: TrunkName = Field(description="architecture")
    taps: tuple[str, ...] = Field(min_length=1, description="stages whose outputs are the features, in order")
    side: Side = Field(description="rows and columns of the image that enters")
    regions: Regions = Field(description="parts of height and width that have weights of their own")


class TrunkCard(Part):
    """The public part of the network, run in the clear by the hospital: a grid of normalised features."""

    name: TrunkName = Field(description="architecture")
    sha256: Sha256 = Field(description="SHA-256 of the public checkpoint file")
    taps: tuple[str, ...] = Field(min_length=1, description="stages whose outputs are the features, in order")
    regions: Literal[2] | None = Field(
        default=None, description="2: each quarter of the image has weights of its own; absent: all have the same"
    )
    source: str = Field(description="where the checkpoint comes from and its licence")


class PrefixCard(Part):
    """The public stages of the trunk up to a cut; the output of the last enters the private part as it is."""

    name: Literal["efficientnet-lite0"] = Field(description="architecture")
    sha256: Sha256 = Field(description="SHA-256 of the public checkpoint file")
    cut: str = Field(description="last public stage; all that follow are private")
    source: str = Field(description="where the checkpoint comes from and its licence")


class Preprocessing(Part):
    """How a displayed image becomes the network's input; the code is the authority, these are its constants."""

    side: Literal[128, 224, 288] = Field(description="rows and columns after resampling, aspect ratio not kept")
    resampling: Literal["bicubic, antialiased"] = Field(description="how an image comes to 224, and from there to side")
    offset: float = Field(description="taken from the grey value 0..255")
    divisor: float = Field(gt=0, description="then divided by this; the channels of the input are equal")
    normalisation: str = Field(description="what is done to the trunk's features before the private part")


class Calibration(Part):
    """Logits to probabilities: softmax(scale * logits + offsets) (after Guo et al. 2017, arXiv 1706.04599)."""

    scale: float = Field(gt=0, description="inverse temperature")
    offsets: Triple = Field(description="added to the scaled logits of the three classes")
    method: str = Field(description="how these were found and on whom")
    quarters: Quarters | None = Field(
        default=None,
        description="logits by which each quarter of a usual image differs from all of it, row by row; they are taken "
        "from the map of evidence, which would else show how quarters differ in every image",
    )


class OperatingPoint(Part):
    """Which probability of pneumonia makes which answer."""

    absent_below: Probability = Field(description="absent where the probability is less")
    present_from: Probability = Field(description="present where it is at least this; undetermined between the two")
    undetermined_share: Probability | None = Field(
        default=None, description="share of the validation images in the band between, where that was measured"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.absent_below > self.present_from:
            raise ValueError("absent_below must not exceed present_from")
        return self

    def __str__(self) -> str:
        return f"absent below {self.absent_below:.2f}, present from {self.present_from:.2f} (probability of pneumonia)"


class Mechanism(Part):
    """One differentially private computation on one set of patients."""

    name: str = Field(description="what it computed")
    partition: str = Field(description="the set of patients it saw; different partitions share no patient")
    kind: Literal["DP-SGD", "Gaussian"] = Field(description="Poisson-subsampled clipped gradients, or one release")
    patients: int | None = Field(
        default=None, ge=1, description="patients in the partition; not told where hospitals count them for themselves"
    )
    sampling_rate: float = Field(gt=0, le=1, description="probability q that a patient takes part in a step")
    noise_multiplier: float = Field(gt=0, description="standard deviation of the noise over the clipping norm")
    clip: float = Field(gt=0, description="largest Euclidean norm of one patient's contribution")
    steps: int = Field(ge=1, description="number of steps or releases")


class Distributed(Part):
    """Sampled gradient sums with a share of discrete Gaussian noise from each hospital (arXiv 2102.06387)."""

    name: str = Field(description="what it computes")
    kind: Literal["distributed discrete Gaussian"] = "distributed discrete Gaussian"
    patients: int | None = Field(
        default=None, ge=1, description="this site's patients in the set, for its ledger; a card never tells"
    )
    sampling_rate: float = Field(gt=0, le=1, description="probability q that a patient takes part in a step")
    steps: int = Field(ge=1, description="number of secure sums")
    variance: int = Field(ge=1, description="of each hospital's draw, in steps of the ring squared")
    honest: int = Field(ge=1, description="hospitals, this one included, that keep their draw to themselves")
    dimension: int = Field(ge=1, description="coordinates that get noise")
    sensitivity_squared: int = Field(ge=1, description="how far one patient moves the summed integers, squared")


class Bound(Part):
    """A computation of which nothing but its (epsilon, delta) is known, such as another library's."""

    name: str = Field(description="what it computes")
    kind: Literal["bound"] = "bound"
    patients: int | None = Field(
        default=None, ge=1, description="this site's patients in the set, for its ledger; a card never tells"
    )
    epsilon: float = Field(gt=0, description="epsilon of one release")
    delta: float = Field(default=0.0, ge=0, lt=1, description="delta of one release")
    steps: int = Field(default=1, ge=1, description="number of releases")


class Privacy(Part):
    """What the training cost its patients (Dwork & Roth 2014; DP-SGD of Abadi et al. 2016, arXiv 1607.00133)."""

    epsilon: float = Field(gt=0, description="epsilon of the whole model, upper bound, rounded up")
    epsilon_alone: float | None = Field(
        default=None, gt=0, description="epsilon of a hospital's patients if all others and the coordinator collude"
    )
    delta: float = Field(gt=0, lt=1, description="delta of both")
    unit: Literal["patient"] = Field(description="two data sets are neighbours when they differ in one such unit")
    adjacency: Literal["add or remove one"] = Field(description="neighbouring relation")
    accountant: str = Field(description="how epsilon follows from the mechanisms")
    noise: str = Field(description="where the noise comes from")
    mechanisms: tuple[Annotated[Mechanism | Distributed | Bound, Field(discriminator="kind")], ...] = Field(
        min_length=1, description="all computations that saw private data"
    )
    not_covered: str = Field(description="what was learned from the data outside the mechanisms")

    @model_validator(mode="after")
    def _hides_single_hospitals(self) -> Self:
        if any(not isinstance(one, Mechanism) and one.patients is not None for one in self.mechanisms):
            raise ValueError("how many patients one hospital has does not belong into a card")
        if self.epsilon_alone is not None and self.epsilon_alone < self.epsilon:
            raise ValueError("one hospital's noise alone cannot hide more than that of all")
        return self


class Figure(Part):
    """A measured figure with its 95 % interval."""

    name: str = Field(description="metric")
    value: float = Field(description="point estimate")
    low: float = Field(description="lower end of the interval")
    high: float = Field(description="upper end of the interval")
    images: int = Field(ge=1, description="images it was measured on")
    patients: int = Field(ge=1, description="patients it was measured on; the interval resamples them")


class SplitCount(Part):
    """Size of one split of the data."""

    split: Literal["train", "validation", "test"] = Field(description="name of the split")
    images: tuple[int, int, int] = Field(description="images of each class")
    patients: tuple[int, int, int] = Field(description="patients of each class")


class Data(Part):
    """What the model was trained and tested on."""

    name: str = Field(description="data set")
    licence: str = Field(description="licence and attribution")
    splits: tuple[SplitCount, ...] = Field(description="sizes")
    how_split: str = Field(description="how the splits were made")


class ModelCard(Part):
    """All that is public about one version of a model."""

    name: str = Field(min_length=1, max_length=64, description="name in reports")
    version: Version = Field(description="version; never used again for other weights")
    intended_use: str = Field(description="what the model is for, one sentence")
    classes: Classes = Field(description="order of the logits")
    population: Population = Field(description="whom the model was made for; enforced by the node")
    preprocessing: Preprocessing = Field(description="from image to the network's input")
    trunk: TrunkCard | PrefixCard | None = Field(
        default=None, description="public layers; none where the image itself is private"
    )
    suffix: Program = Field(description="private part: its shapes alone")
    weights_sha256: Sha256 = Field(description="SHA-256 of weights.safetensors, which only the owner holds")
    calibration: Calibration = Field(description="from logits to probabilities")
    operating_point: OperatingPoint = Field(description="from probabilities to an answer")
    data: Data = Field(description="training and test data")
    privacy: Privacy = Field(description="differential privacy of the training")
    figures: tuple[Figure, ...] = Field(description="on the test split, evaluated once")
    context: tuple[str, ...] = Field(description="what helps to read the figures")
    limits: tuple[str, ...] = Field(min_length=1, description="what the model cannot do")
    licence: str = Field(description="licence of the weights")

    @model_validator(mode="after")
    def _fits_the_image(self) -> Self:
        side = self.preprocessing.side
        if self.trunk is None and self.suffix.input_shape not in {(channels, side, side) for channels in (1, 3)}:
            raise ValueError(f"without a trunk the private part takes 1 or 3 channels of {side} x {side}")
        if self.trunk is not None and side not in ((224, 288) if isinstance(self.trunk, TrunkCard) else (224,)):
            raise ValueError(f"the public part takes no images of {side} x {side}")
        parted = isinstance(self.trunk, TrunkCard) and self.trunk.regions == 2
        if self.calibration.quarters is not None and not parted:
            raise ValueError("only a head with weights for each quarter has quarters to compare")
        return self

    def figure(self, name: str) -> Figure:
        """Look a figure up by its name; KeyError when the card has none."""
        return {figure.name: figure for figure in self.figures}[name]

    def calibrated(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scale and shift logits so that their softmax is the calibrated probability; shape (..., 3) is kept."""
        scaled: NDArray[np.float64] = self.calibration.scale * logits + np.asarray(self.calibration.offsets)
        return scaled

    def pneumonia_evidence(self, evidence: NDArray[np.float64]) -> NDArray[np.float64]:
        """Reduce the evidence for three classes to that for pneumonia.

        Parameters
        ----------
        evidence : ndarray of float64, shape (7, 7, 3)
            Logits that each position alone would give.

        Returns
        -------
        ndarray of float64, shape (7, 7)
            Log-odds of pneumonia against normal; above 0 speaks for pneumonia.
        """
        quarters = self.calibration.quarters
        if quarters is not None:
            evidence = evidence - np.tensordot(shares(2, len(evidence)), np.array(quarters), (0, 0))
        scaled = self.calibrated(evidence)
        odds: NDArray[np.float64] = logsumexp(scaled[..., 1:], axis=-1) - scaled[..., 0]
        return odds

    def canonical(self) -> bytes:
        """Write the card as the bytes that are hashed and signed: sorted JSON, two spaces, one final line feed.

        What a card leaves out is not written, so cards that were signed before a field existed stay valid.
        """
        content = self.model_dump(mode="json", exclude_none=True)
        return (json.dumps(content, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
