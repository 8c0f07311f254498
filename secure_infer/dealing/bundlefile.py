"""The file of a bundle that was dealt ahead, and a bundle that was taken out of it, once.

The layout: party 1's material, layer after layer; the sealed seed (80 bytes); the signed manifest; its length (4 bytes,
big-endian); eight letters. No seed is in it: whoever takes such files can open no bundle.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from dicom_node.core import failpoint
from dicom_node.core.errors import ProtocolError
from dicom_node.durable import TemporaryFile, disk_error, sync_folder

from ..protocol.dealer import Dealt
from ..protocol.manifest import Manifest, verified
from ..protocol.messages import Vector
from ..protocol.seal import SEALED_BYTES

END: Final = struct.Struct(">I8s")
MAGIC: Final = b"VRBUNDLE"
SUFFIX: Final = ".bundle"


@dataclass(frozen=True)
class Parcel:
    """A bundle that was taken: an open file without a name, which ends with its process.

    Attributes
    ----------
    file : BinaryIO
        Party 1's material, and no matter what after it.
    sizes : tuple of int
        Length of each layer's material, bytes.
    """

    file: BinaryIO
    dealt: Dealt
    sizes: tuple[int, ...]

    def materials(self) -> Iterator[Vector]:
        """Map party 1's material from the file, one layer at a time, so that no copy of it is held."""
        position = 0
        for size in self.sizes:
            start = position - position % mmap.ALLOCATIONGRANULARITY
            length = position + size - start
            page = mmap.mmap(self.file.fileno(), length, prot=mmap.PROT_READ, offset=start)
            yield memoryview(page)[position - start :]  # unmapped with its last view
            position += size

    def burn(self) -> None:
        """Close the file, which is its end; harmless the second time."""
        self.file.close()


Deal = Callable[[Callable[[Vector], object]], Dealt]


def deal_now(folder: Path, deal: Deal, sizes: tuple[int, ...]) -> Parcel:
    """Deal into a file that never has a name.

    Parameters
    ----------
    deal : callable
        Makes the bundle and gives away its material, part by part.

    Raises
    ------
    Unavailable
        The disk is full or failing (``disk``); so do the other functions.
    """
    try:
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # `Parcel.burn` closes it
        try:
            dealt = deal(file.write)
            file.flush()
        except BaseException:
            file.close()
            raise
    except OSError as error:
        raise disk_error(error) from error
    return Parcel(file, dealt, sizes)


def deal_ahead(folder: Path, deal: Deal) -> tuple[Path, int]:
    """Deal into a file that is whole and durable once it has its name; return the name and its length, bytes."""
    temporary, size = TemporaryFile(folder), 0

    def keep(part: Vector) -> None:
        nonlocal size
        temporary.write(part)
        size += len(part)

    try:
        dealt = deal(keep)
        failpoint.reach("dealer-half-written")
        keep(dealt.sealed + dealt.signed + END.pack(len(dealt.signed), MAGIC))
        path = folder / f"{dealt.bundle.hex()}{SUFFIX}"
        temporary.settle(path, size)
    finally:
        temporary.discard()
    return path, size


def take(path: Path, sizes: tuple[int, ...], dealer: bytes) -> tuple[Parcel, Manifest]:
    """Take a bundle: its name is gone, durably, before this returns, so that no restart offers it again.

    Parameters
    ----------
    dealer : bytes
        Fingerprint of the certificate that must have signed it.

    Raises
    ------
    ProtocolError
        The file is no whole bundle of that name; it is burned.
    """
    try:
        file = path.open("rb", buffering=0)
        path.unlink()
        sync_folder(path.parent)
    except OSError as error:
        raise disk_error(error) from error
    failpoint.reach("dealer-taken")
    try:
        sealed, signed = _end(file, sum(sizes))
        manifest = verified(signed, dealer)
        manifest.require(bundle=bytes.fromhex(path.stem))
    except BaseException:
        file.close()
        raise
    return Parcel(file, Dealt(manifest.bundle, sealed, signed), sizes), manifest


def _end(file: BinaryIO, materials: int) -> tuple[bytes, bytes]:
    """Read the sealed seed and the signed manifest."""
    length = file.seek(0, os.SEEK_END)
    rest = length - materials - SEALED_BYTES - END.size
    if rest > 0:
        file.seek(materials)
        sealed, signed = file.read(SEALED_BYTES), file.read(rest)
        if file.read(END.size) == END.pack(rest, MAGIC):
            return sealed, signed
    raise ProtocolError("the file holds no whole bundle", code="malformed-bundle")
