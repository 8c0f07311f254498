"""What a model card says of its data (Mitchell et al. 2019, arXiv 1810.03993): of `kermany224`, or of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import Field

from dicom_node.core.section import Section
from dicom_node.core.settings import Population, read

from .. import texts

FILE: Final = "dataset.toml"


class About(Section):
    """A data set, in the words of whoever knows it (`dataset.toml`)."""

    name: str = Field(min_length=1, description="data set: who, where, when")
    licence: str = Field(min_length=1, description="licence and attribution")
    model: str = Field(min_length=1, max_length=64, description="name of the model in reports")
    intended_use: str = Field(min_length=1, description="what the model is for, one sentence")
    population: Population = Field(description="whom the model is made for; enforced by the node")
    limits: tuple[str, ...] = Field(min_length=1, description="what the data do not cover")


KERMANY: Final = About(
    name=texts.DATA,
    licence=texts.DATA_LICENCE,
    model="VeilRay paediatric pneumonia",
    intended_use=texts.INTENDED_USE,
    population=Population(min_age_years=1, max_age_years=5, views=("AP", "PA")),
    limits=texts.COMMON_LIMITS,
)


def read_about(folder: Path) -> About:
    """Read a folder's `dataset.toml`.

    Raises
    ------
    ConfigError
        It is absent, or a line is missing or unknown.
    """
    return read(folder / FILE, About)
