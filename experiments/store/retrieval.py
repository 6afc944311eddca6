"""Load the masks and weights that a row describes, out of the store that its run used."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from experiments.store import Artefact
from experiments.store.networks import MASKS, WEIGHTS, Network, load
from pruning import Masks
from pruning.errors import ArtefactError


def masks_of(row: Mapping[str, Any], store: Path | None = None) -> Masks | None:
    """The masks of a row's network; None where it is dense.

    `store` is where its artefacts lie, by default where the run put them. Raises `ArtefactError` where they are gone.
    """
    path = mask_file(row, store)
    return None if path is None else Masks.load(path)


def mask_file(row: Mapping[str, Any], store: Path | None = None) -> Path | None:
    """The file with the masks of a row's network; see `masks_of`."""
    weights, masks = _keys(row)
    artefact = _artefact(masks or weights, row, store)
    return artefact.file(MASKS) if masks or artefact.has(MASKS) else None


def kept_weights(row: Mapping[str, Any], store: Path | None = None) -> dict[str, Tensor]:
    """The weights of a row's network that are kept, of each of its prunable tensors, as vectors; see `masks_of`."""
    weights, masks = _keys(row)
    artefact = _artefact(weights, row, store)
    state = load_file(artefact.file(WEIGHTS))
    now = masks_of(row, store) if masks else None
    held = Masks.load(artefact.file(MASKS)) if now is not None and artefact.has(MASKS) else None
    found = {}
    for layer in row["layers"]:
        name = str(layer["name"])
        if name not in state:
            raise ArtefactError(f"{artefact.folder}: has no weights {name}, which run {row['run']} names: repeat it")
        values = state[name]
        if now is not None and held is None:
            values = values[now[name]]
        elif now is not None and held is not None:  # stored is what was kept then, which may be more
            values = values[now[name][held[name]]]
        found[name] = values.flatten().float()
    return found


def network_of(row: Mapping[str, Any], model: nn.Module, store: Path | None = None) -> nn.Module:
    """`model` with the weights of a row's network, removed ones zero; see `masks_of`."""
    weights, masks = _keys(row)
    held = _artefact(masks, row, store) if masks else None
    return load(model, Network(_artefact(weights, row, store), held))


def _keys(row: Mapping[str, Any]) -> tuple[str, str]:
    """Keys of the weights, and of the masks where these are another artefact ("" otherwise)."""
    if not isinstance(row.get("network"), str) or not isinstance(row.get("layers"), list):
        raise ArtefactError(f"run {row['run']}, level {row['level']}: does not name its network: repeat the run")
    weights, _, masks = row["network"].partition("+")
    return weights, masks


def _artefact(key: str, row: Mapping[str, Any], store: Path | None) -> Artefact:
    root = store or Path(str(row["config"].get("store", "runs/store")))
    for folder in sorted(root.glob(f"*/{key}")):
        return Artefact(folder.parent.name, key, folder)
    raise ArtefactError(
        f"{root}: holds no artefact {key} of run {row['run']}, level {row['level']}: name the store that has it by "
        "--store, or repeat the run"
    )
