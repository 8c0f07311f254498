"""Each network, after steps of DP-SGD, on both encrypted engines between real processes: the logits of plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from fl_agent.randomness import SecureSource
from fl_agent.train import Recipe, descend, patient_rows
from secure_infer.card import ModelCard
from secure_infer.compile import compile_network
from secure_infer.crypten_engine.hospital import CryptenEngine
from tests.fl_agent.test_networks import NETWORKS, films
from tests.secure_infer.small_model import publish
from tests.system.roles import Roles

#: Eleven million parameters take their time on a busy machine.
pytestmark = pytest.mark.timeout(900)


@cache
def trained(name: str) -> tuple[nn.Module, np.ndarray]:
    """Train a network privately; what every step leaves, and images that it has not seen."""
    make, shape = next(one.values for one in NETWORKS if one.id == name)
    torch.manual_seed(1)
    network: nn.Module = make()
    before = {key: one.detach().clone() for key, one in network.named_parameters()}
    patients = np.arange(6) // 2
    recipe = Recipe(steps=2, sampling_rate=0.6, clip=0.5, learning_rate=0.05, momentum=0.9)
    rows = patient_rows(films(shape, 6), patients, patients)
    averaged = descend(network, rows, recipe, 0.1, SecureSource(bytes(32)), at_once=2)
    assert averaged.keys() == before.keys()
    still = [key for key, one in averaged.items() if torch.equal(one, before[key])]
    assert still == []
    network.load_state_dict(averaged)
    return network.eval(), films(shape, 1, seed=7)[:, 0].astype(np.float64)


@pytest.fixture(scope="module")
def roles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roles]:
    made = Roles(tmp_path_factory.mktemp("roles"), timeout_s=60.0)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def card_of(roles: Roles, name: str) -> ModelCard:
    """Compile a trained network and give it to the running party, once."""
    if name not in roles.cards:
        compiled = compile_network(*trained(name))
        roles.cards[name] = publish(roles.models, compiled.program, compiled.weights, version=name)
    return roles.cards[name]


@pytest.mark.parametrize("engine", ["dealt-2pc", "crypten"])
@pytest.mark.parametrize(
    # Max-pooling has its tests with a smaller network; at full size it is ResNet-18 once more.
    "name",
    [pytest.param(one.id, marks=pytest.mark.campaign if one.id == "resnet18-max" else ()) for one in NETWORKS],
)
def test_a_privately_trained_network_gives_the_logits_of_plain_torch(roles: Roles, name: str, engine: str) -> None:
    (network, images), card = trained(name), card_of(roles, name)
    if engine == "crypten":
        opened = CryptenEngine(card, roles.inference(timeout_s=60.0), roles.folder / f"crypten-{name}")
    else:
        opened = roles.engine(card, timeout_s=60.0)
    assert opened.name == engine
    try:
        for image in images:
            with torch.inference_mode():
                expected = network(torch.from_numpy(image)[None].float())[0].numpy()
            assert np.abs(opened.infer(image).logits - expected).max() < 1e-3
    finally:
        opened.close()
