"""A run may end before its last round: by noised losses alone, within its claim, and what never ran is given back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fl_agent.learning import metrics, server
from fl_agent.learning.server import Training
from fl_agent.learning.terms import epsilons
from fl_agent.ledger.entries import State
from tests.fl_agent import federations
from tests.fl_agent.learning.hospitals import plan


def test_a_run_ends_early_by_noised_losses_alone_and_within_its_claim() -> None:
    agreed = plan(rounds=6, published="best", patience=2, options={"centre_noise": None})
    training = Training.start(agreed)
    for loss, over in ((0.5, False), (0.6, False), (0.4, False), (0.45, False), (0.41, True)):
        assert not server.finished(agreed, training)
        measured = np.zeros(metrics.LENGTH)
        measured[0] = loss * sum(one.patients for one in agreed.members) * agreed.metrics_weight / metrics.NORM
        training, _ = server.after(agreed, training, [np.ones(agreed.dimension), measured], agreed.members)
        training = Training.read(training.encode())
        assert server.finished(agreed, training) == over
    assert training.done == 5 < agreed.sums
    assert epsilons(agreed, (training.done,)).claimed < epsilons(agreed).claimed


@pytest.mark.parametrize(("descent", "options"), [({"published": "average"}, {}), ({}, {"metrics_weight": 0})])
def test_a_plan_ends_early_only_where_it_measures_and_has_no_last_rounds_to_average(descent, options) -> None:
    with pytest.raises(ValueError, match="early"):
        plan(options=options, **{"patience": 2, "published": "last", **descent})


def test_what_a_run_that_ended_early_never_began_goes_back_to_each_site(memory: Path) -> None:
    with federations.federation(memory) as made:
        # No noised loss can be the lowest more than once in a row for ever: with so little patience it ends soon.
        agreed = federations.plan(made, rounds=40, spare=0, published="best", patience=1)
        made.coordinator.open(agreed)
        assert federations.finish(made) == "finished"
        current = made.records.newest()
        assert current is not None
        done = current.training.done
        assert 3 <= done < agreed.sums
        for name in made.hospitals:
            spent = {"mean feature": (State.SPENT, 1), "head": (State.SPENT, done - 1)}
            assert federations.reserved(made, name) == spent
