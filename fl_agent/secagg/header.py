"""The signed terms of a round (Bonawitz et al. 2017, Figure 4, "Setup": what all users must hold alike).

The header's SHA-256 is the round's name: it stands in every frame, signature, key and sealed share, so whoever saw
other terms cannot take part in the same round.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from struct import Struct
from typing import Final, Self

from dicom_node.core.errors import ProtocolError

from .messages import KEY, LARGEST_BODY, LARGEST_COHORT, RoundHeader, malformed, pack

LARGEST_HEADER: Final = 1 << 16
LARGEST_BLOCKS: Final = 16
#: Rings mod 2^b that pack without waste for two words.
BITS: Final = range(8, 33, 4)
#: Noise beyond this many standard deviations of the sum may wrap; the probability for one coordinate is below 1e-32.
NOISE_MARGIN: Final = 12
#: The sampler of `noise` is exact for any variance; this keeps its integers within 64 bits.
LARGEST_VARIANCE: Final = 1 << 40


class Mode(IntEnum):
    """Who adds the noise that the privacy terms speak of."""

    NONE = 0  # no differential privacy
    SITE = 1  # each hospital adds all of it before it rounds: it holds even if everybody else colludes
    DISTRIBUTED = 2  # each hospital adds a share, and `honest` of them reach it


@dataclass(frozen=True)
class Block:
    """A run of coordinates with one scale, such as the update, or a few metrics.

    Attributes
    ----------
    length : int
        Coordinates.
    clip : float
        Largest absolute value of one hospital's coordinate; beyond it is clipped.
    step : float
        What one unit of the ring means.
    variance : int
        Of the discrete Gaussian that each hospital adds to each coordinate, in steps squared; 0 adds none.
    """

    length: int
    clip: float
    step: float
    variance: int = 0

    @property
    def limit(self) -> int:
        """The largest absolute value of one hospital's coordinate, in steps, before noise."""
        return math.floor(self.clip / self.step + 0.5)


@dataclass(frozen=True)
class PrivacyTerms:
    """What the coordinator claims about differential privacy; the site's ledger computes it for itself.

    Attributes
    ----------
    mode : Mode
    honest : int
        Hospitals whose noise together reaches the claim (mode DISTRIBUTED), at most the threshold; else 0.
    norm : float
        Largest Euclidean norm of one patient's contribution.
    noise_multiplier : float
        Standard deviation of the noise over `norm`.
    sampling_rate : float
        Probability that a patient takes part in a step.
    steps : int
        Of the whole run under these terms.
    epsilon, delta : float
        Of the whole run, for one patient.
    """

    mode: Mode
    honest: int = 0
    norm: float = 0.0
    noise_multiplier: float = 0.0
    sampling_rate: float = 0.0
    steps: int = 0
    epsilon: float = 0.0
    delta: float = 0.0


@dataclass(frozen=True)
class Header:
    """The terms of one round.

    Attributes
    ----------
    run : bytes
        16 random bytes that name the training run.
    round : int
        Counts from 1 within the run.
    model : bytes
        SHA-256 of the model card or state that the update is relative to.
    cohort : tuple of bytes
        Raw Ed25519 public keys, ascending; user u of the paper is the u-th, from 1.
    threshold : int
        t; above two thirds of the cohort.
    bits : int
        The ring is mod 2^bits.
    blocks : tuple of Block
        The coordinates, in order.
    privacy : PrivacyTerms

    Raises
    ------
    ProtocolError
        The terms are impossible (``malformed``), the threshold permits two sums that differ by one hospital
        (``threshold-too-low``), or the sum could wrap (``no-headroom``).
    """

    run: bytes
    round: int
    model: bytes
    cohort: tuple[bytes, ...]
    threshold: int
    bits: int
    blocks: tuple[Block, ...]
    privacy: PrivacyTerms

    def __post_init__(self) -> None:
        self._check_members()
        self._check_blocks()
        self._check_privacy()

    @property
    def size(self) -> int:
        """The number n of clients in the cohort."""
        return len(self.cohort)

    @property
    def dimension(self) -> int:
        """Coordinates of all blocks."""
        return sum(block.length for block in self.blocks)

    @cached_property
    def content(self) -> bytes:
        """The canonical bytes."""
        parts = [
            pack(_START, self.run, self.round, self.model, self.threshold, self.bits, self.size, len(self.blocks)),
            *self.cohort,
            *(pack(_BLOCK, block.length, block.clip, block.step, block.variance) for block in self.blocks),
        ]
        terms = self.privacy
        parts.append(
            pack(
                _PRIVACY, int(terms.mode), terms.honest, terms.norm, terms.noise_multiplier, terms.sampling_rate,
                terms.steps, terms.epsilon, terms.delta,
            )
        )  # fmt: skip
        return b"".join(parts)

    @cached_property
    def round_id(self) -> bytes:
        """The round's name: SHA-256 of the canonical bytes."""
        return round_id(self.content)

    def message(self) -> RoundHeader:
        """Give the body that opens the round."""
        return RoundHeader(self.content)

    @classmethod
    def decode(cls, content: bytes) -> Self:
        """Read and check the canonical bytes; the errors are the class's."""
        if len(content) > LARGEST_HEADER:
            raise malformed("a header that is too long")
        try:
            run, number, model, threshold, bits, size, blocks = _START.unpack_from(content)
            place = _START.size
            cohort = tuple(content[place + KEY * one : place + KEY * (one + 1)] for one in range(size))
            place += KEY * size
            read = tuple(Block(*_BLOCK.unpack_from(content, place + _BLOCK.size * one)) for one in range(blocks))
            mode, *terms = _PRIVACY.unpack_from(content, place + _BLOCK.size * blocks)
            header = cls(run, number, model, cohort, threshold, bits, read, PrivacyTerms(Mode(mode), *terms))
        except (struct.error, ValueError) as error:
            raise malformed("a header that cannot be read") from error
        if header.content != content:
            raise malformed("a header that is not in its canonical form")
        return header

    def _check_members(self) -> None:
        if len(self.run) != 16 or len(self.model) != 32 or not 1 <= self.round < 1 << 32:
            raise malformed("a header without a proper run, round or model")
        if not 2 <= self.size <= LARGEST_COHORT or any(len(key) != KEY for key in self.cohort):
            raise malformed("a cohort of an impossible size")
        if any(after <= before for before, after in zip(self.cohort, self.cohort[1:], strict=False)):
            raise malformed("a cohort that is not in ascending order, each member once")
        # Two survivor sets need 2t signatures, n of which honest clients give once: t > 2n/3 leaves no room for a
        # second set while fewer than n/3 collude with the coordinator.
        if not 2 * self.size < 3 * self.threshold <= 3 * self.size:
            raise ProtocolError(
                f"threshold {self.threshold} of {self.size} is not above two thirds; the coordinator must raise it",
                code="threshold-too-low",
            )

    def _check_blocks(self) -> None:
        if self.bits not in BITS or not 1 <= len(self.blocks) <= LARGEST_BLOCKS:
            raise malformed("a ring or a number of blocks that this version does not have")
        for block in self.blocks:
            numbers = (block.clip, block.step)
            if block.length < 1 or not all(math.isfinite(one) and one > 0 for one in numbers):
                raise malformed("a block without coordinates or scale")
            if not 0 <= block.variance <= LARGEST_VARIANCE:
                raise malformed("a block with an impossible variance")
            if block.clip / block.step > 2**31:
                raise _no_headroom()
            noise = math.isqrt(self.size * block.variance) + 1 if block.variance else 0
            if block.limit < 1 or self.size * block.limit + NOISE_MARGIN * noise >= 1 << (self.bits - 1):
                raise _no_headroom()
        if 4 * self.dimension > LARGEST_BODY:
            raise malformed("more coordinates than a frame holds")

    def _check_privacy(self) -> None:
        terms = self.privacy
        numbers = (terms.norm, terms.noise_multiplier, terms.sampling_rate, terms.epsilon, terms.delta)
        if not all(math.isfinite(one) and one >= 0 for one in numbers) or terms.sampling_rate > 1 or terms.delta >= 1:
            raise malformed("impossible privacy terms")
        # With fewer honest hospitals among the survivors than `honest` the noise falls short of the claim.
        distributed = terms.mode is Mode.DISTRIBUTED
        if distributed != (1 <= terms.honest <= self.threshold) or (terms.honest and not distributed):
            raise malformed("a number of honest hospitals that does not fit the privacy mode")
        if any((block.variance > 0) != distributed for block in self.blocks):
            raise malformed("noise that does not fit the privacy mode")


#: run, round, model, threshold, bits, cohort size, number of blocks
_START: Final = Struct(">16sI32sHBHH")
_BLOCK: Final = Struct(">IddQ")
_PRIVACY: Final = Struct(">BHdddIdd")


def round_id(content: bytes) -> bytes:
    """Name a round by its header's bytes."""
    return hashlib.sha256(content).digest()


def least_threshold(size: int) -> int:
    """Return the smallest t above 2n/3; floor((n - 1) / 3) clients may drop out."""
    return 2 * size // 3 + 1


def _no_headroom() -> ProtocolError:
    return ProtocolError(
        "the sum of the cohort could leave the ring; the coordinator must take a larger step or more bits",
        code="no-headroom",
    )
