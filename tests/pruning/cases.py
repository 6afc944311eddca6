"""Reference networks with the values of every scorer, computed apart from this project's code."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruning import Evidence, prunable
from pruning.batches import Batch
from pruning.evidence import Scores

REFERENCE = json.loads((Path(__file__).parents[1] / "vectors" / "scorers.json").read_text())
MLP = REFERENCE["mlp (eval mode, mean cross-entropy, float64)"]
FLOW = REFERENCE["synflow (bias-free ReLU network, input of ones)"]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def reference_case(*sizes: int) -> Evidence:
    """The reference network and its six examples, cut into batches of `sizes`."""
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double().eval()
    model.load_state_dict({name: tensor(value) for name, value in MLP["state_dict"].items()})
    inputs, targets = tensor(MLP["inputs"]), torch.tensor(MLP["targets"])
    batches = list(zip(inputs.split(list(sizes)), targets.split(list(sizes)), strict=True))
    return Evidence(model, prunable(model), batches, loss)


def reference_value(start: str) -> Any:
    [key] = [key for key in MLP["values"] if key.startswith(start)]
    return MLP["values"][key]


def reference(start: str) -> Scores:
    return {name: tensor(value) for name, value in reference_value(start).items()}


def assert_scores(found: Scores, want: Scores, tolerance: float = 1e-10) -> None:
    assert list(found) == list(want)
    for name, score in found.items():
        torch.testing.assert_close(score, want[name], rtol=0, atol=tolerance)
