"""The mechanisms that the ledger can account (Dwork & Roth 2014): what a reservation says will be done to the data."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field, TypeAdapter

from secure_infer.card import Bound, Distributed, Mechanism

Spending = Mechanism | Distributed | Bound
_READ: Final[TypeAdapter[Spending]] = TypeAdapter(Annotated[Spending, Field(discriminator="kind")])


def read(terms: dict[str, Any]) -> Spending:
    """Read a mechanism from its JSON form; pydantic's ValidationError where it is none."""
    return _READ.validate_python(terms)
