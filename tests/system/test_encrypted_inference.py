"""Hospital, model owner and dealer as processes on mutual TLS: right answers, and a named end for everything else."""

from __future__ import annotations

import dataclasses
import datetime
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dicom_node.core.errors import ProtocolError, Refused, VeilRayError
from secure_infer.clear import PlaintextEngine
from secure_infer.dealt import DealtEngine
from secure_infer.protocol.messages import Fetch, Half, Masked, Open, Output, Ready
from secure_infer.protocol.plan import Plan
from tests.secure_infer.small_model import publish
from tests.system.roles import LARGE, MAP, POOLED, Roles, ask, bundle_for, features, plain, wait_for_bundles


@pytest.fixture(scope="module")
def roles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roles]:
    made = Roles(tmp_path_factory.mktemp("roles"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


def test_three_processes_give_the_plaintext_answer(roles, tmp_path):
    card = roles.models / "map" / "card.json"
    given = {"card": str(card), "state_dir": str(tmp_path), "seed": 3}
    given["inference"] = json.loads(roles.inference().model_dump_json())
    (tmp_path / "hospital.json").write_text(json.dumps(given))
    command = [sys.executable, "-m", "tests.system.roles", "hospital", str(tmp_path / "hospital.json")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found = json.loads(ended.stdout)
    reference = PlaintextEngine(MAP, roles.weights()).infer(features(3))
    assert np.abs(np.array(found["logits"]) - reference.logits).max() < 1e-4
    assert np.abs(np.array(found["evidence"]) - reference.evidence).max() < 1e-3


def test_a_model_of_one_position_gives_the_same_logits_and_no_map(roles):
    engine = roles.engine("pooled")
    found = engine.infer(features())
    engine.close()
    reference = PlaintextEngine(POOLED, roles.weights("pooled")).infer(features())
    assert found.evidence is None
    assert np.abs(found.logits - reference.logits).max() < 1e-4


@pytest.mark.parametrize("prefetch", [0, 4])
def test_ten_studies_at_once_are_all_answered_rightly(roles, prefetch):
    engine = roles.engine(prefetch=prefetch)
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda seed: engine.infer(features(seed)).logits, range(30)))
    engine.close()
    assert max(np.abs(found - plain(roles, seed)).max() for seed, found in enumerate(answers)) < 1e-4


def test_bundles_that_waited_too_long_are_dropped_and_replaced_after_the_next_query_alone(roles):
    now = [0.0]
    engine = DealtEngine(
        roles.cards["map"], roles.inference(prefetch=2), roles.folder / "idle", monotonic=lambda: now[0]
    )
    wait_for_bundles(engine, 2)
    old = {one.session.bundle for one in engine._ready}
    now[0] = 0.8 * 600
    deadline = time.monotonic() + 60
    while engine._ready:
        assert time.monotonic() < deadline, "stale bundles were kept"
        time.sleep(0.02)
    dealt = len(roles.dealer.lines())
    time.sleep(0.3)
    assert len(roles.dealer.lines()) == dealt
    assert np.abs(engine.infer(features()).logits - plain(roles)).max() < 1e-4
    wait_for_bundles(engine, 2)
    assert old.isdisjoint(one.session.bundle for one in engine._ready)
    engine.close()


def test_two_hospitals_are_served_side_by_side(roles):
    assert np.abs(ask(roles.engine(who="second")) - plain(roles)).max() < 1e-4


def test_a_model_published_while_party_1_runs_is_served(roles):
    card = publish(roles.models, MAP, seed=9, version="later")
    reference = PlaintextEngine(MAP, roles.weights("later")).infer(features()).logits
    assert np.abs(ask(roles.engine(card)) - reference).max() < 1e-4


def test_a_model_that_is_not_served_is_named(roles, tmp_path):
    card = publish(tmp_path / "elsewhere", MAP, seed=5, version="foreign")
    with pytest.raises(ProtocolError) as caught:
        ask(roles.engine(card))
    assert caught.value.code == "unknown-model"


def test_features_out_of_bounds_are_refused_before_anything_is_dialled(roles):
    nowhere = roles.endpoint("dealer").model_copy(update={"port": 9})
    engine = roles.engine(dealer=nowhere)
    given = features()
    given[0, 0, 0] = 17.0
    with pytest.raises(Refused):
        engine.infer(given)
    engine.close()


# ---- who may connect


def test_a_certificate_that_is_not_on_the_list_is_refused(roles):
    with pytest.raises(ProtocolError) as caught:
        ask(roles.engine(who="stranger"))
    assert caught.value.code == "certificate-not-allowed"
    with roles.channel("party", "stranger") as party:
        party.send(Open(b"B" * 16, bytes(32), bytes(32), 0))
        with pytest.raises(ProtocolError) as caught:
            party.receive(LARGE)
    assert caught.value.code == "certificate-not-allowed"


@pytest.mark.parametrize("role", ["party", "dealer"])
def test_a_service_with_another_certificate_is_not_talked_to(roles, role):
    wrong = roles.endpoint(role).model_copy(update={"fingerprint": roles.fingerprint("stranger")})
    with pytest.raises(ProtocolError) as caught:
        ask(roles.engine(**{role: wrong}))
    # The dealer finds out by itself that bundles are asked for a party that it does not know.
    assert caught.value.code == ("unknown-party" if role == "party" else "wrong-certificate")


def test_an_expired_certificate_is_refused(roles):
    roles.tls["old"] = roles.authority.issue("old", lifetime=datetime.timedelta(minutes=-1))
    with pytest.raises(ProtocolError) as caught:
        ask(roles.engine(who="old"))
    assert caught.value.code == "tls-handshake"
    assert "certificate expired" in str(caught.value)
    deadline = time.monotonic() + 60
    while not any(line.get("code") == "certificate-out-of-date" for line in roles.dealer.lines()):
        assert time.monotonic() < deadline, "the dealer did not say why it refused"
        time.sleep(0.02)


# ---- peers that break the rules


def opened(roles: Roles) -> tuple[object, bytes]:
    """A connection to party 1 on which a bundle is ready."""
    opening = bundle_for(roles)
    party = roles.channel("party")
    party.send(opening)
    assert isinstance(party.receive(LARGE), Ready)
    return party, opening.bundle


def test_a_bundle_can_be_opened_once(roles):
    opening = bundle_for(roles)
    for attempt in range(3):
        with roles.channel("party") as party:
            party.send(opening)
            if attempt == 0:
                assert isinstance(party.receive(LARGE), Ready)
                continue
            with pytest.raises(ProtocolError) as caught:
                party.receive(LARGE)
            assert caught.value.code == "bundle-reused"


def test_a_bundle_that_nobody_dealt_is_refused_and_burned(roles):
    opening = bundle_for(roles)
    for code in ("unknown-bundle", "bundle-reused"):
        with roles.channel("party") as party:
            party.send(dataclasses.replace(opening, bundle=b"never dealt ****"))
            with pytest.raises(ProtocolError) as caught:
                party.receive(LARGE)
            assert caught.value.code == code


def test_another_hospitals_bundle_is_refused(roles):
    opening = bundle_for(roles, "second")
    with roles.channel("party") as party:
        party.send(opening)
        with pytest.raises(ProtocolError) as caught:
            party.receive(LARGE)
    assert caught.value.code == "wrong-bundle"


def test_a_query_is_answered_once(roles):
    party, bundle = opened(roles)
    message = Masked(bundle, 0, bytes(1280 * 49 * 8))
    party.send(message)
    assert isinstance(party.receive(LARGE), Output)
    party.send(message)
    with pytest.raises(ProtocolError) as caught:  # party 1 expects another bundle's opening, which is shorter
        party.receive(LARGE)
    assert caught.value.code == "frame-too-long"
    party.close()


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (lambda bundle: Masked(bundle, 0, bytes(8)), "wrong-size"),
        (lambda bundle: Masked(bundle, 1, bytes(1280 * 49 * 8)), "out-of-order"),
        (lambda bundle: Masked(b"another bundle *", 0, bytes(1280 * 49 * 8)), "wrong-bundle"),
        (lambda bundle: Masked(bundle, 0, bytes(1280 * 49 * 8 + 1)), "frame-too-long"),
        (lambda bundle: Open(bundle, bytes(32), bytes(32), 0), "out-of-order"),
        (lambda bundle: Output(bundle, bytes(8)), "out-of-order"),
    ],
)
def test_an_illegal_message_to_party_1_ends_the_query_with_its_name(roles, message, code):
    party, bundle = opened(roles)
    with party:
        party.send(message(bundle))
        with pytest.raises(ProtocolError) as caught:
            party.receive(LARGE)
        assert caught.value.code == code


@pytest.mark.parametrize("role", ["party", "dealer"])
@pytest.mark.parametrize("junk", [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\x03\x63abc", b"\0\0\0\x20\x03abc"])
def test_junk_ends_the_connection_and_not_the_service(roles, role, junk):
    with roles.channel(role, timeout_s=4.0) as peer:
        peer._connection.sendall(junk)
        with pytest.raises(VeilRayError) as caught:
            peer.receive(LARGE)
        assert caught.value.code in {"frame-too-long", "malformed-message", "peer-timeout", "connection-closed"}
    assert np.abs(ask(roles.engine()) - plain(roles)).max() < 1e-4


def test_a_hospital_cannot_fetch_the_other_half(roles):
    opening = bundle_for(roles)
    fetch = Fetch(opening.bundle, opening.model, Plan(MAP).digest, bytes.fromhex(roles.fingerprint("hospital")))
    with roles.channel("dealer") as dealer:
        dealer.send(fetch)
        with pytest.raises(ProtocolError) as caught:
            dealer.receive(LARGE)
    assert caught.value.code == "out-of-order"
    with roles.channel("dealer", "party") as dealer:  # that attempt did not even burn it
        dealer.send(fetch)
        assert isinstance(dealer.receive(LARGE), Half)


def test_callers_that_never_shake_hands_do_not_hold_up_the_others(roles):
    idle = [socket.create_connection(("127.0.0.1", roles.party_port)) for _ in range(20)]
    started = time.monotonic()
    assert np.abs(ask(roles.engine()) - plain(roles)).max() < 1e-4
    assert time.monotonic() - started < 5.0
    for one in idle:
        one.close()
