"""Clipped gradients of a linear head in closed form: ghost clipping (Goodfellow, arXiv 1510.01799).

The gradient of one image is a x^T: `a` holds three numbers, and x does not change during a descent. So the norm of a
patient's gradient, a sum over the patient's images, needs only the products of those images with each other, which are
computed once; no gradient of a single patient is ever formed, and a step costs about what a plain one does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Products of images that are computed at once: three times 8 MiB of binary64 for a head of 1024 features.
PAIRS_AT_ONCE = 1 << 10


def linear_head(module: nn.Module, inputs: Tensor) -> bool:
    """Tell whether the module is one matrix, without a bias, that is applied to one vector for each image."""
    return isinstance(module, nn.Linear) and module.bias is None and inputs.ndim == 2


def linear_gradients(weight: Tensor, inputs: Tensor, labels: Tensor, weights: Tensor, owner: Tensor) -> Tensor:
    """Form each patient's gradient of softmax cross-entropy, for sums that must see every one of them.

    Parameters
    ----------
    weight : Tensor of float32, shape (classes, features)
    inputs, labels, weights
        As for `LinearGradients`, of some images.
    owner : Tensor of int64, shape (images,)
        Whose each image is, ascending from 0 without gaps; empty where there is none.

    Returns
    -------
    Tensor of float32, shape (patients, classes, features)
    """
    shares = _shares(weight, inputs, functional.one_hot(labels, len(weight)), weights)
    each = shares[:, :, None] * inputs[:, None, :]
    count = int(owner[-1]) + 1 if len(owner) else 0
    return each.new_zeros((count, *weight.shape)).index_add_(0, owner, each)


def _shares(weight: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Compute `a` of each image, shape (images, classes)."""
    return (torch.softmax(inputs @ weight.T, 1) - targets) * weights[:, None]


class LinearGradients:
    """Sums of clipped patients' gradients of softmax cross-entropy over images of one or several for each patient.

    Parameters
    ----------
    inputs : Tensor of float32, shape (images, features)
    labels, patients : Tensor of int64, shape (images,)
        Patients ascend from 0; all images of one stand together.
    weights : Tensor of float32, shape (images,)
        Of each image within its patient's loss.
    classes : int
    """

    def __init__(self, inputs: Tensor, labels: Tensor, patients: Tensor, weights: Tensor, classes: int) -> None:
        self._inputs, self._patients, self._weights = inputs, patients, weights
        self._targets = functional.one_hot(labels, classes).to(inputs.dtype)
        self.count = int(patients[-1]) + 1
        sizes = torch.bincount(patients, minlength=self.count)
        ends = sizes.cumsum(0)
        followers = ends[patients] - 1 - torch.arange(len(patients))  # images of the same patient that come later
        self._first = torch.arange(len(patients)).repeat_interleave(followers)
        before = followers.cumsum(0) - followers
        self._second = self._first + 1 + torch.arange(len(self._first)) - before[self._first]
        self._squares = torch.cat([some.double().square().sum(1) for some in torch.split(inputs, PAIRS_AT_ONCE)])
        # In float64: where two images' gradients nearly cancel, rounding must not make the norm look small.
        self._products = torch.empty(len(self._first), dtype=torch.float64)
        for start in range(0, len(self._first), PAIRS_AT_ONCE):
            some = slice(start, start + PAIRS_AT_ONCE)
            self._products[some] = (inputs[self._first[some]].double() * inputs[self._second[some]].double()).sum(1)

    def clipped_sum(self, weight: Tensor, clip: float, drawn: Tensor) -> Tensor:
        """Sum the gradients of the drawn patients, each shortened to norm `clip`.

        Parameters
        ----------
        weight : Tensor of float32, shape (classes, features)
        clip : float
        drawn : Tensor of bool, shape (patients,)

        Returns
        -------
        Tensor of float32, shape (classes, features)
        """
        inputs, targets, weights, present = self._inputs, self._targets, self._weights, None
        if not bool(drawn.all()):
            present = drawn[self._patients].nonzero()[:, 0]
            inputs, targets, weights = inputs[present], targets[present], weights[present]
        shares = _shares(weight, inputs, targets, weights)
        if present is None:
            return (shares * self._factors(shares.double(), clip)[:, None]).T @ inputs
        among_all = torch.zeros(self._targets.shape, dtype=torch.float64).index_copy_(0, present, shares.double())
        return (shares * self._factors(among_all, clip)[present, None]).T @ inputs

    def _factors(self, shares: Tensor, clip: float) -> Tensor:
        """Return by how much each image's gradient is shortened, shape (images,)."""
        squared = torch.zeros(self.count, dtype=torch.float64)
        squared.index_add_(0, self._patients, shares.square().sum(1) * self._squares)
        mixed = (shares[self._first] * shares[self._second]).sum(1) * self._products
        squared.index_add_(0, self._patients[self._first], 2.0 * mixed)
        length = squared.clamp_min_(0.0).sqrt_()
        return (clip / length.clamp_min_(clip))[self._patients].float()
