"""Artefacts addressed by what determines them; `python -m experiments.store` shows, checks and removes them."""

from experiments.store.artefacts import FORMAT, Artefact, Store, identity_key

__all__ = ["FORMAT", "Artefact", "Store", "identity_key"]
