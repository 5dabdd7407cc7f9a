"""Where pre-trained weights come from, and their licence, as their own metadata say it."""

from __future__ import annotations

import importlib.metadata
import logging
from pathlib import Path

from huggingface_hub import ModelCard, try_to_load_from_cache

from soupray.core.ports import UNKNOWN, Origin

log = logging.getLogger(__name__)

CARD = "README.md"
"""The model card of a model of Hugging Face."""


def packaged_origin(name: str) -> Origin:
    """Return the origin of a model in this package: it has the package's licence.

    Args:
        name: of the model, as the spec writes it.
    """
    try:
        licence = importlib.metadata.metadata("soupray").json.get("license_expression")
    except importlib.metadata.PackageNotFoundError:  # a copy of the source
        licence = None
    if not isinstance(licence, str):
        return Origin(name=name)
    return Origin(name=name, licence=licence.lower(), read_from="the metadata of soupray")


def folder_origin(name: str, folder: Path) -> Origin:
    """Return the origin of a model in a folder: the folder's model card may name a licence.

    Args:
        name: of the model, as the spec writes it.
        folder: has the card, if there is one.
    """
    licence = _licence(folder / CARD)
    read_from = "" if licence == UNKNOWN else f"{CARD} in its folder"
    return Origin(name=name, licence=licence, read_from=read_from)


def hub_origin(hub: str, name: str) -> Origin:
    """Return the origin of a model of the hub. Its card is read if it is on this machine.

    Args:
        hub: name of the model on the hub.
        name: of the model, as the spec writes it.
    """
    try:
        card = try_to_load_from_cache(hub, CARD)
    except ValueError:  # of huggingface_hub: this cannot be the name of a model
        return Origin(name=name)
    licence = _licence(Path(card)) if isinstance(card, str) else UNKNOWN
    read_from = "" if licence == UNKNOWN else f"{CARD} of {hub}"
    return Origin(name=name, hub=hub, licence=licence, read_from=read_from)


def _licence(card: Path) -> str:
    """Return what a model card names as the licence, or UNKNOWN."""
    if not card.is_file():
        return UNKNOWN
    try:
        data = ModelCard.load(card).data
    except Exception as error:  # noqa: BLE001 - somebody wrote it: it may be any text
        log.warning(f"{card}: its licence cannot be read ({type(error).__name__}).")
        return UNKNOWN
    said = data.get("license")
    return said if isinstance(said, str) and said.strip() else UNKNOWN
