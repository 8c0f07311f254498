"""The three parties of one query in this process, and small networks of random shapes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from secure_infer.dealing.deck import Deck
from secure_infer.dealing.stock import Fresh, Stock
from secure_infer.program import (
    INPUT,
    AdditionLayer,
    ConvolutionLayer,
    DenseLayer,
    FlattenLayer,
    GuardLayer,
    Program,
    ReluLayer,
    SliceLayer,
    SumPoolLayer,
    TruncationLayer,
    shapes_of,
)
from secure_infer.protocol.dealer import Dealing
from secure_infer.protocol.manifest import Signer, verified
from secure_infer.protocol.messages import Bundle, Half, Label, Message
from secure_infer.protocol.party0 import HospitalSession, Terms
from secure_infer.protocol.party1 import PartySession, Peers, PrivateModel
from secure_infer.protocol.plan import Plan
from secure_infer.protocol.prg import Context, bundle_masks, gate_masks
from secure_infer.protocol.seal import unseal
from secure_infer.protocol.session import Session, State
from tests.secure_infer.small_dealer import HOSPITAL, MODEL, PARTY, SEALING_KEY, SIGNER

#: Fractional bits of activations and weights, by ring.
FRACTIONS = {64: (16, 26), 32: (8, 10)}


def network(layers, shape=(2, 6, 6), bits=64, guard=None, output=None, bound=4.0) -> Program:
    fraction, weights = FRACTIONS[bits]
    return Program(
        ring_bits=bits,
        input_shape=shape,
        fraction_bits=fraction,
        weight_fraction_bits=weights,
        input_bound=bound,
        output_bound=1e3,
        output=output or layers[-1].name,
        guard=guard,
        layers=tuple(layers),
    )


def maximum(name: str, first: str, second: str, shift: int, *, wide: bool) -> list:
    """The larger of two tensors, before (wide) or after a gate took the weights' fraction away."""
    up, down = (0, shift) if wide else (shift, 0)
    return [
        AdditionLayer(name=f"{name}_less", first=first, second=second, first_shift=up, second_shift=up, subtract=True),
        ReluLayer(name=f"{name}_more", source=f"{name}_less", shift=shift),
        AdditionLayer(name=name, first=f"{name}_more", second=second, first_shift=down),
    ]


def every_kind(bits: int = 64, limit: float = 1000.0) -> Program:
    """Every kind of layer: strided, padded, grouped, residual, with all gates, both poolings, a guard and a head."""
    shift = FRACTIONS[bits][1]
    layers = [
        ConvolutionLayer(name="stem", source=INPUT, out_channels=4, kernel=(3, 3), padding=(1, 1)),
        ReluLayer(name="relu1", source="stem", shift=shift),
        ConvolutionLayer(name="depth", source="relu1", out_channels=4, kernel=(3, 3), padding=(1, 1), groups=4),
        AdditionLayer(name="sum1", first="depth", second="relu1", second_shift=shift),
        ReluLayer(name="relu2", source="sum1", shift=shift),
        ConvolutionLayer(
            name="half", source="relu2", out_channels=6, kernel=(3, 3), padding=(1, 1), stride=(2, 2), groups=2
        ),
        ConvolutionLayer(name="project", source="relu2", out_channels=6, kernel=(1, 1), stride=(2, 2)),
        AdditionLayer(name="sum2", first="half", second="project"),
        ReluLayer(name="relu3", source="sum2", shift=shift),
        ConvolutionLayer(name="expand", source="relu3", out_channels=6, kernel=(1, 1)),
        SliceLayer(name="left", source="expand", axis="columns", offset=-1, step=2, count=2),
        SliceLayer(name="right", source="expand", axis="columns", offset=0, step=2, count=2),
        *maximum("largest", "left", "right", shift, wide=True),
        ReluLayer(name="relu6", source="largest", shift=shift, ceiling=6.0),
        ConvolutionLayer(name="narrow", source="relu6", out_channels=6, kernel=(1, 1)),
        TruncationLayer(name="linear", source="narrow", shift=shift),
        AdditionLayer(name="block", first="linear", second="relu6"),
        SumPoolLayer(name="pool", source="block", kernel=(2, 2), stride=(1, 1), padding=(1, 0)),
        FlattenLayer(name="flat", source="pool"),
        DenseLayer(name="head", source="flat", out_features=3),
        GuardLayer(name="sums", sources=("relu1", "relu2", "relu3"), limits=(limit,) * 3),
        ReluLayer(name="guard", source="sums", shift=shift),
    ]
    return network(layers, bits=bits, guard="guard", output="head")


@dataclass
class Trio:
    """Hospital, party 1 and dealer without sockets; every message is kept with its direction.

    Attributes
    ----------
    transcript : list of (str, Message)
        Directions such as ``"P0→D"``, in order.
    """

    made: Program
    weights: dict[str, np.ndarray]
    random: Callable[[int], bytes] = os.urandom
    master: bytes = b"k" * 32
    spend: Callable[[bytes], None] = lambda bundle: None
    stock: Stock | None = None
    signer: Signer = SIGNER
    transcript: list[tuple[str, Message]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.plan = Plan(self.made)
        self.model = PrivateModel.of("1", MODEL, self.plan, self.weights)
        dealer = self.signer.fingerprint
        self.terms = Terms(self.plan, MODEL, HOSPITAL, PARTY, dealer, SEALING_KEY, self.spend, {})
        self.peers = Peers(HOSPITAL, PARTY, dealer)
        made = Dealing(self.master, self.signer, self.random)
        stock = self.stock or Fresh(made)
        self.deck = Deck(made, stock, frozenset({HOSPITAL}), frozenset({PARTY}), lifetime_s=60, largest=64)

    def hospital(self) -> HospitalSession:
        return HospitalSession(self.terms)

    def party(self) -> PartySession:
        return PartySession(self.peers, lambda _: self.model, self.spend, 600)

    def _note(self, direction: str, message: Message | None) -> Message:
        assert message is not None
        self.transcript.append((direction, message))
        return message

    def _told(self, direction: str, session: Session, message: Message) -> list[Message]:
        assert len(message.encode()) <= session.limit
        return list(session.answers(self._note(direction, message)))

    def deal(self) -> tuple[HospitalSession, PartySession]:
        """Get a bundle to both sides."""
        hospital, party = self.hospital(), self.party()
        deal = self._note("P0→D", hospital.begin())
        bundle = self._note("D→P0", self.deck.handle(HOSPITAL, deal, 0.0))
        fetch = self._note("P1→D", party.handle(self._note("P0→P1", hospital.handle(bundle))))
        ready = None
        for part in self.deck.answers(PARTY, fetch, 0.0):
            assert len(part.encode()) <= party.limit
            ready = party.handle(self._note("D→P1", part))
        hospital.handle(self._note("P1→P0", ready))
        return hospital, party

    def audit(self) -> None:
        """Have a bundle dealt and audited."""
        hospital, party = self.deal()
        hospital.handle(self._note("P1→P0", party.handle(self._note("P0→P1", hospital.audit()))))

    def prepare(self) -> tuple[HospitalSession, PartySession]:
        """Run the offline phase."""
        hospital, party = self.deal()
        for covered in hospital.covers():
            assert len(covered.encode()) <= party.limit
            for prepared in party.answers(self._note("P0→P1", covered)):
                hospital.handle(self._note("P1→P0", prepared))
        assert party.state is State.READY
        return hospital, party

    def ask(self, image: np.ndarray, sessions: tuple[HospitalSession, PartySession] | None = None) -> np.ndarray:
        """Run a query and return the opened output, shape (channels, rows, columns)."""
        hospital, party = sessions or self.prepare()
        asked: list[Message] = [hospital.query(image)]
        while asked:
            answers = [one for message in asked for one in self._told("P0→P1", party, message)]
            asked = [one for message in answers for one in self._told("P1→P0", hospital, message)]
        assert hospital.state is State.DONE
        assert hospital.outputs is not None
        return hospital.outputs

    def gate_masks(self, names: str = "01") -> dict[str, np.ndarray]:
        """R0, R1 or the sum R of every gate of the last bundle."""
        find = lambda kind: next(one for _, one in reversed(self.transcript) if isinstance(one, kind))  # noqa: E731
        bundle, half = find(Bundle), find(Half)
        seed = unseal(bundle.sealed, SEALING_KEY, verified(bundle.signed, self.signer.fingerprint).digest)
        ours = bundle_masks(seed, Context(bundle.bundle, MODEL, HOSPITAL, PARTY))
        streams = {"0": (ours, Label.GATE_MASK)}
        streams["1"] = (gate_masks(half.weight_mask_seed, bundle.bundle), Label.PARTY_GATE_MASK)
        plan = self.plan
        return {
            name: sum(
                stream.words(label, plan.numbers[name], plan.shapes[name], plan.ring)
                for stream, label in (streams[one] for one in names)
            )
            for name in plan.gates
        }


@dataclass
class Builder:
    """Draws a network: weights, then something that drops their fraction, again and again."""

    draw: Callable[[int, int], int]
    bits: int
    layers: list = field(default_factory=list)

    def make(self) -> Program:
        self.shift = FRACTIONS[self.bits][1]
        self.shape = (self.draw(1, 3), self.draw(3, 6), self.draw(3, 6))
        here = INPUT
        for number in range(self.draw(1, 3)):
            size, last = self.size(here), self.convolution(f"conv{number}", here)
            if self.size(last) == size:
                self.layers.append(AdditionLayer(name=f"sum{number}", first=last, second=here, second_shift=self.shift))
                last = f"sum{number}"
            pooled = self.draw(0, 3)  # before the gate, behind it, or not
            if pooled == 0:
                last = self.maximum(f"early{number}", last, wide=True)
            here = self.gate(f"gate{number}", last)
            if pooled == 1:
                here = self.maximum(f"late{number}", here, wide=False)
        _, rows, columns = self.size(here)
        kernel = (self.draw(1, rows), self.draw(1, columns))
        self.layers.append(SumPoolLayer(name="pool", source=here, kernel=kernel, stride=(self.draw(1, 2), 1)))
        self.layers.append(FlattenLayer(name="flat", source="pool"))
        self.layers.append(DenseLayer(name="head", source="flat", out_features=self.draw(1, 3)))
        if self.draw(0, 1):
            shift = sum(FRACTIONS[self.bits]) - self.draw(1, FRACTIONS[self.bits][0])
            self.layers.append(TruncationLayer(name="rounded", source="head", shift=shift))
        return network(self.layers, self.shape, self.bits, bound=1.0)

    def size(self, name: str) -> tuple[int, int, int]:
        return self.shape if name == INPUT else shapes_of(network(self.layers, self.shape, self.bits))[name]

    def convolution(self, name: str, here: str) -> str:
        size = self.size(here)
        groups = size[0] if self.draw(0, 2) == 0 else 1
        side = self.draw(1, 3)
        stride, padding = self.draw(1, 2), self.draw(0, side // 2)
        out = groups * self.draw(1, 2) if groups > 1 else self.draw(1, 4)
        if min(size[1:]) + 2 * padding < side:
            side = 1
        if self.draw(0, 1):  # keeps its shape, so that its input can be added
            groups, out, side, stride, padding = 1, size[0], 1, 1, 0
        self.layers.append(
            ConvolutionLayer(
                name=name, source=here, out_channels=out, kernel=(side, side), stride=(stride, stride),
                padding=(padding, padding), groups=groups,
            )
        )  # fmt: skip
        return name

    def gate(self, name: str, source: str) -> str:
        kind = self.draw(0, 2)
        if kind == 0:
            self.layers.append(TruncationLayer(name=name, source=source, shift=self.shift))
        else:
            self.layers.append(
                ReluLayer(name=name, source=source, shift=self.shift, ceiling=None if kind == 1 else 0.5)
            )
        return name

    def maximum(self, name: str, source: str, *, wide: bool) -> str:
        size = self.size(source)
        axis = self.draw(0, 1)
        step = self.draw(1, 2)
        count = -(-size[1 + axis] // step)
        for part in (0, 1):
            self.layers.append(
                SliceLayer(
                    name=f"{name}_{part}", source=source, axis=("rows", "columns")[axis], offset=self.draw(-1, 1),
                    step=step, count=count,
                )
            )  # fmt: skip
        self.layers += maximum(name, f"{name}_0", f"{name}_1", self.shift, wide=wide)
        return name
