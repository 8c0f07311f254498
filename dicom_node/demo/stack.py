"""Every process of the product on loopback: the node, the worker, the party, the dealer and the admin pages."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ..core import settings as site_settings
from ..core.settings import Settings
from ..launch import Service, free_port
from .site import AE_TITLE, SENDER_AE, Ports, write_settings

__all__ = ["Stack"]


class Stack:
    """A hospital, a model owner and a dealer in one folder, used as ``with Stack(folder) as stack: stack.start()``.

    Parameters
    ----------
    folder : Path
        Certificates, settings, state and logs are written here.
    quiet_s : float
        Quiet period after which a study is complete, seconds.
    web : bool
        Run the admin pages too.
    engine : str
        `inference.engine` of the site.
    enforce_age : bool
        Whether the model's intended ages are enforced.
    models : Path or None
        The model owner's store, in place of the shipped one; a hospital installs the cards that it wants.
    publishers : sequence of str
        Who may sign models, in place of the publisher of the shipped one.

    Attributes
    ----------
    services : dict of str to Service
        `dealer`, `party`, `serve`, `worker` and `web`, in starting order.
    settings : Settings
        The site's, once started.
    """

    ae_title = AE_TITLE
    sender_ae = SENDER_AE

    def __init__(
        self,
        folder: Path,
        *,
        quiet_s: float = 1.0,
        web: bool = False,
        engine: str = "dealt-2pc",
        enforce_age: bool = True,
        models: Path | None = None,
        publishers: Sequence[str] = (),
    ) -> None:
        self.folder = folder.resolve()
        self._quiet_s = quiet_s
        self._engine = engine
        self._enforce_age = enforce_age
        self._models, self._publishers = models, publishers
        self._ports = Ports(*(free_port() for _ in Ports._fields))
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        commands = {
            "dealer": ("secure_infer", "dealer", "dealer.toml"),
            "party": ("secure_infer", "party", "party.toml"),
            "serve": ("dicom_node", "serve", "site.toml"),
            "worker": ("secure_infer", "worker", "site.toml"),
        }
        if web:
            commands["web"] = ("dicom_node", "web", "site.toml")
        self.services = {name: self._service(name, *command) for name, command in commands.items()}

    @property
    def scp_port(self) -> int:
        """Port of the node's Storage SCP."""
        return self._ports.scp

    @property
    def own_pacs_port(self) -> int:
        """Port kept for the stand-in PACS where Orthanc is not installed."""
        return self._ports.own_pacs

    @property
    def settings(self) -> Settings:
        """The site's settings as its services read them."""
        return site_settings.load(self.folder / "site.toml")

    @property
    def alive(self) -> bool:
        """Whether every service runs."""
        return all(service.alive for service in self.services.values())

    def start(self, pacs_port: int | None = None, orthanc_url: str | None = None) -> None:
        """Write the settings and start every service; return when all are ready.

        Parameters
        ----------
        pacs_port : int or None
            DICOM port of a PACS on loopback that takes the reports.
        orthanc_url : str or None
            An Orthanc whose change feed is read and that takes the reports by REST.
        """
        write_settings(
            self.folder,
            self._ports,
            pacs_port=pacs_port,
            orthanc_url=orthanc_url,
            quiet_s=self._quiet_s,
            engine=self._engine,
            enforce_age=self._enforce_age,
            models=self._models,
            publishers=self._publishers,
        )
        for name in ("dealer", "serve"):  # the others need the dealer's and the database's presence to be ready
            self.services[name].start()
        for name in ("dealer", "serve"):
            self.services[name].wait_ready()
        rest = [service for name, service in self.services.items() if name not in ("dealer", "serve")]
        for service in rest:
            service.start()
        for service in rest:
            service.wait_ready()

    def restart(self, name: str, failpoint: str | None = None) -> None:
        """Kill a service and start it anew, with a fail point armed if one is named; return when it is ready."""
        service = self.services[name]
        service.kill()
        service.arm(failpoint)
        service.start()
        service.wait_ready()

    def _service(self, name: str, package: str, command: str, config: str) -> Service:
        arguments = [sys.executable, "-m", package, command, "--config", str(self.folder / config)]
        return Service(name, arguments, self.folder / "logs")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for service in reversed(self.services.values()):
            service.stop()
