"""What a head sees of an image: the trunk's features, averaged over positions (Lin et al. 2013, arXiv 1312.4400)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secure_infer.network import Trunk

Image = NDArray[np.float32]


def pooled(trunk: Trunk, image: Image, views: Sequence[str]) -> NDArray[np.float32]:
    """Compute the features of one image.

    Parameters
    ----------
    trunk : Trunk
    image : ndarray of float32, shape (224, 224)
        0..1, bright is dense.
    views : sequence of str
        Of `trainset.VIEWS`.

    Returns
    -------
    ndarray of float32, shape (views, channels)
        Norm of each vector at most 1.
    """
    seen = [image[:, ::-1] if view == "mirrored" else image for view in views]
    return np.stack([trunk.features(one).mean((1, 2)) for one in seen]).astype(np.float32)


class FeatureCache:
    """Features of images, each computed once; they are patient data as much as the images are.

    Parameters
    ----------
    folder : Path
        Made with mode 0700; used by this alone, since what belongs to nobody is erased.
    trunk : Trunk
    views : sequence of str
        Of `trainset.VIEWS`.
    """

    def __init__(self, folder: Path, trunk: Trunk, views: Sequence[str]) -> None:
        self._folder = folder
        self._trunk = trunk
        self._views = tuple(views)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def shape(self) -> tuple[int, int]:
        """Of one image's features: views and channels."""
        return len(self._views), self._trunk.channels

    def features(self, name: str, read: Callable[[], Image]) -> NDArray[np.float32]:
        """Return the features of an image; it is read only where they are not known.

        Parameters
        ----------
        name : str
            Of the image's content, and of the rules by which it was found fit.
        read : callable
            Returns the image.
        """
        target = self._file(name)
        if target.is_file():
            cached: NDArray[np.float32] = np.load(target, allow_pickle=False)
            return cached
        found = pooled(self._trunk, read(), self._views)
        part = target.with_suffix(".part")
        with part.open("wb") as stream:
            np.save(stream, found, allow_pickle=False)
        part.replace(target)
        return found

    def erase_all_but(self, names: Collection[str]) -> None:
        """Keep the features of these images alone."""
        kept = {self._file(name).name for name in names}
        for path in self._folder.iterdir():
            if path.name not in kept:
                path.unlink()

    def _file(self, name: str) -> Path:
        """Return where features are kept: another trunk or other views make another file."""
        identity = "\n".join([self._trunk.identity, *self._views, name])
        return self._folder / f"{hashlib.sha256(identity.encode()).hexdigest()}.npy"
