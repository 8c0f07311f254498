"""A throw-away certificate authority (RFC 5280, ECDSA P-256) for demonstrations and tests; sites bring their own.

It issues certificates and revokes them: the list it writes is the one that `tls.crl` names.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from .settings import TlsSettings

LIFETIME = datetime.timedelta(days=30)
#: Clocks differ a little: a certificate is valid from somewhat before it was made.
SKEW = datetime.timedelta(minutes=5)


class Authority:
    """Signs certificates; its own key stays in memory and ends with the process.

    Parameters
    ----------
    folder : Path
        Takes ``ca.pem``, ``crl.pem`` once `revoke` was called, and, for each certificate, ``<name>.pem`` and
        ``<name>.key`` (mode 0600).
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("VeilRay throw-away authority")
        now = datetime.datetime.now(datetime.UTC)
        self._certificate = (
            _builder(self._name, self._name, self._key.public_key(), now - SKEW, now + LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self._revoked: list[x509.RevokedCertificate] = []
        self.path = folder / "ca.pem"
        self.path.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def issue(
        self, name: str, hosts: tuple[str, ...] = ("localhost", "127.0.0.1"), *, lifetime: datetime.timedelta = LIFETIME
    ) -> TlsSettings:
        """Make a key and its certificate, good for both ends of a connection.

        Parameters
        ----------
        name : str
            Common name, and the name of the two files.
        hosts : tuple of str
            Host names and addresses in ``subjectAltName``.
        lifetime : timedelta
            From now on; a negative one makes a certificate that has expired already.

        Returns
        -------
        TlsSettings
            Paths of certificate, key and authority.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        end = datetime.datetime.now(datetime.UTC) + lifetime
        start = end - LIFETIME - SKEW
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            _builder(_name(name), self._name, key.public_key(), start, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(issuer_key, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        paths = TlsSettings(certificate=self._folder / f"{name}.pem", key=self._folder / f"{name}.key", ca=self.path)
        paths.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        descriptor = os.open(paths.key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secret)
        return paths

    def revoke(self, *certificates: Path, lifetime: datetime.timedelta = LIFETIME) -> Path:
        """Write ``crl.pem``: the list of all certificates revoked so far, with these added.

        Parameters
        ----------
        certificates : Path
            PEM files that `issue` wrote; without any, the list is only renewed.
        lifetime : timedelta
            From now until the list expires; a negative one makes a list that has expired already.

        Returns
        -------
        Path
            The list, replaced in one step: a reader never sees half of it.
        """
        now = datetime.datetime.now(datetime.UTC)
        for path in certificates:
            serial = x509.load_pem_x509_certificate(path.read_bytes()).serial_number
            self._revoked.append(x509.RevokedCertificateBuilder(serial, now).build())
        end = now + lifetime
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._name)
            .last_update(end - LIFETIME - SKEW)
            .next_update(end)
        )
        for one in self._revoked:
            builder = builder.add_revoked_certificate(one)
        signed = builder.sign(self._key, hashes.SHA256())
        whole = self._folder / "crl.pem.new"
        whole.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        return whole.rename(self._folder / "crl.pem")


def self_signed(name: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | Ed25519PrivateKey) -> bytes:
    """Make a certificate, in DER form, that nobody vouches for: where its fingerprint alone is looked at."""
    now, public = datetime.datetime.now(datetime.UTC), key.public_key()
    algorithm = None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256()
    signed = _builder(_name(name), _name(name), public, now - SKEW, now + LIFETIME).sign(key, algorithm)
    return signed.public_bytes(serialization.Encoding.DER)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey | Ed25519PublicKey,
    start: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
