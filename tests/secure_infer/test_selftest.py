"""The self-test of a service that starts passes on right arithmetic and stops the service on wrong."""

from __future__ import annotations

import pytest

from dicom_node.core.errors import IntegrityError
from secure_infer import selftest
from secure_infer.protocol import kernels


@pytest.mark.parametrize("bits", [64, 32])
def test_the_self_test_passes(bits):
    for _ in range(20):
        selftest.run(bits)


def test_wrong_arithmetic_does_not_pass_the_self_test(monkeypatch):
    monkeypatch.setattr(kernels, "multiply", lambda left, right, result: None)
    with pytest.raises(IntegrityError) as caught:
        selftest.run(64)
    assert caught.value.code in ("self-test", "output-out-of-range")
