"""Chooses the engine that a site's settings name, and the model that it runs."""

from __future__ import annotations

from dicom_node.core.settings import Settings

from .clear import PlaintextEngine
from .crypten_engine.hospital import CryptenEngine
from .dealt import DealtEngine
from .engine import Engine
from .models import SHIPPED, ModelCard, ModelStore


def site_store(settings: Settings) -> ModelStore:
    """Open the site's model store; the shipped models stand in until the first one is installed."""
    own = settings.site.state_dir / "models"
    store = ModelStore(own, settings.inference.trusted_publishers)
    return store if store.versions() else ModelStore(SHIPPED, settings.inference.trusted_publishers)


def site_card(settings: Settings) -> ModelCard:
    """Return the verified card of the model in use.

    Raises
    ------
    ConfigError
        `inference.model` names no installed model, or none is active.
    IntegrityError
        The card, its signature or its weights were altered.
    """
    store = site_store(settings)
    return store.card(settings.inference.model or store.active())


def open_engine(settings: Settings, card: ModelCard) -> Engine:
    """Make the engine of `inference.engine` for a model.

    Raises
    ------
    ConfigError
        The plaintext engine is wanted where the weights are not, or crypten where it is not installed.
    """
    if settings.inference.engine == "plaintext":
        return PlaintextEngine(card.suffix, site_store(settings).weights(card.version))
    encrypted = CryptenEngine if settings.inference.engine == "crypten" else DealtEngine
    return encrypted(card, settings.inference, settings.site.state_dir / "bundles")
