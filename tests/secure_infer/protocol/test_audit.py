"""A dealer that forges bundles is caught whenever it is audited, and cannot see an audit coming."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from dicom_node.core.errors import IntegrityError, ProtocolError
from secure_infer.protocol import deal
from secure_infer.protocol.manifest import hashed, verified
from secure_infer.protocol.messages import Audit, Failure, Half, Material
from secure_infer.protocol.plan import Plan
from secure_infer.protocol.prg import Context, material_key
from secure_infer.protocol.session import State
from tests.secure_infer.small_dealer import HOSPITAL, PARTY
from tests.secure_infer.small_model import weights_of
from tests.secure_infer.small_network import Trio, every_kind

MADE = every_kind()
IMAGE = np.random.default_rng(5).uniform(-1, 1, MADE.input_shape)
LAYERS = list(Plan(MADE).materials)
Cheat = Callable[[Plan, bytes, Context, bytes], Iterator[bytes | memoryview]]


def trio(**other: object) -> Trio:
    return Trio(MADE, weights_of(MADE), **other)


def flipped(layer: int) -> Cheat:
    """The highest bit of the first number of one layer's material is another one."""

    def cheat(plan: Plan, seed: bytes, context: Context, mask_seed: bytes) -> Iterator[bytes | memoryview]:
        for number, part in enumerate(deal.materials(plan, seed, context, mask_seed)):
            altered = bytearray(part)
            altered[7] ^= 0x80 if number == layer else 0
            yield bytes(altered)

    return cheat


def other_seed(plan: Plan, seed: bytes, context: Context, mask_seed: bytes) -> Iterator[bytes | memoryview]:
    """Material for other masks than party 0's."""
    return deal.materials(plan, bytes(32), context, mask_seed)


def other_weight_mask(plan: Plan, seed: bytes, context: Context, mask_seed: bytes) -> Iterator[bytes | memoryview]:
    """Material for another b."""
    return deal.materials(plan, seed, context, bytes(32))


def known_bits(plan: Plan, seed: bytes, context: Context, mask_seed: bytes) -> Iterator[bytes | memoryview]:
    """Material that works, but whose masks of the opened bits are not those that nobody can know."""
    private = deal.private_masks
    deal.private_masks = lambda *_: private(bytes(32), bytes(32))
    try:
        yield from list(deal.materials(plan, seed, context, mask_seed))
    finally:
        deal.private_masks = private


CHEATS = {
    **{f"bit of {name}": flipped(number) for number, name in enumerate(LAYERS)},
    "other seed": other_seed,
    "other weight mask": other_weight_mask,
    "known bits": known_bits,
}


def forging(monkeypatch: pytest.MonkeyPatch, cheat: Cheat) -> None:
    """Let the dealer, and nobody else, make material in another way; what it makes it signs."""
    monkeypatch.setattr("secure_infer.protocol.dealer.materials", cheat)


def test_an_honest_dealer_passes_and_the_bundle_is_given_up():
    one = trio()
    hospital, party = one.deal()
    hospital.handle(party.handle(hospital.audit()))
    assert (hospital.state, party.state) == (State.DONE, State.DONE)
    with pytest.raises(ProtocolError):
        hospital.query(IMAGE)
    assert np.isfinite(one.ask(IMAGE)).all()  # on the next bundle


@pytest.mark.parametrize("name", CHEATS)
def test_a_forged_bundle_is_caught_by_its_audit(monkeypatch, name):
    forging(monkeypatch, CHEATS[name])
    one = trio()
    hospital, party = one.deal()
    with pytest.raises(IntegrityError) as caught:
        party.handle(hospital.audit())
    assert caught.value.code == "bundle-forged"
    assert party.state is State.ABORTED
    assert isinstance(Failure.of(caught.value).error("party 1"), IntegrityError)


def test_a_forged_bundle_that_is_used_gives_a_wrong_answer_which_is_why_there_are_audits(monkeypatch):
    right = trio().ask(IMAGE)
    forging(monkeypatch, flipped(len(LAYERS) - 2))
    try:
        wrong = trio().ask(IMAGE)
    except IntegrityError:
        return  # so wrong that the output's bound shows it
    assert np.abs(wrong - right).max() > 1e-3


def test_a_forger_is_caught_as_often_as_it_is_audited(monkeypatch):
    forging(monkeypatch, flipped(0))
    drawn, caught = np.random.default_rng(3).integers(0, 4, 200) == 0, 0
    one = trio()
    for audited in drawn:
        hospital, party = one.deal()
        if audited:
            with pytest.raises(IntegrityError):
                party.handle(hospital.audit())
            caught += 1
    assert caught == drawn.sum()
    assert 30 <= caught <= 70  # one in four


def test_the_dealer_receives_the_same_whether_a_bundle_is_audited_or_used():
    seen = []
    for audited in (True, False):
        one = trio(random=np.random.default_rng(4).bytes)
        if audited:
            one.audit()
        else:
            one.ask(IMAGE)
        seen.append([message.encode() for way, message in one.transcript if way.endswith("→D")])
        last = max(number for number, (way, _) in enumerate(one.transcript) if "D" in way)
        assert not any(isinstance(message, Audit) for _, message in one.transcript[: last + 1])
    assert seen[0] == seen[1]


def test_party_1_cannot_be_made_to_open_a_bundle_that_is_in_use():
    one = trio()
    hospital, party = one.deal()
    opened = hospital.audit()
    again, used = one.deal()
    covered = next(again.covers())
    used.handle(covered)
    with pytest.raises(ProtocolError) as caught:
        used.handle(dataclasses.replace(opened, bundle=again.bundle))
    assert caught.value.code == "out-of-order"
    with pytest.raises(ProtocolError):
        again.audit()  # the seed is gone once the first covered share has been made
    party.abort()


def test_the_seed_of_another_bundle_proves_nothing():
    one = trio()
    hospital, party = one.deal()
    other, _ = one.deal()
    with pytest.raises(ProtocolError) as caught:
        party.handle(dataclasses.replace(other.audit(), bundle=hospital.bundle))
    assert caught.value.code == "wrong-bundle"


def test_the_hospital_cannot_test_a_guess_of_the_weights_against_the_manifest():
    one = trio()
    hospital, party = one.deal()
    manifest = verified(hospital.signed, one.signer.fingerprint)
    # Who guesses all of W knows b from the blinded weights, and r and k0 from the seed: so all of c, but no key.
    assert not {hashlib.sha256(part).digest() for part in party._material.values()} & set(manifest.materials)
    for known in (hospital._seed, hospital.bundle, manifest.weight_mask_id, bytes(32)):
        assert not {hashed(known, part) for part in party._material.values()} & set(manifest.materials)
    key = material_key(party._seed, party.bundle)
    assert {hashed(key, part) for part in party._material.values()} == set(manifest.materials)


def test_material_that_is_not_what_was_signed_is_refused_at_once():
    one = trio()
    hospital, party = one.hospital(), one.party()
    fetch = party.handle(hospital.handle(one.deck.handle(HOSPITAL, hospital.begin(), 0.0)))
    half, first, *_ = one.deck.answers(PARTY, fetch, 0.0)
    assert isinstance(half, Half)
    assert isinstance(first, Material)
    party.handle(half)
    with pytest.raises(ProtocolError) as caught:
        party.handle(dataclasses.replace(first, values=bytes(len(first.values))))
    assert caught.value.code == "material-altered"
    assert party.state is State.ABORTED


def test_the_two_parties_notice_when_the_dealer_gives_them_different_manifests():
    one = trio()
    hospital, party = one.hospital(), one.party()
    opening = hospital.handle(one.deck.handle(HOSPITAL, hospital.begin(), 0.0))
    fetch = party.handle(dataclasses.replace(opening, manifest=b"z" * 32))
    half = next(one.deck.answers(PARTY, fetch, 0.0))
    with pytest.raises(ProtocolError) as caught:
        party.handle(half)
    assert caught.value.code == "wrong-bundle"


def test_a_repeated_seed_is_a_repeated_bundle_and_refused():
    spent: set[bytes] = set()

    def spend(name: bytes) -> None:
        if name in spent:
            raise ProtocolError("this bundle was used before", code="bundle-reused")
        spent.add(name)

    one = trio(random=lambda size: b"again and again and again and ag"[:size])
    one.terms = dataclasses.replace(one.terms, spend=spend)
    one.deal()
    with pytest.raises(ProtocolError) as caught:
        one.deal()
    assert caught.value.code == "bundle-reused"
