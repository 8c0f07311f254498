"""Stops the use of a dealer that was caught cheating, over restarts, until a person has looked."""

from __future__ import annotations

import json
from pathlib import Path

from dicom_node.core import logs
from dicom_node.core.errors import IntegrityError
from dicom_node.durable import TemporaryFile

log = logs.get(__name__)


class Distrust:
    """One dealer's record at this side.

    Parameters
    ----------
    path : Path
        The file that stands there as long as a dealer is distrusted; JSON, with the signed manifest as evidence. The
        operator removes it, or names another dealer in the settings.
    dealer : str
        Fingerprint of the dealer's certificate.
    """

    def __init__(self, path: Path, dealer: str) -> None:
        self._path = path
        self._dealer = dealer

    def check(self) -> None:
        """Pass only where the dealer is trusted.

        Raises
        ------
        IntegrityError
            It was caught (``dealer-distrusted``).
        """
        if self._path.exists() and self._dealer in self._path.read_text():
            raise IntegrityError(
                f"an audit caught the dealer forging a bundle: ask its operator, name another dealer, or remove "
                f"{self._path} to trust it again",
                code="dealer-distrusted",
            )

    def note(self, bundle: bytes, signed: bytes, now: float) -> None:
        """Distrust the dealer from now on, durably; harmless the second time.

        Parameters
        ----------
        signed : bytes
            The manifest with the dealer's signature: what proves to others what it dealt.
        """
        record = {"dealer": self._dealer, "bundle": bundle.hex(), "at": now, "signed_manifest": signed.hex()}
        content = json.dumps(record).encode()
        temporary = TemporaryFile(self._path.parent)
        try:
            temporary.write(content)
            temporary.settle(self._path, len(content))
        finally:
            temporary.discard()
        log.error("dealer-distrusted", bundle_id=bundle.hex(), fingerprint=self._dealer, path=str(self._path))
