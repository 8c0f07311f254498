"""Stands between couriers and agents, notes every frame, and proves that no mask covered two inputs (Bonawitz 2017)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from fl_agent.courier.courier import Handler
from fl_agent.learning import envelope as wire
from fl_agent.learning.terms import DESCENT, MEAN
from fl_agent.secagg.frames import open_frame
from fl_agent.secagg.header import round_id
from fl_agent.secagg.messages import AdvertiseKeys, KeyList, MaskedInput, ShareKeys, Unmasking
from tests.fl_agent.federations import kind


@dataclass
class Heard:
    """A frame that came to a site's agent, and the answer that left it, whoever got that."""

    site: str
    question: bytes
    answer: bytes = b""


class Wiretap:
    """What a courier sees that forgets nothing.

    Attributes
    ----------
    heard : list of Heard
        In the order in which the frames came.
    watch : callable
        Called with a site and the kind of a frame (`federations.kind`) before the agent gets it.
    """

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self.watch: Callable[[str, str], None] = lambda site, kind: None

    def between(self, site: str, agent: Handler) -> Handler:
        """Listen in front of an agent."""

        def handle(question: bytes) -> bytes:
            self.watch(site, kind(question))
            one = Heard(site, question)
            self.heard.append(one)
            one.answer = agent(question)
            return one.answer

        return handle

    def round_of(self, site: str) -> list[bytes]:
        """Return the frames of the newest round that came to a site."""
        asked = [one.question for one in self.heard if one.site == site]
        opened = [place for place, frame in enumerate(asked) if kind(frame) == "ROUND"]
        return [one for one in asked[opened[-1] :] if kind(one) != "END"] if opened else []

    def given(self, coordinator: bytes) -> Counter[tuple[str, str]]:
        """Count the rounds in which a masked input left, by site and kind of sum.

        Parameters
        ----------
        coordinator : bytes
            Its public key.
        """
        sums: dict[bytes, str] = {}
        left: set[tuple[str, bytes]] = set()
        for one in self.heard:
            if kind(one.question) == "ROUND":
                state, header = wire.read_opening(wire.opened(one.question, coordinator))
                sums[round_id(bytes(open_frame(header).body))] = DESCENT if int.from_bytes(state[:4], "big") else MEAN
            elif kind(one.question) == "CiphertextList" and one.answer:
                answer = open_frame(one.answer)
                if answer.kind is MaskedInput:
                    left.add((one.site, answer.round_id))
        return Counter((site, sums[number]) for site, number in left)

    def check_masks(self) -> None:
        """Show that every key was fresh, that no mask covered two inputs, and that no peer's two secrets were given."""
        keys: Counter[bytes] = Counter()
        advertised: dict[tuple[str, bytes], bytes] = {}
        masks: dict[tuple[str, bytes], set[bytes]] = defaultdict(set)
        covered: dict[bytes, set[tuple[str, bytes]]] = defaultdict(set)
        secrets: dict[tuple[bytes, int], set[int]] = defaultdict(set)
        for one in self.heard:
            if not one.answer or wire.is_envelope(one.answer):
                continue
            read = open_frame(one.answer)
            place = one.site, read.round_id
            match read.message():
                case AdvertiseKeys() as sent:
                    assert place not in advertised, f"{one.site} entered a round twice"
                    advertised[place] = sent.s_pk
                    keys.update([sent.c_pk, sent.s_pk])
                case ShareKeys() as sent:
                    listed = open_frame(one.question).message()
                    assert isinstance(listed, KeyList)
                    keys[sent.commitment] += 1  # to the seed of the site's own mask
                    pairs = [sorted([entry.s_pk, advertised[place]]) for entry in listed.entries]
                    masks[place] |= {b"".join(pair) for pair in pairs if pair[0] != pair[1]} | {sent.commitment}
                case MaskedInput() as sent:
                    assert masks[place], "an input is under no mask that was heard"
                    for mask in masks[place]:
                        covered[mask].add((one.site, bytes(sent.packed)))
                case Unmasking() as sent:
                    for entry in sent.entries:
                        secrets[read.round_id, entry.user].add(entry.secret)
        assert set(keys.values()) <= {1}, "a key or a seed came twice"
        for inputs in covered.values():
            assert len({site for site, _ in inputs}) == len(inputs), "one mask covered two inputs of a site"
        assert {len(found) for found in secrets.values()} <= {1}, "both secrets of a site were given"
