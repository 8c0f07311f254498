"""A whole network between three processes on mutual TLS: exact answers, named errors, no bundle used twice."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.core.errors import ConfigError, ProtocolError, Refused, Unavailable, VeilRayError
from secure_infer.clear import PlaintextEngine
from secure_infer.protocol.messages import Covered, Digits, Masked, Shifted
from secure_infer.protocol.plan import Plan
from tests.secure_infer.small_model import publish, weights_of
from tests.secure_infer.small_network import Builder, every_kind
from tests.system.roles import Roles

MADE = every_kind()
WEIGHTS = weights_of(MADE)


@pytest.fixture(scope="module")
def roles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roles]:
    made = Roles(tmp_path_factory.mktemp("roles"))
    made.cards["network"] = publish(made.models, MADE, WEIGHTS, version="network")
    try:
        made.start()
        yield made
    finally:
        made.stop()


def image(seed: int, made=MADE) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, made.input_shape)


def clear(seed: int) -> np.ndarray:
    return PlaintextEngine(MADE, WEIGHTS).infer(image(seed)).logits


@pytest.mark.parametrize("prefetch", [0, 3])
def test_twenty_queries_at_once_get_the_answer_in_the_clear(roles, prefetch):
    engine = roles.engine("network", prefetch=prefetch)
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(lambda seed: engine.infer(image(seed)).logits, range(20)))
    engine.close()
    assert max(np.abs(one - clear(seed)).max() for seed, one in enumerate(found)) < 1e-3


def test_random_networks_give_the_answer_in_the_clear(roles):
    drawn = []

    @settings(max_examples=8, deadline=None, database=None, derandomize=True)
    @given(st.data(), st.sampled_from([64, 32]), st.integers(0, 99))
    def check(data, bits, seed):
        made = Builder(lambda low, high: data.draw(st.integers(low, high)), bits).make()
        weights = weights_of(made, seed)
        drawn.append(publish(roles.models, made, weights, version=f"random{len(drawn)}"))
        engine = roles.engine(drawn[-1])
        found = engine.infer(image(seed, made)).logits
        engine.close()
        expected = PlaintextEngine(made, weights).infer(image(seed, made)).logits
        unit = 2.0 ** -Plan(made).fractions[made.output]  # an output that was rounded is off by less than one of these
        assert np.abs(found - expected).max() < (1e-3 if bits == 64 else 0.3) + unit

    check()
    assert drawn


def test_an_input_of_another_shape_or_range_never_leaves_the_hospital(roles):
    engine = roles.engine("network")
    with pytest.raises(ConfigError):
        engine.infer(np.zeros((1, 6, 6)))
    for value in (MADE.input_bound * 1.01, np.nan, np.inf):
        with pytest.raises(Refused):
            engine.infer(np.full(MADE.input_shape, value))
    engine.close()


@pytest.mark.parametrize("fault", ["wrong size", "wrong layer", "silence", "closed"])
def test_a_hospital_that_breaks_the_rules_online_is_told_so_and_its_bundle_is_burned(roles, fault):
    engine = roles.engine("network")
    prepared = engine._prepare()
    session, channel = prepared.session, prepared.channel
    masked = session.query(image(1))
    if fault == "wrong size":
        channel.send(Masked(masked.bundle, masked.layer, masked.values[:-8]))
    elif fault == "wrong layer":
        channel.send(Covered(masked.bundle, 1, masked.values))
    elif fault == "silence":
        channel.send(masked)  # and no bits: party 1 waits for `timeout_s`
        for _ in (Shifted, Digits):
            session.handle(channel.receive(session.limit))
    else:
        channel.close()
    if fault != "closed":
        with pytest.raises(VeilRayError) as caught:
            channel.receive(session.limit, wait_s=5.0)
        assert isinstance(caught.value, ProtocolError | Unavailable)
    prepared.drop()
    again = roles.engine("network")
    assert np.abs(again.infer(image(2)).logits - clear(2)).max() < 1e-3
    with pytest.raises(ProtocolError) as reused:
        engine._spend(session.bundle)
    assert reused.value.code == "bundle-reused"
    again.close()
    engine.close()


def test_a_dealer_that_is_away_is_named(roles):
    engine = roles.engine("network")
    roles.dealer.kill()
    with pytest.raises(VeilRayError):
        engine.infer(image(3))
    roles.start_dealer()
    assert np.abs(engine.infer(image(3)).logits - clear(3)).max() < 1e-3
    engine.close()
