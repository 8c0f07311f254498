"""What a site accepts, whatever the coordinator says (Bonawitz et al. 2017, section 6: the server is not trusted)."""

from __future__ import annotations

from dataclasses import dataclass

from dicom_node.core.errors import ConfigError, Refused

from .header import Header, Mode


@dataclass(frozen=True)
class SitePolicy:
    """A site's own rules for rounds.

    Attributes
    ----------
    coordinator : bytes
        Its pinned Ed25519 key, raw.
    roster : frozenset of bytes
        Identities of the hospitals that this site's administrator approved.
    models : frozenset of bytes
        Hashes of the models that may be trained.
    maximal_epsilon : float
        Largest claim of one run; what is left of the budget is the ledger's business.
    modes : frozenset of Mode
    minimum_cohort : int
        5; 3 is possible, where two colluding hospitals know the third's update by subtraction.

    Raises
    ------
    ConfigError
        A minimum below 3 (``minimum-cohort``): in a cohort of two the sum tells each the other's update.
    """

    coordinator: bytes
    roster: frozenset[bytes]
    models: frozenset[bytes]
    maximal_epsilon: float
    modes: frozenset[Mode] = frozenset({Mode.SITE, Mode.DISTRIBUTED})
    minimum_cohort: int = 5

    def __post_init__(self) -> None:
        if self.minimum_cohort < 3:
            raise ConfigError("the minimum cohort must be at least 3 hospitals", code="minimum-cohort")

    def check(self, header: Header, own: bytes) -> None:
        """Accept a header, or raise Refused.

        Parameters
        ----------
        header : Header
        own : bytes
            This site's identity.

        Raises
        ------
        Refused
            ``not-a-member``, ``cohort-too-small``, ``unapproved-peer``, ``unknown-model``, ``privacy-mode`` or
            ``epsilon-too-large``.
        """
        if own not in header.cohort:
            raise Refused("the round is for a cohort without this site", code="not-a-member")
        if header.size < self.minimum_cohort:
            raise Refused(
                f"a cohort of {header.size} is below this site's minimum of {self.minimum_cohort}",
                code="cohort-too-small",
            )
        if not set(header.cohort) <= self.roster | {own}:
            raise Refused(
                "the cohort names a hospital that this site's administrator has not approved", code="unapproved-peer"
            )
        if header.model not in self.models:
            raise Refused("the round trains a model that this site does not allow", code="unknown-model")
        if header.privacy.mode not in self.modes:
            raise Refused(
                f"privacy mode {header.privacy.mode.name} is not one that this site allows", code="privacy-mode"
            )
        if header.privacy.mode is not Mode.NONE and not 0 < header.privacy.epsilon <= self.maximal_epsilon:
            raise Refused(
                f"epsilon {header.privacy.epsilon:g} is beyond this site's limit of {self.maximal_epsilon:g}",
                code="epsilon-too-large",
            )
