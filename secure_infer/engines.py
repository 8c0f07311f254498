"""Chooses the engine that a site's settings name."""

from __future__ import annotations

from dicom_node.core.settings import Settings

from .clear import PlaintextEngine
from .crypten_engine.hospital import CryptenEngine
from .dealt import DealtEngine
from .engine import Engine
from .models import ModelCard
from .site_models import site_store


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
