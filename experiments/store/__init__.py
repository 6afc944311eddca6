"""Artefacts addressed by what determines them; `python -m experiments.store` shows, checks and removes them."""

from experiments.store.artefacts import Artefact, Store
from experiments.store.manifest import FORMAT, identity_key

__all__ = ["FORMAT", "Artefact", "Store", "identity_key"]
