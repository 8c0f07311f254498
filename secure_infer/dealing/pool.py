"""The dealer's pool: bundles dealt ahead while it is idle, as files that are handed out once, also after a crash.

::

    pool/
    └── <order>/               one for each hospital, party, model version and sealing key
        ├── order              what is dealt, as `Order` reads it; its time is that of the last request
        ├── <bundle>.bundle    ready: whole and durable under this name
        └── *.part             being written; burned at the next start

The layout of a bundle is `bundlefile`'s. Taking one removes its name, durably, before the first byte leaves: from then
on it lives in an open file alone and ends with the process.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from dicom_node.core import logs
from dicom_node.core.errors import ConfigError, ProtocolError
from dicom_node.durable import TemporaryFile, disk_error, sync_folder

from ..protocol.dealer import Dealing, Dealt, Order
from ..protocol.messages import Vector
from ..protocol.plan import parse
from ..protocol.prg import weight_mask_id
from . import bundlefile

log = logs.get(__name__)
#: Version, model, hospital, party, sealing key, dealer's certificate, weight mask; the program's JSON follows.
ORDER: Final = struct.Struct(">B32s32s32s32s32s16s")
ORDER_VERSION: Final = 1
#: Orders kept for one hospital and party: a few model versions side by side, on a few workers. More would let one
#: hospital take the whole pool.
LARGEST_ORDERS: Final = 4
#: Requests come first, but not so that a busy dealer never deals ahead again: longest pause before a layer, seconds.
LONGEST_YIELD_S: Final = 1.0


@dataclass(frozen=True)
class Limits:
    """How much is dealt ahead.

    Attributes
    ----------
    bundles : int
        Bundles that wait for each order.
    bytes : int
        Length of all files together.
    idle_s : float
        Time after which an order makes room for a newer one of the same hospital and party, seconds.
    """

    bundles: int
    bytes: int
    idle_s: float


@dataclass
class _Shelf:
    """The bundles that wait for one order: files with their lengths, the oldest first."""

    order: Order
    folder: Path
    asked_at: float
    ready: deque[tuple[Path, int]] = field(default_factory=deque)

    @property
    def size(self) -> int:
        """About the length of one bundle's file."""
        return sum(self.order.plan.materials.values())

    @property
    def pair(self) -> tuple[bytes, bytes]:
        return self.order.hospital, self.order.party


class Pool:
    """The stock of a dealer; see `stock.Stock`.

    Parameters
    ----------
    folder : Path
        Made where it does not exist. What is found there and cannot be served is burned.
    dealing : Dealing
    limits : Limits
    hospitals, parties : frozenset of bytes
        Orders of others are dropped at the start.
    clock : callable
        Seconds since the epoch.

    Raises
    ------
    ConfigError
        Another process uses the folder (``pool``).
    Unavailable
        The disk is full or failing (``disk``); so do all methods.
    """

    def __init__(
        self,
        folder: Path,
        dealing: Dealing,
        limits: Limits,
        hospitals: frozenset[bytes],
        parties: frozenset[bytes],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._dealing = dealing
        self._limits = limits
        self._hospitals, self._parties = hospitals, parties
        self._clock = clock
        self._shelves: dict[str, _Shelf] = {}
        self._lock = threading.RLock()
        self._quiet = threading.Condition()
        self._requests = 0
        self._asked: dict[tuple[bytes, bytes], float] = {}
        self._counts: Counter[str] = Counter()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._guard = self._claim()
            for found in sorted(folder.iterdir()):
                self._load(found)
        except OSError as error:
            raise disk_error(error) from error

    def _claim(self) -> int:
        """Lock the folder for as long as this process lives: two dealers on one pool would hand bundles out twice."""
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise ConfigError("another dealer uses this pool: give each a folder of its own", code="pool") from error
        return descriptor

    def close(self) -> None:
        """Let another process have the folder."""
        os.close(self._guard)

    def admit(self, hospitals: frozenset[bytes], parties: frozenset[bytes]) -> None:
        """Replace the lists of those for whom bundles are dealt; the next `fill` drops what waits for others."""
        with self._lock:
            self._hospitals, self._parties = hospitals, parties

    def figures(self) -> dict[str, int]:
        """Count what waits now (orders, bundles, bytes) and what happened since the start, for logs and metrics."""
        with self._lock:
            waiting = [size for shelf in self._shelves.values() for _, size in shelf.ready]
            since = {name: self._counts[name] for name in ("dealt_ahead", "dealt_on_demand", "handed_out", "burned")}
            return {"orders": len(self._shelves), "bundles": len(waiting), "bytes": sum(waiting), **since}

    @contextmanager
    def request(self) -> Iterator[None]:
        """Answer a request within: dealing ahead waits meanwhile."""
        with self._quiet:
            self._requests += 1
        try:
            yield
        finally:
            with self._quiet:
                self._requests -= 1
                self._quiet.notify_all()

    def take(self, order: Order) -> bundlefile.Parcel:
        """Hand out a bundle that waits, or deal one now."""
        shelf = self._shelf(order)
        while shelf is not None:
            with self._lock:
                path, _ = shelf.ready.popleft() if shelf.ready else (None, 0)
            if path is None:
                break
            parcel = self._open(path, order)
            if parcel is not None:
                self._count("handed_out")
                return parcel
        parcel = bundlefile.deal_now(
            self._folder, partial(self._dealing.deal, order), tuple(order.plan.materials.values())
        )
        self._count("dealt_on_demand")
        return parcel

    def fill(self, now: float) -> bool:
        """Deal one bundle ahead, for the order that has fewest; false where nothing is wanted or the pool is full.

        Parameters
        ----------
        now : float
            Seconds since the epoch.
        """
        self._retire(now)
        with self._lock:
            room = self._limits.bytes - self.figures()["bytes"]
            wanting = [
                one for one in self._shelves.values() if len(one.ready) < self._limits.bundles and one.size <= room
            ]
            if not wanting:
                return False
            shelf = min(wanting, key=lambda one: (len(one.ready), -one.asked_at))

        def deal(keep: Callable[[Vector], object]) -> Dealt:
            def politely(part: Vector) -> None:
                self._give_way()
                keep(part)

            return self._dealing.deal(shelf.order, politely)

        path, size = bundlefile.deal_ahead(shelf.folder, deal)
        with self._lock:
            shelf.ready.append((path, size))
        self._count("dealt_ahead")
        log.info("bundle-dealt-ahead", bundle_id=path.stem, bytes=size, count=len(shelf.ready))
        return True

    def _give_way(self) -> None:
        with self._quiet:
            self._quiet.wait_for(lambda: not self._requests, timeout=LONGEST_YIELD_S)

    def _open(self, path: Path, order: Order) -> bundlefile.Parcel | None:
        """Take a file out of the pool for good; nothing where it is not the bundle that it should be."""
        sizes = tuple(order.plan.materials.values())
        try:
            parcel, manifest = bundlefile.take(path, sizes, self._dealing.signer.fingerprint)
        except ProtocolError as error:
            self._burned(path, error)
            return None
        try:
            manifest.require(**self._terms(order))
        except ProtocolError as error:
            parcel.burn()
            self._burned(path, error)
            return None
        return parcel

    def _terms(self, order: Order) -> dict[str, bytes]:
        return {
            "model": order.model,
            "program": order.plan.digest,
            "hospital": order.hospital,
            "party": order.party,
            "sealing_key": order.sealing_key,
            "weight_mask_id": weight_mask_id(self._dealing.weight_mask_seed(order)),
        }

    def _encoded(self, order: Order) -> bytes:
        """Write an order, with what makes bundles of it worthless when it changes: certificate and master key."""
        signer, terms = self._dealing.signer.fingerprint, self._terms(order)
        names = (order.model, order.hospital, order.party, order.sealing_key, signer, terms["weight_mask_id"])
        return ORDER.pack(ORDER_VERSION, *names) + order.plan.encoded

    def _shelf(self, order: Order) -> _Shelf | None:
        """Find the shelf of an order, or make it, durably, so that it is filled from now on."""
        encoded, now = self._encoded(order), self._clock()
        name = _name(encoded)
        with self._lock:
            shelf = self._shelves.get(name)
            pair = (order.hospital, order.party)
            self._asked[pair] = now
            if shelf is None:
                if sum(one.pair == pair for one in self._shelves.values()) >= LARGEST_ORDERS:
                    return None
                shelf = _Shelf(order, self._folder / name, now)
                self._store(shelf, encoded)
                self._shelves[name] = shelf
            shelf.asked_at = now
        try:
            os.utime(shelf.folder / "order", (now, now))
        except OSError as error:
            raise disk_error(error) from error
        return shelf

    def _store(self, shelf: _Shelf, encoded: bytes) -> None:
        try:
            shelf.folder.mkdir(mode=0o700)
            sync_folder(self._folder)
        except OSError as error:
            raise disk_error(error) from error
        temporary = TemporaryFile(shelf.folder)
        try:
            temporary.write(encoded)
            temporary.settle(shelf.folder / "order", len(encoded))
        finally:
            temporary.discard()
        log.info("order-registered", path=shelf.folder.name, fingerprint=shelf.order.hospital.hex())

    def _retire(self, now: float) -> None:
        """Drop orders of peers that left, and those left for others: an older model version's bundles."""
        with self._lock:
            left = [
                name
                for name, one in self._shelves.items()
                if one.asked_at < min(now - self._limits.idle_s, self._asked.get(one.pair, 0.0))
                or not self._served(one.order)
            ]
            dropped = [self._shelves.pop(name) for name in left]
        for one in dropped:
            self._counts["burned"] += len(one.ready)
            self._remove(one.folder, "no-longer-asked-for")

    def _load(self, folder: Path) -> None:
        """Take over what an earlier process left: whole bundles of orders that still hold."""
        try:
            encoded = (folder / "order").read_bytes()
            version, model, hospital, party, sealing_key, _, _ = ORDER.unpack_from(encoded)
            order = Order(model, hospital, party, sealing_key, parse(encoded[ORDER.size :]))
        except (OSError, struct.error, ProtocolError) as error:
            self._remove(folder, type(error).__name__)
            return
        if not self._served(order) or version != ORDER_VERSION or _name(self._encoded(order)) != folder.name:
            self._remove(folder, "peers-or-keys-have-changed")
            return
        asked_at = (folder / "order").stat().st_mtime
        shelf = _Shelf(order, folder, asked_at)
        for path in sorted(folder.iterdir(), key=lambda one: one.stat().st_mtime):
            if path.suffix == bundlefile.SUFFIX:
                shelf.ready.append((path, path.stat().st_size))
            elif path.name != "order":
                path.unlink()
                self._burned(path, ProtocolError("half-written when its process ended", code="malformed-bundle"))
        self._shelves[folder.name] = shelf
        self._asked[shelf.pair] = max(asked_at, self._asked.get(shelf.pair, 0.0))

    def _served(self, order: Order) -> bool:
        return order.hospital in self._hospitals and order.party in self._parties

    def _remove(self, folder: Path, why: str) -> None:
        if folder.is_dir():
            shutil.rmtree(folder)
        else:
            folder.unlink()
        log.info("order-dropped", path=folder.name, state=why)

    def _burned(self, path: Path, error: ProtocolError) -> None:
        self._count("burned")
        log.warning("bundle-burned", path=path.name, **logs.describe(error))

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1


def _name(encoded: bytes) -> str:
    return hashlib.sha256(encoded).hexdigest()[:32]
