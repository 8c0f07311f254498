"""What a study can show, for training."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class Diagnosis(StrEnum):
    """The classes of the models, and pneumonia of a kind that nobody named."""

    NORMAL = "normal"
    BACTERIAL = "bacterial"
    VIRAL = "viral"
    PNEUMONIA = "pneumonia"


KINDS = frozenset({Diagnosis.BACTERIAL, Diagnosis.VIRAL})


def combined(found: Iterable[Diagnosis]) -> Diagnosis | None:
    """Return what several sources say together: a kind refines pneumonia; None where they contradict each other."""
    said = set(found)
    if said & KINDS:
        said -= {Diagnosis.PNEUMONIA}
    return said.pop() if len(said) == 1 else None
