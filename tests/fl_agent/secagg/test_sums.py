"""Any drop-outs above the threshold give the exact sum, any below none; both shares of a peer are never revealed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.core.errors import Unavailable
from fl_agent.secagg.frames import open_frame
from fl_agent.secagg.header import least_threshold
from fl_agent.secagg.messages import Message, Secret, Unmasking
from fl_agent.secagg.stages import Stage
from tests.fl_agent.secagg.consortium import SENT, Consortium, expected, folder, run


@st.composite
def rounds(draw: st.DrawFn) -> tuple[int, int, int, list[int], dict[int, type[Message]]]:
    """Size, threshold, bits, lengths of blocks, and at which message which client falls silent."""
    size = draw(st.integers(3, 9))
    threshold = draw(st.integers(least_threshold(size), size))
    bits = draw(st.sampled_from(range(8, 33, 4)))
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    users = draw(st.lists(st.integers(1, size), unique=True, max_size=size))
    return size, threshold, bits, lengths, {user: draw(st.sampled_from(SENT)) for user in users}


def survivors(size: int, silent: dict[int, type[Message]], sent: type[Message]) -> set[int]:
    """Who has sent a message of this kind."""
    return {user for user in range(1, size + 1) if user not in silent or SENT.index(silent[user]) > SENT.index(sent)}


@settings(max_examples=120, deadline=None)
@given(rounds())
def test_any_drop_outs_give_the_exact_sum_or_below_the_threshold_nothing(
    drawn: tuple[int, int, int, list[int], dict[int, type[Message]]],
) -> None:
    size, threshold, bits, lengths, silent = drawn
    with folder() as place:
        consortium = Consortium(Path(place), size, threshold=threshold, bits=bits, lengths=lengths)
        updates = consortium.updates()
        if len(survivors(size, silent, Unmasking)) < threshold:
            with pytest.raises(Unavailable) as raised:
                run(consortium, updates, silent)
            assert raised.value.code == "below-threshold"
            assert consortium.server.stage is Stage.ABORTED
            return
        spoken = run(consortium, updates, silent)
        counted = survivors(size, silent, SENT[2])
        assert consortium.server.survivors == counted
        np.testing.assert_array_equal(consortium.server.total(), expected(consortium, updates, counted))
        revealed = [open_frame(frame) for frame in spoken if open_frame(frame).kind is Unmasking]
        for one in revealed:
            entries = one.message().entries
            assert len({entry.user for entry in entries}) == len(entries)
            for entry in entries:
                assert entry.secret == (Secret.SELF_MASK if entry.user in counted else Secret.KEY)


def test_the_result_is_the_sum_within_half_a_step_for_each_hospital(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path, 5, lengths=(1000, 3))
    updates = consortium.updates()
    run(consortium, updates)
    step = consortium.header.blocks[0].step
    for place, found in enumerate(consortium.server.result()):
        summed = sum(np.clip(updates[user][place].astype(np.float64), -1, 1) for user in updates)
        assert np.abs(found - summed).max() <= 5 * step / 2 * (1 + 1e-6)


def test_long_vectors_cross_the_chunks_of_masking_and_packing(tmp_path: Path) -> None:
    for bits in (20, 32):
        consortium = Consortium(tmp_path / str(bits), 4, bits=bits, lengths=(2 * 65536 + 5, 65535))
        updates = consortium.updates()
        run(consortium, updates, {2: SENT[2]})
        limit = consortium.header.blocks[0].limit
        step = consortium.header.blocks[0].step
        steps = [
            np.clip(np.rint(np.concatenate(updates[user]).astype(np.float64) / step), -limit, limit)
            for user in (1, 3, 4)
        ]
        found = np.concatenate([np.rint(one / step) for one in consortium.server.result()])
        np.testing.assert_array_equal(found, sum(steps))


def test_a_whole_hospital_may_leave_by_saying_so(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path, 5)
    updates = consortium.updates()
    waiting = consortium.server.start()
    told = []
    for user, frame in waiting:
        answer = consortium.clients[user].handle(frame)
        told += consortium.server.handle(answer[0].frame)
    assert not consortium.server.handle(consortium.clients[3].abort()[0].frame)
    assert consortium.clients[3].stage is Stage.ABORTED
    assert consortium.server.awaited == {1, 2, 4, 5}
    following = []
    for user, frame in told:
        if user != 3:
            following += consortium.server.handle(consortium.clients[user].handle(frame)[0].frame)
    assert [one.to for one in following] == [1, 2, 4, 5]
    last = []
    for user, frame in following:
        consortium.clients[user].handle(frame)
        last += consortium.server.handle(consortium.clients[user].contribute(updates[user])[0].frame)
    for stage in (Stage.CONSISTENCY_CHECK, Stage.UNMASKING):
        assert consortium.server.stage is stage
        waiting, last = last, []
        for user, frame in waiting:
            last += consortium.server.handle(consortium.clients[user].handle(frame)[0].frame)
    np.testing.assert_array_equal(consortium.server.total(), expected(consortium, updates, {1, 2, 4, 5}))
