"""What a coordinator or a relay may tell a hospital instead of what it should: named errors, and no secret leaves."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dicom_node.core.errors import ProtocolError
from fl_agent.secagg.frames import frame, keys_statement, open_frame, survivors_statement
from fl_agent.secagg.masks import agree, channel_key
from fl_agent.secagg.messages import (
    SHARES,
    CiphertextList,
    KeyEntry,
    KeyList,
    SealedEntry,
    SignatureEntry,
    SignatureList,
    SurvivorList,
    UserEntry,
)
from fl_agent.secagg.stages import Stage
from tests.fl_agent.secagg.consortium import Consortium
from tests.fl_agent.secagg.liar import Coordinator, refused
from tests.fl_agent.secagg.test_transitions import Play

EVERYBODY = {1, 2, 3, 4, 5}


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return Coordinator(Consortium(tmp_path, 5))


# A coordinator that lies


def test_different_survivors_for_different_clients_are_caught(coordinator: Coordinator) -> None:
    """The attack that the consistency round is for: both of user 5's secrets, from two groups of clients."""
    coordinator.masked()
    one = [coordinator.sign(user, EVERYBODY) for user in (1, 2)]
    other = [coordinator.sign(user, EVERYBODY - {5}) for user in (3, 4)]
    both = SignatureList(tuple(one + other))
    refused(coordinator.clients[1], lambda: coordinator.tell(1, both), "bad-signature")
    refused(coordinator.clients[3], lambda: coordinator.tell(3, both), "bad-signature")


def test_fewer_signatures_than_the_threshold_unmask_nothing(coordinator: Coordinator) -> None:
    coordinator.masked()
    signed = SignatureList(tuple(coordinator.sign(user, EVERYBODY) for user in (1, 2, 3)))
    refused(coordinator.clients[1], lambda: coordinator.tell(1, signed), "below-threshold")


def test_no_signatures_at_all_unmask_nothing(coordinator: Coordinator) -> None:
    coordinator.masked()
    coordinator.sign(1, EVERYBODY)
    refused(coordinator.clients[1], lambda: coordinator.tell(1, SignatureList(())), "below-threshold")


def test_a_signature_of_somebody_who_is_no_survivor_does_not_count(coordinator: Coordinator) -> None:
    coordinator.masked()
    signed = [coordinator.sign(user, EVERYBODY - {5}) for user in (1, 2, 3)]
    outsider = SignatureEntry(5, signed[0].signature)
    refused(coordinator.clients[1], lambda: coordinator.tell(1, SignatureList((*signed, outsider))), "wrong-members")


@pytest.mark.parametrize("survivors", [(2, 3, 4, 5), (1, 2, 3), (1, 2, 3, 4, 6), (1,), ()])
def test_an_impossible_set_of_survivors_is_refused(coordinator: Coordinator, survivors: tuple[int, ...]) -> None:
    coordinator.masked()
    told = SurvivorList(tuple(map(UserEntry, survivors)))
    code = "below-threshold" if survivors in {(1, 2, 3), (1,)} else "wrong-members"
    refused(coordinator.clients[1], lambda: coordinator.tell(1, told), code)


@pytest.mark.parametrize("lie", ["keys", "members", "round"])
def test_whoever_was_told_other_things_before_cannot_sign_along(coordinator: Coordinator, lie: str) -> None:
    """Stricter than the paper, where user 2 signs the survivors alone."""
    header, key = coordinator.consortium.header, coordinator.consortium.identities[2]
    coordinator.masked()
    signed = {user: coordinator.sign(user, EVERYBODY) for user in sorted(EVERYBODY)}
    assert signed[2].signature == key.sign(survivors_statement(header.round_id, coordinator.keys, EVERYBODY, EVERYBODY))
    told = {
        "keys": (header.round_id, KeyList(coordinator.keys.entries[:4]), EVERYBODY),
        "members": (header.round_id, coordinator.keys, EVERYBODY - {5}),
        "round": (b"x" * 32, coordinator.keys, EVERYBODY),
    }[lie]
    signed[2] = SignatureEntry(2, key.sign(survivors_statement(*told, EVERYBODY)))
    refused(coordinator.clients[1], lambda: coordinator.tell(1, SignatureList(tuple(signed.values()))), "bad-signature")


def own_keys_altered(keys: dict[int, KeyEntry], _: Coordinator) -> list[KeyEntry]:
    return [keys[1]._replace(s_pk=keys[2].s_pk), *list(keys.values())[1:]]


def own_keys_missing(keys: dict[int, KeyEntry], _: Coordinator) -> list[KeyEntry]:
    return list(keys.values())[1:]


def one_key_twice(keys: dict[int, KeyEntry], coordinator: Coordinator) -> list[KeyEntry]:
    """Hospital 3 colludes: it signs the mask key of hospital 2 as its own."""
    round_id, signer = coordinator.consortium.header.round_id, coordinator.consortium.identities[3]
    copied = keys[3]._replace(s_pk=keys[2].s_pk)
    signature = signer.sign(keys_statement(round_id, 3, copied.c_pk, copied.s_pk))
    return list({**keys, 3: copied._replace(signature=signature)}.values())


def another_rounds_signature(keys: dict[int, KeyEntry], coordinator: Coordinator) -> list[KeyEntry]:
    signer = coordinator.consortium.identities[3]
    signature = signer.sign(keys_statement(b"x" * 32, 3, keys[3].c_pk, keys[3].s_pk))
    return list({**keys, 3: keys[3]._replace(signature=signature)}.values())


def two_swapped(keys: dict[int, KeyEntry], _: Coordinator) -> list[KeyEntry]:
    return list({**keys, 2: keys[3]._replace(user=2), 3: keys[2]._replace(user=3)}.values())


def a_weak_key(keys: dict[int, KeyEntry], coordinator: Coordinator) -> list[KeyEntry]:
    round_id, signer = coordinator.consortium.header.round_id, coordinator.consortium.identities[3]
    signature = signer.sign(keys_statement(round_id, 3, bytes(32), keys[3].s_pk))
    return list({**keys, 3: KeyEntry(3, bytes(32), keys[3].s_pk, signature)}.values())


@pytest.mark.parametrize(
    ("lie", "code"),
    [
        (own_keys_altered, "wrong-keys"),
        (own_keys_missing, "wrong-keys"),
        (one_key_twice, "wrong-keys"),
        (another_rounds_signature, "bad-signature"),
        (two_swapped, "bad-signature"),
        (a_weak_key, "weak-key"),
    ],
)
def test_a_wrong_list_of_keys_is_refused(coordinator: Coordinator, lie, code: str) -> None:
    told = KeyList(tuple(lie(coordinator.advertise(), coordinator)))
    refused(coordinator.clients[1], lambda: coordinator.tell(1, told), code)


@pytest.mark.parametrize("lie", ["altered", "other-sender", "other-receiver", "reflected", "nonce"])
def test_shares_that_were_not_sealed_for_this_client_by_this_peer_do_not_open(
    coordinator: Coordinator, lie: str
) -> None:
    shared = coordinator.share(coordinator.advertise())
    good = coordinator.ciphertexts(1, shared).entries
    of_two = {entry.user: entry for entry in coordinator.ciphertexts(2, shared).entries}
    wrong = {
        "altered": good[0]._replace(sealed=good[0].sealed[:-1] + bytes([good[0].sealed[-1] ^ 1])),
        "other-sender": good[1]._replace(user=2),
        "other-receiver": of_two[3]._replace(user=2),
        "reflected": of_two[1]._replace(user=2),
        "nonce": good[0]._replace(nonce=good[1].nonce),
    }[lie]
    refused(coordinator.clients[1], lambda: coordinator.tell(1, CiphertextList((wrong, *good[1:]))), "wrong-share")


@pytest.mark.parametrize("lie", ["sender", "receiver", "no-element", "honest"])
def test_what_a_colluding_peer_seals_is_checked_once_it_is_open(coordinator: Coordinator, lie: str) -> None:
    """Hospital 2 seals with the right key and for the right ends, but a pair of shares that says otherwise."""
    header, secret = coordinator.consortium.header, X25519PrivateKey.generate()
    keys = coordinator.advertise()
    c_pk = secret.public_key().public_bytes_raw()
    signer = coordinator.consortium.identities[2]
    signature = signer.sign(keys_statement(header.round_id, 2, c_pk, keys[2].s_pk))
    keys[2] = KeyEntry(2, c_pk, keys[2].s_pk, signature)
    told = KeyList(tuple(keys.values()))
    shared = {user: coordinator.tell(user, told) for user in (1, 3, 4, 5)}
    channel = channel_key(agree(secret, keys[1].c_pk), header.round_id, 2, 1)
    content = {
        "sender": SHARES.pack(3, 1, bytes(33), bytes(33)),
        "receiver": SHARES.pack(2, 3, bytes(33), bytes(33)),
        "no-element": SHARES.pack(2, 1, bytes(33), b"\xff" * 33),
        "honest": SHARES.pack(2, 1, bytes(33), bytes(33)),
    }[lie]
    bound = header.run + header.round.to_bytes(4, "big") + bytes([0, 2, 0, 1]) + header.round_id
    sealed = SealedEntry(2, bytes(12), AESGCM(channel).encrypt(bytes(12), content, bound))
    others = coordinator.ciphertexts(1, shared).entries
    message = CiphertextList((sealed, *others))
    if lie == "honest":
        coordinator.tell(1, message)
        assert coordinator.clients[1].stage is Stage.INPUT
    else:
        refused(coordinator.clients[1], lambda: coordinator.tell(1, message), "wrong-share")


def test_too_few_sealed_shares_or_those_of_an_outsider_are_refused(tmp_path: Path) -> None:
    for place, code in (("few", "below-threshold"), ("own", "wrong-members"), ("outsider", "wrong-members")):
        coordinator = Coordinator(Consortium(tmp_path / place, 5))
        good = coordinator.ciphertexts(1, coordinator.share(coordinator.advertise())).entries
        told = {
            "few": good[:2],
            "own": (good[0]._replace(user=1), *good),
            "outsider": (*good, good[0]._replace(user=6)),
        }[place]
        refused(coordinator.clients[1], lambda told=told, one=coordinator: one.tell(1, CiphertextList(told)), code)


# A relay that replays, reorders, alters or mixes


@pytest.mark.parametrize("stage", [Stage.SHARE_KEYS, Stage.MASKED_INPUT_COLLECTION, Stage.CONSISTENCY_CHECK])
def test_a_frame_that_comes_twice_ends_a_clients_round(tmp_path: Path, stage: Stage) -> None:
    play = Play(tmp_path)
    pending = play.client_in(stage)
    play.client.handle(pending.frame)
    with pytest.raises(ProtocolError) as raised:
        play.client.handle(pending.frame)
    assert raised.value.code == "out-of-order"
    assert play.client.stage in {Stage.ABORTED, Stage.DONE}


@pytest.mark.parametrize("change", ["cut", "padded", "altered", "other-signer", "other-sender", "empty"])
def test_a_frame_of_the_coordinators_that_was_touched_ends_a_clients_round(tmp_path: Path, change: str) -> None:
    play = Play(tmp_path)
    good = bytes(play.client_in(Stage.ADVERTISE_KEYS).frame)
    header, message = play.consortium.header, open_frame(good).message()
    touched, code = {
        "cut": (good[:-1], "malformed"),
        "padded": (good + b"\0", "malformed"),
        "altered": (good[:60] + bytes([good[60] ^ 1]) + good[61:], "bad-signature"),
        "other-signer": (frame(message, 0, header.round_id, play.consortium.identities[2]), "bad-signature"),
        "other-sender": (frame(message, 2, header.round_id, play.consortium.identities[2]), "wrong-sender"),
        "empty": (b"", "malformed"),
    }[change]
    refused(play.client, lambda: play.client.handle(touched), code)


@pytest.mark.parametrize("change", [{"run": b"another run here"}, {"round": 2}, {"model": bytes(32)}])
def test_frames_of_another_run_round_or_terms_are_refused(tmp_path: Path, change: dict) -> None:
    play = Play(tmp_path)
    good = open_frame(play.client_in(Stage.ADVERTISE_KEYS).frame).message()
    other = dataclasses.replace(play.consortium.header, **change)
    crossed = frame(good, 0, other.round_id, play.consortium.coordinator)
    refused(play.client, lambda: play.client.handle(crossed), "wrong-round")


def test_the_same_round_under_other_terms_is_refused(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path, 5)
    consortium.clients[1].handle(consortium.server.start()[0].frame)
    other = dataclasses.replace(consortium.header, blocks=consortium.header.blocks * 2)
    again = consortium.client(1)
    refused(
        again, lambda: again.handle(frame(other.message(), 0, other.round_id, consortium.coordinator)), "round-reused"
    )


def test_shares_for_one_client_are_refused_by_another(tmp_path: Path) -> None:
    coordinator = Coordinator(Consortium(tmp_path, 5))
    shared = coordinator.share(coordinator.advertise())
    for_two = coordinator.ciphertexts(2, shared)
    refused(coordinator.clients[1], lambda: coordinator.tell(1, for_two), "wrong-members")
