"""The engine CrypTen between real processes on mutual TLS: the others' answers, named errors, no mask guessed."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import pytest

from dicom_node.core.errors import ConfigError, ProtocolError, Refused, Unavailable
from secure_infer.clear import PlaintextEngine
from secure_infer.compile import compile_network
from secure_infer.crypten_engine.hospital import CryptenEngine
from secure_infer.crypten_engine.tuples import RING, requests_of
from secure_infer.networks import SmallCNN
from secure_infer.protocol.messages import Exchange, Label, TupleOpen
from secure_infer.protocol.prg import tuple_masks
from tests.secure_infer.crypten_engine.attack import guesses, search
from tests.secure_infer.small_model import publish
from tests.secure_infer.test_compile import images, trained
from tests.system.roles import Roles, features, plain

CNN = (1, 128, 128)
SMALL = compile_network(trained(SmallCNN(), CNN), images(CNN))


@pytest.fixture(scope="module")
def roles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roles]:
    made = Roles(tmp_path_factory.mktemp("roles"), timeout_s=60.0)
    made.cards["small"] = publish(made.models, SMALL.program, SMALL.weights, version="small")
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def engine(roles) -> Iterator[CryptenEngine]:
    made = CryptenEngine(roles.cards["small"], roles.inference(timeout_s=60.0), roles.folder / "crypten")
    yield made
    made.close()


@pytest.fixture(scope="module")
def head_engine(roles) -> Iterator[CryptenEngine]:
    made = CryptenEngine(roles.cards["map"], roles.inference(timeout_s=60.0), roles.folder / "crypten-head")
    yield made
    made.close()


IMAGE = images(CNN, seed=5)[0]


def clear(given: np.ndarray) -> np.ndarray:
    return PlaintextEngine(SMALL.program, SMALL.weights).infer(given).logits


def dealt(roles: Roles, card: str, given: np.ndarray) -> np.ndarray:
    engine = roles.engine(card, timeout_s=60.0)
    try:
        return engine.infer(given).logits
    finally:
        engine.close()


def farthest(*answers: np.ndarray) -> float:
    return max(float(np.abs(one - other).max()) for one in answers for other in answers)


def test_crypten_dealt_2pc_and_plaintext_agree_on_the_small_cnn(roles, engine):
    assert farthest(engine.infer(IMAGE).logits, dealt(roles, "small", IMAGE), clear(IMAGE)) < 1e-3


def test_crypten_dealt_2pc_and_plaintext_agree_on_the_default_head(roles, head_engine):
    found = head_engine.infer(features())
    assert roles.answered(found.bundle_id)["fingerprint"] == roles.fingerprint("hospital")
    assert farthest(found.logits, dealt(roles, "map", features()), plain(roles)) < 1e-3
    assert found.evidence is not None
    assert found.evidence.shape == (7, 7, 3)


def test_an_image_beyond_the_proven_range_is_refused_and_none_wraps(engine):
    with pytest.raises(Refused):
        engine.infer(IMAGE * 100)
    assert farthest(engine.infer(np.ones(CNN)).logits, clear(np.ones(CNN))) < 1e-3


def test_the_attack_on_stock_crypten_finds_nothing_in_the_view_of_the_hardened_owner(engine):
    prepared = engine._prepare()
    seen: list[Exchange] = []
    send = prepared.channel.send

    def tapped(message):
        seen.append(message)
        send(message)

    prepared.channel.send = tapped
    engine._query(prepared, IMAGE)
    first = requests_of(SMALL.program)[0]
    view = RING.split(seen[0].values, [first.first, first.second])[0].view(np.int64)
    seed = int.from_bytes(prepared.seeds[:32], "big")

    def masks(guess: int, count: int) -> np.ndarray:
        stream = tuple_masks(guess.to_bytes(32, "big"))
        return stream.words(Label.TUPLE_FIRST, first.number, (count,), RING).view(np.int64)

    # What was enough for stock CrypTen: the low half of each 64-bit word of the seed, 16 bits of it to be found.
    halved = seed & int.from_bytes(b"\0\0\0\0\xff\xff\xff\xff" * 4, "big")
    assert search(view, masks, guesses(halved)) is None
    # With all the other bits, the same search does find the image: the seed alone stands between it and the owner.
    found = search(view, masks, guesses(seed))
    assert found is not None
    assert np.abs(found[1][0] / 2**SMALL.program.fraction_bits - IMAGE).max() < 1e-4


def test_a_hospital_that_breaks_the_rules_is_told_so_and_its_bundle_is_burned(roles, engine):
    prepared = engine._prepare()
    first = requests_of(SMALL.program)[0]
    size = RING.width * (prod(first.first) + prod(first.second))
    with prepared.channel as channel, pytest.raises(ProtocolError) as caught:
        channel.send(Exchange(prepared.bundle, 0, bytes(size - 8)))
        channel.receive(1 << 20)
    assert caught.value.code == "wrong-size"
    with roles.channel("party", timeout_s=60.0) as again, pytest.raises(ProtocolError) as caught:
        again.send(TupleOpen(prepared.bundle, engine._model, bytes(32)))
        again.receive(1 << 10)
    assert caught.value.code == "bundle-reused"


def test_a_process_that_dies_in_a_query_is_named_and_the_next_query_is_answered(engine):
    prepared = engine._prepare()
    engine._process().pipe.close()
    with pytest.raises((Unavailable, OSError)):
        engine._query(prepared, IMAGE)
    assert farthest(engine.infer(IMAGE).logits, clear(IMAGE)) < 1e-3


def test_a_party_that_is_away_is_named(roles, head_engine):
    roles.party.kill()
    with pytest.raises(Unavailable):
        head_engine.infer(features())
    roles.start_party()
    assert farthest(head_engine.infer(features()).logits, plain(roles)) < 1e-3


def test_a_site_must_name_party_and_dealer_for_it(roles):
    settings = roles.inference().model_copy(update={"dealer": None})
    with pytest.raises(ConfigError):
        CryptenEngine(roles.cards["small"], settings, roles.folder / "none")
