"""What a hospital could send of the same few films: a plain update, and what does leave it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fl_agent.randomness import SecureSource
from fl_agent.secagg.frames import open_frame
from fl_agent.secagg.messages import MaskedInput
from fl_agent.train import Recipe, Rows, descend
from tests.fl_agent.secagg.consortium import Consortium, run

#: One step on all patients, whose change of the weights is minus the gradient.
STEP = Recipe(steps=1, sampling_rate=1.0, clip=1.0, learning_rate=1.0, momentum=0.0, averaged=0.0)


def private(network: nn.Module, images: Tensor, labels: Tensor, noise_multiplier: float) -> list[Tensor]:
    """The update of mode SITE: one step of `descend`, each film a patient; without noise it is clipped alone."""
    module = copy.deepcopy(network)
    count = len(labels)
    rows = Rows(images, labels, torch.arange(count), torch.ones(count))
    found = descend(module, rows, STEP, noise_multiplier, SecureSource())
    return [start.detach() - found[name] for name, start in network.named_parameters()]


def masked(update: Sequence[Tensor], folder: Path) -> list[Tensor]:
    """What the courier and the coordinator see of that update in a secure sum of three hospitals, read as numbers."""
    flat = torch.cat([one.flatten() for one in update]).numpy().astype(np.float32)
    consortium = Consortium(folder, 3, lengths=(len(flat),), clip=float(np.abs(flat).max()))
    zeros = np.zeros(len(flat), dtype=np.float32)
    frames = [open_frame(one) for one in run(consortium, {1: [flat], 2: [zeros], 3: [zeros]})]
    consortium.close()
    (sent,) = [one for one in frames if one.kind is MaskedInput and one.sender == 1]
    words = np.frombuffer(bytes(sent.body), dtype="<i4")
    # The sum of all three is the update: nothing was lost, it is only that nobody sees one summand.
    assert np.allclose(consortium.server.result()[0], flat, atol=1e-6)
    seen = torch.from_numpy(words * consortium.header.blocks[0].step).float()
    return [one.view(like.shape) for one, like in zip(seen.split([x.numel() for x in update]), update, strict=True)]
