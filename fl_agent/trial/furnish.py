"""What each owner of a kit has besides it, for trials: settings, keys that the others were told, and patients."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from dicom_node.core import settings
from secure_infer.models import public_hex, signing_key

from ..coordinator.settings import CoordinatorSettings
from ..courier.nvflare import local, roster
from ..courier.nvflare.wire import COORDINATOR
from .owners import config, folder
from .patients import Patient, admit

#: Ages of phantoms, years (`phantom.Study.numbered`).
AGES: Final = (1, 5)
#: Secure sums of a trial's run: enough to watch.
ROUNDS: Final = 10
VERSION: Final = "2.0.0"


def furnish(kits: Path, patients: Iterable[list[Patient]], each: int) -> list[Path]:
    """Write the settings of all owners, and give patients to the hospitals that have no records yet.

    Parameters
    ----------
    kits : Path
        Folder that `fl-agent provision` made.
    patients : iterable of list of Patient
        Of each hospital in turn; taken only where they are needed.
    each : int
        How many that are.

    Returns
    -------
    list of Path
        The settings files, the coordinator's first.
    """
    names = local.names(kits)
    for name in names:
        folder(kits, name).mkdir(parents=True, exist_ok=True, mode=0o700)
    keys = {name: public_hex(signing_key(_identity(kits, name))) for name in names}
    publisher = public_hex(signing_key(_publisher(kits)))
    hospitals = [name for name in names if name != COORDINATOR]
    _write(config(kits, COORDINATOR), _coordinator(kits, hospitals, keys, each))
    settings.read(config(kits, COORDINATOR), CoordinatorSettings)
    theirs = iter(patients)
    for name in hospitals:
        _write(config(kits, name), _site(kits, name, hospitals, keys, publisher, each))
        loaded = settings.load(config(kits, name))
        if not loaded.site.state_dir.exists():
            loaded.site.state_dir.mkdir(mode=0o700)
            admit(folder(kits, name), loaded, name, next(theirs))
    return [config(kits, name) for name in names]


def _identity(kits: Path, name: str) -> Path:
    return folder(kits, name) / "identity.pem"


def _publisher(kits: Path) -> Path:
    return folder(kits, COORDINATOR) / "publisher.pem"


def _site(kits: Path, name: str, hospitals: list[str], keys: dict[str, str], publisher: str, each: int) -> str:
    section = roster.federation(name, hospitals, keys, _identity(kits, name), local.socket(kits, name), group="")
    return (
        f'[site]\nname = "{name}"\nstate_dir = "{folder(kits, name) / "state"}"\n\n'
        f'[inference]\nengine = "plaintext"\ntrusted_publishers = ["{publisher}"]\n\n'
        f'[training.handover]\npublisher = "{publisher}"\n\n'
        f"{section}minimum_patients = {each}\n"
    )


def _coordinator(kits: Path, hospitals: list[str], keys: dict[str, str], each: int) -> str:
    youngest, oldest = AGES
    return (
        f'state_dir = "{folder(kits, COORDINATOR)}"\n'
        f'key_file = "{_identity(kits, COORDINATOR)}"\n'
        f'publisher_key_file = "{_publisher(kits)}"\n\n'
        f"[population]\nmin_age_years = {youngest}\nmax_age_years = {oldest}\n\n"
        f'[run]\nversion = "{VERSION}"\nrounds = {ROUNDS}\n\n'
        f"{roster.members(hospitals, keys, each, local.socket(kits, COORDINATOR))}"
    )


def _write(file: Path, text: str) -> None:
    file.touch(mode=0o600)
    file.write_text(text)
