"""Where bundles come from: a stock gives each of them once, dealt ahead (`pool`) or on demand (`Fresh`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from ..protocol.dealer import Dealing, Dealt, Order
from ..protocol.messages import Vector


class Parcel(Protocol):
    """A bundle that was taken from the stock: it is there no more, also after a crash."""

    @property
    def dealt(self) -> Dealt:
        """Its name, seed and manifest."""
        ...

    def materials(self) -> Iterator[Vector]:
        """Give party 1's material, one layer after the other, once."""
        ...

    def burn(self) -> None:
        """Drop the material; harmless the second time."""
        ...


class Stock(Protocol):
    """Where bundles come from."""

    def take(self, order: Order) -> Parcel:
        """Return a bundle, dealt ahead or now, that was never returned before and never will be again."""
        ...


@dataclass(frozen=True)
class Loose:
    """A bundle in memory; see `Parcel`."""

    dealt: Dealt
    parts: list[bytes]

    def materials(self) -> Iterator[Vector]:
        """Give the parts."""
        yield from self.parts

    def burn(self) -> None:
        """Drop the parts."""
        self.parts.clear()


@dataclass(frozen=True)
class Fresh:
    """A stock that keeps nothing: it deals when asked, into memory; see `Stock`."""

    dealing: Dealing

    def take(self, order: Order) -> Loose:
        """Deal a bundle."""
        parts: list[bytes] = []
        dealt = self.dealing.deal(order, lambda part: parts.append(bytes(part)))
        return Loose(dealt, parts)
