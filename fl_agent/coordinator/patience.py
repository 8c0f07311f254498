"""Whom a round waits for, so that one silent site costs the others a time-out once (exponential back-off, RFC 5681)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

#: Longest rest, rounds.
LONGEST_REST: Final = 64


@dataclass(frozen=True)
class Timing:
    """How long the coordinator waits, seconds.

    Attributes
    ----------
    stage : float
        For the answers of one stage.
    contribution : float
        For the stage in which sites compute.
    probe : float
        For the first stage, where a site is asked that was silent before; that stage is quick for whoever is there.
    joining : float
        For answers to the plan.
    """

    stage: float = 30.0
    contribution: float = 600.0
    probe: float = 2.0
    joining: float = 300.0


class Patience:
    """Remembers who was silent; forgotten by a restart, which costs one time-out."""

    def __init__(self) -> None:
        self._missed: dict[str, int] = {}
        self._rests_until: dict[str, int] = {}

    def asked(self, sites: Iterable[str], number: int) -> list[str]:
        """Choose whom round `number` asks: all but those who rest."""
        return sorted(name for name in sites if self._rests_until.get(name, 0) <= number)

    def probes(self, sites: Iterable[str]) -> bool:
        """Tell whether one of these was silent the last time it was asked."""
        return any(name in self._missed for name in sites)

    def wait(self, sites: Iterable[str], least: float) -> float:
        """Say how long to wait for an answer that may take long, seconds: `least`, then 2, 4, 8, ... times as long.

        A lost answer is asked for again soon, and a slow site comes to its answer after all.
        """
        return least * 2.0 ** max((self._missed.get(name, 0) for name in sites), default=0)

    def note(self, site: str, number: int, *, silent: bool) -> None:
        """Note how a site behaved in a round: the next round asks it again, then after 2, 4, 8, ... rounds."""
        if not silent:
            self._missed.pop(site, None)
            self._rests_until.pop(site, None)
            return
        missed = self._missed[site] = self._missed.get(site, 0) + 1
        self._rests_until[site] = number + min(LONGEST_REST, 2 ** (missed - 1))
