"""The agent as a running service, which the courier's relay finds at a Unix socket."""

from __future__ import annotations

from pathlib import Path

import torch

from dicom_node.core import logs, loops, settings
from dicom_node.core.database import Database
from dicom_node.core.errors import ConfigError
from secure_infer.models import public_hex, signing_key

from ..courier import unix
from ..ledger.ledger import Ledger
from ..secagg.rounds import RoundLedger
from .agent import Agent
from .rows import SitePatients
from .rules import Rules
from .runs import Runs

log = logs.get(__name__)


def serve(config: Path) -> None:
    """Run the agent of a site until SIGTERM.

    Parameters
    ----------
    config : Path
        The site's settings.

    Raises
    ------
    ConfigError
        The site trains with nobody, its records are of another version (``schema``), or its folder of films is not as
        it must be.
    """
    loaded = settings.load(config)
    federation = loaded.training.federation
    if federation is None:
        raise ConfigError("site.toml has no section [training.federation]: this site trains with nobody")
    logs.configure("fl-agent run", loaded.log.level)
    stop = loops.stop_on_signals()
    torch.set_num_threads(loaded.inference.threads)
    database = Database(loaded.database_url)
    rounds = RoundLedger(loaded.site.state_dir / "rounds.sqlite3")
    try:
        if not database.is_current():
            raise ConfigError(
                "the site's records are not of this version: start `dicom-node serve` once", code="schema"
            )
        identity = signing_key(federation.identity_file)
        patients = SitePatients(loaded, database)
        if found := patients.check():
            log.info("films-read", count=found)
        agent = Agent(
            identity,
            Rules(federation, loaded.training.privacy),
            rounds,
            Runs(database, Ledger(database, loaded.training.privacy)),
            patients,
        )
        with unix.serve(loaded.agent_socket, agent.handle, federation.socket_group):
            log.info("ready", path=str(loaded.agent_socket), fingerprint=public_hex(identity))
            stop.wait()
    finally:
        rounds.close()
        database.close()
