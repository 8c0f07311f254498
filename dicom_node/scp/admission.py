"""Who may open an association, and how many at once (A-ASSOCIATE-RJ, PS3.8 Section 9.3.4)."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..core.errors import ConfigError
from ..core.settings import ScpSettings

#: Connections of one address that have not finished TLS and negotiation; one more pushes out the oldest of them.
PENDING_PER_ADDRESS = 16
PENDING_PER_STRANGER = 4
PENDING = 128
#: The same refusal of the same address is audited once in this time, or a stranger could fill the audit trail.
ALERT_EVERY_S = 60.0


@dataclass(frozen=True)
class Rejection:
    """Result, source and reason of an A-ASSOCIATE-RJ, and our word for it."""

    code: str
    result: int
    source: int
    reason: int


APPLICATION_CONTEXT_UNKNOWN = Rejection("application-context-unknown", 1, 1, 2)
CALLING_UNKNOWN = Rejection("calling-ae-unknown", 1, 1, 3)
CALLED_UNKNOWN = Rejection("called-ae-unknown", 1, 1, 7)
VERSION_UNKNOWN = Rejection("protocol-version-unknown", 1, 2, 2)
TOO_MANY = Rejection("too-many-associations", 2, 3, 2)


class Whitelist:
    """The application entities of site.toml.

    Raises
    ------
    ConfigError
        An address is neither an IP address nor a network.
    """

    def __init__(self, settings: ScpSettings) -> None:
        self._own = settings.ae_title
        try:
            self._peers = [
                (peer.ae_title, [ipaddress.ip_network(address, strict=False) for address in peer.addresses])
                for peer in settings.peers
            ]
        except ValueError as error:
            raise ConfigError("scp.peers.addresses must be IP addresses or networks such as 10.1.2.0/24") from error

    def lists(self, address: str) -> bool:
        """Tell whether any peer may call from this address."""
        ip = _ip(address)
        return any(ip in network for _, networks in self._peers for network in networks)

    def judge(self, calling: str, called: str, address: str) -> Rejection | None:
        """Return why this call is refused, or None."""
        ip = _ip(address)
        if not any(title == calling and any(ip in network for network in networks) for title, networks in self._peers):
            return CALLING_UNKNOWN
        return CALLED_UNKNOWN if called != self._own else None


class Connections:
    """The connections that are open: those still negotiating are bounded by eviction, associations by refusal."""

    def __init__(self, settings: ScpSettings) -> None:
        self._maximum = settings.maximum_associations
        self._maximum_per_address = settings.maximum_associations_per_address
        self._lock = threading.Lock()
        self._pending: dict[object, str] = {}  # in the order of their arrival
        self._associated: dict[object, str] = {}

    def enter(self, connection: object, address: str, *, listed: bool) -> object | None:
        """Count a new connection; return the one that has to go for it, if any."""
        with self._lock:
            limit = PENDING_PER_ADDRESS if listed else PENDING_PER_STRANGER
            same = [one for one, where in self._pending.items() if where == address]
            evicted = same[0] if len(same) >= limit else None
            if evicted is None and len(self._pending) >= PENDING:
                evicted = next(iter(self._pending))
            if evicted is not None:
                del self._pending[evicted]
            self._pending[connection] = address
            return evicted

    def associate(self, connection: object) -> bool:
        """Move a connection to the associations; false when there are too many."""
        with self._lock:
            address = self._pending.pop(connection, None)
            if address is None:
                return False
            same = sum(where == address for where in self._associated.values())
            if len(self._associated) >= self._maximum or same >= self._maximum_per_address:
                return False
            self._associated[connection] = address
            return True

    def leave(self, connection: object) -> None:
        """Forget a connection."""
        with self._lock:
            self._pending.pop(connection, None)
            self._associated.pop(connection, None)


class AlertLimit:
    """Lets each kind of alert pass once per `ALERT_EVERY_S`, with the number of those held back since."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def passes(self, address: str, code: str) -> int:
        """Return how many alerts this one stands for; 0 when it is held back."""
        now = self._clock()
        with self._lock:
            if len(self._seen) > 4096:  # a table that strangers fill must not grow
                self._seen = {key: seen for key, seen in self._seen.items() if now - seen[0] < ALERT_EVERY_S}
            since, held = self._seen.get((address, code), (-ALERT_EVERY_S, 0))
            if now - since < ALERT_EVERY_S:
                self._seen[address, code] = since, held + 1
                return 0
            self._seen[address, code] = now, 0
            return held + 1


def _ip(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    ip = ipaddress.ip_address(address.partition("%")[0])
    return (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip
