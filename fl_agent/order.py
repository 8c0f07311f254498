"""What is to be made, and what a training hands over to be calibrated, evaluated and published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from dicom_node.core.errors import ConfigError
from secure_infer.card import Mechanism, PrefixCard, Preprocessing, TrunkCard
from secure_infer.models import Program, Weights

if TYPE_CHECKING:
    from .trainset import Films

#: Called with (what, done, of all).
Progress = Callable[[str, int, int], None]
Array = NDArray[np.float64]
#: The kind of network that stands on the whole public trunk.
HEAD = "head"
#: The names of `secure_infer.networks.ARCHITECTURES`, known without loading them.
NETWORKS: Final = ("small-cnn", "resnet18", "resnet18-max", "efficientnet-lite0")


def refuse_mixup(alpha: float) -> None:
    """Refuse to train on blends of images (mixup, Zhang et al. 2018, arXiv 1710.09412).

    Parameters
    ----------
    alpha : float
        Of the beta distribution of the blends; 0 asks for none.

    Raises
    ------
    ConfigError
        It is not 0 (``mixup``).
    """
    if alpha:
        raise ConfigError(
            "mixup cannot be trained privately: each blend is of two patients, so one patient is in the gradients of "
            "others, clipping no longer bounds what one patient changes, and epsilon would be wrong. "
            "Several views of the same patient are used instead",
            code="mixup",
        )


@dataclass(frozen=True)
class Order:
    """What to make.

    Attributes
    ----------
    data : Path
        Holds `kermany224` and, for context, `expert_reading`; or a research site's films (`fl_agent.research`).
    cache : Path
        Folder of the trunk's features.
    version : str
        Of the model.
    epsilon, delta : float
        Budget of the whole model.
    split_seed : int
        Of the validation patients.
    network : str
        `HEAD`, or a name of `secure_infer.networks.ARCHITECTURES`.
    cut : str or None
        The last public stage of the trunk, for a network that has a choice.
    mixup : float
        There is none under differential privacy; see `refuse_mixup`.
    """

    data: Path
    cache: Path
    version: str
    epsilon: float
    delta: float
    split_seed: int
    network: str = HEAD
    cut: str | None = None
    mixup: float = 0.0

    def __post_init__(self) -> None:
        refuse_mixup(self.mixup)


@dataclass(frozen=True)
class Learned:
    """A trained private part with the public part before it, as the card tells them.

    Attributes
    ----------
    program : Program
    weights : dict
        As the weights file holds them.
    logits : callable
        From images of the data set and a name for their progress to logits, shape (images, 3), in the clear.
    quarters : callable or None
        The same for what each quarter of an image adds, see `head.of_quarters`; None where quarters have no weights.
    mechanisms : tuple of Mechanism
        What the training patients were asked.
    preprocessing, trunk
        Parts of the card.
    not_covered : str
        What was learned from the data outside the mechanisms.
    limits : tuple of str
        What the model cannot do.
    """

    program: Program
    weights: Weights
    logits: Callable[[Films, str], Array]
    quarters: Callable[[Films, str], Array] | None
    mechanisms: tuple[Mechanism, ...]
    preprocessing: Preprocessing
    trunk: TrunkCard | PrefixCard | None
    not_covered: str
    limits: tuple[str, ...]
