"""Networks on disk: weights, of masked tensors only what is kept, the masks they were trained under, and a history."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from experiments.configuration.targets import instantiate
from experiments.store import Artefact
from pruning import Masks
from pruning.errors import ArtefactError

WEIGHTS, MASKS, HISTORY = "weights.safetensors", "masks.safetensors", "history.json"
POINT = "point.safetensors"
ADAPTATION, ADAPTED = "adaptation.safetensors", "adaptation.json"
"""What an adaptation has trained, and how; of one that is not in the weights the former is a part of the network."""

NO_STEPS = {"steps": 0, "position": 0, "epoch_steps": 1}


@dataclass(frozen=True)
class Search:
    """How an adaptation was found: its support, and its learning rate.

    Attributes:
        rates: learning rates that were tried, each with its validation metric; None: the training diverged.
        others: keys of the networks that were not chosen.
        seconds: of all trainings that were tried, the chosen one too.
        support_seconds: of the choice of the support, with a training that it takes; None without one.
    """

    rates: tuple[tuple[float, float | None], ...]
    others: tuple[str, ...]
    seconds: float
    support_seconds: float | None


@dataclass(frozen=True)
class Network:
    """Weights, and the masks that hold from now on; both on disk.

    `untrained`: nothing has followed the masks, so that the weights, and their history, are those of the network that
    was pruned: half a gigabyte a level is not copied.
    `search`: how an adaptation was found.
    """

    weights: Artefact
    masks: Artefact | None = None
    untrained: bool = False
    search: Search | None = None

    @property
    def fields(self) -> frozenset[str]:
        """Fields of the configuration that its key holds."""
        return self.weights.fields | (frozenset() if self.masks is None else self.masks.fields)

    @property
    def key(self) -> str:
        """Key of its weights, and of its masks where these are another artefact."""
        if self.masks is None or self.masks == self.weights:
            return self.weights.key
        return f"{self.weights.key}+{self.masks.key}"

    @property
    def history(self) -> dict[str, Any]:
        """Epochs and seconds of its training, and in total since the initialisation; threads; versions."""
        found: dict[str, Any] = self.weights.json(HISTORY)
        return found | {"epochs": 0.0, "seconds": 0.0, "first_loss": None, "history": []} if self.untrained else found

    @property
    def adapted(self) -> dict[str, Any] | None:
        """How it was adapted; None where it was trained otherwise."""
        return None if self.untrained or not self.weights.has(ADAPTED) else self.weights.json(ADAPTED)

    def stored_bytes(self, model: nn.Module) -> int:
        """Bytes in files of its kept weights, of everything else in `model`, and of its masks."""
        held = Masks.load(self.weights.file(MASKS)) if self.weights.has(MASKS) else None
        masks, parameters = self.load_masks(), dict(model.named_parameters())
        if masks is None:
            return self.weights.size(WEIGHTS)
        assert self.masks is not None
        removed = 0  # of what is in the file
        for name, mask in masks.items():
            there = mask.numel() if held is None else int(held[name].sum())
            removed += (there - int(mask.sum())) * parameters[name].element_size()
        return self.weights.size(WEIGHTS) - removed + self.masks.size(MASKS)

    def load_masks(self) -> Masks | None:
        """The masks, on the CPU."""
        return None if self.masks is None else Masks.load(self.masks.file(MASKS))


def load(model: nn.Module, network: Network) -> nn.Module:
    """`model` with the weights of `network`, removed ones zero, and what was trained beside them, on the CPU."""
    model, adapted = load_weights(model, network), network.adapted
    if adapted is None or adapted["method"] is None:
        return model
    attached = instantiate("adaptation", adapted["method"]).attach(model, network.load_masks())
    attached.read(network.weights.file(ADAPTATION))
    found: nn.Module = attached.model
    return found


def load_weights(model: nn.Module, network: Network) -> nn.Module:
    """`model` with the weights of `network` alone, without an adaptation that is not in them."""
    state = load_file(network.weights.file(WEIGHTS))
    if network.weights.has(MASKS):
        held = Masks.load(network.weights.file(MASKS))
        for name, mask in held.items():
            state[name] = torch.zeros(mask.shape, dtype=state[name].dtype).masked_scatter_(mask, state[name])
    state |= {name: state[first] for name, first in _tied(model).items() if first in state}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ArtefactError(f"{network.weights.folder}: does not fit the model ({error}); remove it") from error
    masks = network.load_masks()
    if masks is not None:
        masks.apply_(model)
    return model


def save(
    folder: Path,
    model: nn.Module,
    masks: Masks | None,
    length: Mapping[str, int],
    epochs: Sequence[Mapping[str, Any]],
    start: Network | None,
    conditions: Mapping[str, Any],
    diverged: int | None = None,
    first_loss: float | None = None,
) -> None:
    """Save weights (tied ones once, of masked tensors only the kept ones), masks and history.

    `epochs` are those of this training, as plain data; `length` its optimizer steps, their number in an epoch, and the
    position in the order of the data at which it ended; `conditions` those of `experiments.running.conditions`;
    `diverged` the step from which its loss was not finite; `first_loss` the mean loss of its first step.
    """
    tied = _tied(model)
    state: dict[str, Tensor] = {
        name: value.detach().cpu().clone() for name, value in model.state_dict().items() if name not in tied
    }
    if masks is not None:
        masks.to("cpu").save(folder / MASKS)
        state |= {name: state[name][mask.cpu()] for name, mask in masks.items()}
    try:
        save_file(state, folder / WEIGHTS)
    except SafetensorError as error:  # the library's own word for a full disk
        raise OSError(f"{folder / WEIGHTS}: cannot be written ({error})") from error
    history = [{key: finite(value) for key, value in epoch.items()} for epoch in epochs]
    before = {"total_epochs": 0, "total_seconds": 0.0} if start is None else start.history
    passes, seconds = length["steps"] / length["epoch_steps"], sum(epoch["seconds"] for epoch in epochs)
    record = {
        "epochs": passes,
        "total_epochs": before["total_epochs"] + passes,
        "position": length["position"],
        "seconds": round(seconds, 3),
        "total_seconds": round(before["total_seconds"] + seconds, 3),
        **conditions,
        "diverged": diverged,
        "first_loss": finite(first_loss),
        "history": history,
    }
    (folder / HISTORY).write_text(json.dumps(record, allow_nan=False))


def finite(value: float | None) -> float | None:
    """`value`, or None where it is not finite, which JSON cannot hold."""
    return value if value is not None and math.isfinite(value) else None


def _tied(model: nn.Module) -> dict[str, str]:
    """Further names of tied parameters → their first name."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            tied[name] = first[id(parameter)]
    return tied
