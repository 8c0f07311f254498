"""The coordinator as a running service: one training run, from its settings to a signed model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from dicom_node.core import logs, loops, settings
from dicom_node.core.errors import ConfigError
from secure_infer.models import ModelStore, public_hex, signing_key
from secure_infer.network import Trunk

from ..courier.courier import Courier
from ..courier.local import LocalCourier
from ..courier.nvflare.courier import NVFlareCourier
from ..learning.plan import Plan
from ..learning.propose import Budget, Features, default_descent, propose
from ..runreport import record
from .candidate import Publisher
from .coordinator import Coordinator
from .records import FINISHED, Records, Run
from .settings import CoordinatorSettings

log = logs.get(__name__)


def serve(config: Path) -> int:
    """Run the training that the settings describe, or go on with it; return the exit status.

    Parameters
    ----------
    config : Path
        `CoordinatorSettings`.

    Raises
    ------
    ConfigError
        The hospitals refused the plan (``run-refused``): nothing becomes better by trying it again.
    """
    loaded = settings.read(config, CoordinatorSettings)
    logs.configure("fl-agent coordinator", loaded.log.level)
    stop = loops.stop_on_signals()
    publisher = signing_key(loaded.publisher_key_file)
    store = ModelStore(loaded.state_dir / "models", [public_hex(publisher)])
    with opened(loaded, Publisher(store, publisher, loaded.population)) as (made, records):
        if not records.has(loaded.run.version):
            made.open(plan_of(loaded))
        log.info("ready", fingerprint=public_hex(signing_key(loaded.key_file)), model=loaded.run.version)
        status = loops.run({"run": lambda: _step(made, records, stop)}, 1.0, stop)
        _require_no_refusal(records.of(loaded.run.version))
    return status


@contextmanager
def opened(loaded: CoordinatorSettings, publisher: Publisher | None) -> Iterator[tuple[Coordinator, Records]]:
    """Open the coordinator that the settings describe, and its records."""
    courier = _courier(loaded)
    records = Records(loaded.state_dir / "coordinator.sqlite3")
    try:
        identity, folder = signing_key(loaded.key_file), loaded.state_dir / record.RUNS
        yield Coordinator(identity, records, courier, folder, publisher, loaded.timing.timing()), records
    finally:
        courier.close()
        records.close()


def plan_of(loaded: CoordinatorSettings, runs: int = 1) -> Plan:
    """Write the plan that the settings describe; each is a run of its own.

    Parameters
    ----------
    loaded : CoordinatorSettings
    runs : int
        Runs on the same terms that share the budget, as the trials of a search do.

    Raises
    ------
    ConfigError
        Settings of the run do not fit each other (``settings``), or see `propose`.
    """
    run = loaded.run
    try:
        return propose(
            run.version,
            [one.member() for one in loaded.members],
            Features(run.trunk, run.views, Trunk.of(run.trunk).channels),
            Budget(run.epsilon, run.delta, run.mode, run.honest, runs),
            default_descent(run.rounds, run.spare, **run.descent()),
            centre_noise=run.centre_noise,
            squares=run.squares,
            metrics_weight=run.metrics_weight,
            population=loaded.population,
        )
    except ValidationError as error:
        text = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"coordinator.toml, section run: {text}", code="settings") from error


def _step(made: Coordinator, records: Records, stop: threading.Event) -> bool:
    busy = made.run_once()
    current = records.newest()
    if current is not None and current.over and not busy:
        # Whoever is away now keeps its reservation until it is told by a later call.
        stop.set()
    return busy


def _require_no_refusal(run: Run | None) -> None:
    if run is not None and run.over not in {"", FINISHED}:
        said = ", ".join(f"{name} ({code})" for name, code in run.refused.items())
        raise ConfigError(
            f"the run for model {run.plan.version} is over, for too few hospitals accepted its plan. It was refused by "
            f"{said}; the logs of `fl-agent run` there say why. Change [run], and give the model another version",
            code="run-refused",
        )


def _courier(loaded: CoordinatorSettings) -> Courier:
    if loaded.courier.kind == "nvflare":
        if loaded.courier.socket is None:
            raise ConfigError("courier.socket must name the socket of the coordinator's relay", code="courier")
        return NVFlareCourier(loaded.courier.socket)
    sockets = {one.name: one.socket for one in loaded.members if one.socket is not None}
    if len(sockets) != len(loaded.members):
        raise ConfigError("a local courier needs the socket of every member", code="courier")
    return LocalCourier(sockets)
