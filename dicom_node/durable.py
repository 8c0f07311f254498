"""Files that are either whole and durable under their final name, or not there: fsync, rename, fsync of the folder."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
from pathlib import Path

from .core.errors import Unavailable
from .core.failpoint import reach

_numbers = itertools.count()


def disk_error(error: OSError) -> Unavailable:
    """Say what the disk did, without naming the file."""
    return Unavailable(f"the disk cannot take the file: {error.strerror or type(error).__name__}", code="disk")


def sync_folder(folder: Path) -> None:
    """Make the names inside a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class TemporaryFile:
    """A file under a temporary name that `settle` makes durable under its final one.

    It stays locked while its writer lives: the kernel drops the lock with the process, however that ends, and `sweep`
    tells an abandoned file from one that another process is writing.

    Raises
    ------
    Unavailable
        The disk is full or failing; so does every method.
    """

    def __init__(self, folder: Path) -> None:
        self._path: Path | None = None
        while self._path is None:
            path = folder / f"{os.getpid()}-{next(_numbers)}.part"
            try:
                self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileExistsError:
                continue  # left by an earlier process with our number
            except OSError as error:
                raise disk_error(error) from error
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            if os.fstat(self._descriptor).st_nlink:  # else it was swept between open and lock
                self._path = path
            else:
                os.close(self._descriptor)

    def write(self, content: bytes | memoryview | bytearray) -> None:
        """Append `content`; a write that takes less than it was given is continued."""
        view = memoryview(content)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            raise disk_error(error) from error

    def read(self, count: int, offset: int) -> bytes:
        """Read back what was written."""
        return os.pread(self._descriptor, count, offset)

    def settle(self, path: Path, size: int) -> None:
        """Move the file to `path`, on the same file system, and return once that survives a power cut.

        Parameters
        ----------
        size : int
            Length that the file must have, bytes.
        """
        assert self._path is not None
        try:
            found = os.fstat(self._descriptor).st_size
            if found != size:
                raise Unavailable(f"the disk kept {found} of {size} bytes", code="disk")
            os.fsync(self._descriptor)
            reach("store-temporary-synced")
            os.rename(self._path, path)  # noqa: PTH104  (named as the call that the order of durability is about)
            self._path = None
            reach("store-renamed")
            sync_folder(path.parent)
        except OSError as error:
            raise disk_error(error) from error
        finally:
            self.discard()

    def discard(self) -> None:
        """Close and, unless settled, remove the file; harmless the second time."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None


def sweep(path: Path) -> bool:
    """Remove a temporary file whose writer is gone; return whether it was removed."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            return True
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
    return False
