"""A card may claim less privacy than its mechanisms give, and never more."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from dicom_node.core.errors import Refused
from dicom_node.core.settings import Population
from fl_agent.coordinator.candidate import Publisher
from fl_agent.handover.claim import require_claimed
from fl_agent.learning.plan import Member
from fl_agent.learning.propose import Budget, Features, default_descent, propose
from fl_agent.learning.server import Training
from fl_agent.ledger.accountant import loss, total
from secure_infer.card import Distributed, Mechanism, Privacy
from secure_infer.models import SHIPPED, ModelStore
from tests.fl_agent.trunks import setup
from tests.secure_infer.small_model import PUBLISHER, PUBLISHER_HEX

SUMMED = Distributed(
    name="head", sampling_rate=0.1, steps=100, variance=10**6, honest=3, dimension=40, sensitivity_squared=10**6
)
OWN = Mechanism(
    name="calibration", partition="all", kind="DP-SGD", sampling_rate=0.1, noise_multiplier=2.0, clip=1.0, steps=50
)
DELTA = 1e-4


def privacy(epsilon: float, alone: float | None, *mechanisms: Mechanism | Distributed) -> Privacy:
    return Privacy(
        epsilon=epsilon, epsilon_alone=alone, delta=DELTA, unit="patient", adjacency="add or remove one",
        accountant="", noise="", mechanisms=mechanisms, not_covered="",
    )  # fmt: skip


def cost(*mechanisms: Mechanism | Distributed, alone: bool = False) -> float:
    return total(loss(one, alone=alone) for one in mechanisms).planned(DELTA)


def test_the_shipped_model_claims_what_it_has() -> None:
    require_claimed(ModelStore(SHIPPED).card("1.2.0").privacy)


def test_the_exact_cost_may_be_claimed_and_nothing_below_it() -> None:
    both, lonely = cost(SUMMED, OWN), cost(SUMMED, OWN, alone=True)
    require_claimed(privacy(both, lonely, SUMMED, OWN))
    require_claimed(privacy(both, None, SUMMED, OWN))
    with pytest.raises(Refused, match=r"claims epsilon \d") as refused:
        require_claimed(privacy(both * 0.999, lonely, SUMMED, OWN))
    assert refused.value.code == "epsilon-understated"
    with pytest.raises(Refused, match="claims epsilon_alone"):
        require_claimed(privacy(both, max(both, lonely * 0.999), SUMMED, OWN))


def test_sums_concern_every_partition_and_partitions_do_not_add_up() -> None:
    other = OWN.model_copy(update={"partition": "others"})
    require_claimed(privacy(cost(SUMMED, OWN), None, SUMMED, OWN, other))
    with pytest.raises(Refused):
        require_claimed(privacy(max(cost(SUMMED), cost(OWN)), None, SUMMED, OWN, other))


def test_a_mechanism_without_noise_to_speak_of_is_refused() -> None:
    with pytest.raises(Refused):
        require_claimed(privacy(3.0, None, OWN.model_copy(update={"noise_multiplier": 0.05})))


@pytest.mark.parametrize("mode", ["site", "distributed"])
def test_what_a_coordinator_publishes_claims_what_it_has(tmp_path: Path, mode: Literal["site", "distributed"]) -> None:
    members = [Member(name=f"site-{n}", identity=f"{n:064x}", patients=100) for n in range(3)]
    descent = default_descent(5)
    plan = propose("1.0", members, Features(setup("block13"), ("plain",), 192), Budget(3.0, 1e-4, mode), descent)
    store = ModelStore(tmp_path, [PUBLISHER_HEX])
    publisher = Publisher(store, PUBLISHER, Population(min_age_years=1, max_age_years=5))
    card = publisher.publish(plan, Training.start(plan))
    require_claimed(card.privacy)
    assert card.privacy.epsilon_alone is not None
    for name, claimed in (("epsilon", card.privacy.epsilon * 0.7), ("epsilon_alone", card.privacy.epsilon_alone / 2)):
        with pytest.raises(Refused, match=f"claims {name} "):
            require_claimed(card.privacy.model_copy(update={name: claimed}))
