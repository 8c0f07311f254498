"""A hospital that lies: its frame is refused, the others' round goes on, and its update moves the sum by the clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dicom_node.core.errors import ProtocolError, Refused
from fl_agent.secagg.frames import frame, keys_statement, open_frame
from fl_agent.secagg.messages import (
    AdvertiseKeys,
    ConsistencyCheck,
    MaskedInput,
    Message,
    SealedEntry,
    Secret,
    ShareEntry,
    ShareKeys,
    SignatureList,
    Unmasking,
)
from fl_agent.secagg.stages import Stage
from tests.fl_agent.secagg.consortium import Consortium, expected, run
from tests.fl_agent.secagg.test_transitions import Play

#: Two public keys of X25519 that nobody has the secret of.
X_PUBLIC = [bytes([9]) + bytes(31), bytes([16]) + bytes(31)]


def said_by_one(play: Play, message: Message) -> bytes:
    header = play.consortium.header
    return frame(message, 1, header.round_id, play.consortium.identities[1])


def refuses(play: Play, data: bytes, code: str) -> None:
    awaited, stage = play.server.awaited, play.server.stage
    with pytest.raises(ProtocolError) as raised:
        play.server.handle(data)
    assert raised.value.code == code
    assert (play.server.awaited, play.server.stage) == (awaited, stage)


def finishes(play: Play) -> None:
    play.until("server", Stage.DONE)
    np.testing.assert_array_equal(play.server.total(), expected(play.consortium, play.updates, {1, 2, 3}))


def test_the_coordinator_refuses_wrong_keys(tmp_path: Path) -> None:
    play = Play(tmp_path)
    play.server_in(Stage.ADVERTISE_KEYS)
    header, key = play.consortium.header, play.consortium.identities[1]
    known = play.server._collected.keys[2]
    fresh = X_PUBLIC
    for c_pk, s_pk, signer, code in (
        (fresh[0], fresh[1], play.consortium.identities[2], "bad-signature"),
        (fresh[0], fresh[0], key, "wrong-keys"),
        (fresh[0], known.c_pk, key, "wrong-keys"),
        (bytes(32), fresh[0], key, "weak-key"),
        (fresh[0], bytes(32), key, "weak-key"),
    ):
        signature = signer.sign(keys_statement(header.round_id, 1, c_pk, s_pk))
        refuses(play, said_by_one(play, AdvertiseKeys(c_pk, s_pk, signature)), code)
    finishes(play)


def test_the_coordinator_refuses_wrong_shares_inputs_and_signatures(tmp_path: Path) -> None:
    play = Play(tmp_path)
    sent = open_frame(play.server_in(Stage.SHARE_KEYS).frame).message()
    assert isinstance(sent, ShareKeys)
    refuses(play, said_by_one(play, ShareKeys(sent.commitment, sent.entries[:1])), "wrong-members")
    itself = SealedEntry(1, bytes(12), bytes(86))
    refuses(play, said_by_one(play, ShareKeys(sent.commitment, (itself, *sent.entries))), "wrong-members")
    play.server_in(Stage.MASKED_INPUT_COLLECTION)
    refuses(play, said_by_one(play, MaskedInput(bytes(4 * 7 - 1))), "malformed")
    refuses(play, said_by_one(play, MaskedInput(bytes(4 * 7 + 1))), "malformed")
    play.server_in(Stage.CONSISTENCY_CHECK)
    refuses(play, said_by_one(play, ConsistencyCheck(bytes(64))), "bad-signature")
    sent = open_frame(play.server_in(Stage.UNMASKING).frame).message()
    assert isinstance(sent, Unmasking)
    refuses(play, said_by_one(play, Unmasking(sent.entries[:2])), "wrong-members")
    other = sent.entries[0]._replace(secret=int(Secret.KEY))
    refuses(play, said_by_one(play, Unmasking((other, *sent.entries[1:]))), "wrong-members")
    beyond = sent.entries[0]._replace(share=b"\xff" * 33)
    refuses(play, said_by_one(play, Unmasking((beyond, *sent.entries[1:]))), "wrong-share")
    finishes(play)


def test_a_replayed_answer_counts_once(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path, 5)
    frames = {}
    for user, data in consortium.server.start()[:4]:
        frames[user] = consortium.clients[user].handle(data)[0].frame
        consortium.server.handle(frames[user])
    for user, data in frames.items():
        with pytest.raises(ProtocolError) as raised:
            consortium.server.handle(data)
        assert raised.value.code == "duplicate"
        assert user not in consortium.server.awaited


def test_who_missed_a_stage_is_out_of_the_round(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path, 5)
    told = []
    for user, data in consortium.server.start():
        if user != 5:
            consortium.server.handle(consortium.clients[user].handle(data)[0].frame)
    told = consortium.server.proceed()
    assert [one.to for one in told] == [1, 2, 3, 4]
    late = ShareKeys(bytes(32), ())
    with pytest.raises(ProtocolError) as raised:
        consortium.server.handle(frame(late, 5, consortium.header.round_id, consortium.identities[5]))
    assert raised.value.code == "not-in-round"


@pytest.mark.parametrize("sender", [0, 6, 65535])
def test_a_sender_outside_the_cohort_is_refused(tmp_path: Path, sender: int) -> None:
    consortium = Consortium(tmp_path, 5)
    consortium.server.start()
    with pytest.raises(ProtocolError) as raised:
        consortium.server.handle(
            frame(
                AdvertiseKeys(bytes(32), bytes(32), bytes(64)),
                sender,
                consortium.header.round_id,
                consortium.coordinator,
            )
        )
    assert raised.value.code == "wrong-sender"


def test_one_hospital_cannot_speak_for_another(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path, 5)
    consortium.server.start()
    forged = frame(AdvertiseKeys(*X_PUBLIC, bytes(64)), 2, consortium.header.round_id, consortium.identities[1])
    with pytest.raises(ProtocolError) as raised:
        consortium.server.handle(forged)
    assert raised.value.code == "bad-signature"


@pytest.mark.parametrize("secret", [Secret.SELF_MASK, Secret.KEY])
def test_a_wrong_share_of_a_hospital_is_found_before_a_wrong_sum_is_believed(tmp_path: Path, secret: Secret) -> None:
    consortium = Consortium(tmp_path, 5)
    updates = consortium.updates()
    honest = consortium.clients[1]._unmask

    def lies(message: SignatureList):
        (sent,) = honest(message)
        entries = list(open_frame(sent.frame).message().entries)
        place = next(number for number, entry in enumerate(entries) if entry.secret == secret)
        entries[place] = ShareEntry(entries[place].user, secret, bytes(32) + b"\1")
        answer = frame(Unmasking(tuple(entries)), 1, consortium.header.round_id, consortium.identities[1])
        return [sent._replace(frame=answer)]

    consortium.clients[1]._unmask = lies
    with pytest.raises(ProtocolError) as raised:
        run(consortium, updates, {5: MaskedInput})
    assert raised.value.code == "wrong-share"
    assert consortium.server.stage is Stage.ABORTED


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_never_leaves(tmp_path: Path, poison: float) -> None:
    play = Play(tmp_path)
    play.client_in(Stage.INPUT)
    update = [one.copy() for one in play.updates[1]]
    update[0][3] = poison
    with pytest.raises(Refused) as raised:
        play.client.contribute(update)
    assert raised.value.code == "non-finite-update"
    assert play.client.stage is Stage.ABORTED
    with pytest.raises(ProtocolError):
        play.client.contribute(play.updates[1])


def test_a_poisoned_update_is_bounded_by_the_clip(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path, 5)
    updates = consortium.updates()
    honest = sum(np.clip(updates[user][0].astype(float), -1, 1) for user in (1, 2, 3, 4))
    updates[5] = [np.full(7, 1e30, dtype=np.float32)]
    run(consortium, updates)
    np.testing.assert_allclose(consortium.server.result()[0] - honest, 1.0, atol=1e-6)
