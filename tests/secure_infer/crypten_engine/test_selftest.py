"""The self-test passes on what is hardened, and each of its parts goes red on CrypTen as it is shipped."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from dicom_node.core.errors import ConfigError
from secure_infer.crypten_engine.process import require_installed
from tests.secure_infer.small_network import every_kind

#: In a process of its own: CrypTen's state is global, and it warns when it is imported.
PROGRAM = """
import json, sys
import numpy as np
import torch
from dicom_node.core.errors import VeilRayError
from secure_infer.clear import evaluate
from secure_infer.crypten_engine import child, library
from secure_infer.crypten_engine.tuples import require_one_scale
from secure_infer.protocol.party1 import PrivateModel
from secure_infer.protocol.plan import Plan
from tests.secure_infer.small_model import weights_of
from tests.secure_infer.small_network import every_kind

def outcome(test, *arguments):
    try:
        test(*arguments)
    except VeilRayError as error:
        return error.code
    return "passed"

stock = lambda seed: torch.Generator().manual_seed(seed)
found = {
    "stock streams": outcome(library.require_sound_streams, stock),
    "stock providers": outcome(library.require_refusal),
}
library.harden()
found["streams"] = outcome(library.require_sound_streams)
found["short streams"] = outcome(library.require_sound_streams, lambda seed: library.Stream.of(seed % 2**32))
found["stock generator"] = outcome(library.require_sound_streams, stock)
found["providers"] = outcome(library.require_refusal)
found["all"] = outcome(child.self_test)
made, weights = every_kind(), weights_of(every_kind())
plan = Plan(made)
require_one_scale(plan)
model = PrivateModel.of("every kind", bytes(32), plan, weights)
tensors = {f"{name}.weight": one for name, one in model.weights.items()}
tensors |= {f"{name}.bias": one for name, one in model.biases.items()}
for seed in range(3):
    image = np.random.default_rng(seed).uniform(-1, 1, made.input_shape)
    clear = evaluate(made, weights, image)
    for name, opened in zip((made.output, made.guard), child.rehearse(made, tensors, image)):
        wrong = float(np.abs(opened - clear[name].numpy()[0]).max())
        found[f"{name} {seed}"] = "passed" if wrong < 1e-3 else wrong
right = library.truncated
library.truncated = lambda *given, **options: 2 * right(*given, **options)
found["a wrong product"] = outcome(child.self_test)
json.dump(found, sys.stdout)
"""


def test_hardened_crypten_passes_and_computes_every_kind_of_layer_while_each_part_of_stock_crypten_is_refused():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=280)
    assert json.loads(done.stdout) == {
        "stock streams": "self-test",
        "stock providers": "self-test",
        "streams": "passed",
        "short streams": "self-test",
        "stock generator": "self-test",
        "providers": "passed",
        "all": "passed",
        **{f"{name} {seed}": "passed" for seed in range(3) for name in (every_kind().output, every_kind().guard)},
        "a wrong product": "self-test",
    }


def test_an_installation_without_crypten_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'veilray\[crypten\]'"):
        require_installed()
