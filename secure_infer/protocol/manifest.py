"""What a bundle is and is for, signed by the dealer: both parties hold the same manifest, so the same bundle.

A manifest is its version (1 byte), the number of materials (2) and the fields of `Manifest`. Signed, it is followed by
the length of the dealer's certificate (2), the certificate (DER) and the signature, so it proves by itself what was
dealt, to whoever knows the certificate's fingerprint.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass, fields
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dicom_node.core import tls
from dicom_node.core.errors import ConfigError, ProtocolError
from dicom_node.core.settings import TlsSettings

from .messages import Vector

#: Keeps the signature from meaning anything elsewhere: the same key also signs TLS handshakes.
SIGNED: Final = b"VeilRay bundle manifest 1\n"
VERSION: Final = 1
HEADER: Final = struct.Struct(">BH16s32s32s32s32s32s16s")
HASH_BYTES: Final = 32
LENGTH: Final = struct.Struct(">H")
#: Certificates and signatures (4096-bit RSA) are shorter.
LARGEST_CERTIFICATE, LARGEST_SIGNATURE = 4096, 512
PSS: Final = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
SHA256: Final = hashes.SHA256()

SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | Ed25519PrivateKey


@dataclass(frozen=True)
class Manifest:
    """All that both parties must agree on about a bundle; nothing in it is secret.

    Attributes
    ----------
    bundle : bytes
        Its name, 16 bytes.
    model, program : bytes
        SHA-256 of the model card and of the program's JSON.
    hospital, party : bytes
        Fingerprints of the two certificates.
    sealing_key : bytes
        Party 0's X25519 public key, to which the seed is sealed.
    weight_mask_id : bytes
        Which b the material belongs to, 16 bytes.
    materials : tuple of bytes
        Keyed hash of party 1's material, one for each layer that has some, in order; see `hashed`.
    """

    bundle: bytes
    model: bytes
    program: bytes
    hospital: bytes
    party: bytes
    sealing_key: bytes
    weight_mask_id: bytes
    materials: tuple[bytes, ...]

    def encode(self) -> bytes:
        """Write all fields."""
        names = (getattr(self, one.name) for one in fields(self)[:-1])
        return HEADER.pack(VERSION, len(self.materials), *names) + b"".join(self.materials)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the manifest: what party 0 and party 1 compare."""
        return hashlib.sha256(self.encode()).digest()

    def require(self, **expected: bytes) -> None:
        """Compare fields with what this side knows.

        Raises
        ------
        ProtocolError
            One differs (``wrong-bundle``).
        """
        if any(getattr(self, name) != value for name, value in expected.items()):
            raise ProtocolError("the bundle was dealt for others, or for another model", code="wrong-bundle")


def hashed(key: bytes, material: Vector) -> bytes:
    """Hash a layer's material (HMAC-SHA-256) under the bundle's `prg.material_key`, which party 0 must not know."""
    return hmac.digest(key, material, "sha256")


def largest_signed(materials: int) -> int:
    """Return the greatest length of a signed manifest with so many materials, bytes."""
    return HEADER.size + HASH_BYTES * materials + LENGTH.size + LARGEST_CERTIFICATE + LARGEST_SIGNATURE


class Signer:
    """The dealer's certificate and its key.

    Parameters
    ----------
    certificate : bytes
        In DER form.
    key : SigningKey
        The certificate's private key.

    Raises
    ------
    ConfigError
        The key is of a kind that cannot sign (``tls-files``).
    """

    def __init__(self, certificate: bytes, key: SigningKey) -> None:
        if not isinstance(key, SigningKey) or len(certificate) > LARGEST_CERTIFICATE:
            raise ConfigError("the dealer's key must be ECDSA, RSA or Ed25519 to sign bundles", code="tls-files")
        self.fingerprint = hashlib.sha256(certificate).digest()
        self.certificate = certificate
        self._key = key

    @classmethod
    def of(cls, settings: TlsSettings) -> Signer:
        """Read the files that the dealer also shows to its peers."""
        certificate = tls.certificate(settings.certificate)
        try:
            key = serialization.load_pem_private_key(settings.key.read_bytes(), password=None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError(f"cannot use the private key {settings.key}", code="tls-files") from error
        return cls(certificate, key)  # type: ignore[arg-type]  # other kinds are refused above

    def sign(self, manifest: Manifest) -> bytes:
        """Return the signed manifest."""
        content = manifest.encode()
        if isinstance(self._key, ec.EllipticCurvePrivateKey):
            signature = self._key.sign(SIGNED + content, ec.ECDSA(SHA256))
        elif isinstance(self._key, rsa.RSAPrivateKey):
            signature = self._key.sign(SIGNED + content, PSS, SHA256)
        else:
            signature = self._key.sign(SIGNED + content)
        return content + LENGTH.pack(len(self.certificate)) + self.certificate + signature


def verified(signed: bytes, dealer: bytes) -> Manifest:
    """Read a signed manifest.

    Parameters
    ----------
    dealer : bytes
        Fingerprint of the certificate that must have signed.

    Raises
    ------
    ProtocolError
        It is malformed (``malformed-manifest``), or not signed by that certificate's key (``manifest-signature``).
    """
    try:
        version, count, *names = HEADER.unpack_from(signed)
        end = HEADER.size + HASH_BYTES * count
        (length,) = LENGTH.unpack_from(signed, end)
    except struct.error as error:
        raise ProtocolError("the dealer's manifest is truncated", code="malformed-manifest") from error
    start = end + LENGTH.size
    content, certificate, signature = signed[:end], signed[start : start + length], signed[start + length :]
    if version != VERSION:
        raise ProtocolError("the dealer's manifest is of another version", code="malformed-manifest")
    if hashlib.sha256(certificate).digest() != dealer or not _holds(certificate, signature, SIGNED + content):
        raise ProtocolError("the manifest is not signed by the agreed dealer", code="manifest-signature")
    materials = tuple(content[at : at + HASH_BYTES] for at in range(HEADER.size, end, HASH_BYTES))
    bundle, model, program, hospital, party, sealing_key, weight_mask_id = names
    return Manifest(bundle, model, program, hospital, party, sealing_key, weight_mask_id, materials)


def _holds(certificate: bytes, signature: bytes, content: bytes) -> bool:
    key = x509.load_der_x509_certificate(certificate).public_key()
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, content, ec.ECDSA(SHA256))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, content, PSS, SHA256)
        elif isinstance(key, Ed25519PublicKey):
            key.verify(signature, content)
        else:
            return False
    except InvalidSignature:
        return False
    return True
