"""Dense, prune, recover, evaluate: each idempotent, its artefact addressed by what determines it.

Every identity holds the key of what it starts from, so a chain of keys is the history of a network; scorers that share
a seed share the dense network, and a repeated command finds everything made.
"""

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.configuration import built, short_name
from experiments.seeding import generator
from experiments.setting import Setting
from experiments.store import Artefact
from experiments.training import evaluate as measured
from experiments.training import train
from pruning import Evidence, Masks
from pruning import prune as selected
from pruning.cost import cost
from pruning.errors import ArtefactError
from pruning.evidence import Scores

_WEIGHTS, _MASKS, _HISTORY, _ROW = "weights.safetensors", "masks.safetensors", "history.json", "row.json"


@dataclass(frozen=True)
class Network:
    """Weights, and the masks that hold from now on; both on disk."""

    weights: Artefact
    masks: Artefact | None = None

    @property
    def key(self) -> str:
        """What identifies it."""
        return self.weights.key if self.masks is None else f"{self.weights.key}+{self.masks.key}"

    def load_masks(self) -> Masks | None:
        """The masks, on the CPU."""
        return None if self.masks is None else Masks.load(self.masks.file(_MASKS))


@dataclass(frozen=True)
class Level:
    """Where in a run a network stands: its number, the round of its chain, the density of that round and of the end."""

    number: int
    round: int
    rounds: int
    density: float | None
    target: float | None


Scoring = Callable[[Network], Scores]


def initial(setting: Setting) -> Network:
    """The network at its initialisation."""
    identity = _part(setting, "model") | {"seed": setting.config["seed"]}

    def make(folder: Path) -> None:
        _save(folder, setting.new_model(), None, [], 0.0)

    return Network(setting.store.obtain("initial", identity, make))


def dense(setting: Setting) -> Network:
    """The network trained without masks; all scorers of a sweep share it."""
    start = initial(setting)
    epochs = setting.config["training"]["epochs"]
    identity = {"from": start.key, "epochs": epochs} | _training_part(setting)
    recipe = setting.recipe(epochs, setting.learning_rate)
    return Network(_trained(setting, "dense", identity, start, None, recipe, "dense"))


def score(setting: Setting, network: Network) -> Scores:
    """The scores of `network` under its masks, for the weights that may be pruned."""
    config = setting.config["scoring"]
    model = load(setting, network).to(setting.accelerator.device)
    model.train(config["mode"] == "train")
    examples = setting.splits.train
    count = len(examples) if config["examples"] is None else min(config["examples"], len(examples))
    chosen = torch.randperm(len(examples), generator=generator(setting.config["seed"], "scoring"))[:count]
    batches = [
        (examples.inputs[part].to(setting.accelerator.device), examples.targets[part].to(setting.accelerator.device))
        for part in chosen.split(config["batch_size"])
    ]
    scorer = built("scorer", setting.config["scorer"])
    return scorer(Evidence(model, setting.prunable(model), batches, _cross_entropy))


def prune(setting: Setting, network: Network, density: float | None, scoring: Scoring) -> Network:
    """`network` with masks of `density`, within those it has."""
    identity = {
        "from": network.key,
        "density": density,
        "seed": setting.config["seed"],
        "data": setting.config["data"]["load"],
    } | _part(setting, "scorer", "scoring", "granularity", "allocation", "include", "exclude")

    def make(folder: Path) -> None:
        granularity = built("granularity", setting.config["granularity"])
        allocation = built("allocation", setting.config["allocation"])
        masks = selected(scoring(network), density, granularity, allocation, within=network.load_masks())
        masks.to("cpu").save(folder / _MASKS)

    return Network(network.weights, setting.store.obtain("masks", identity, make))


def recover(setting: Setting, network: Network) -> Network:
    """`network` trained under its masks as `recovery` says: fine-tuned, retrained, or only masked (0 epochs)."""
    config = setting.config["recovery"]
    how = {"epochs": config["epochs"], "learning_rate schedule": config["learning_rate"]}
    identity = {"from": network.key, "recovery": how} | _training_part(setting)
    last = config["learning_rate"] == "last"
    factor = setting.last_learning_rate if last else setting.learning_rate
    # fine-tuning goes on where the order of the data ended; a replay sees the data as training saw them
    first_epoch = setting.config["training"]["epochs"] if last else 0
    recipe = setting.recipe(config["epochs"], factor, first_epoch)
    title = f"{short_name(setting.config['scorer'])}, recovery"
    weights = _trained(setting, "recovered", identity, network, network.load_masks(), recipe, title)
    return Network(weights, network.masks)


def evaluate(setting: Setting, network: Network, level: Level, dense_network: Network) -> dict[str, Any]:
    """The row of `network`: asked and got density, costs, validation and test. Test data are seen once a level."""
    identity = {"from": network.key, "data": setting.config["data"]["load"]} | _part(setting, "include", "exclude")

    def make(folder: Path) -> None:
        model = load(setting, network).to(setting.accelerator.device)
        held = network.load_masks()
        masks = Masks.dense(setting.prunable(model)).to("cpu") if held is None else held
        if not masks.agree(model):
            raise ArtefactError(f"{network.weights.folder}: removed weights are not zero; remove it and repeat")
        example = setting.splits.test.inputs[:1].to(setting.accelerator.device)
        counts = cost(model, masks, example)
        table = masks.table()
        smallest = min(table, key=lambda line: line.density)
        validation, test = measured(model, setting.splits.validation), measured(model, setting.splits.test)
        row = {
            "density": masks.density,
            "prunable": counts.prunable,
            "kept": counts.kept,
            "parameters": counts.parameters,
            "nonzero": counts.nonzero,
            "dense_macs": counts.dense_macs,
            "macs": counts.macs,
            "smallest_density": smallest.density,
            "smallest_layer": smallest.name,
            "emptied": list(masks.emptied),
            "layers": [asdict(line) for line in table],
            "bytes": sum(network.weights.file(n).stat().st_size for n in (_WEIGHTS, _MASKS) if _has(network, n)),
            "validation_accuracy": validation.accuracy,
            "validation_loss": _finite(validation.loss),
            "test_accuracy": test.accuracy,
            "test_loss": _finite(test.loss),
        }
        (folder / _ROW).write_text(json.dumps(row, allow_nan=False))

    row = setting.store.obtain("rows", identity, make).json(_ROW)
    history = network.weights.json(_HISTORY)
    return {
        "scorer": short_name(setting.config["scorer"]),
        "model": short_name(setting.config["model"]),
        "data": setting.config["data"]["name"],
        "when": setting.config["when"],
        "seed": setting.config["seed"],
        "level": level.number,
        "round": level.round,
        "rounds": level.rounds,
        "requested_density": level.density if level.density is not None else row["density"],
        "target_density": level.target if level.target is not None else row["density"],
        **row,
        "epochs": history["epochs"],
        "seconds": history["seconds"],
        "threads": history["threads"],
        "versions": history["versions"],
        "dense": dense_network.key,
        "network": network.key,
    }


def load(setting: Setting, network: Network) -> nn.Module:
    """The model of `network`, removed weights zero, on the CPU."""
    model = setting.new_model()
    state = load_file(network.weights.file(_WEIGHTS))
    if _has(network, _MASKS):
        held = Masks.load(network.weights.file(_MASKS))
        for name, mask in held.items():
            state[name] = torch.zeros(mask.shape, dtype=state[name].dtype).masked_scatter_(mask, state[name])
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ArtefactError(f"{network.weights.folder}: does not fit the model ({error}); remove it") from error
    masks = network.load_masks()
    if masks is not None:
        masks.apply_(model)
    return model


def _trained(
    setting: Setting, kind: str, identity: dict[str, Any], start: Network, masks: Masks | None, recipe: Any, title: str
) -> Artefact:
    def make(folder: Path) -> None:
        model = load(setting, start)
        began = time.perf_counter()
        progress = setting.progress(f"seed {setting.config['seed']}, {title}")
        history = train(
            model, setting.splits.train, setting.splits.validation, recipe, setting.accelerator, masks, progress
        )
        _save(folder, model.to("cpu"), masks, [asdict(epoch) for epoch in history], time.perf_counter() - began)

    return setting.store.obtain(kind, identity, make)


def _save(folder: Path, model: nn.Module, masks: Masks | None, history: list[dict[str, Any]], seconds: float) -> None:
    """Weights, of masked tensors only what is kept; the masks themselves; and how it came about."""
    state: dict[str, Tensor] = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    if masks is not None:
        masks.to("cpu").save(folder / _MASKS)
        state |= {name: state[name][mask.cpu()] for name, mask in masks.items()}
    try:
        save_file(state, folder / _WEIGHTS)
    except SafetensorError as error:  # the library's own word for a full disk
        raise OSError(f"{folder / _WEIGHTS}: cannot be written ({error})") from error
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for epoch in history:
        epoch["loss"] = _finite(epoch["loss"])
    record = {
        "epochs": len(history),
        "seconds": round(seconds, 3),
        "threads": torch.get_num_threads(),
        "versions": versions,
        "history": history,
    }
    (folder / _HISTORY).write_text(json.dumps(record, allow_nan=False))


def _training_part(setting: Setting) -> dict[str, Any]:
    """What every training depends on, besides where it starts and how long it goes on."""
    training = {key: value for key, value in setting.config["training"].items() if key != "epochs"}
    data = {key: setting.config["data"].get(key) for key in ("load", "augment")}
    seed = setting.config["seed"]
    return {"training": training, "data": data, "seed": seed} | _part(setting, "optimizer", "learning_rate")


def _part(setting: Setting, *names: str) -> dict[str, Any]:
    return {name: setting.config[name] for name in names}


def _cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _has(network: Network, name: str) -> bool:
    return (network.weights.folder / name).exists()


def _finite(value: float) -> float | None:
    """A diverged network has no loss; JSON has no word for it."""
    return value if value - value == 0 else None
