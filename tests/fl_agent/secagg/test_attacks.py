"""The five attacks that a stock secure aggregation fell to: each works on a broken variant, and fails here.

Weak mask seeds, unauthenticated keys, a request to unmask one client as both alive and dropped, a cohort of one, and
numbers sent in the clear beside the masked update.
"""

from __future__ import annotations

import dataclasses
import secrets
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from dicom_node.core.errors import ProtocolError
from fl_agent.secagg import client as client_module
from fl_agent.secagg.client import Client, Secrets
from fl_agent.secagg.encode import encode
from fl_agent.secagg.frames import frame, keys_statement, open_frame
from fl_agent.secagg.masks import add_masks, agree, pairwise_key, self_mask_key
from fl_agent.secagg.messages import KeyEntry, KeyList, MaskedInput, Secret, SignatureList, SurvivorList, UserEntry
from fl_agent.secagg.rounds import RoundLedger
from tests.fl_agent.secagg.consortium import Consortium, run
from tests.fl_agent.secagg.liar import Coordinator, refused


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return Coordinator(Consortium(tmp_path, 5))


def test_mask_seeds_are_256_bits_of_the_operating_system_and_never_repeat(tmp_path: Path) -> None:
    seeds = []
    for number in range(1, 21):
        coordinator = Coordinator(Consortium(tmp_path / str(number), 3, number=number))
        coordinator.share(coordinator.advertise())
        seeds += [client._secrets.seed for client in coordinator.clients.values()]
    assert len(set(seeds)) == len(seeds)
    bits = np.unpackbits(np.frombuffer(b"".join(seeds), dtype=np.uint8)).reshape(len(seeds), 256)
    # Every one of the 256 bits varies; each sum has mean 30 and deviation 3.9, so 60 clients leave 7 deviations.
    assert ((bits.sum(0) > 2) & (bits.sum(0) < 58)).all()


def test_a_weak_mask_seed_would_be_searched_through(coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search that recovers an update from a seed of 8 bits finds nothing among seeds of 256."""

    def search(masked: NDArray[np.uint32], user: int) -> bool:
        round_id = coordinator.consortium.header.round_id
        limit = coordinator.consortium.header.blocks[0].limit
        for guess in range(256):
            words = masked.copy()
            # The coordinator knows the pairwise masks here, as if every peer colluded.
            add_masks(words, [], [self_mask_key(guess.to_bytes(32, "big"), round_id, user)])
            if (np.abs(words.view(np.int32)) <= limit).all():
                return True
        return False

    def self_masked(user: int) -> NDArray[np.uint32]:
        client = coordinator.clients[user]
        words = coordinator.encoded(user)
        add_masks(words, [self_mask_key(client._secrets.seed, client._round_id, user)], [])
        return words

    real = client_module.secrets.token_bytes
    with monkeypatch.context() as weak:
        weak.setattr(client_module.secrets, "token_bytes", lambda size: real(1).rjust(size, b"\0"))
        coordinator.share(coordinator.advertise())
    assert search(self_masked(1), 1)
    coordinator.clients[1]._secrets.seed = secrets.token_bytes(32)
    assert not search(self_masked(1), 1)


def test_keys_that_a_peer_did_not_sign_are_refused(coordinator: Coordinator) -> None:
    """Sybil: the coordinator puts keys of its own in a hospital's place, to open what is sealed for it."""
    keys = coordinator.advertise()
    own = [X25519PrivateKey.generate().public_key().public_bytes_raw() for _ in range(2)]
    signer = Ed25519PrivateKey.generate()
    signature = signer.sign(keys_statement(coordinator.consortium.header.round_id, 2, *own))
    forged = KeyList(tuple({**keys, 2: KeyEntry(2, *own, signature)}.values()))
    refused(coordinator.clients[1], lambda: coordinator.tell(1, forged), "bad-signature")


def test_a_cohort_of_invented_hospitals_is_refused(tmp_path: Path) -> None:
    consortium, invented = Consortium(tmp_path / "a"), Consortium(tmp_path / "b")
    members = tuple(sorted([consortium.header.cohort[0], *invented.header.cohort[:4]]))
    header = dataclasses.replace(consortium.header, cohort=members)
    sybils = frame(header.message(), 0, header.round_id, consortium.coordinator)
    refused(consortium.clients[1], lambda: consortium.clients[1].handle(sybils), "unapproved-peer")


def test_a_peer_is_never_asked_for_as_alive_and_dropped_at_once(coordinator: Coordinator) -> None:
    """The double unmask list: two answers for two survivor sets would hold both shares of user 5."""
    coordinator.masked()
    for user in (1, 2, 3, 4):
        coordinator.sign(user, {1, 2, 3, 4, 5})
    refused(
        coordinator.clients[1],
        lambda: coordinator.tell(1, SurvivorList(tuple(map(UserEntry, (1, 2, 3, 4))))),
        "out-of-order",
    )


def test_an_answer_holds_one_share_for_each_peer(coordinator: Coordinator) -> None:
    coordinator.masked()
    alive = {1, 2, 3, 4}
    signatures = SignatureList(tuple(coordinator.sign(user, alive) for user in sorted(alive)))
    answer = coordinator.tell(1, signatures)
    assert {entry.user: entry.secret for entry in answer.entries} == {
        **dict.fromkeys(alive, Secret.SELF_MASK),
        5: Secret.KEY,
    }
    with pytest.raises(ProtocolError):
        coordinator.tell(1, signatures)
    assert coordinator.clients[1]._secrets == Secrets()


def test_both_secrets_of_a_client_would_give_its_update(coordinator: Coordinator) -> None:
    """What the rule above protects: from b_u and s_u^SK the coordinator unmasks one update alone."""
    keys = coordinator.advertise()
    stolen = coordinator.clients[1]._secrets.s_sk
    shared = coordinator.share(keys)
    seed = coordinator.clients[1]._secrets.seed
    coordinator.tell(1, coordinator.ciphertexts(1, shared))
    (sent,) = coordinator.clients[1].contribute(coordinator.updates[1])
    words = np.frombuffer(bytes(open_frame(sent.frame).message().packed), dtype="<u4").copy()
    round_id = coordinator.consortium.header.round_id
    public = {user: entry.s_pk for user, entry in keys.items()}
    masks = [
        pairwise_key(agree(stolen, public[peer]), round_id, {1: public[1], peer: public[peer]}) for peer in (2, 3, 4, 5)
    ]
    assert (words != coordinator.encoded(1)).all()
    add_masks(words, masks, [])  # Δ_{1,v} = -1 for every v above 1
    assert (words != coordinator.encoded(1)).all()
    add_masks(words, [], [self_mask_key(seed, round_id, 1)])
    np.testing.assert_array_equal(words, coordinator.encoded(1))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_cohort_below_the_sites_minimum_is_refused(tmp_path: Path, size: int) -> None:
    consortium = Consortium(tmp_path, size)
    policy = dataclasses.replace(consortium.policy(), minimum_cohort=5)
    client = Client(consortium.identities[1], policy, RoundLedger(tmp_path / "ledger"))
    refused(client, lambda: client.handle(consortium.server.start()[0].frame), "cohort-too-small")


def test_a_cohort_of_one_cannot_even_be_written(coordinator: Coordinator) -> None:
    header = coordinator.consortium.header
    with pytest.raises(ProtocolError):
        dataclasses.replace(header, cohort=header.cohort[:1], threshold=1)


def test_too_few_keys_make_no_round(coordinator: Coordinator) -> None:
    """A cohort of one by the back door: the header names five, the coordinator lets three through."""
    keys = coordinator.advertise()
    few = KeyList(tuple(keys[user] for user in (1, 2, 3)))
    refused(coordinator.clients[1], lambda: coordinator.tell(1, few), "below-threshold")


def test_everything_about_the_data_travels_masked(tmp_path: Path) -> None:
    """Clear metadata: what a client sends is the same, but for masks and signatures, whatever its update is."""
    shapes = []
    for scale in (0.0, 0.9):
        consortium = Consortium(tmp_path / str(scale), 5, lengths=(50, 3))
        updates = {user: [one * 0 + scale for one in update] for user, update in consortium.updates().items()}
        spoken = run(consortium, updates)
        shapes.append([(open_frame(one).kind, open_frame(one).sender, len(one)) for one in spoken])
        words = np.empty(consortium.header.dimension, dtype=np.uint32)
        encode(consortium.header, updates[1], words)
        for clear in (updates[1][0].tobytes(), words.tobytes()):
            assert not any(clear[:16] in bytes(one) for one in spoken)
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("bits", [8, 20, 32])
def test_masked_inputs_look_uniform_and_a_missing_mask_would_be_seen(tmp_path: Path, bits: int) -> None:
    def looks_uniform(body: bytes) -> bool:
        counts = np.bincount(np.frombuffer(body, dtype=np.uint8), minlength=256)
        mean = counts.sum() / 256
        return float(((counts - mean) ** 2 / mean).sum()) < 255 + 8 * np.sqrt(2 * 255)

    consortium = Consortium(tmp_path, 3, bits=bits, lengths=(60_000,))
    updates = {user: [np.full(60_000, 0.25, dtype=np.float32)] for user in (1, 2, 3)}
    spoken = [open_frame(one) for one in run(consortium, updates)]
    bodies = [bytes(one.body) for one in spoken if one.kind is MaskedInput]
    assert len(bodies) == 3
    assert all(map(looks_uniform, bodies))
    words = np.empty(60_000, dtype=np.uint32)
    encode(consortium.header, updates[1], words)
    assert not looks_uniform(words.tobytes())
