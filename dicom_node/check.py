"""The logic of `dicom-node check`: what must hold before a site can work, one sentence for each thing.

Nothing is changed: no database is made, no instance is sent, no protocol is begun. A check that fails says what to do.
The one trace it may leave is at the node itself: where it runs without TLS and does not list this host as a sender,
the echo to it is refused and audited like any stranger's.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import ssl
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import sqlalchemy as sa
from pydantic import BaseModel

from .core import audit, tls
from .core.database import Database
from .core.errors import ConfigError, ProtocolError, Refused, Unavailable, VeilRayError
from .core.settings import DestinationSettings, EndpointSettings, OrthancSettings, Settings, TlsSettings
from .orthanc import OrthancClient
from .scp.admission import Whitelist
from .scu import Scu
from .stow import StowClient
from .tls import client_context

#: In TLS 1.3 a refusal of our certificate comes after the handshake; a service that accepts us waits for our word.
REFUSAL_WAIT_S = 0.5
LONGEST_WAIT_S = 10.0
STATE_FOLDER = "site.state_dir"
#: Settings that name folders which are only read.
FOLDERS = frozenset({"training.films"})
#: Passwords inside URLs: before the host (RFC 3986 3.2.1), or as a parameter of a PostgreSQL URL.
PASSWORDS = re.compile(r"(?<=://)[^/@\s]+(?=@)|(?<=password=)[^&\s]+")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes
    ----------
    name : str
        What was looked at.
    ok : bool
        Whether it is as it must be.
    sentence : str
        What was found; when not ok, what to do.
    """

    name: str
    ok: bool
    sentence: str


def checks(settings: Settings) -> Iterator[Check]:
    """Look at everything that a site's settings name, from the inside to the outside.

    Parameters
    ----------
    settings : Settings
        The site's settings, already valid in themselves.

    Yields
    ------
    Check
        As soon as it is known: a peer that is away takes up to 10 s.
    """
    for section, text in effective(settings):
        yield Check(f"settings {section}", True, text)
    look: list[tuple[str, Callable[[], str]]] = [
        ("files", partial(_files, settings)),
        ("state folder", partial(_state_folder, settings)),
        ("database", partial(_database, settings)),
        ("audit trail", partial(_audit_trail, settings)),
        ("senders", partial(_senders, settings)),
        ("SCP port", partial(_scp_port, settings)),
        ("destinations", partial(_destinations, settings)),
    ]
    if settings.orthanc is not None:
        look.append(("Orthanc", partial(_orthanc, settings.orthanc)))
    for one in settings.delivery.destinations:
        if one.kind != "orthanc":  # that one is looked at above
            look.append((f"destination {one.name}", partial(_destination, settings, one)))
    inference = settings.inference
    for name, peer in (("party", inference.party), ("dealer", inference.dealer)):
        if inference.engine == "dealt-2pc" and peer is not None and inference.tls is not None:
            look.append((name, partial(_mutual_tls, peer, inference.tls, inference.timeout_s)))
    for name, question in look:
        yield _ask(name, question)


def effective(settings: Settings) -> Iterator[tuple[str, str]]:
    """Give each section's values, the defaults included; secrets are file paths, passwords in URLs are masked."""
    for section in type(settings).model_fields:
        value = getattr(settings, section)
        text = ", ".join(f"{key} = {shown}" for key, shown in _leaves("", value)) if value is not None else "not used"
        yield section, PASSWORDS.sub("***", text)


def _leaves(prefix: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _leaves(f"{prefix}.{name}" if prefix else name, getattr(value, name))
    elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        for index, item in enumerate(value):
            yield from _leaves(f"{prefix}[{index}]", item)
    elif isinstance(value, tuple):
        yield prefix, "[" + ", ".join(str(item) for item in value) + "]"
    else:
        yield prefix, "not set" if value is None else f"'{value}'" if isinstance(value, str) else str(value)


def _ask(name: str, question: Callable[[], str]) -> Check:
    try:
        return Check(name, True, question())
    except VeilRayError as error:
        return Check(name, False, f"{error}.")
    except sa.exc.SQLAlchemyError as error:
        sentence = f"The database cannot be read ({type(error).__name__}): check database.url, or restore a backup."
        return Check(name, False, sentence)


def _files(settings: Settings) -> str:
    """Certificates, keys, passwords and tokens: there, readable, and secrets not open to everyone on this host."""
    count = 0
    for where, path in _paths("", settings):
        if where == STATE_FOLDER:
            continue
        count += 1
        try:
            if where in FOLDERS:
                next(path.iterdir(), None)
                continue
            with path.open("rb"):
                mode = path.stat().st_mode
        except OSError as error:
            raise ConfigError(f"{where}: cannot read {path}: {error.strerror}") from error
        secret = where.rpartition(".")[2] in ("key", "password_file", "token_file")
        if secret and mode & stat.S_IRWXO:
            raise ConfigError(f"{where}: every user of this host may use {path}: chmod o-rwx it")
    return f"{count} named in the settings can be read." if count else "The settings name none."


def _paths(prefix: str, value: object) -> Iterator[tuple[str, Path]]:
    if isinstance(value, Path):
        yield prefix, value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _paths(f"{prefix}.{name}" if prefix else name, getattr(value, name))
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _paths(f"{prefix}[{index}]", item)


def _state_folder(settings: Settings) -> str:
    folder, least = settings.site.state_dir, settings.scp.minimum_free_bytes
    if not folder.is_dir():
        raise ConfigError(f"site.state_dir: {folder} is no folder: create it, owned by the service's user")
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".check-") as file:
            file.write(b"VeilRay")
            file.flush()
            os.fsync(file.fileno())
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        raise ConfigError(f"site.state_dir: {folder} cannot be written durably: {error.strerror}") from error
    free = shutil.disk_usage(folder).free
    if free < least:
        raise Unavailable(f"{free // 10**6} MB are free in {folder}, less than scp.minimum_free_bytes: free space")
    return f"{folder} can be written durably; {free // 10**6} MB are free."


@contextmanager
def _opened(settings: Settings) -> Iterator[Database]:
    try:
        database = Database(settings.database_url)
    except ImportError as error:
        raise ConfigError("database.url needs a driver that is not installed: install veilray[postgres]") from error
    try:
        if database.is_sqlite and not Path(str(database.engine.url.database)).is_file():  # opening would make one
            raise ConfigError("there is no database yet: start dicom-node serve once, which makes it")
        yield database
    finally:
        database.close()


def _database(settings: Settings) -> str:
    with _opened(settings) as database:
        if not database.is_current():
            raise ConfigError("the database's schema is another version's: stop all services, then start this version")
        return f"It opens and has this version's schema ({'SQLite' if database.is_sqlite else 'PostgreSQL'})."


def _audit_trail(settings: Settings) -> str:
    with _opened(settings) as database, database.read() as connection:
        count, head = audit.verify(connection)
    return f"{count} rows, each following from the one before; the head is {head}."


def _senders(settings: Settings) -> str:
    Whitelist(settings.scp)  # it reads the addresses
    feed = settings.orthanc is not None and settings.orthanc.change_feed
    if not settings.scp.peers and not feed:
        raise ConfigError("nobody may send studies: name at least one [[scp.peers]], or set orthanc.change_feed")
    names = ", ".join(peer.ae_title for peer in settings.scp.peers)
    return " and ".join(part for part in (names, "the change feed of Orthanc" if feed else "") if part) + " may send."


def _scp_port(settings: Settings) -> str:
    scp = settings.scp
    if scp.port == 0:
        return "The service takes a free port whenever it starts (scp.port = 0)."
    family = socket.AF_INET6 if ":" in scp.host else socket.AF_INET
    try:
        with socket.create_server((scp.host, scp.port), family=family):
            return f"Port {scp.port} is free: dicom-node serve does not run."
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise ConfigError(f"cannot listen on scp.host {scp.host}, port {scp.port}: {error.strerror}") from error
    host = _dialled(scp.host)
    if scp.tls is not None:
        if _shown_certificate(host, scp.port, scp.tls) != tls.fingerprint(scp.tls.certificate):
            raise ConfigError(f"another program holds port {scp.port}: stop it, or change scp.port")
        return f"Our service answers on port {scp.port} with the certificate of scp.tls."
    ourselves = DestinationSettings(name="this-node", kind="dicom", ae_title=scp.ae_title, host=host, port=scp.port)
    calling = scp.peers[0].ae_title if scp.peers else scp.ae_title
    try:
        Scu(calling, LONGEST_WAIT_S, LONGEST_WAIT_S).echo(ourselves)
    except Refused as error:
        if "calling AE title" not in str(error):
            raise ConfigError(f"another DICOM service holds port {scp.port}: stop it, or change scp.port") from error
        return f"A DICOM service answers on port {scp.port}; it lets this host in as little as ours would."
    except Unavailable as error:
        raise ConfigError(f"another program holds port {scp.port}: stop it, or change scp.port") from error
    return f"Our service answers on port {scp.port}."


def _dialled(host: str) -> str:
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "::1" if address.version == 6 else "127.0.0.1"
    return host


def _shown_certificate(host: str, port: int, own: TlsSettings) -> str | None:
    """Fingerprint of the certificate that a TLS service shows; None where there is no TLS."""
    context = client_context(own)
    context.check_hostname = False  # we dial ourselves by address, and compare the certificate itself
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout=LONGEST_WAIT_S) as plain,
            context.wrap_socket(plain) as connection,
        ):
            return tls.peer_fingerprint(connection)
    except OSError:
        return None


def _destinations(settings: Settings) -> str:
    names = [one.name for one in settings.delivery.destinations]
    if not names:
        return "None is named under [[delivery.destinations]]: reports stay on this node."
    return f"Every report goes to {', '.join(names)}."


def _orthanc(settings: OrthancSettings) -> str:
    with OrthancClient(settings) as client:
        return f"Orthanc {client.version()} answers."


def _destination(settings: Settings, destination: DestinationSettings) -> str:
    if destination.kind == "dicom":
        Scu(settings.scp.ae_title, LONGEST_WAIT_S, LONGEST_WAIT_S).echo(destination)
        return f"{destination.ae_title} answers the echo."
    with StowClient(destination) as client:
        client.reach()
    return "The DICOMweb service answers."


def _mutual_tls(peer: EndpointSettings, own: TlsSettings, timeout_s: float) -> str:
    context = tls.client_context(own)
    with tls.connect(peer.host, peer.port, context, peer.fingerprint, min(timeout_s, LONGEST_WAIT_S)) as connection:
        connection.settimeout(REFUSAL_WAIT_S)
        try:
            refused = connection.recv(1) == b""
        except TimeoutError:
            refused = False
        except OSError as error:
            raise tls.explain(error) from error
    if refused:
        raise ProtocolError(
            f"{peer.host} port {peer.port} does not take this site's certificate: give its administrator the "
            f"fingerprint {tls.fingerprint(own.certificate)}"
        )
    return f"{peer.host} port {peer.port} is the one agreed on and takes this site's certificate."
