"""What a site allows, whatever the coordinator proposes (Bonawitz et al. 2017, section 6: it is not trusted)."""

from __future__ import annotations

from dataclasses import dataclass

from dicom_node.core.errors import Refused
from dicom_node.core.training_settings import FederationSettings, PrivacySettings

from ..learning.plan import MODES, Plan
from ..learning.propose import assumed_honest
from ..learning.terms import epsilons
from ..secagg.policy import SitePolicy


@dataclass(frozen=True)
class Rules:
    """The administrator's decisions.

    Attributes
    ----------
    federation : FederationSettings
    privacy : PrivacySettings
        Its delta is the one at which plans are judged.
    """

    federation: FederationSettings
    privacy: PrivacySettings

    @property
    def coordinator(self) -> bytes:
        """The pinned key, raw."""
        return bytes.fromhex(self.federation.coordinator)

    def check(self, plan: Plan, own: bytes) -> None:
        """Accept a plan, or raise Refused.

        Parameters
        ----------
        plan : Plan
        own : bytes
            This site's identity.

        Raises
        ------
        Refused
            ``not-a-member``, ``cohort-too-small``, ``unapproved-peer``, ``unknown-plan``, ``privacy-mode``,
            ``too-many-honest`` or ``epsilon-too-large``.
        """
        rules, identities = self.federation, {one.identity for one in plan.members}
        if own.hex() not in identities:
            raise Refused("the plan is for a cohort without this site", code="not-a-member")
        if len(identities) < rules.minimum_cohort:
            raise Refused(
                f"a cohort of {len(identities)} is below this site's minimum of {rules.minimum_cohort}",
                code="cohort-too-small",
            )
        if not identities <= {*rules.roster, own.hex()}:
            raise Refused(
                "the plan names a hospital that this site's administrator has not approved", code="unapproved-peer"
            )
        if rules.plans and plan.digest.hex() not in rules.plans:
            raise Refused("training.federation.plans does not name this plan", code="unknown-plan")
        if plan.mode not in rules.modes:
            raise Refused(f"mode {plan.mode} is not one that this site allows", code="privacy-mode")
        if plan.honest > assumed_honest(len(identities)):
            raise Refused(
                f"the plan's epsilon counts on {plan.honest} honest hospitals in every sum; with nearly a third of the "
                f"members colluding there are {assumed_honest(len(identities))}",
                code="too-many-honest",
            )
        cost = epsilons(plan, delta=self.privacy.delta)
        # Written so that a cost that is no number is refused, too.
        if not cost.claimed <= rules.maximal_epsilon or not cost.alone <= (rules.maximal_epsilon_alone or cost.alone):
            raise Refused(
                f"the plan costs epsilon {cost.claimed:.3f}, and {cost.alone:.3f} if all others collude: beyond this "
                "site's limits for one run",
                code="epsilon-too-large",
            )

    def check_patients(self, patients: int) -> None:
        """Make sure that enough patients agree at this moment, or raise Refused (``too-few-patients``)."""
        if patients < self.federation.minimum_patients:
            raise Refused("too few of this site's patients have agreed to training", code="too-few-patients")

    def for_round(self, plan: Plan, model: bytes) -> SitePolicy:
        """Return what secure aggregation must hold to in a round about one state of an accepted plan."""
        members = {one.identity for one in plan.members}
        return SitePolicy(
            coordinator=self.coordinator,
            roster=frozenset(bytes.fromhex(one) for one in self.federation.roster if one in members),
            models=frozenset({model}),
            maximal_epsilon=epsilons(plan).claimed,
            modes=frozenset({MODES[plan.mode]}),
            minimum_cohort=self.federation.minimum_cohort,
        )
