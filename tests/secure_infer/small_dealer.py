"""What a dealer needs in tests: a certificate, a hospital's sealing key, and orders for small programs."""

from __future__ import annotations

import os
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from dicom_node.core.pki import self_signed
from secure_infer.protocol.dealer import Dealing, Order
from secure_infer.protocol.manifest import Signer
from secure_infer.protocol.plan import Plan

HOSPITAL, PARTY, MODEL = b"h" * 32, b"p" * 32, b"m" * 32
DEALER_KEY = Ed25519PrivateKey.from_private_bytes(b"d" * 32)
SIGNER = Signer(self_signed("dealer", DEALER_KEY), DEALER_KEY)
SEALING_KEY = X25519PrivateKey.from_private_bytes(b"s" * 32)
MASTER = b"k" * 32


def dealing(random: Callable[[int], bytes] = os.urandom, master: bytes = MASTER, signer: Signer = SIGNER) -> Dealing:
    return Dealing(master, signer, random)


def order(plan: Plan, model: bytes = MODEL, hospital: bytes = HOSPITAL, party: bytes = PARTY) -> Order:
    return Order(model, hospital, party, SEALING_KEY.public_key().public_bytes_raw(), plan)
