"""The throw-away certificates and settings of the demonstration's three organisations."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..core import pki, tls

AE_TITLE = "VEILRAY"
SENDER_AE = "MODALITY"
PACS_AE = "PACS"
OVERRIDE = "demonstration on made-up or published images; no patient's care depends on it"

DICOM_DESTINATION = f"""\
[[delivery.destinations]]
name = "pacs"
kind = "dicom"
ae_title = "{PACS_AE}"
host = "127.0.0.1"
port = {{port}}
"""
ORTHANC = """\
[[delivery.destinations]]
name = "orthanc"
kind = "orthanc"
[orthanc]
url = "{url}"
change_feed = true
poll_s = 0.2
"""


class Ports(NamedTuple):
    """The loopback ports of one demonstration."""

    scp: int
    web: int
    party: int
    dealer: int
    own_pacs: int


def write_settings(
    folder: Path,
    ports: Ports,
    *,
    pacs_port: int | None,
    orthanc_url: str | None,
    quiet_s: float,
    engine: str,
    enforce_age: bool,
    models: Path | None = None,
    publishers: Sequence[str] = (),
) -> None:
    """Write `site.toml`, `party.toml` and `dealer.toml`, and the certificates they name.

    Parameters
    ----------
    pacs_port : int or None
        Where reports go by C-STORE; nowhere when None.
    orthanc_url : str or None
        An Orthanc whose change feed is read, and to which reports go by its REST API.
    enforce_age : bool
        False classifies any age: real files given to the demonstration are often of adults.
    models : Path or None
        The model owner's store; the shipped one when None.
    publishers : sequence of str
        Who may sign models; the publisher of the shipped one when empty.
    """
    # The package is named, not imported: the clinical path never imports the network's code.
    models = models or Path(str(importlib.resources.files("secure_infer"))) / "shipped"
    trusted = f"trusted_publishers = {json.dumps(list(publishers))}" if publishers else ""
    authority = pki.Authority(folder / "certificates")
    crl = authority.revoke()  # nobody yet; it is looked at all the same
    issued = {name: authority.issue(name).model_copy(update={"crl": crl}) for name in ("hospital", "party", "dealer")}
    prints = {name: tls.fingerprint(files.certificate) for name, files in issued.items()}
    material = {
        name: "\n".join(f"{key} = {_quoted(getattr(files, key))}" for key in ("certificate", "key", "ca", "crl"))
        for name, files in issued.items()
    }
    (folder / "site.toml").write_text(
        f"""\
[site]
name = "Demonstration hospital"
state_dir = {_quoted(folder / "state")}

[scp]
ae_title = "{AE_TITLE}"
port = {ports.scp}
[[scp.peers]]
ae_title = "{SENDER_AE}"
addresses = ["127.0.0.1"]
[[scp.peers]]
ae_title = "{PACS_AE}"
addresses = ["127.0.0.1"]

[assembler]
quiet_s = {quiet_s}

[selection]
{"" if enforce_age else f'age_rule = "off"{chr(10)}population_override = {_quoted(OVERRIDE)}'}

[inference]
engine = "{engine}"
{trusted}
[inference.party]
host = "127.0.0.1"
port = {ports.party}
fingerprint = "{prints["party"]}"
[inference.dealer]
host = "127.0.0.1"
port = {ports.dealer}
fingerprint = "{prints["dealer"]}"
[inference.tls]
{material["hospital"]}

[web]
port = {ports.web}

[delivery]
{"" if pacs_port is None else DICOM_DESTINATION.format(port=pacs_port)}
{"" if orthanc_url is None else ORTHANC.format(url=orthanc_url)}
"""
    )
    (folder / "party.toml").write_text(
        f"""\
host = "127.0.0.1"
port = {ports.party}
state_dir = {_quoted(folder / "party")}
models = {_quoted(models)}
{trusted}
hospitals = ["{prints["hospital"]}"]
[dealer]
host = "127.0.0.1"
port = {ports.dealer}
fingerprint = "{prints["dealer"]}"
[tls]
{material["party"]}
"""
    )
    (folder / "dealer.toml").write_text(
        f"""\
host = "127.0.0.1"
port = {ports.dealer}
master_key = {_quoted(folder / "dealer" / "master.key")}
hospitals = ["{prints["hospital"]}"]
parties = ["{prints["party"]}"]
[tls]
{material["dealer"]}
"""
    )


def _quoted(value: object) -> str:
    """Write a TOML basic string: JSON's escapes are a subset of TOML's."""
    return json.dumps(str(value))
