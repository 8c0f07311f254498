"""Start-up kits of a consortium: NVFlare's provisioning (mutual TLS), our policies, and a roster to be filled in."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any, Final

import nvflare.lighter
from nvflare.lighter.constants import CtxKey
from nvflare.lighter.entity import Project
from nvflare.lighter.impl.cert import CertBuilder
from nvflare.lighter.impl.static_file import StaticFileBuilder
from nvflare.lighter.impl.workspace import WorkspaceBuilder
from nvflare.lighter.provisioner import Provisioner

from dicom_node.core.errors import ConfigError

from . import policy, roster
from .consortium import AUTHORITY, ConsortiumSettings
from .run import PROGRAMS
from .wire import COORDINATOR

#: The authority's certificate; those of the kits last 360 days (NVFlare's constant).
AUTHORITY_DAYS: Final = 3650
#: Of what NVFlare writes, only this is used; its scripts would start without our limits.
KEPT: Final = ("rootCA.pem", *(f"{side}.{kind}" for side in ("client", "server") for kind in ("crt", "key")), *PROGRAMS)


def provision(consortium: ConsortiumSettings, out: Path) -> list[str]:
    """Make the kits that do not exist yet, one folder each in `out`, and the authority that signs them.

    A kit that was handed over may be deleted here: the next run makes one with a new key, which also renews it. No key
    but the authority's own is kept: whoever runs this cannot pose as a hospital later, except by signing a new kit.

    Returns
    -------
    list of str
        Names of the new kits.

    Raises
    ------
    ConfigError
        NVFlare refuses the settings (``provisioning``).
    """
    work = out / AUTHORITY
    work.mkdir(parents=True, exist_ok=True, mode=0o700)
    made = _nvflare(consortium, work)
    new = []
    for name, folder in [(COORDINATOR, consortium.host), *((name, name) for name in consortium.hospitals)]:
        if not (out / name).exists():
            _write_kit(made / folder, name, consortium)
            (made / folder).rename(out / name)
            new.append(name)
    shutil.rmtree(made)
    return new


def _nvflare(consortium: ConsortiumSettings, work: Path) -> Path:
    """Have NVFlare make all kits; returns their folder."""
    project = Project(consortium.name, "")
    project.set_server(consortium.host, COORDINATOR, {"fed_learn_port": consortium.port})
    for name in consortium.hospitals:
        project.add_client(name, name.replace("-", "_"), {})
    builders = [
        WorkspaceBuilder([str(Path(nvflare.lighter.__file__).parent / "templates" / "master_template.yml")]),
        StaticFileBuilder(config_folder="config", scheme="tcp", require_signed_jobs=True),
        CertBuilder(root_valid_days=AUTHORITY_DAYS),
    ]
    made = Provisioner(str(work), builders).provision(project, logger=logging.getLogger(__name__))
    if made.get(CtxKey.BUILD_ERROR):
        raise ConfigError(f"no kits were made; look at host and names: {made[CtxKey.ERRORS]}", code="provisioning")
    state = work / consortium.name / "state" / "cert.json"
    kept = {key: value for key, value in json.loads(state.read_text()).items() if key.startswith("root_")}
    state.unlink()
    _write(state, json.dumps(kept))
    return Path(made[CtxKey.CURRENT_PROD_DIR])


def _write_kit(kit: Path, name: str, consortium: ConsortiumSettings) -> None:
    """Leave NVFlare's keys and addresses in a kit and write our policies beside them; readable by its owner alone."""
    for path in [path for path in kit.rglob("*") if path.is_file() and path.name not in KEPT]:
        path.unlink()
    (kit / "transfer").rmdir()
    resources = policy.coordinator(len(consortium.hospitals)) if name == COORDINATOR else policy.hospital()
    _write(kit / "local" / "resources.json", resources)
    _write(kit / "local" / "authorization.json", policy.authorization())
    _write(kit / "local" / "comm_config.json", policy.communication())
    _write(kit / "local" / "log_config.json", policy.logging())
    if name == COORDINATOR:
        _write(kit / "members.toml", roster.members(consortium.hospitals))
    else:
        _write(kit / "federation.toml", roster.federation(name, consortium.hospitals))
    for path in (kit, *kit.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)


def _write(path: Path, content: dict[str, Any] | str) -> None:
    path.touch(mode=0o600)
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2) + "\n")
