"""A bundle's manifest proves what was dealt; the hospital alone can read its seed, and for that manifest alone."""

from __future__ import annotations

import dataclasses

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.x448 import X448PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.core import tls
from dicom_node.core.errors import ConfigError, ProtocolError
from dicom_node.core.pki import Authority, self_signed
from secure_infer.protocol.manifest import Manifest, Signer, largest_signed, verified
from secure_infer.protocol.seal import SEALED_BYTES, seal, unseal
from tests.secure_infer.small_dealer import DEALER_KEY, SEALING_KEY, SIGNER

MANIFEST = Manifest(b"B" * 16, b"m" * 32, b"p" * 32, b"h" * 32, b"o" * 32, b"x" * 32, b"i" * 16, (b"1" * 32, b"2" * 32))
SIGNED = SIGNER.sign(MANIFEST)
SEALED = seal(b"e" * 32, SEALING_KEY.public_key().public_bytes_raw(), MANIFEST.digest)


@pytest.mark.parametrize(
    "key", [DEALER_KEY, ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)]
)
def test_a_manifest_signed_with_any_usual_key_reads_back(key):
    signer = Signer(self_signed("dealer", key), key)
    signed = signer.sign(MANIFEST)
    assert verified(signed, signer.fingerprint) == MANIFEST
    assert len(signed) <= largest_signed(len(MANIFEST.materials))


def test_the_dealers_certificate_files_sign(tmp_path):
    files = Authority(tmp_path).issue("dealer")
    signer = Signer.of(files)
    assert signer.fingerprint.hex() == tls.fingerprint(files.certificate)
    assert verified(signer.sign(MANIFEST), signer.fingerprint) == MANIFEST


def test_a_key_that_cannot_sign_is_named_at_the_start():
    with pytest.raises(ConfigError):
        Signer(b"certificate", X448PrivateKey.generate())


@given(st.integers(0, len(SIGNED) - 1), st.integers(1, 255))
def test_no_byte_of_a_signed_manifest_can_be_changed(position, difference):
    altered = bytearray(SIGNED)
    altered[position] ^= difference
    with pytest.raises(ProtocolError):
        verified(bytes(altered), SIGNER.fingerprint)


@given(st.integers(0, len(SIGNED) - 1))
def test_a_truncated_manifest_is_refused(length):
    with pytest.raises(ProtocolError):
        verified(SIGNED[:length], SIGNER.fingerprint)


def test_another_dealers_signature_is_refused():
    other = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(ProtocolError) as caught:
        verified(Signer(self_signed("other", other), other).sign(MANIFEST), SIGNER.fingerprint)
    assert caught.value.code == "manifest-signature"


@pytest.mark.parametrize("field", [one.name for one in dataclasses.fields(Manifest)])
def test_manifests_that_differ_in_any_field_have_different_digests(field):
    value = getattr(MANIFEST, field)
    other = (b"1" * 32, b"3" * 32) if field == "materials" else b"z" * len(value)
    changed = dataclasses.replace(MANIFEST, **{field: other})
    assert changed.digest != MANIFEST.digest
    with pytest.raises(ProtocolError) as caught:
        changed.require(**{field: value})
    assert caught.value.code == "wrong-bundle"


def test_a_sealed_seed_reads_back_and_is_not_the_same_twice():
    assert unseal(SEALED, SEALING_KEY, MANIFEST.digest) == b"e" * 32
    assert len(SEALED) == SEALED_BYTES
    assert seal(b"e" * 32, SEALING_KEY.public_key().public_bytes_raw(), MANIFEST.digest) != SEALED


@given(st.integers(0, SEALED_BYTES - 1), st.integers(1, 255))
def test_no_byte_of_a_sealed_seed_can_be_changed(position, difference):
    altered = bytearray(SEALED)
    altered[position] ^= difference
    # X25519 ignores the highest bit of a public key, but the key derivation does not.
    with pytest.raises(ProtocolError) as caught:
        unseal(bytes(altered), SEALING_KEY, MANIFEST.digest)
    assert caught.value.code == "seed-unreadable"


def test_a_seed_sealed_to_another_key_or_for_another_manifest_cannot_be_read():
    with pytest.raises(ProtocolError):
        unseal(SEALED, X25519PrivateKey.generate(), MANIFEST.digest)
    with pytest.raises(ProtocolError):
        unseal(SEALED, SEALING_KEY, dataclasses.replace(MANIFEST, model=b"z" * 32).digest)


def test_a_public_key_with_which_all_secrets_are_equal_is_refused():
    with pytest.raises(ProtocolError) as caught:
        seal(b"e" * 32, bytes(32), MANIFEST.digest)
    assert caught.value.code == "sealing-key"
