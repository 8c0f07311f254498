"""Ten hospitals with twenty queries each, all at once: every answer is right, and nobody's is another's."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from secure_infer.clear import PlaintextEngine
from tests.secure_infer.small_model import publish, weights_of
from tests.secure_infer.small_network import every_kind
from tests.system.roles import Roles

HOSPITALS = tuple(f"hospital-{number}" for number in range(10))
QUERIES = 20
#: All wait for two cores: what is tested is not how long that takes.
PATIENCE_S = 120.0


def test_ten_hospitals_with_twenty_queries_at_once_each_get_their_own_right_answers(tmp_path):
    roles = Roles(tmp_path, hospitals=HOSPITALS, timeout_s=PATIENCE_S)
    roles.dealer_settings["timeout_s"] = PATIENCE_S
    made = every_kind()
    weights = weights_of(made)
    card = publish(roles.models, made, weights, version="network")
    clear = PlaintextEngine(made, weights)
    images = np.random.default_rng(0).uniform(-1, 1, (len(HOSPITALS), QUERIES, *made.input_shape))
    expected = np.array([[clear.infer(image).logits for image in row] for row in images])
    try:
        roles.start()
        engines = [roles.engine(card, who=name, timeout_s=PATIENCE_S) for name in HOSPITALS]
        asked = [(hospital, query) for query in range(QUERIES) for hospital in range(len(HOSPITALS))]
        with ThreadPoolExecutor(len(asked)) as pool:
            found = list(pool.map(lambda one: engines[one[0]].infer(images[one]), asked))
        for engine in engines:
            engine.close()
        for one, inference in zip(asked, found, strict=True):
            assert np.abs(inference.logits - expected[one]).max() < 1e-3, one
        assert (roles.party.stop(), roles.dealer.stop()) == (0, 0)  # with all lines written
        answered = [line for line in roles.party.lines() if line["event"] == "query-answered"]
        whose = {inference.bundle_id: roles.fingerprint(HOSPITALS[hospital]) for (hospital, _), inference in
                 zip(asked, found, strict=True)}  # fmt: skip
        assert {line["bundle_id"]: line["fingerprint"] for line in answered} == whose
        assert set(Counter(whose.values()).values()) == {QUERIES}
        for service in (roles.party, roles.dealer):
            assert not [line for line in service.lines() if line["level"] in ("warning", "error")]
    finally:
        roles.stop()
