"""The self-test passes on what is hardened, and each of its parts goes red on CrypTen as it is shipped."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from dicom_node.core.errors import ConfigError
from secure_infer.crypten_engine.process import require_installed

#: In a process of its own: CrypTen's state is global, and it warns when it is imported.
PROGRAM = """
import json, sys
import torch
from dicom_node.core.errors import VeilRayError
from secure_infer.crypten_engine import child, library

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
right = library.truncated
library.truncated = lambda *given, **options: 2 * right(*given, **options)
found["a wrong product"] = outcome(child.self_test)
json.dump(found, sys.stdout)
"""


def test_the_self_test_passes_when_hardened_and_goes_red_on_every_part_of_stock_crypten():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=280)
    assert json.loads(done.stdout) == {
        "stock streams": "self-test",
        "stock providers": "self-test",
        "streams": "passed",
        "short streams": "self-test",
        "stock generator": "self-test",
        "providers": "passed",
        "all": "passed",
        "a wrong product": "self-test",
    }


def test_an_installation_without_crypten_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'veilray\[crypten\]'"):
        require_installed()
