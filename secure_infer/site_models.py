"""Which models a site has and which one answers: a pointer in the store that services look at between two studies."""

from __future__ import annotations

from pathlib import Path

from dicom_node.core.errors import ConfigError
from dicom_node.core.settings import Settings

from .models import SHIPPED, ModelCard, ModelStore


def own_folder(settings: Settings) -> Path:
    """Name the folder of the site's own models."""
    return settings.site.state_dir / "models"


def site_store(settings: Settings) -> ModelStore:
    """Open the site's model store; the shipped models stand in until the first one is installed."""
    store = ModelStore(own_folder(settings), settings.inference.trusted_publishers)
    return store if store.versions() else ModelStore(SHIPPED, settings.inference.trusted_publishers)


def version_in_use(settings: Settings) -> str:
    """Name the model that answers: the one that the settings pin, else the active one.

    Raises
    ------
    ConfigError
        None is active.
    """
    return settings.inference.model or site_store(settings).active()


def site_card(settings: Settings) -> ModelCard:
    """Return the verified card of the model in use.

    Raises
    ------
    ConfigError
        `inference.model` names no installed model, or none is active.
    IntegrityError
        The card, its signature or its weights were altered.
    """
    return site_store(settings).card(version_in_use(settings))


def install(settings: Settings, source: Path) -> ModelCard:
    """Verify a published model and put it into the site's own store; which one answers stays as it is.

    A hospital keeps the card alone, unless it infers in the clear. Where the shipped model answered so far, it is
    installed and activated first: the first model of one's own would else answer at once.

    Parameters
    ----------
    source : Path
        Folder of the version, by its name.

    Returns
    -------
    ModelCard
        As the store holds it, also where it was installed before.

    Raises
    ------
    IntegrityError
        Signature, card or weights are not what they should be.
    """
    own, clear = ModelStore(own_folder(settings), settings.inference.trusted_publishers), _in_the_clear(settings)
    if not own.versions():
        shipped = ModelStore(SHIPPED).active()
        own.install(SHIPPED / shipped, with_weights=clear)
        own.activate(shipped)
    if source.name not in own.versions():
        own.install(source, with_weights=clear)
    return own.card(source.name)


def activate(settings: Settings, version: str) -> None:
    """Make an installed version the one that answers, from each worker's next study on.

    Raises
    ------
    ConfigError
        It is not installed, or see `require_unpinned`.
    IntegrityError
        It was altered; the active version stays.
    """
    require_unpinned(settings)
    ModelStore(own_folder(settings), settings.inference.trusted_publishers).activate(version)


def require_unpinned(settings: Settings) -> None:
    """Make sure that the active model is the one that answers.

    Raises
    ------
    ConfigError
        `inference.model` pins a version, so that activating another would change nothing (``model-pinned``).
    """
    if settings.inference.model:
        raise ConfigError(
            f"inference.model pins {settings.inference.model}: take that line out of the settings, restart the workers",
            code="model-pinned",
        )


def _in_the_clear(settings: Settings) -> bool:
    return settings.inference.engine == "plaintext"
