"""Makes bundles (no I/O; randomness is passed in); `secure_infer.dealing` hands each half to its owner, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .deal import materials
from .manifest import Manifest, Signer, hashed
from .messages import Vector
from .plan import Plan
from .prg import Context, bundle_name, material_key, weight_mask_id, weight_mask_seed
from .seal import seal

SEED_BYTES = 32


@dataclass(frozen=True)
class Order:
    """What a bundle is dealt for.

    Attributes
    ----------
    model : bytes
        SHA-256 of the model card.
    hospital, party : bytes
        Fingerprints of the certificates of party 0 and party 1.
    sealing_key : bytes
        Party 0's X25519 public key.
    plan : Plan
        The checked program.
    """

    model: bytes
    hospital: bytes
    party: bytes
    sealing_key: bytes
    plan: Plan


@dataclass(frozen=True)
class Dealt:
    """What the dealer keeps of a bundle besides party 1's material: no seed."""

    bundle: bytes
    sealed: bytes
    signed: bytes


class Dealing:
    """Makes bundles.

    Parameters
    ----------
    master : bytes
        The dealer's only lasting secret, 32 bytes: the weight masks are derived from it.
    signer : Signer
        Signs the manifests.
    random : callable
        Returns as many unpredictable bytes as asked for, e.g. `os.urandom`.
    """

    def __init__(self, master: bytes, signer: Signer, random: Callable[[int], bytes]) -> None:
        self._master = master
        self._random = random
        self.signer = signer

    def weight_mask_seed(self, order: Order) -> bytes:
        """Derive the seed of b, which party 1 gets with its half."""
        return weight_mask_seed(self._master, order.model, order.hospital, order.party)

    def deal(self, order: Order, keep: Callable[[Vector], object]) -> Dealt:
        """Make one bundle.

        Parameters
        ----------
        keep : callable
            Takes party 1's material, one layer after the other.
        """
        seed, mask_seed = self._random(SEED_BYTES), self.weight_mask_seed(order)
        name = bundle_name(seed)
        context = Context(name, order.model, order.hospital, order.party)
        key, hashes = material_key(mask_seed, name), []
        for material in materials(order.plan, seed, context, mask_seed):
            hashes.append(hashed(key, material))
            keep(material)
        manifest = Manifest(
            name,
            order.model,
            order.plan.digest,
            order.hospital,
            order.party,
            order.sealing_key,
            weight_mask_id(mask_seed),
            tuple(hashes),
        )
        return Dealt(name, seal(seed, order.sealing_key, manifest.digest), self.signer.sign(manifest))
